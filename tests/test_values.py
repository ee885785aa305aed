"""Models of rows whose columns with a density follow a masked flow, next to codes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cnf.mixtures.normal import NormalMixture
from cnf.storage import load, save
from cnf.tables import Column, RowModel, Schema, explain, fit_rows
from cnf.tables.code_network import CodeNetwork
from cnf.tables.code_prior import CodePrior, fit_share
from cnf.tables.code_training import QUESTIONS, draw_visible
from cnf.tables.row_training import new_row_model

SCHEMA = Schema(
    (Column("group", "integer", 0, 2), Column("x"), Column("y"), Column("part"), Column("angle"))
)
GROUP, X, Y, PART, ANGLE = range(5)
NAN = float("nan")


def table(rows: int, seed: int = 0) -> np.ndarray:
    """Return rows with a group, two numbers that bend, one that is 0 with a mass, and a third."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, rows)
    x = rng.normal(size=rows)
    y = 0.5 * x**2 + group + 0.3 * rng.normal(size=rows)
    part = np.where(rng.random(rows) < 0.3, 0.0, rng.gamma(2, 1, rows) + group)
    return np.column_stack([group, x, y, part, rng.normal(size=rows)]) * 1.0


@pytest.fixture(scope="module")
def model() -> RowModel:
    """A model trained on rows with gaps."""
    numbers = table(600)
    numbers[np.random.default_rng(1).random(numbers.shape) < 0.15] = np.nan
    made = new_row_model(SCHEMA, numbers, values=True, hidden=32, blocks=1, bins=16)
    with torch.no_grad():
        made.values.field.last.linear.weight.normal_(std=0.1)
    fit_rows(made, numbers, steps=40, seed=0, threads=1)
    return made


def given(*columns: int) -> Tensor:
    return torch.isin(torch.arange(5), torch.tensor(columns))


def row(**cells: float) -> Tensor:
    return torch.tensor([cells.get(name, NAN) for name in SCHEMA.names], dtype=torch.float64)


def test_columns_that_mostly_have_a_density_are_values(model):
    assert model.valued.tolist() == [False, True, True, True, True]
    assert model.coding.sizes == (3, 1, 1, 2, 1)
    assert model.inputs.sizes == (16, 16, 17, 16)
    mostly_zero = table(500)
    mostly_zero[:300, PART] = 0.0
    assert not new_row_model(SCHEMA, mostly_zero, values=True).valued[PART]


@pytest.mark.parametrize("known", [{}, {"x": 0.3}, {"x": 0.1, "y": 0.9}, {"part": 0.0}])
def test_a_group_sums_to_one(model, known):
    rows = torch.stack([row(**{"group": float(k), **known}) for k in range(3)])
    mask = given(*(SCHEMA.names.index(name) for name in known))
    assert abs(model.log_prob(rows, given=mask).exp().sum() - 1) < 1e-6


@pytest.mark.parametrize("known", [{}, {"x": 0.3, "group": 1.0}])
def test_a_number_with_an_atom_integrates_to_one(model, known):
    points = torch.linspace(-20, 60, 80_000, dtype=torch.float64)
    rows = row(**known).repeat(len(points) + 1, 1)
    rows[:-1, PART], rows[-1, PART] = points, 0.0
    mask = given(*(SCHEMA.names.index(name) for name in known))
    p = model.log_prob(rows, given=mask).exp()
    assert 0.1 < p[-1] < 0.9
    assert abs(torch.trapezoid(p[:-1], points) + p[-1] - 1) < 2e-3


def test_the_joint_of_two_columns_is_the_product_of_its_factors(model):
    x = torch.tensor(table(20, seed=2))
    pair = x.clone()
    pair[:, [PART, ANGLE, Y]] = NAN  # the group first, then x given it, by the stated factorisation
    group = pair.clone()
    group[:, X] = NAN
    found = model.log_prob(group) + model.log_prob(pair, given=given(GROUP))
    torch.testing.assert_close(model.log_prob(pair), found, rtol=0, atol=1e-5)


