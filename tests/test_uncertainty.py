"""Scores: error estimates that cover the error of log p, and rows that are independent."""

import math

import numpy as np
import pytest
import torch
from helpers import DOUBLE, Broken, enlarged, exact_log_prob, refused, standard
from scipy.stats import kstest
from torch import nn
from torch.distributions import Independent, Uniform
from torch.testing import assert_close

import cnf
from cnf.datasets import CONDITIONAL_TOYS, TABLES, TOYS
from cnf.layers import LAYERS, Argmax, Bounded, Concatenate, Identity
from cnf.ode import SolveError, Status
from cnf.utils.random import RowNoise

CLOSE = {torch.float32: 1e-5, DOUBLE: 1e-9}  # of max(1, |log p|)
FULL = 1000  # rows of the slow tests


def bent(dim, context_dim=0, **options):
    """A flow far from the identity, without a training."""
    torch.manual_seed(1)
    options = {"hidden": (16, 16), "zero_last": False, **options}
    return enlarged(cnf.ffjord(dim, context_dim=context_dim, **options), 1.5)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def relative(one, other):
    """The largest difference in units of max(1, |log p|)."""
    return ((one - other).abs() / other.abs().clamp(min=1)).max().item()


def check_cover(flow, x, context=None):
    """Hold what is asked of uncertainties, and return the median error."""
    scores = flow.score(x, context, max_batch=500)
    off = (scores.log_prob.double() - exact_log_prob(flow, x, context)).abs()
    uncertainty = scores.uncertainty.double()
    assert (off <= uncertainty).double().mean() >= 0.95
    assert uncertainty.median() <= 10 * off.median()
    return off.median().item()


COVERED = {
    "plane": ({}, torch.float32),
    "conditional": ({"context_dim": 1}, DOUBLE),
    "table": ({"dim": 6}, torch.float32),
    "circular": ({"circular": (0,)}, DOUBLE),
    "joint": ({"step": "joint"}, DOUBLE),
    "loose, where paths are so smooth that no step is cut": ({"rtol": 1e-3, "atol": 1e-3}, DOUBLE),
    "of low order": ({"method": "bosh3"}, DOUBLE),
    "of high order": ({"method": "dopri8"}, DOUBLE),
    "fixed": ({"method": "rk4", "step_size": 0.25}, DOUBLE),
}


@pytest.mark.parametrize(("options", "dtype"), COVERED.values(), ids=COVERED)
def test_uncertainties_cover_the_distance_to_scipy(options, dtype):
    flow = bent(**{"dim": 2, **options}).to(dtype)
    torch.manual_seed(0)
    x = torch.randn(40, flow.dim).to(dtype)
    context = torch.randn(40, 1).to(dtype) if "context_dim" in options else None
    assert check_cover(flow, x, context) < 1e-4 or {"rtol", "method"} & {*options}


def test_a_tighter_solve_is_nearer_to_the_truth():
    x, flow = torch.randn(30, 2), bent(2)
    scores, truth = flow.score(x), exact_log_prob(flow, x)
    assert scores.tighter.dtype == DOUBLE
    assert (scores.tighter - truth).abs().median() < 0.3 * (scores.log_prob - truth).abs().median()


@pytest.mark.parametrize(
    ("divergence", "probes"),
    [("hutchinson", 3), ("hutchinson", 8), ("hutchinson-gaussian", 8), ("hutch++", 6)],
)
def test_the_noise_of_estimates_is_in_the_uncertainty(divergence, probes):
    """Student's factor covers 95 of 100 rows, for any number of probes."""
    x = torch.randn(300, 8, dtype=DOUBLE)
    exact = bent(8).double().with_solver(rtol=1e-4, atol=1e-4, step="joint")
    scores = exact.with_solver(divergence=divergence).score(x, probes=probes)
    assert (scores.stderr > 0).all()
    off = (scores.log_prob - exact.log_prob(x)).abs()
    assert 0.88 <= (off <= scores.uncertainty).double().mean() <= 0.985


