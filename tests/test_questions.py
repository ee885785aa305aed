"""Questions about parts of a row: exact sums over small tables, gaps of both kinds, imputation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import cnf
from cnf import ode
from cnf.ode import Status
from cnf.tables import Column, RowModel, Schema, explain
from cnf.tables.row_training import fit_rows, new_row_model

CODES = Schema(
    (
        Column("flag", "boolean"),
        Column("color", "categorical", categories=("p", "q", "r"), gaps="value"),
        Column("same", "constant", 4.0),
        Column("count", "integer", 0, 3),
    )
)
VALUES = ([0.0, 1.0], [0.0, 1.0, 2.0, torch.nan], [4.0], [0.0, 1.0, 2.0, 3.0])  # of each column
EVERY = torch.tensor(list(itertools.product(*VALUES)), dtype=torch.float64)
GAP = torch.nan


def _masks() -> Iterator[Tensor]:
    """Yield the sets of columns that vary."""
    bits = [False, True]
    return map(torch.tensor, itertools.product(bits, bits, [False], bits))


def _spread(model: RowModel) -> RowModel:
    """Return a model in double precision whose untrained network is far from independence."""
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model.in_double()


@pytest.fixture(scope="module")
def codes() -> RowModel:
    rng = np.random.default_rng(0)
    numbers = np.column_stack([rng.integers(0, len(each), 400) for each in VALUES]) * 1.0
    numbers[:, 2] = 4.0
    numbers[numbers[:, 1] == 3, 1] = np.nan
    return _spread(new_row_model(CODES, numbers, hidden=16, blocks=1))


def test_the_mass_of_what_is_asked_is_one_whatever_is_given(codes: RowModel) -> None:
    """For every split of the columns, with the others marginalised."""
    every = EVERY.nan_to_num(9.0)
    for given, gaps in itertools.product(_masks(), repeat=2):
        hidden = gaps & ~given & torch.tensor([True, False, True, True])  # where gaps are no value
        rows = torch.where(hidden, 9.0, every).unique(dim=0)
        mass = codes.log_prob(torch.where(rows == 9, GAP, rows), given=given).exp()
        keys = torch.where(given, rows, 0.0).unique(dim=0, return_inverse=True)[1]
        sums = torch.zeros(int(keys.max()) + 1).double().index_add(0, keys, mass)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_the_chain_rule_holds_where_what_is_given_comes_first(codes: RowModel) -> None:
    first = torch.tensor([True, True, False, False])
    log_first = codes.log_prob(torch.where(torch.arange(4) == 3, GAP, EVERY))
    log_rest = codes.log_prob(EVERY, given=first)
    torch.testing.assert_close(codes.log_prob(EVERY), log_first + log_rest)
    scores = codes.score(EVERY, given=first)
    torch.testing.assert_close(scores.log_prob, log_rest)
    torch.testing.assert_close(codes.score_draws(EVERY, given=first).log_prob, log_rest)
    parts = codes.parts(EVERY, given=first, max_batch=5)
    torch.testing.assert_close(parts.log_prob, log_rest)


def test_the_marginal_of_the_first_cell_is_its_sum_over_the_rest(codes: RowModel) -> None:
    alone = torch.tensor([[0.0, 0.0, 4.0, GAP], [1.0, 0.0, 4.0, GAP]]).double()
    joint = codes.log_prob(EVERY).exp()
    for row in alone:
        same = (EVERY[:, :2] == row[:2]).all(1)
        torch.testing.assert_close(codes.log_prob(row).exp(), joint[same].sum())


def test_rows_of_several_patterns_are_what_each_is_alone(codes: RowModel) -> None:
    generator = torch.Generator().manual_seed(0)
    hide, given = (torch.rand(EVERY.shape, generator=generator) < share for share in (0.3, 0.4))
    rows = torch.where(hide, GAP, EVERY)
    found = codes.log_prob(rows, given=given)
    each = [codes.log_prob(row, given=mask) for row, mask in zip(rows, given, strict=True)]
    torch.testing.assert_close(found, torch.stack(each))
    nested = codes.log_prob(rows[:, None], given=given[:3, None, :][:, 0])  # masks broadcast
    assert nested.shape == (len(rows), 3)
    torch.testing.assert_close(nested[4, 2], codes.log_prob(rows[4], given=given[2]))


def test_nothing_and_everything(codes: RowModel) -> None:
    everything = torch.ones(4, dtype=torch.bool)
    assert (codes.log_prob(EVERY, given=everything) == 0).all()
    gaps = torch.full((4,), GAP, dtype=torch.float64)
    first = torch.tensor([GAP, 0.0, 4.0, GAP], dtype=torch.float64)
    colors = [
        codes.log_prob(torch.where(torch.arange(4) == 1, torch.tensor(c).double(), first))
        for c in (0.0, 1.0, 2.0)
    ]
    missing = codes.log_prob(gaps)  # a value of the second column, and nothing else
    torch.testing.assert_close(torch.stack([*colors, missing]).exp().sum().item(), 1.0)
    assert (codes.log_prob(gaps, given=everything) == 0).all()


def test_a_value_without_a_code_is_impossible_where_asked_and_unknown_where_given(
    codes: RowModel,
) -> None:
    rows = EVERY[:2].clone()
    rows[:, 3] = 7.0
    given = torch.tensor([[False] * 4, [False, False, False, True]])
    assert codes.log_prob(rows, given=given)[0] == -torch.inf
    assert codes.log_prob(rows, given=given)[1].isnan()
    status = codes.score(rows, given=given).status.tolist()
    assert status == [Status.FINISHED, Status.NOT_FINITE]
    rows[:, 0] = GAP
    assert codes.impute(rows)[:, 0].isnan().all()


def test_imputations_have_the_conditional_probabilities(codes: RowModel) -> None:
    torch.manual_seed(0)
    n = 20_000
    rows = torch.tensor([[GAP, 2.0, GAP, GAP], [GAP, GAP, 4.0, 1.0]]).double().repeat(n, 1)
    drawn = codes.impute(rows)
    assert torch.equal(drawn[~rows.isnan()], rows[~rows.isnan()])
    assert drawn[1::2, 1].isnan().all()  # a value
    assert (drawn[:, 2] == 4).all()
    for part, given in (
        (drawn[::2], torch.tensor([False, True, False, False])),
        (drawn[1::2], torch.tensor([False, True, False, True])),
    ):
        possible = (EVERY.nan_to_num(9.0) == part[0].nan_to_num(9.0))[:, given].all(1)
        expected = codes.log_prob(EVERY[possible], given=given).exp()
        found = torch.stack([(part[:, [0, 3]] == row[[0, 3]]).all(1) for row in EVERY[possible]])
        error = (found.double().mean(1) - expected).abs()
        assert (error < 5 * (expected / n).sqrt() + 1e-3).all()


def test_imputations_draw_what_is_not_given(codes: RowModel) -> None:
    torch.manual_seed(0)
    given = torch.tensor([False, False, False, True])
    drawn = codes.impute(EVERY[:1].float(), given=given).expand(1, 4)
    assert drawn.dtype == torch.float32
    assert drawn[0, 3] == EVERY[0, 3]
    many = codes.impute(EVERY[:1].expand(500, 4), given=given, max_batch=100)
    assert many[:, 1].isnan().any()  # gaps that are a value are drawn, too
    assert not many[:, 1].isnan().all()
    assert codes.sample(200)[:, 1].isnan().any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.log_prob(EVERY, given=torch.ones(3).bool()), r"bool and shape \(\.\.\., 4\)"),
        (lambda m: m.log_prob(EVERY, given=torch.ones(4)), "torch.float32"),
        (lambda m: explain(m, EVERY, draws=0), "draws of at least 1; got 0"),
        (lambda m: explain(m, EVERY[:, :2]), "Expected x of shape"),
    ],
)
def test_mistakes(codes: RowModel, call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(codes)  # type: ignore[operator]


MIXED = Schema(
    (
        Column("group", "categorical", categories=("a", "b", "c")),
        Column("x", "real"),
        Column("spike", "spike", atoms=((0.0, 0.3),), gaps="value"),
        Column("count", "integer", 0),
    )
)


def _mixed(rows: int, seed: int = 0) -> np.ndarray:
    """Return rows whose columns follow the group, each with its noise."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, rows)
    x = rng.normal(2 * group, 0.5)
    spike = np.where(rng.random(rows) < 0.3, 0.0, x + 0.3 * rng.normal(size=rows))
    return np.column_stack([group, x, spike, rng.poisson(np.exp(0.5 * group))]) * 1.0


