"""Models of rows: exact masses, one log p for a row in any company, storage and training."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import cnf
from cnf.datasets import Table
from cnf.ode import Status
from cnf.tables import Column, RowModel, Schema
from cnf.tables.code_training import CodeRecipe
from cnf.tables.coordinates import Mixed
from cnf.tables.row_training import fit_rows, new_row_model
from cnf.training import StepEvent

ROWS = 3000


def _table(rows: int = ROWS, seed: int = 0) -> Table:
    """Return rows of a category, a spike at 0, a count of few values, and a dependent number."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, rows).astype(float)
    spike = np.where(rng.random(rows) < 0.3, 0.0, rng.normal(group, 0.5))
    number = rng.normal(spike + 2 * group, 0.3)
    values = np.column_stack([group, spike, rng.poisson(2, rows), number])
    return Table("t", values, ("group", "spike", "count", "number"), {"group": ("a", "b", "c")})


def _model(table: Table, **options: object) -> tuple[RowModel, np.ndarray]:
    schema = Schema.infer(table)
    numbers = schema.numbers(table.values, table.categories, table.types)
    return new_row_model(schema, numbers, hidden=32, **options), numbers


@pytest.fixture(scope="module")
def trained() -> tuple[RowModel, np.ndarray]:
    model, numbers = _model(_table(), bins=8)
    fit_rows(model, numbers, steps=100, threads=1)
    return model, numbers


def test_the_total_mass_of_a_mixed_table_is_one() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.integers(0, 2, 2000), rng.normal(size=2000)])
    values[rng.random(2000) < 0.2, 1] = 0.0
    schema = Schema.infer(Table("t", values, ("flag", "x")))
    for flow in (False, True):
        model = new_row_model(schema, values, hidden=16, bins=4, flow=flow).in_double()
        grid = np.linspace(-9, 9, 8_001) + 1e-7
        mass = 0.0
        for flag in (0.0, 1.0):
            atom = torch.tensor([[flag, 0.0]], dtype=torch.float64)
            x = torch.tensor(np.column_stack([np.full(len(grid), flag), grid]))
            with torch.no_grad():
                density = model.log_prob(x, max_batch=10_000).exp().numpy()
                mass += np.trapezoid(density, grid) + model.log_prob(atom).exp().item()
        assert mass == pytest.approx(1.0, abs=1e-3)


def test_the_integral_over_an_atom_a_category_and_two_numbers_is_one() -> None:
    rng = np.random.default_rng(2)
    values = np.column_stack([rng.integers(0, 3, 1500), rng.normal(size=(1500, 2))])
    values[:, 2] += values[:, 1]
    values[rng.random(1500) < 0.3, 1] = 0.0
    schema = Schema.infer(Table("t", values, ("group", "x", "y"), {"group": ("a", "b", "c")}))
    for bins in (1, 6):
        model = new_row_model(schema, values, hidden=16, bins=bins, flow=False).in_double()
        (x, x_weight), (y, y_weight) = (_quadrature(each) for each in model.coding.coordinates[1:])
        pairs = np.array([*product(range(3), x, y), *product(range(3), [0.0], y)])
        with torch.no_grad():
            density = model.log_prob(torch.tensor(pairs), max_batch=10_000).exp().numpy()
        plane, line = np.split(density, [3 * len(x) * len(y)])
        mass = (plane.reshape(3, len(x), len(y)) @ y_weight).sum(0) @ x_weight
        mass += (line.reshape(3, len(y)) @ y_weight).sum()
        assert mass == pytest.approx(1.0, abs=1e-3)