@pytest.mark.parametrize("divergence", ["hutchinson", "hutch++"])
def test_one_probe_has_no_standard_error_and_says_so(divergence):
    with pytest.warns(UserWarning, match="One probe has no standard error"):
        scores = bent(8).with_solver(divergence=divergence).score(torch.zeros(3, 8), probes=1)
    assert scores.stderr.isnan().all()
    assert scores.log_prob.isfinite().all()


def test_variances_of_layers_add_up():
    fields = [cnf.ConcatSquash(4, hidden=(8, 8)) for _ in range(2)]
    layers = [cnf.CNF(field, divergence="hutchinson").double() for field in fields]
    x, generator = torch.randn(400, 4, dtype=DOUBLE), seeded(0)
    one, other, both = (
        cnf.Flow(standard(4), each).score(x, generator=generator).stderr.square().mean().item()
        for each in (layers[:1], layers[1:], layers)
    )
    assert both == pytest.approx(one + other, rel=0.4)


@pytest.mark.parametrize("solver", [{"rtol": 1e-3, "atol": 1e-3}, {"method": "rk4"}])
def test_the_solvers_error_is_about_what_it_is(solver):
    x, flow = torch.randn(50, 8, dtype=DOUBLE), bent(8).double()
    loose = flow.with_solver(**solver, step_size=0.5 if "method" in solver else None)
    scores = loose.score(x)
    off = (scores.log_prob - flow.with_solver(rtol=1e-9, atol=1e-9).log_prob(x)).abs()
    assert 0.5 < scores.solver_error.mean() / off.mean() < 2
    # Probes are the same in both solves: their noise is no part of it.
    noisy = loose.with_solver(divergence="hutchinson").score(x)
    assert noisy.solver_error.mean() < 0.1 * noisy.stderr.mean()


def test_a_relative_tolerance_alone_and_those_of_half_precision():
    """The log-determinant begins at exactly zero."""
    x, flow = torch.stack([torch.zeros(8), torch.linspace(-1, 1, 8)]).to(DOUBLE), bent(8).double()
    scores = flow.with_solver(rtol=1e-9, atol=0.0, max_steps=500).score(x)
    assert (scores.status == Status.FINISHED).all()
    assert_close(scores.log_prob, flow.log_prob(x), rtol=1e-4, atol=1e-4)
    # Half precision asks for tolerances that it has.
    flow, x = cnf.ffjord(2, hidden=(16, 16), zero_last=False), torch.randn(5, 2)
    expected, flow = flow.log_prob(x), flow.to(torch.bfloat16)
    for method in (flow.log_prob, flow.score):
        refused("bfloat16; got 1e-05: pass rtol=8e-03 and atol=8e-03", method, x.bfloat16())
    found = flow.with_solver(rtol=8e-3, atol=8e-3).log_prob(x.bfloat16())
    assert_close(found.float(), expected, rtol=0.03, atol=0.03)


def test_batch_shapes_and_an_exact_trace():
    flow = cnf.ffjord(2, hidden=(8,), context_dim=1, zero_last=False)
    x, context = torch.randn(4, 2), torch.randn(3, 1, 1)
    scores = flow.score(x, context)
    assert scores.log_prob.shape == scores.solver_error.shape == scores.status.shape == (3, 4)
    assert torch.equal(scores.stderr, torch.zeros(3, 4))
    assert (scores.status == Status.FINISHED).all()
    assert not scores.log_prob.requires_grad
    assert_close(scores.log_prob, flow.log_prob(x, context))