@pytest.fixture(scope="module")
def mixed() -> tuple[RowModel, np.ndarray]:
    """A model trained on rows with gaps, and complete rows."""
    numbers = _mixed(3000)
    rng = np.random.default_rng(1)
    gaps = numbers.copy()
    gaps[rng.random(numbers.shape) < 0.15] = np.nan
    gaps[:5] = np.nan
    model = new_row_model(MIXED, gaps, hidden=48, blocks=1, bins=12, dropout=0.1)
    history = fit_rows(model, gaps, steps=150, threads=1)
    held_out = model.log_prob(torch.tensor(gaps[-300:])).mean().item()
    assert history.codes.validation_nll[-1] == pytest.approx(-held_out, abs=0.3)
    return model, numbers


def test_densities_given_cells_integrate_to_one(mixed: tuple[RowModel, np.ndarray]) -> None:
    model, numbers = mixed
    grid = torch.linspace(-9, 14, 6001).double() + 1e-7
    rows = torch.tensor(numbers[0]).repeat(len(grid), 1)
    rows[:, 1] = grid
    for given in ([True, False, True, True], [False, False, False, True]):
        hidden = torch.tensor([not each for each in given]) & (torch.arange(4) != 1)
        hidden[2] = False  # whose gaps are a value
        mask = torch.tensor(given) | (torch.arange(4) == 2)
        density = model.log_prob(torch.where(hidden, GAP, rows), given=mask).exp()
        assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=2e-3)


