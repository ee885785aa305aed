"""Error estimates of log p that cover its error, and rows whose log p is independent."""

import math

import numpy as np
import pytest
import torch
from helpers import exact_log_prob
from torch import nn
from torch.distributions import Independent, Normal, Uniform

import cnf
from cnf.datasets import CONDITIONAL_TOYS, TABLES, TOYS
from cnf.layers import (
    LAYERS,
    Argmax,
    Bounded,
    Circular,
    Concatenate,
    Constant,
    Dequantize,
    Gaussianize,
    Identity,
    MovingNorm,
    Positive,
    Standardize,
    Whiten,
)
from cnf.ode import SolveError, Status
from cnf.utils.row_noise import NOISE_BLOCK_ROWS, RowNoise

DOUBLE = torch.float64
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-9}  # of max(1, |log p|)
FULL = 1000  # rows of the slow tests


def bent(dim: int, context_dim: int = 0, *, scale: float = 1.5, **options) -> cnf.Flow:
    """A flow far from the identity, without a training."""
    torch.manual_seed(1)
    options = {"hidden": (16, 16), "zero_last": False, **options}
    flow = cnf.ffjord(dim, context_dim=context_dim, **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(scale)
    return flow


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference in units of max(1, |log p|)."""
    return ((one - other).abs() / other.abs().clamp(min=1)).max().item()


def check_cover(flow: cnf.Flow, x: torch.Tensor, context: torch.Tensor | None = None) -> str:
    """Hold what is asked of uncertainties, and say the numbers."""
    scores = flow.score(x, context, max_batch=500)
    off = (scores.log_prob.double() - exact_log_prob(flow, x, context)).abs()
    uncertainty = scores.uncertainty.double()
    covered = (off <= uncertainty).double().mean().item()
    ratio = (uncertainty.median() / off.median()).item()
    assert covered >= 0.95
    assert ratio <= 10
    assert off.median() < 1e-4
    return f"covered {covered:.3f}, ratio of medians {ratio:.2f}, median off {off.median():.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shape", ["plane", "conditional", "table", "circular"])
def test_uncertainties_cover_the_distance_to_scipy(shape, dtype):
    torch.manual_seed(0)
    dim = {"table": 6}.get(shape, 2)
    options = {"circular": (0,)} if shape == "circular" else {}
    context_dim = 1 if shape == "conditional" else 0
    flow = bent(dim, context_dim, **options).to(dtype)
    x = torch.randn(60, dim).to(dtype)
    check_cover(flow, x, torch.randn(60, 1).to(dtype) if context_dim else None)


SETTINGS = {
    "loose, where paths are so smooth that no step is cut": {"rtol": 1e-3, "atol": 1e-3},
    "joint": {"step": "joint"},
    "of low order": {"method": "bosh3"},
    "of high order": {"method": "dopri8"},
    "fixed": {"method": "rk4", "step_size": 0.25},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_other_solvers_are_covered_too(settings):
    x = torch.randn(60, 2, dtype=DOUBLE)
    flow = bent(2).double().with_solver(**settings)
    scores = flow.score(x)
    off = (scores.log_prob.double() - exact_log_prob(flow, x)).abs()
    assert (off <= scores.uncertainty).double().mean() >= 0.95
    assert scores.uncertainty.median() <= 10 * off.median()


def test_a_tighter_solve_is_nearer_to_the_truth():
    x = torch.randn(60, 2)
    flow = bent(2)
    scores = flow.score(x)
    truth = exact_log_prob(flow, x)
    assert scores.tighter.dtype == DOUBLE
    assert (scores.tighter - truth).abs().median() < 0.3 * (scores.log_prob - truth).abs().median()


def test_the_noise_of_estimates_is_in_the_uncertainty():
    """Student's factor covers 95 of 100 rows, for any number of probes."""
    x = torch.randn(300, 8, dtype=DOUBLE)
    exact = bent(8).double().with_solver(rtol=1e-4, atol=1e-4)
    estimated, truth = exact.with_solver(divergence="hutchinson"), exact.log_prob(x)
    for probes in (3, 8):
        scores = estimated.score(x, probes=probes)
        covered = ((scores.log_prob - truth).abs() <= scores.uncertainty).double().mean()
        assert 0.91 <= covered <= 0.98


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "hutch++"])
def test_chunks_change_nothing(divergence, dtype):
    flow = bent(3, 1).to(dtype).with_solver(divergence=divergence)
    x, context = (
        torch.randn(2 * NOISE_BLOCK_ROWS + 5, 3).to(dtype),
        torch.randn(2 * NOISE_BLOCK_ROWS + 5, 1).to(dtype),
    )
    whole, *others = (
        flow.score(x, context, generator=torch.Generator().manual_seed(3), max_batch=size)
        for size in (None, 50, NOISE_BLOCK_ROWS)
    )
    for scores in others:
        assert relative(scores.log_prob, whole.log_prob) < CLOSE[dtype]
        torch.testing.assert_close(scores.stderr, whole.stderr, rtol=1e-3, atol=CLOSE[dtype])
        assert scores.stats.evaluations.shape == (len(x),)
        assert relative(scores.tighter, whole.tighter) < CLOSE[DOUBLE] * 10
    if divergence == "exact":
        assert relative(flow.log_prob(x, context, max_batch=50), whole.log_prob) < CLOSE[dtype]