@pytest.mark.parametrize(
    ("divergence", "dtype"),
    [("exact", torch.float32), ("hutchinson", DOUBLE), ("hutch++", torch.float32)],
)
def test_chunks_change_nothing_and_a_generator_decides(divergence, dtype):
    flow = bent(3, 1).to(dtype).with_solver(divergence=divergence)
    x, context = (torch.randn(133, size).to(dtype) for size in (3, 1))
    whole, *others = (
        flow.score(x, context, generator=seeded(3), max_batch=size) for size in (None, 50, 64)
    )
    for scores in others:
        assert relative(scores.log_prob, whole.log_prob) < CLOSE[dtype]
        assert_close(scores.stderr, whole.stderr, rtol=1e-3, atol=CLOSE[dtype])
        assert scores.stats.evaluations.shape == (len(x),)
        assert relative(scores.tighter, whole.tighter) < CLOSE[DOUBLE] * 10
    if divergence == "exact":
        assert relative(flow.log_prob(x, context, max_batch=50), whole.log_prob) < CLOSE[dtype]
    elif divergence == "hutchinson":
        other = flow.score(x[:5], context[:5], generator=seeded(4)).log_prob
        assert not torch.equal(other, whole.log_prob[:5])


def test_draws_in_chunks_are_the_same_draws():
    flow, context = bent(2, 1).double(), torch.randn(3, 1, dtype=DOUBLE)
    found = []
    for size in (None, 4):
        torch.manual_seed(0)
        drawn = flow.sample(5, context, max_batch=size)
        found.append((drawn, *flow.sample_and_log_prob((), context, max_batch=size)))
    assert_close(*found, rtol=1e-9, atol=1e-9)
    assert flow.sample((), context[0], max_batch=1).shape == (2,)
    # No chunk is empty unless there are no rows.
    flow = cnf.ffjord(2)
    for call, given in ((flow.log_prob, torch.zeros(3, 2)), (flow.sample, 3)):
        refused("max_batch of at least 1; got 0", call, given, max_batch=0)
    refused("probes of at least 1; got 0", flow.score, torch.zeros(2, 2), probes=0)
    for size in (None, 3):
        assert flow.log_prob(torch.zeros(0, 2), max_batch=size).shape == (0,)
        assert flow.score(torch.zeros(0, 2), max_batch=size).uncertainty.shape == (0,)
        assert flow.sample(0, max_batch=size).shape == (0, 2)


@pytest.mark.parametrize("size", [1, 3])
def test_a_failed_row_is_named_by_its_number_among_all_and_scored_nan(size):
    flow = cnf.Flow(standard(2, torch.float32), [cnf.CNF(Broken()), cnf.CNF(Broken())])
    x = torch.zeros(6, 2)
    x[5] = 9.0
    with pytest.raises(SolveError, match=r"\(rows 5\)"):
        flow.log_prob(x, max_batch=size)
    scores = flow.score(x, max_batch=size)
    assert scores.log_prob.isnan().tolist() == [False] * 5 + [True]
    assert scores.status[5] is Status.NOT_FINITE


@pytest.mark.parametrize("columns", [6, 10, 17])
def test_whitened_rows_are_rounded_alike_wherever_they_are(columns):
    x = torch.randn(2001, columns) @ torch.randn(columns, columns)
    layer = cnf.Whiten(columns).fit(x)
    whole = layer.pull(x).value
    alone = torch.cat([layer.pull(row[None]).value for row in x[:50]])
    assert torch.equal(alone, whole[:50])
    assert torch.equal(layer.pull(x[3:]).value, whole[3:])