def test_a_planted_error_is_named(mixed: tuple[RowModel, np.ndarray]) -> None:
    model, numbers = mixed
    rng = np.random.default_rng(2)
    rows, columns = _mixed(200, seed=5), rng.integers(0, 4, 200)
    for row, column in zip(rows, columns, strict=True):
        wrong = (row[0] + (1 if row[0] == 2 else 2 - row[0])) % 3  # the group that is far away
        row[column] = wrong if column == 0 else row[column] + 5 * np.rint(numbers[:, column].std())
    found = explain(model, torch.tensor(rows))
    assert (found.excess.argmax(1).numpy() == columns).mean() > 0.9
    clean = explain(model, torch.tensor(_mixed(500, seed=6)))
    assert clean.excess.mean(0).abs().max() < 0.3
    assert clean.surprise.mean(0).max() < found.surprise.mean()
    error = (clean.expected[:, 1] - torch.tensor(_mixed(500, seed=6)[:, 1])).abs()
    assert error.median() < 0.5


def test_explanations_of_gaps_and_of_new_categories(mixed: tuple[RowModel, np.ndarray]) -> None:
    model, numbers = mixed
    rows = torch.tensor(numbers[:3])
    before = explain(model, rows)
    cell = torch.tensor([False, True, False, False])
    surprise = -model.log_prob(rows, given=~cell)
    torch.testing.assert_close(before.surprise[:, 1], surprise, atol=1e-4, rtol=1e-4)
    rows[0, 0], rows[1, 1:3] = 5.0, GAP
    found = explain(model, rows)
    assert found.surprise[0].isinf().tolist() == [True, False, False, False]
    assert found.surprise[1].isnan().tolist() == [False, True, False, False]
    assert not found.expected[1, 1].isnan()
    assert torch.equal(found.excess[2], before.excess[2])
    alone = explain(model, rows[2])
    torch.testing.assert_close(alone.excess, before.excess[2], atol=1e-4, rtol=1e-4)