def test_a_row_has_one_answer_alone_and_among_others(model):
    x = torch.tensor(table(40, seed=3))
    x[torch.rand(x.shape) < 0.3] = NAN
    masks = torch.rand(x.shape) < 0.3
    together = model.log_prob(x, given=masks)
    alone = torch.cat(
        [model.log_prob(r[None], given=m[None]) for r, m in zip(x, masks, strict=True)]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    scores = model.score(x, given=masks)
    torch.testing.assert_close(scores.log_prob, together, rtol=0, atol=1e-4)
    assert (scores.uncertainty < 1e-2).all()


def test_draws_follow_the_answers(model):
    rows = row(group=2.0, x=1.0).repeat(6000, 1)
    torch.manual_seed(0)
    drawn = model.impute(rows)
    assert torch.equal(drawn[:, :2], rows[:, :2])
    zero = model.log_prob(row(group=2.0, x=1.0, part=0.0)[None], given=given(GROUP, X)).exp()
    share = (drawn[:, PART] == 0).double().mean()
    assert abs(share - zero) < 4 * (zero * (1 - zero) / len(drawn)).sqrt()
    points = torch.linspace(-6, 12, 4001, dtype=torch.float64)
    grid = row(group=2.0, x=1.0).repeat(len(points), 1)
    grid[:, Y] = points
    p = model.log_prob(grid, given=given(GROUP, X)).exp()
    mean = torch.trapezoid(points * p, points)
    deviation = (torch.trapezoid(points**2 * p, points) - mean**2).sqrt()
    assert abs(drawn[:, Y].mean() - mean) < 5 * deviation / len(drawn) ** 0.5
    groups = model.sample(4000)[:, GROUP]
    marginal = model.log_prob(torch.stack([row(group=float(k)) for k in range(3)])).exp()
    for k in range(3):
        assert abs((groups == k).double().mean() - marginal[k]) < 0.04


def test_saved_models_and_views(model, tmp_path: Path):
    x = torch.tensor(table(10, seed=4))
    save(model, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.log_prob(x), model.log_prob(x))
    torch.testing.assert_close(model.in_double().log_prob(x), model.log_prob(x), atol=1e-4, rtol=0)
    tight = model.with_solver(rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(tight.log_prob(x), model.log_prob(x), atol=1e-3, rtol=0)


def test_a_planted_error_is_named_first(model):
    x = torch.tensor(table(60, seed=5))
    x[:, Y] += 6.0
    found = explain(model, x, draws=16)
    assert (found.excess.argmax(1) == Y).double().mean() > 0.9
    assert (found.expected[:, Y] < x[:, Y]).all()


def test_training_resumes_bit_for_bit(tmp_path: Path):
    numbers = table(300)

    def trained(*steps: int) -> RowModel:
        made = new_row_model(SCHEMA, numbers, seed=1, values=True, hidden=8, blocks=1, bins=4)
        stop = iter(steps)
        for limit in stop:

            def interrupt(event: object, limit: int = limit) -> None:
                if event.step == limit:  # type: ignore[attr-defined]
                    raise KeyboardInterrupt

            folder = tmp_path / str(len(steps))
            fit_rows(
                made, numbers, steps=12, seed=3, threads=1, state=folder, callbacks=[interrupt]
            )
        return made

    whole, parts = trained(99), trained(2, 99)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name


def test_contexts_are_given_to_values():
    numbers = table(400)
    given_schema = Schema((Column("group", "integer", 0, 2),))
    model = new_row_model(
        Schema(SCHEMA.columns[1:3]),
        numbers[:, 1:3],
        context=(given_schema, numbers[:, :1]),
        values=True,
        hidden=8,
    )
    fit_rows(model, numbers[:, 1:3], context=numbers[:, :1], steps=60, seed=0)
    x, groups = torch.zeros(3, 2, dtype=torch.float64), torch.arange(3.0).double()[:, None]
    x[:, 1] = groups[:, 0]
    own, other = model.log_prob(x, groups), model.log_prob(x, groups.flip(0))
    assert (own[[0, 2]] > other[[0, 2]] + 1).all()
    assert model.sample((), groups).shape == (3, 2)


def test_a_prior_of_codes_is_the_mixtures_conditional():
    torch.manual_seed(0)
    codes = torch.randint(3, (500, 2))
    z = codes[:, :1].double() + 0.5 * torch.randn(500, 1, dtype=torch.float64)
    mixture = NormalMixture.fit(z, codes, sizes=[3, 3], components=4)
    shares = torch.tensor([0.0, 1.0], dtype=torch.float64)
    prior = CodePrior(mixture, shares, [0, -1, 1], z, torch.tensor([True]))
    prior.reveal(0, torch.where(torch.arange(500) % 2 == 0, codes[:, 0], -1))
    prior.reveal(1, codes[:, 0])  # which the mixture has not
    seen = torch.tensor([True, False]) & (torch.arange(500) % 2 == 0)[:, None]
    asked = torch.tensor([False, True]).expand(500, 2)
    exact = mixture.log_prob(z, torch.tensor([True]), torch.tensor([False]), codes, seen, asked)
    found = prior.probabilities(2, slice(None)).gather(1, codes[:, 1:])[:, 0].log()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)
    logits = torch.randn(500, 3)
    torch.testing.assert_close(
        prior.average(2, slice(None), logits).gather(1, codes[:, 1:])[:, 0], exact
    )
    alone = prior.average(0, slice(None), logits)
    torch.testing.assert_close(alone, logits.double().log_softmax(1))


def test_the_best_share_is_found():
    p, q = torch.rand(2, 400, dtype=torch.float64)
    share = fit_share(p, q, torch.ones(400, dtype=torch.float64))
    nll = {s: -((1 - s) * p + s * q).log().mean() for s in (share, share - 0.03, share + 0.03)}
    assert min(nll, key=nll.__getitem__) == share


def test_inputs_are_never_asked_for():
    network = CodeNetwork([3, 1, 4], [3, 0, 0], [None] * 3, hidden=8, inputs=[(1, 1), (2, 1)])
    assert network.is_asked().tolist() == [True, False, False]
    visible, weights = draw_visible(64, network, QUESTIONS)
    assert not weights[:, 1:].any()
    assert weights[:, 0].any()
    assert not (visible[:, 2] & ~visible[:, 1]).any()
    assert visible[:, 2].any()
    codes = torch.tensor([[0, 0, 1], [2, 0, 3]])
    free = torch.full((2, 3), -1)
    assert (network.complete(free)[:, 1:] == -1).all()
    alone = network.log_prob(torch.where(torch.tensor([True, False, False]), codes, -1))
    torch.testing.assert_close(network.log_prob(codes), alone)