def test_few_rows_are_repeated_and_nobody_sees_it():
    """So that a row alone is rounded as it is among many; failures name no copies."""
    flow, x = bent(2), torch.randn(200, 2)
    alone = torch.cat([flow.log_prob(row[None]) for row in x[:10]])
    assert (alone == flow.log_prob(x)[:10]).double().mean() >= 0.8
    assert flow.score(x[:1]).stats.evaluations.shape == (1,)
    flow = cnf.Flow(standard(2, torch.float32), [cnf.CNF(Broken())])
    with pytest.raises(SolveError) as caught:
        flow.log_prob(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
    assert caught.value.solution.rows == (1,)
    assert caught.value.solution.ys.shape == (2, 2, 3)
    # Evaluations of the backward pass are counted for each row.
    recomputing = bent(2).with_solver(activation_bytes=0)
    scored = recomputing.score_rows(torch.randn(3, 2))
    scored.log_prob.sum().backward()
    assert scored.stats.backward.shape == scored.stats.evaluations.shape == (3,)
    assert (scored.stats.backward > 0).all()


class Oscillating(nn.Module):
    def forward(self, t, x):
        return 3 * torch.sin(60 * t) * x


def test_a_repeated_row_keeps_its_probes():
    """A copy with larger probes would take more steps than there may be."""
    solver = {"max_steps": 48, "rtol": 1e-4, "atol": 1e-4}
    layer = cnf.CNF(Oscillating(), divergence="hutchinson-gaussian", **solver)
    flow = cnf.Flow(standard(1, torch.float32), [layer])
    torch.manual_seed(3)
    probe = torch.randn(1)
    torch.manual_seed(3)
    expected = -probe.square() * (1 - math.cos(60)) / 20 - math.log(2 * math.pi) / 2
    assert_close(flow.log_prob(torch.full((1, 1), 1e-7)), expected, rtol=0, atol=1e-3)


COLUMNS = {
    "positive": ([-20.0],),
    "bounded": ([-20.0], [20.0]),
    "circular": (1, -20.0, 20.0),
    "identity": (1,),
    "dequantize": (1,),
    "constant": ([3.0],),
    "argmax": ([0.5, 0.3, 0.2],),
}
CASES = [*COLUMNS, "cnf", "standardize", "whiten", "gaussianize", "moving_norm"]


def flow_of(name, x):
    """A solve and a layer after it, fitted to x where it can be."""
    layers = []
    if name in COLUMNS:
        layers = [Concatenate([Identity(1), LAYERS[name](*COLUMNS[name])], [[0], [1]])]
    elif name == "moving_norm":
        layers = [LAYERS[name](2)]
        layers[0].update(layers[0].sums(x))
    elif name != "cnf":
        layers = [LAYERS[name](2).fit(x)]
    width = {"constant": 1, "argmax": 3}.get(name, 2)
    inner = bent(width, circular=(1,) if name == "circular" else ())
    solve = next(each for each in inner.layers if isinstance(each, cnf.CNF))
    return cnf.Flow(inner.base, [solve, *layers])


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [*((name, torch.float32) for name in CASES), ("cnf", DOUBLE), ("argmax", DOUBLE)],
)
def test_a_rows_log_p_is_its_own_through_every_layer(layer, dtype):
    """A row scores the same alone, in chunks and among others; so does its noise."""
    x = torch.randn(4, 2)
    if layer in ("dequantize", "argmax"):
        x[:, 1] = torch.randint(0, 3, (4,)).float()
    flow, x = flow_of(layer, x).to(dtype), x.to(dtype)
    whole, ones = (
        flow.score(x, probes=2, generator=seeded(3), max_batch=size).log_prob for size in (None, 1)
    )
    assert whole.isfinite().all()
    assert relative(ones, whole) < CLOSE[dtype]
    with torch.no_grad():
        order = [3, 0]
        together = flow.log_prob(x, seed=3, draws=2)
        for rows in (
            flow.log_prob(x[order], seed=3, draws=2),
            *(torch.stack([flow.log_prob(x[i], seed=3, draws=2) for i in order]),),
        ):
            assert relative(rows, together[order]) < CLOSE[dtype]
    if not flow.noisy:
        assert relative(together, whole) < CLOSE[dtype]