def test_a_new_category_is_no_gap_for_the_others() -> None:
    """Where gaps are a value, whose cell is not that of a category without a code."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2, (100, 2)) * 1.0
    numbers[:30, 0] = np.nan
    columns = (
        Column("a", "categorical", categories=("x", "y"), gaps="value"),
        Column("b", "boolean"),
    )
    model = _spread(new_row_model(Schema(columns), numbers, hidden=16, blocks=1))
    row = torch.tensor([[5.0, 1.0]], dtype=torch.float64)
    found = explain(model, row)
    assert found.surprise[0].isinf().tolist() == [True, False]
    p = (-found.surprise[0, 1]).exp().item()  # of b alone
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    assert found.excess[0, 1].item() == pytest.approx(-np.log(p) - entropy)
    gap = explain(model, torch.tensor([[torch.nan, 1.0]], dtype=torch.float64))
    assert abs(gap.surprise[0, 1] - found.surprise[0, 1]) > 0.01


def test_training_with_gaps_recovers_the_conditionals_of_a_known_law() -> None:
    rng = np.random.default_rng(0)
    share = np.array([[0.3, 0.1, 0.05], [0.05, 0.1, 0.4]])  # of two columns
    pair = np.unravel_index(rng.choice(6, 4000, p=share.ravel()), share.shape)
    third = np.where(rng.random(4000) < 0.8, pair[1] > 0, rng.random(4000) < 0.5)
    numbers = np.column_stack([*pair, third]) * 1.0
    numbers[rng.random(numbers.shape) < 0.3] = np.nan
    columns = Column("a", "boolean"), Column("b", "integer", 0, 2), Column("c", "boolean")
    model = new_row_model(Schema(columns), numbers, hidden=48, blocks=1, dropout=0.05)
    fit_rows(model, numbers, steps=400, threads=1)
    values = [0.0, 1.0], [0.0, 1.0, 2.0], [0.0, 1.0]
    rows = torch.tensor(list(itertools.product(*values)), dtype=torch.float64)
    of_third = np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    law = (share[:, :, None] * of_third).ravel()
    for given in itertools.product([False, True], repeat=3):
        keys = [tuple(row[[*given]]) for row in rows.numpy()]
        sums = {key: law[[other == key for other in keys]].sum() for key in keys}
        expected = law / [sums[key] for key in keys]
        found = model.log_prob(rows, given=torch.tensor(given)).exp().numpy()
        assert -1e-9 < (law * np.log(expected / found)).sum() < 0.03  # of independence 0.2 and more


def test_gaps_that_are_a_value_have_their_share(tmp_path: object) -> None:
    """Which follows another column, also in a column that is otherwise constant, and once saved."""
    rng = np.random.default_rng(0)
    flag = rng.integers(0, 2, 2000) * 1.0
    number = np.where(rng.random(2000) < 0.1 + 0.6 * flag, np.nan, rng.normal(size=2000))
    same = np.where(flag == 1, np.nan, 3.0)
    gaps = {"gaps": "value"}
    columns = (
        Column("flag", "boolean"),
        Column("x", "real", **gaps),
        Column("s", "constant", 3, **gaps),
    )
    schema = Schema(columns)
    numbers = np.column_stack([flag, number, same])
    model = new_row_model(schema, numbers, hidden=32, blocks=1, bins=8)
    fit_rows(model, numbers, steps=150, threads=1)
    cnf.save(model, tmp_path)
    model = cnf.load(tmp_path)  # type: ignore[assignment]
    given = torch.tensor([True, False, True])
    for value in (0.0, 1.0):
        other = torch.nan if value else 3.0
        row = torch.tensor([value, GAP, other], dtype=torch.float64)
        assert model.log_prob(row, given=given).exp().item() == pytest.approx(
            0.1 + 0.6 * value, abs=0.06
        )
    draws = model.sample(1000)
    assert (draws[:, 2].isnan() == (draws[:, 0] == 1)).double().mean() > 0.95
    assert schema.table(draws.numpy()).values.shape == (1000, 3)


def test_a_context_with_gaps_has_a_code_for_them() -> None:
    rng = np.random.default_rng(0)
    context = np.where(rng.random((1000, 1)) < 0.3, np.nan, rng.normal(size=(1000, 1)))
    flag = (np.isnan(context[:, 0]) ^ (rng.random(1000) < 0.1)) * 1.0
    schema = Schema((Column("flag", "boolean"), Column("other", "boolean")))
    numbers = np.column_stack([flag, rng.integers(0, 2, 1000)])
    pair = Schema((Column("c", "real"),)), context
    model = new_row_model(schema, numbers, hidden=16, blocks=1, bins=4, context=pair)
    fit_rows(model, numbers, context=context, steps=80, threads=1)
    row = torch.tensor([1.0, GAP], dtype=torch.float64)
    of_gap, of_number = (
        model.log_prob(row, torch.tensor([each], dtype=torch.float64)).exp().item()
        for each in (GAP, 0.3)
    )
    assert of_gap > 0.7
    assert of_number < 0.3
    whole = new_row_model(schema, numbers, hidden=16, context=(pair[0], rng.normal(size=(1000, 1))))
    with pytest.raises(ValueError, match="or with a gap in its context"):
        fit_rows(whole, numbers, context=context, steps=1)


def test_a_flow_within_bins_answers_no_questions() -> None:
    numbers = _mixed(500)
    model = new_row_model(MIXED, numbers, hidden=8, bins=4, flow=True)
    rows = torch.tensor(numbers[:3])
    rows[1, 0] = GAP
    fit_rows(
        model,
        np.where(np.random.default_rng(0).random(numbers.shape) < 0.1, np.nan, numbers),
        steps=4,
        threads=1,
    )
    assert model.log_prob(rows).isnan().tolist() == [False, True, False]
    for ask in (
        lambda: model.log_prob(rows, given=torch.ones(4, dtype=torch.bool)),
        lambda: model.impute(rows),
        lambda: explain(model, rows),
    ):
        with pytest.raises(ValueError, match="a flow within bins: build it with flow=False"):
            ask()


def test_a_column_of_gaps_alone_is_refused() -> None:
    numbers = _mixed(100)
    numbers[:, 1] = np.nan
    with pytest.raises(ValueError, match=r"Expected values in column 'x'; got gaps alone: leave"):
        new_row_model(MIXED, numbers)


REALS = Schema(
    (
        Column("x"),
        Column("size", "positive"),
        Column("same", "constant", 2.0),
        Column("n", "integer"),
    )
)
MEAN, COVARIANCE = np.zeros(3), np.array([[1.0, 0.8, 0.6], [0.8, 1.0, 0.7], [0.6, 0.7, 1.0]])


def _reals(rows: int, seed: int = 0) -> np.ndarray:
    """Return a number, the exponential of another one, and whole numbers, normal before."""
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(MEAN, COVARIANCE, rows)
    return np.column_stack([z[:, 0], np.exp(z[:, 1]), np.full(rows, 2.0), np.rint(1e4 * z[:, 2])])


def _with_gaps(numbers: np.ndarray, share: float) -> np.ndarray:
    """Return numbers with gaps in columns that vary, also in a whole row."""
    gaps = np.random.default_rng(1).random(numbers.shape) < share
    gaps[:, 2], gaps[0] = False, True
    return np.where(gaps, np.nan, numbers)


@pytest.fixture(scope="module")
def reals() -> RowModel:
    numbers, events = _with_gaps(_reals(600), 0.2), []
    model = new_row_model(REALS, numbers, values=True)
    validation = _with_gaps(_reals(200, seed=1), 0.0)
    history = fit_rows(
        model,
        numbers,
        validation=validation,
        steps=3,
        threads=1,
        callbacks=[events.append],
    )
    assert history.flow is None
    assert history.codes.steps == 3
    assert all(isinstance(event.model, RowModel) for event in events)
    nll = -model.log_prob(torch.tensor(validation[1:]), seed=0).mean().item()
    assert history.codes.validation_nll.min() == pytest.approx(nll, abs=0.5)
    assert events[-1].record.validation_nll == history.codes.validation_nll[-1]
    return model


def test_values_are_a_distribution_given_any_others(reals: RowModel) -> None:
    """Near the known conditional, and a mass of 1 over the grid of numbers."""
    grid = torch.linspace(-6, 6, 2001).double()
    rows = torch.tensor(_reals(1)).repeat(len(grid), 1)
    for column, values, slope in ((0, grid, 1.0), (1, grid.exp(), grid.exp())):
        rows[:, column] = values
        for hide in (3, None):
            asked = torch.arange(4) == column
            hidden = torch.arange(4) == (4 if hide is None else hide)
            with torch.no_grad():
                found = reals.log_prob(torch.where(hidden, GAP, rows), given=~asked, seed=0)
            density = found.exp() * slope
            assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=5e-3)
            given = [i for i in (0, 1, 3) if i not in (column, hide)]
            z = rows[0].clone()
            z[1], z[3] = z[1].log(), z[3] / 1e4
            place = [[0, 1, None, 2][i] for i in given]
            own = [0, 1, None, 2][column]
            weights = np.linalg.solve(COVARIANCE[np.ix_(place, place)], COVARIANCE[place, own])
            mean = torch.trapezoid(density * grid, grid).item()
            assert mean == pytest.approx(float(weights @ z[given].numpy()), abs=0.2)
        rows[:, column] = torch.tensor(_reals(1))[0, column]


def test_scores_and_imputations_of_values(reals: RowModel, tmp_path: object) -> None:
    torch.manual_seed(0)
    numbers = torch.tensor(_reals(400, seed=2))
    rows = torch.tensor(_with_gaps(numbers.numpy(), 0.3))
    with torch.no_grad():
        log_prob = reals.log_prob(rows, seed=0, draws=2, max_batch=150)
        scores = reals.score(rows, seed=0, probes=2)
        torch.testing.assert_close(scores.log_prob, log_prob, atol=1e-4, rtol=1e-4)
        assert (scores.solver_error < 1e-2).all()
        assert log_prob[0] == 0
        first = torch.tensor([True, False, False, False])
        rest = reals.log_prob(numbers, given=first, seed=0)
        alone = reals.log_prob(torch.where(first, numbers, GAP))
        together = reals.log_prob(numbers, seed=0)
    torch.testing.assert_close(rest + alone, together, atol=0.2, rtol=0)  # consistency
    drawn = reals.impute(rows)
    assert torch.equal(drawn[~rows.isnan()], rows[~rows.isnan()])
    assert (drawn[:, 3] % 1 == 0).all()
    both = drawn[rows[:, 0].isnan() & ~rows[:, 1].isnan()]
    assert np.corrcoef(both[:, 0], both[:, 1].log())[0, 1] > 0.6
    draws = reals.sample(3000).numpy()
    assert np.corrcoef(draws[:, 0], draws[:, 3])[0, 1] == pytest.approx(0.6, abs=0.1)
    cnf.save(reals, tmp_path)
    loaded = cnf.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.log_prob(rows, seed=0, draws=2, max_batch=150), log_prob)
        double = reals.in_double().with_solver(rtol=1e-7).log_prob(rows, seed=0, draws=2)
    torch.testing.assert_close(double, log_prob, atol=1e-3, rtol=1e-3)


def test_a_planted_error_among_values_is_named(reals: RowModel) -> None:
    numbers = _reals(30, seed=3)
    rows, columns = numbers.copy(), np.array([0, 1, 3] * 10)
    for row, column in zip(rows, columns, strict=True):
        row[column] += 5 * _reals(500)[:, column].std()
    found = explain(reals, torch.tensor(rows), draws=16)
    assert (found.excess.argmax(1).numpy() == columns).mean() > 0.9
    assert (found.expected[:, 2] == 2).all()
    rows[0, 1] = np.nan
    gap = explain(reals, torch.tensor(rows[:2]), draws=16)
    assert gap.surprise[0].isnan().tolist() == [False, True, False, False]
    assert gap.expected[0, 1] > 0


def test_of_twins_the_wrong_one_is_named() -> None:
    """Each twin is as surprising given the other; a third column tells which one is wrong."""
    rng = np.random.default_rng(0)

    def rows(count: int) -> np.ndarray:
        a = rng.normal(size=count)
        noise = rng.normal(size=(2, count))
        return np.column_stack([a, 3 * a + 1e-3 * noise[0], a + 0.2 * noise[1]])

    schema = Schema(tuple(Column(name, "real") for name in "abc"))
    numbers, wrong = rows(500), rows(20)
    model = new_row_model(schema, numbers, values=True)
    fit_rows(model, numbers, validation=rows(200), steps=1, threads=1)
    torch.manual_seed(0)
    with torch.no_grad():  # conditionals that contradict one another far from all rows
        model.values.field.last.linear.weight.normal_(std=0.02)
    places = np.array([0, 1] * 10)
    wrong[np.arange(20), places] += 5 * numbers.std(0)[places]
    found = explain(model, torch.tensor(wrong), draws=4)
    assert (found.excess.argmax(1).numpy() == places).all()
    assert (found.surprise.argmax(1).numpy() != places).any()


def test_failed_solves_are_those_of_their_rows(
    reals: RowModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.tensor(_reals(5))
    flow = type(reals.values)
    solved = flow.log_prob

    def log_prob(self: object, z: Tensor, *masks_and_codes: Tensor) -> Tensor:
        if (z[:, 0] == bad).any():
            stuck = ode.solve(lambda t, y, args: y * torch.nan, z, (0.0, 1.0))
            raise ode.SolveError(stuck)
        return solved(self, z, *masks_and_codes)

    bad = reals.coding.encode(rows.numpy()).z[2, 0]
    monkeypatch.setattr(flow, "log_prob", log_prob)
    scores = reals.score(rows, probes=2)
    assert scores.log_prob.isnan().tolist() == [False, False, True, False, False]
    assert [each == Status.FINISHED for each in scores.status] == [True, True, False, True, True]


def test_models_of_values_that_cannot_be() -> None:
    few = np.repeat(_mixed(200)[:20, 1:2], 10, 0)
    model = new_row_model(Schema(MIXED.columns[1:2]), few, values=True)
    assert model.values is None  # all values have a mass
    assert model.valued.tolist() == [False]
    with pytest.raises(ValueError, match="Expected values without a flow within bins"):
        new_row_model(REALS, _reals(200), values=True, flow=True)
    first, second = (new_row_model(REALS, _reals(200), values=each) for each in (True, False))
    with pytest.raises(ValueError, match="Expected values of 0 columns given codes of sizes"):
        RowModel(second.coding, second.network, values=first.values)
    narrow = new_row_model(Schema(REALS.columns[:1]), _reals(200)[:, :1], values=True)
    with pytest.raises(ValueError, match="Expected values of 1 columns .*; got 3"):
        RowModel(narrow.coding, narrow.network, values=first.values, inputs=narrow.inputs)