def _quadrature(coordinate: Mixed) -> tuple[np.ndarray, np.ndarray]:
    """Return the points and weights of Gauss's rule in parts of each of a coordinate's bins."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    ends = np.sort([*np.linspace(-12, 12, 49) + 1e-3, *coordinate.edges])
    half = np.diff(ends)[:, None] / 2
    return (ends[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()


def test_the_mass_of_a_grid_with_atoms_is_one() -> None:
    rng = np.random.default_rng(1)
    counts = np.where(rng.random(4000) < 0.4, 7.0, rng.integers(-900, 900, 4000))
    values = np.column_stack([counts, rng.integers(0, 2, 4000)])
    schema = Schema.infer(Table("t", values, ("n", "flag")))
    for bins in (1, 8):
        model = new_row_model(schema, values, hidden=16, bins=bins, flow=False).in_double()
        n = np.arange(-20_000.0, 20_000.0)
        rows = [np.column_stack([n, np.full(len(n), flag)]) for flag in (0.0, 1.0)]
        with torch.no_grad():
            log_prob = model.log_prob(torch.tensor(np.concatenate(rows)), seed=0, draws=32)
        assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_a_row_alone_and_among_others_has_one_log_prob(
    trained: tuple[RowModel, np.ndarray],
) -> None:
    model, numbers = trained
    rows = torch.tensor(numbers[:50])
    with torch.no_grad():
        together = model.log_prob(rows, seed=0)
        alone = torch.cat([model.log_prob(row[None], seed=0) for row in rows[:5]])
    torch.testing.assert_close(alone, together[:5], atol=1e-4, rtol=0)


def test_training_learns_dependence(trained: tuple[RowModel, np.ndarray]) -> None:
    model, _ = trained
    fresh = _table(seed=1).values
    untrained, _ = _model(_table(), bins=8)
    with torch.no_grad():
        gain = model.log_prob(torch.tensor(fresh)) - untrained.log_prob(torch.tensor(fresh))
    assert gain.mean() > 1.0
    draws = model.sample(2000).numpy()
    means = [draws[draws[:, 0] == group, 3].mean() for group in range(3)]
    wanted = [fresh[fresh[:, 0] == group, 3].mean() for group in range(3)]
    assert np.abs(np.subtract(means, wanted)).max() < 0.4
    assert abs((draws[:, 1] == 0).mean() - (fresh[:, 1] == 0).mean()) < 0.05


def test_bad_rows_have_their_own_answer(trained: tuple[RowModel, np.ndarray]) -> None:
    model, numbers = trained
    rows = torch.tensor(numbers[:5])
    same = rows[4].clone()
    rows[0, 0], rows[1, 2], rows[2] = -1.0, -2.0, torch.nan
    rows[4, 2] += 0.3  # between whole numbers
    scores = model.score(rows)
    with torch.no_grad():
        assert torch.equal(model.log_prob(rows).isfinite(), scores.log_prob.isfinite())
        torch.testing.assert_close(
            scores.log_prob[4:], model.log_prob(same[None]), atol=1e-5, rtol=1e-5
        )
    assert (scores.log_prob == -torch.inf).tolist() == [True, True, False, False, False]
    assert scores.log_prob[2] == 0
    assert (scores.status == Status.FINISHED).all()
    assert (scores.uncertainty[[0, 1, 3]] < 1e-3).all()


def test_a_saved_model_is_the_same(trained: tuple[RowModel, np.ndarray], tmp_path: Path) -> None:
    model, numbers = trained
    cnf.save(model, tmp_path)
    loaded = cnf.load(tmp_path)
    assert isinstance(loaded, RowModel)
    rows = torch.tensor(numbers[:20])
    with torch.no_grad():
        assert torch.equal(loaded.log_prob(rows), model.log_prob(rows))
    config = model.config()
    del config["given"]  # as earlier versions
    assert RowModel.of(config, {}).context_dim == 0


@pytest.mark.parametrize("last", [7, 19, None])
def test_a_run_that_resumes_is_the_same(last: int | None, tmp_path: Path) -> None:
    """Stopped while codes or the flow are trained, or at the end; each event has a whole model."""
    weight = np.random.default_rng(0).random(1000)

    def fit(state: Path | None, stop: int | None = None) -> RowModel:
        model, numbers, context = _conditional(flow=True)
        steps: list[int] = []

        def see(event: StepEvent) -> None:
            assert isinstance(event.model, RowModel)
            assert event.model.context_dim == 2
            steps.append(event.step)
            if len(steps) == stop:
                raise StopIteration

        options = {"context": context, "weight": weight, "callbacks": [see], "state_seconds": 0.0}
        fit_rows(model, numbers, steps=20, threads=1, state=state, **options)
        return model

    if last is None:
        fit(tmp_path / "state")
    else:
        with pytest.raises(StopIteration):
            fit(tmp_path / "state", last)
    once, resumed = fit(None).state_dict(), fit(tmp_path / "state").state_dict()
    for name, value in once.items():
        assert torch.equal(value, resumed[name]), name


def test_scores_have_errors_and_mistakes_one_line(trained: tuple[RowModel, np.ndarray]) -> None:
    model, numbers = trained
    rows = torch.tensor(numbers[:20])
    scores = model.score(rows)
    with torch.no_grad():
        torch.testing.assert_close(scores.log_prob, model.log_prob(rows))
    assert (scores.stderr == 0).all()
    assert (scores.solver_error < 1e-3).all()
    with pytest.raises(ValueError, match="Expected probes of at least 1; got 0"):
        model.score(rows, probes=0)
    with pytest.raises(ValueError, match=r"Expected x of shape \(..., 4\); got \(20, 1\)"):
        model.log_prob(rows[:, :1])


SITE = Schema((Column("place", "categorical", categories=("a", "b", "c")), Column("size", "real")))


def _conditional(flow: bool = False) -> tuple[RowModel, np.ndarray, np.ndarray]:
    """Return a trained model of a flag and a spiked number given a place and a size."""
    rng = np.random.default_rng(0)
    context = np.column_stack([rng.integers(0, 3, 1000), rng.normal(size=1000)])
    flag = (rng.random(1000) < 0.2 + 0.3 * context[:, 0]).astype(float)
    number = np.where(rng.random(1000) < 0.3, 0.0, rng.normal(context[:, 1]))
    numbers = np.column_stack([flag, number])
    schema = Schema.infer(Table("t", numbers, ("flag", "number")))
    options = {"context": (SITE, context), "hidden": 16, "bins": 4, "flow": flow}
    model = new_row_model(schema, numbers, **options)
    return model, numbers, context


@pytest.mark.parametrize("flow", [False, True])
def test_a_conditional_model_is_a_distribution_in_each_context(flow: bool) -> None:
    model, numbers, context = _conditional(flow)
    fit_rows(model, numbers, context=context, steps=40, threads=1)
    model = model.in_double()
    grid = np.linspace(-9, 9, 2_001) + 1e-7
    given = torch.tensor([[0.0, 0.3], [2.0, -50.0]], dtype=torch.float64)  # beyond what was seen
    atoms = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]], dtype=torch.float64)
    with torch.no_grad():
        mass = model.log_prob(atoms, given).exp().sum(0)
        for flag in (0.0, 1.0):
            x = torch.tensor(np.column_stack([np.full(len(grid), flag), grid]))
            density = model.log_prob(x[:, None], given).exp()
            mass += torch.trapezoid(density, torch.tensor(grid), dim=0)
    torch.testing.assert_close(mass, torch.ones_like(mass), atol=2e-3, rtol=0)
    place = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    draws = model.sample(2000, place)
    assert draws.shape == (2000, 2, 2)
    assert draws[:, 1, 0].mean() - draws[:, 0, 0].mean() > 0.15
    assert model.sample((), place).shape == (2, 2)


def test_bad_contexts_have_their_own_answer() -> None:
    model, numbers, context = _conditional()
    assert (model.dim, model.context_dim, model.solves) == (2, 2, 0)
    rows, given = torch.tensor(numbers[:5]), torch.tensor(context[:5])
    given[1, 0], given[2, 1], given[3, 1], rows[4, 1] = -1.0, torch.nan, 1e9, torch.nan
    scores = model.score(rows, given)
    lost = [False, True, True, False, False]
    assert scores.log_prob.isnan().tolist() == lost
    assert (scores.status == Status.NOT_FINITE).tolist() == lost
    log_prob = model.log_prob(rows, given)
    assert torch.equal(log_prob.isnan(), scores.log_prob.isnan())
    assert log_prob.dtype == model.like.dtype == torch.float64
    found = model.score_draws(rows, given, 0, 1)
    torch.testing.assert_close(found.log_prob, log_prob, equal_nan=True)
    assert model.sample((), given).isnan().any(1).tolist() == [False, True, True, False, False]
    for wrong in (None, given[:, :1]):
        with pytest.raises(ValueError, match=r"Expected a context of shape \(..., 2\)"):
            model.log_prob(rows, wrong)
    with pytest.raises(ValueError, match="Expected a network of the codings' sizes"):
        RowModel(model.coding, model.network)


def test_a_saved_conditional_model_is_the_same(tmp_path: Path) -> None:
    model, numbers, context = _conditional(flow=True)
    cnf.save(model, tmp_path)
    rows, given = torch.tensor(numbers[:20]), torch.tensor(context[:20])
    with torch.no_grad():
        loaded = cnf.load(tmp_path)
        assert torch.equal(loaded.log_prob(rows, given), model.log_prob(rows, given))
        alone = torch.cat([model.log_prob(rows[i], given[i])[None] for i in range(3)])
        torch.testing.assert_close(alone, model.log_prob(rows, given)[:3], atol=1e-4, rtol=0)


def test_weights_are_repetitions_and_records_are_of_whole_rows(tmp_path: Path) -> None:
    model, numbers, context = _conditional()
    weight = np.zeros(1000)
    weight[:200] = 2.0
    events: list[StepEvent] = []
    options = {"validation": (numbers[500:], context[500:]), "steps": 4, "threads": 1}
    once = fit_rows(
        model,
        numbers,
        context=context,
        weight=weight,
        callbacks=[events.append],
        state=tmp_path / "new" / "state",
        recipe=CodeRecipe(validations=2),
        **options,
    )
    other, *_ = _conditional()
    fit_rows(
        other, numbers[:200], context=context[:200], recipe=CodeRecipe(validations=2), **options
    )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])
    assert [event.step for event in events] == [1, 2, 3, 4]
    assert len(once.codes.step) == 2
    rows, given = torch.tensor(numbers[500:]), torch.tensor(context[500:])
    whole = -events[-1].model.log_prob(rows, given).mean().item()
    assert once.codes.validation_nll[-1] == pytest.approx(whole, abs=1e-5)
    rng = np.random.default_rng(1)
    held_out = fit_rows(
        other, numbers, context=context, weight=rng.random(1000), steps=2, threads=1
    )
    assert np.isfinite(held_out.codes.validation_nll).all()


def test_unseen_numbers_have_a_small_mass_and_all_masses_sum_to_1() -> None:
    rng = np.random.default_rng(0)
    numbers = np.column_stack([rng.choice([0.0, 1.0, 3.0], 500), rng.integers(0, 2, 500)])
    columns = Column("n", "integer", 0), Column("flag", "boolean")
    sizes = Column("size", "integer", 0)
    context = rng.choice([2.0, 8.0], (500, 1))
    for flow, given in ((False, None), (True, None), (False, 5.0)):
        pair = None if given is None else (Schema((sizes,)), context)
        options = {"hidden": 16, "flow": flow, "context": pair}
        model = new_row_model(Schema(columns), numbers, **options)
        fit_rows(model, numbers, context=pair and context, steps=40, threads=1)
        rows = torch.cartesian_prod(torch.arange(4000.0), torch.arange(2.0)).double()
        where = None if given is None else torch.tensor([given], dtype=torch.float64)
        mass = model.in_double().log_prob(rows, where).exp()
        assert mass.sum().item() == pytest.approx(1, abs=1e-6)
        unseen = mass[~torch.isin(rows[:, 0], torch.tensor([0.0, 1.0, 3.0]))]
        assert (unseen[:20] > 0).all()
        assert unseen.sum().item() == pytest.approx(0.5 / 450, rel=0.3)


def test_scores_with_a_flow_and_noise() -> None:
    rng = np.random.default_rng(0)
    numbers = np.column_stack([rng.integers(0, 900, 600), rng.integers(0, 2, 600)]) * 1.0
    columns = Column("n", "integer", 0), Column("flag", "boolean")
    model = new_row_model(Schema(columns), numbers, hidden=16, bins=4, flow=True)
    fit_rows(model, numbers, steps=8, threads=1)
    assert model.noisy
    assert model.solves == 1
    rows = torch.tensor(numbers[:6])
    rows[1, 1], rows[2, 0] = -1.0, torch.nan
    scores = model.score(rows, probes=4, seed=1)
    with torch.no_grad():
        log_prob = model.log_prob(rows, seed=1, draws=4, max_batch=4)
        tight = model.with_solver(rtol=1e-7, atol=1e-7).log_prob(rows, seed=1, draws=4)
        found = model.score_draws(rows, None, 1, 4)
    torch.testing.assert_close(scores.log_prob, log_prob, atol=1e-3, rtol=0, equal_nan=True)
    torch.testing.assert_close(scores.tighter, tight, atol=1e-3, rtol=0, equal_nan=True)
    torch.testing.assert_close(found.log_prob, log_prob, atol=1e-3, rtol=0, equal_nan=True)
    assert found.stats.evaluations.sum() > 0  # type: ignore[union-attr]
    assert (scores.stderr[[0, 3, 4, 5]] > 0).all()
    assert (scores.solver_error[[0, 3, 4, 5]] < 1e-3).all()
    assert (scores.status == Status.NOT_FINITE).tolist() == [False, False, True, *[False] * 3]
    assert scores.log_prob[1] == -torch.inf
    with pytest.raises(ValueError, match="numbers of rows of at least 0; got"):
        model.sample(-1)