def test_draws_in_chunks_are_the_same_draws():
    flow, context = bent(2, 1).double(), torch.randn(3, 1, dtype=DOUBLE)
    found = []
    for size in (None, 4):
        torch.manual_seed(0)
        found.append((flow.sample(5, context, max_batch=size), *_drawn(flow, context, size)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert flow.sample((), context[0], max_batch=1).shape == (2,)


def _drawn(flow, context, size):
    return flow.sample_and_log_prob((), context, max_batch=size)


@pytest.mark.parametrize("call", ["log_prob", "score", "sample"])
def test_no_chunk_is_empty(call):
    flow, given = cnf.ffjord(2), 3 if call == "sample" else torch.zeros(3, 2)
    with pytest.raises(ValueError, match="max_batch of at least 1; got 0"):
        getattr(flow, call)(given, max_batch=0)


def test_no_rows_in_chunks():
    flow = cnf.ffjord(2)
    assert flow.log_prob(torch.zeros(0, 2), max_batch=3).shape == (0,)
    assert flow.score(torch.zeros(0, 2), max_batch=3).uncertainty.shape == (0,)


class Broken(nn.Module):
    def forward(self, t, x):
        return torch.where(x[:, :1] > 5, torch.nan, -x)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_failed_row_of_a_chunk_is_named_by_its_number_among_all(size):
    base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    x = torch.zeros(6, 2)
    x[5] = 9.0
    with pytest.raises(SolveError, match=r"\(rows 5\)"):
        cnf.Flow(base, [cnf.CNF(Broken())]).log_prob(x, max_batch=size)


def test_few_rows_are_repeated_and_nobody_sees_it():
    """So that a row alone is rounded as it is among many; failures name no copies."""
    flow, x = bent(2), torch.randn(200, 2)
    alone = torch.cat([flow.log_prob(row[None]) for row in x[:20]])
    assert (alone == flow.log_prob(x)[:20]).double().mean() >= 0.8
    assert flow.score(x[:1]).stats.evaluations.shape == (1,)
    base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    with pytest.raises(SolveError) as caught:
        cnf.Flow(base, [cnf.CNF(Broken())]).log_prob(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
    assert caught.value.solution.rows == (1,)
    assert caught.value.solution.ys.shape == (2, 2, 3)


class Oscillating(nn.Module):
    def forward(self, t, x):
        return 3 * torch.sin(60 * t) * x


def test_a_repeated_row_keeps_its_probes():
    """A copy with larger probes would take more steps than there may be."""
    solver = {"max_steps": 48, "rtol": 1e-4, "atol": 1e-4}
    base = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
    flow = cnf.Flow(base, [cnf.CNF(Oscillating(), divergence="hutchinson-gaussian", **solver)])
    torch.manual_seed(3)
    probe = torch.randn(1)
    torch.manual_seed(3)
    expected = -probe.square() * (1 - math.cos(60)) / 20 - math.log(2 * math.pi) / 2
    x = torch.full((1, 1), 1e-7)
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-3)


def test_evaluations_backward_of_few_rows_are_these_rows_own():
    scored = bent(2).score_rows(torch.randn(3, 2))
    scored.log_prob.sum().backward()
    assert scored.stats.backward.shape == scored.stats.evaluations.shape == (3,)
    assert (scored.stats.backward > 0).all()


def layers_of(x: torch.Tensor) -> dict:
    """Return layers of every kind, to stand after a solve, fitted to x where they can be."""
    moving = MovingNorm(2)
    moving.update(moving.sums(x))
    columns = {
        "positive": Positive([-20.0]),
        "bounded": Bounded([-20.0], [20.0]),
        "circular": Circular(1, -20.0, 20.0),
        "identity": Identity(1),
        "dequantize": Dequantize(1),
        "constant": Constant([3.0]),
        "argmax": Argmax([0.5, 0.3, 0.2]),
    }
    concatenated = {
        name: [Concatenate([Identity(1), layer], [[0], [1]])] for name, layer in columns.items()
    }
    return {
        "cnf": [],
        "standardize": [Standardize(2).fit(x)],
        "whiten": [Whiten(2).fit(x)],
        "gaussianize": [Gaussianize(2).fit(x)],
        "moving_norm": [moving],
        **concatenated,
    }


def rows_for(layer: str, rows: int) -> torch.Tensor:
    x = torch.randn(rows, 2)
    if layer in ("dequantize", "argmax"):
        x[:, 1] = torch.randint(0, 3, (rows,)).float()
    return x


def flow_of(layer: str, x: torch.Tensor) -> cnf.Flow:
    layers = layers_of(x)[layer]
    width = {"constant": 1, "argmax": 3}.get(layer, 2)
    angles = (1,) if layer == "circular" else ()
    inner = bent(width, circular=angles)
    solve = next(each for each in inner.layers if isinstance(each, cnf.CNF))
    return cnf.Flow(inner.base, [solve, *layers])


def test_every_layer_is_there():
    assert set(layers_of(torch.randn(50, 2))) | {"concatenate"} == set(LAYERS)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("layer", sorted(set(LAYERS) - {"concatenate"}))
def test_a_rows_log_p_is_its_own_through_every_layer(layer, dtype):
    """A row scores the same alone, in chunks and among others; noise follows the row's index."""
    x = rows_for(layer, 8)
    flow, x = flow_of(layer, x).to(dtype), x.to(dtype)
    whole, ones = (
        flow.score(x, probes=2, generator=torch.Generator().manual_seed(3), max_batch=size)
        for size in (None, 1)
    )
    assert whole.log_prob.isfinite().all()
    assert relative(ones.log_prob, whole.log_prob) < CLOSE[dtype]
    if not flow.noisy:
        with torch.no_grad():
            alone = torch.cat([flow.log_prob(x[i : i + 1]) for i in (0, 7)])
        assert relative(alone, whole.log_prob[[0, 7]]) < CLOSE[dtype]


@pytest.mark.parametrize("value", [1e30, float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("size", [None, 1, 2])
def test_a_failing_row_is_nan_and_leaves_the_others_alone(value, size):
    flow, x = bent(2), torch.randn(5, 2)
    good = flow.score(x)
    bad = x.clone()
    bad[2, 0] = value
    scores = flow.score(bad, max_batch=size)
    rest = [0, 1, 3, 4]
    assert relative(scores.log_prob[rest], good.log_prob[rest]) < CLOSE[torch.float32]
    assert scores.log_prob[2].isnan()
    assert scores.uncertainty[2].isnan()
    assert [status is Status.FINISHED for status in scores.status] == [i != 2 for i in range(5)]


def test_failures_without_a_solve_are_nan_too():
    flow = cnf.Flow(Independent(Normal(torch.zeros(1), torch.ones(1)), 1), [Standardize(1)])
    scores = flow.score(torch.tensor([[0.0], [torch.inf], [torch.nan], [1e30], [1e10]]))
    assert scores.log_prob.isfinite().tolist() == [True, False, False, False, True]
    assert scores.log_prob.isnan().tolist() == [False, True, True, True, False]
    assert [status.name for status in scores.status][1:4] == ["NOT_FINITE"] * 3


def test_a_missing_category_is_nan_and_an_unknown_one_has_no_mass():
    base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    flow = cnf.Flow(base, [Argmax([0.5, 0.3, 0.2])])
    scores = flow.score(torch.tensor([[1.0], [torch.nan], [7.0]]), probes=2)
    assert scores.log_prob[1].isnan()
    assert scores.status[1] is Status.NOT_FINITE
    assert scores.log_prob[2] == -torch.inf
    assert scores.status[2] is Status.FINISHED


def test_no_density_is_minus_infinity_for_certain():
    """Out of the base's support, and out of a column's; both are no failures."""
    base = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    flow = cnf.Flow(base, [cnf.CNF(cnf.ConcatSquash(2))])
    bounded = cnf.Flow(bent(1).base, [Bounded([0.0], [1.0])])
    for scores in (flow.score(torch.full((1, 2), 9.0)), bounded.score(torch.tensor([[2.0]]))):
        assert scores.log_prob.item() == -torch.inf
        assert scores.status.tolist() == [Status.FINISHED]
        assert scores.uncertainty.item() == 0


@pytest.mark.parametrize("low", [0.1, 0.7, -1000.3])
def test_a_bound_in_double_precision_is_the_bound_in_single(low):
    layer = Bounded([low], [low + 0.2]).double()
    x = torch.tensor([[low], [low + 0.2], [low - 0.01], [low + 0.21]], dtype=DOUBLE)
    assert layer.pull(x).log_det.isfinite().tolist() == [True, True, False, False]


@pytest.mark.parametrize("kind", ["rademacher", "normal", "uniform"])
@pytest.mark.parametrize("dtype", CLOSE)
def test_noise_belongs_to_rows_and_places(kind, dtype):
    rows = 2 * NOISE_BLOCK_ROWS + 9
    whole = RowNoise(5, dtype)
    first, second = (getattr(whole, kind)((rows, 3)) for _ in range(2))
    assert first.dtype == dtype
    assert not torch.equal(first, second)
    for size in (1, 7, NOISE_BLOCK_ROWS, NOISE_BLOCK_ROWS + 1):
        parts = []
        for start in range(0, rows, size):
            noise = RowNoise(5, dtype, start)
            getattr(noise, kind)((min(size, rows - start), 8))  # of another shape: another place
            parts.append(getattr(noise, kind)((min(size, rows - start), 3)))
        assert torch.equal(torch.cat(parts), second)
    assert not torch.equal(getattr(RowNoise(6, dtype), kind)((rows, 3)), first)
    assert len(torch.unique(first, dim=0)) == (rows if kind != "rademacher" else 8)


def test_noise_has_its_moments():
    noise = RowNoise(0, DOUBLE)
    for drawn, mean, variance in (
        (noise.rademacher((20_000, 2)), 0, 1),
        (noise.normal((20_000, 2)), 0, 1),
        (noise.uniform((20_000, 2)), 0.5, 1 / 12),
    ):
        assert drawn.mean().item() == pytest.approx(mean, abs=0.03)
        assert drawn.var().item() == pytest.approx(variance, rel=0.03)
        assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03


def fitted(name: str) -> tuple[cnf.Flow, torch.Tensor, torch.Tensor | None]:
    """A flow fitted to a toy or a table, with rows to score."""
    torch.manual_seed(0)
    context = given = None
    if name in TABLES:
        rows = x = torch.from_numpy(TABLES[name]().values)
        flow = cnf.ffjord(rows.shape[1], hidden=(32, 32), scaling="gaussianize")
    elif name in CONDITIONAL_TOYS:
        toy = CONDITIONAL_TOYS[name]
        rows, context = map(torch.from_numpy, toy.sample(5000, seed=0))
        x, given = map(torch.from_numpy, toy.sample(FULL, seed=1))
        flow = cnf.ffjord(2, hidden=(32, 32, 32), context_dim=1)
    else:
        rows, x = (torch.from_numpy(TOYS[name].sample(n, seed=n)) for n in (5000, FULL))
        flow = cnf.ffjord(2, hidden=(32, 32, 32))
    cnf.fit(flow, rows, context=context, steps=200)
    return flow, x[:FULL].float(), None if given is None else given.float()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moons", "8gaussians", "rotor", "wine", "diabetes"])
def test_fitted_flows(name):
    """Check toys and tables at full size; `-s` shows the numbers."""
    flow, x, context = fitted(name)
    print(f"\n{name}, {len(x)} rows: {check_cover(flow, x, context)}")
    for dtype, close in CLOSE.items():
        flow, x = flow.to(dtype), x.to(dtype)
        context = None if context is None else context.to(dtype)
        with torch.no_grad():
            whole = flow.log_prob(x, context)
            off = {
                size: relative(flow.log_prob(x, context, max_batch=size), whole)
                for size in (1, 7, 1000)
            }
        print(f"  {dtype}: {', '.join(f'{size}: {worst:.1e}' for size, worst in off.items())}")
        assert max(off.values()) < close