def test_a_seed_decides_on_noise_and_probes_of_log_p():
    x = torch.tensor([[0.5, 1.0], [-1.0, 2.0], [0.5, 1.0]])
    counts, probed = flow_of("dequantize", x), bent(2).with_solver(divergence="hutchinson")
    rng = torch.get_rng_state()
    for flow in (counts, probed):
        one, same, other = (flow.log_prob(x, seed=seed).detach() for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert one[0] == one[2]  # equal rows
        assert (one != other).any()
    assert torch.equal(torch.get_rng_state(), rng)
    # Without one PyTorch's generator draws, also of a mean mass.
    found = []
    for call in (lambda: counts.log_prob(x, draws=9), lambda: counts.score_rows(x).log_prob):
        torch.manual_seed(0)
        found.append(call())
    torch.manual_seed(0)
    each = torch.stack([counts.score_rows(x).log_prob for _ in range(9)])
    assert torch.equal(each[0], found[1])
    assert_close(found[0], each.exp().mean(0).log())
    # The bound tightens, and has a gradient.
    rows = torch.cat([torch.randn(300, 1), torch.randint(0, 3, (300, 1))], 1)
    bounds = [counts.log_prob(rows, seed=0, draws=draws).mean() for draws in (1, 8)]
    assert bounds[0] < bounds[1]
    assert torch.autograd.grad(bounds[1], [*counts.parameters()])[0].abs().max() > 0
    refused("draws of at least 1; got 0", counts.log_prob, x, draws=0)


@pytest.mark.parametrize(
    ("value", "size"), [(1e30, None), (math.inf, 1), (-math.inf, 2), (math.nan, None)]
)
def test_a_failing_row_is_nan_and_leaves_the_others_alone(value, size):
    flow, x = bent(2), torch.randn(5, 2)
    good = flow.score(x)
    x[2, 0] = value
    scores = flow.score(x, max_batch=size)
    rest = [0, 1, 3, 4]
    assert relative(scores.log_prob[rest], good.log_prob[rest]) < CLOSE[torch.float32]
    assert all(each[2].isnan() for each in (scores.log_prob, scores.uncertainty))
    assert [status is Status.FINISHED for status in scores.status] == [i != 2 for i in range(5)]


def test_failures_without_a_solve_are_nan_and_no_density_is_minus_infinity():
    flow = cnf.Flow(standard(1, torch.float32), [cnf.Standardize(1)])
    scores = flow.score(torch.tensor([[0.0], [torch.inf], [torch.nan], [1e30], [1e10]]))
    assert scores.log_prob.isfinite().tolist() == [True, False, False, False, True]
    assert scores.log_prob.isnan().tolist() == [False, True, True, True, False]
    assert [status.name for status in scores.status][1:4] == ["NOT_FINITE"] * 3
    # A missing category is NaN; an unknown one has no mass.
    flow = cnf.Flow(standard(2, torch.float32), [Argmax([0.5, 0.3, 0.2])])
    scores = flow.score(torch.tensor([[1.0], [torch.nan], [7.0]]), probes=2)
    assert scores.log_prob[1].isnan()
    assert scores.log_prob[2] == -torch.inf
    assert [*scores.status[1:]] == [Status.NOT_FINITE, Status.FINISHED]
    # Out of the base's support or a column's is no failure: no density, for certain.
    base = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    flow = cnf.Flow(base, [cnf.CNF(cnf.ConcatSquash(2))])
    bounded = cnf.Flow(bent(1).base, [Bounded([0.0], [1.0])])
    rows = torch.tensor([[0.1, 0.2], [9.0, 9.0]])
    for scores in (flow.score(rows), bounded.score(torch.tensor([[0.2], [2.0]]))):
        assert scores.log_prob[0].isfinite()
        assert scores.log_prob[1] == -torch.inf
        assert scores.status.tolist() == [Status.FINISHED] * 2
        assert scores.uncertainty[1] == scores.solver_error[1] == 0


LAWS = {"rademacher": (0, 1), "normal": (0, 1), "uniform": (0.5, 1 / 12)}  # mean, variance


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("kind", LAWS)
def test_noise_is_a_function_of_the_rows_values(kind, dtype):
    x, context = torch.randn(137, 3).to(dtype), torch.randn(137, 1).to(dtype)

    def draws(seed, *rows):
        noise = RowNoise(seed, *rows)
        return getattr(noise, kind)((len(rows[0]), 2, 4)), getattr(noise, kind)((len(rows[0]), 70))

    first, whole = draws(5, x, context)
    assert first.dtype == whole.dtype == dtype
    assert not torch.equal(first.flatten(1), whole[:, :8])
    assert len(whole.unique(dim=0)) == 137
    for order in (torch.tensor([7]), torch.randperm(137), torch.arange(136, 100, -1)):
        assert torch.equal(draws(5, x[order], context[order])[1], whole[order])
    nearest = torch.nextafter(x.float(), torch.full((1,), 9.0)).to(dtype)
    for other in ((6, x, context), (5, x), (5, x, -context), (5, nearest, context)):
        assert (draws(*other)[1] != whole).any(1).all()
    # Of the same rows in another dtype it is the same but for rounding.
    single, double = (draws(5, x.float().to(each))[1] for each in (torch.float32, DOUBLE))
    assert_close(single.double(), double, rtol=1e-6, atol=1e-6)
    # Numbers that are equal, and gaps of any kind, give the same noise.
    zeros = torch.tensor([[0.0, torch.nan], [-0.0, -torch.nan]], dtype=dtype)
    one, other = draws(-1, zeros)[1]
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("kind", LAWS)
def test_noise_follows_its_law_and_depends_on_nothing(kind, dtype):
    """Also of rows that hardly differ: whole numbers, and neighbours among floating numbers."""
    mean, variance = LAWS[kind]
    whole = torch.arange(20_000).to(dtype)[:, None]
    close = 1 + whole * torch.finfo(torch.float32).eps
    sources = [RowNoise(0, whole), RowNoise(0, close), RowNoise(1, whole)]
    columns = [
        column.double().numpy()
        for source in sources
        for drawn in (getattr(source, kind)((20_000, 3)), getattr(source, kind)((20_000, 1)))
        for column in drawn.T
    ]
    columns += [np.append(columns[0][1:], mean)]  # the next row's
    assert np.mean(columns, 1) == pytest.approx(mean, abs=0.03)
    assert np.var(columns, 1) == pytest.approx(variance, rel=0.04)
    products = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(products).max() < 0.035
    squares = np.corrcoef(np.square(columns)) if kind != "rademacher" else products
    assert np.abs(squares - np.diag(np.diag(squares))).max() < 0.035
    if kind != "rademacher":
        law = "norm" if kind == "normal" else "uniform"
        assert min(kstest(column, law).pvalue for column in columns[:-1]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moons", "8gaussians", "rotor", "wine", "diabetes"])
def test_fitted_flows(name):
    """Check toys and tables at full size."""
    if name in TABLES:
        train = rows = (torch.from_numpy(TABLES[name]().values),)
    else:
        toy = {**TOYS, **CONDITIONAL_TOYS}[name]
        drawn = (toy.sample(5000, seed=0), toy.sample(FULL, seed=1))
        train, rows = (
            [torch.from_numpy(part) for part in (each if name in CONDITIONAL_TOYS else [each])]
            for each in drawn
        )
    dim, scaling = train[0].shape[1], "gaussianize" if name in TABLES else "standardize"
    flow = cnf.ffjord(dim, hidden=(32, 32, 32), context_dim=len(train) - 1, scaling=scaling)
    cnf.fit(flow, train[0], context=train[1] if len(train) > 1 else None, steps=200)
    rows = [part[:FULL].float() for part in rows]
    assert check_cover(flow, *rows) < 1e-4
    for dtype, close in CLOSE.items():
        flow, rows = flow.to(dtype), [part.to(dtype) for part in rows]
        with torch.no_grad():
            whole = flow.log_prob(*rows)
            for size in (1, 7, 1000):
                assert relative(flow.log_prob(*rows, max_batch=size), whole) < close
