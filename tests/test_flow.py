"""Flows: exact log-densities, the two directions, shapes, bases and gradients."""

import math
import pickle

import numpy as np
import pytest
import torch
from helpers import DOUBLE, exact_log_prob, near, refused, seeded_draw
from torch import distributions as pytorch
from torch.distributions import Categorical, Independent, Normal
from torch.testing import assert_close

import cnf
from cnf.datasets import TOYS

BASES = {
    "normal": Independent(Normal(torch.zeros(2), torch.ones(2)), 1),
    "laplace": Independent(pytorch.Laplace(torch.zeros(2), torch.ones(2)), 1),
    "student": Independent(pytorch.StudentT(torch.full((2,), 5.0)), 1),
    "correlated": pytorch.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "mixture": pytorch.MixtureSameFamily(
        Categorical(logits=torch.zeros(3)),
        Independent(Normal(torch.randn(3, 2), torch.ones(3, 2)), 1),
    ),
}


def flow_over(base, **settings):
    return cnf.Flow(base, [cnf.CNF(cnf.ConcatSquash(2, (8, 8)), **settings), cnf.Standardize(2)])


def moving(dim=2, **options):
    return cnf.ffjord(dim, **{"hidden": (8,), "zero_last": False, **options})


def test_log_prob_agrees_with_an_independent_integration(fitted):
    deep = moving(3, hidden=(6, 5, 4), blocks=2, activation="softplus")
    deep.layers[-1].fit(torch.randn(100, 3) * 3 + 1)
    moons = torch.from_numpy(TOYS["moons"].sample(10, seed=3))
    for flow, x in ((fitted, moons), (deep.double(), torch.randn(5, 3, dtype=DOUBLE))):
        tight = flow.with_solver(rtol=1e-9, atol=1e-9)
        near(tight.log_prob(x), exact_log_prob(flow, x), 1e-6)


@pytest.mark.parametrize("step", ["per_sample", "joint"])
@pytest.mark.parametrize("zero", [True, False])
def test_evaluations_of_a_new_flow(step, zero):
    """Where the field is zero, one step over the whole span; where it is not, as many as ever."""
    torch.manual_seed(0)
    x, flow = torch.randn(100, 2), cnf.ffjord(2, zero_last=zero).with_solver(step=step)
    most = 8 if zero else {"per_sample": 26.12, "joint": 20}[step]
    assert np.mean(flow.pull(x).stats.evaluations) <= most


def test_a_fitted_density_integrates_to_one(fitted):
    side = torch.linspace(-5, 5, 71, dtype=DOUBLE)
    grid, flow = torch.cartesian_prod(side, side), fitted.with_solver(step="joint")
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum()
    assert total.item() * (10 / 70) ** 2 == pytest.approx(1.0, abs=5e-3)


def test_samples_follow_the_density(fitted):
    """E_p[1/p · 1{box}] is the box's area: a mismatch of sampler and density would show."""
    with torch.no_grad():
        x, log_prob = fitted.sample_and_log_prob(4000)
    # Inside the upper moon's arm, where the density is well away from zero.
    inside = ((x - torch.tensor([0.0, 1.3])).abs() < torch.tensor([0.6, 0.3])).all(1)
    weights = torch.where(inside, (-log_prob).exp(), 0.0)
    stderr = weights.std() / math.sqrt(len(x))
    assert (weights.mean() - 4 * 0.6 * 0.3).abs() < 4 * stderr
    assert stderr < 0.1


@pytest.mark.parametrize("name", BASES)
def test_sample_and_log_prob_agree_for_any_base_which_follows_the_flow_to_another_dtype(name):
    flow = flow_over(BASES[name], rtol=1e-8, atol=1e-8).double()
    assert flow.base.sample().dtype == DOUBLE
    x, log_prob = flow.sample_and_log_prob((4, 3))
    assert x.shape == (4, 3, 2)
    assert x.dtype == DOUBLE
    assert not x.requires_grad
    near(flow.log_prob(x), log_prob, 1e-6)


def test_rsample_is_differentiable_and_sample_is_not():
    flow = flow_over(BASES["normal"])
    assert not flow.sample(3).requires_grad
    flow.rsample(3).square().sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
    assert all(each.requires_grad for each in flow.rsample_and_log_prob(3))
    flow = flow_over(BASES["mixture"])
    assert flow.sample(3).shape == (3, 2)
    refused("rsample", flow.rsample, 3)


@pytest.mark.parametrize(
    ("shape", "context", "expected"),
    [
        ((), None, (2,)),
        (5, None, (5, 2)),
        ((4, 5), None, (4, 5, 2)),
        ((), (7,), (7, 2)),
        (5, (7,), (5, 7, 2)),
        ((4, 5), (7, 1), (4, 5, 7, 1, 2)),
        ((), (), (2,)),
    ],
)
def test_sample_shapes(shape, context, expected):
    flow = moving(context_dim=0 if context is None else 3)
    given = None if context is None else torch.randn(*context, 3)
    assert flow.sample(shape, given).shape == expected
    x, log_prob = flow.sample_and_log_prob(shape, given)
    assert x.shape == expected
    assert log_prob.shape == expected[:-1]


def test_standardisation_is_part_of_log_prob():
    """With a field of zeros, the flow is the Gaussian with the data's mean and variances."""
    flow = cnf.ffjord(2, hidden=(8, 8)).double()
    data = torch.randn(100, 2, dtype=DOUBLE) * torch.tensor([0.1, 30.0]) + 5
    flow.layers[1].fit(data)
    gaussian = Independent(Normal(data.mean(0), data.std(0, correction=0)), 1)
    assert_close(flow.log_prob(data), gaussian.log_prob(data))
    # Another solver shares the very parameters.
    other = flow.with_solver(rtol=1e-9, atol=1e-9)
    assert all(a is b for a, b in zip(flow.parameters(), other.parameters(), strict=True))
    assert other.layers[0].settings.rtol == 1e-9


def test_path_runs_from_base_to_samples_through_a_stack():
    flow = moving(blocks=3, rtol=1e-8, atol=1e-8)
    flow.layers[-1].fit(torch.randn(50, 2) * 4 + 10)
    end = z = torch.randn(6, 2, dtype=DOUBLE)
    path = flow.double().path(z, frames=8)
    assert path.shape == (8, 6, 2)
    assert_close(path[0], flow.layers[-1](z)[0])  # the base, in the data's units
    for layer in flow.layers:
        end, _ = layer(end)
    near(path[-1], end, 1e-6)
    assert (path.diff(dim=0).abs().amax((1, 2)) > 0).all()
    refused("at least 2 frames", flow.path, z, frames=1)


def test_wrong_arguments():
    flow, x = moving(), torch.zeros(5, 2)
    for base in (Normal(0.0, 1.0), Normal(x, x + 1), Categorical(torch.ones(3))):
        refused(r"event shape \(dim,\)", cnf.Flow, base, [])
    assert flow.with_solver(step="joint").log_prob(x[:0]).shape == (0,)  # no rows are no mistake
    refused(r"x of shape \(..., 2\); got \(5, 3\)", flow.log_prob, torch.zeros(5, 3))
    refused("blocks of at least 1", cnf.ffjord, 2, blocks=0)
    refused("no batch_norm with angles", cnf.ffjord, 2, batch_norm=True, circular=(0,))
    refused("scaling to be one of standardize", cnf.ffjord, 2, scaling="log")
    refused(r"context of shape \(rows, 3\); got \(5, 2\)", moving(context_dim=3).log_prob, x, x)
    x[3, 1] = math.nan
    with pytest.raises(cnf.SolveError, match="rows 3"):
        flow.log_prob(x)


def test_a_context_is_standardised_on_its_way_in_and_has_a_gradient():
    flow = moving(context_dim=1)
    context = 1e4 + 1e3 * torch.randn(50, 1)
    rows = torch.randn(50, 2)
    cnf.fit(flow, rows, context=context, validation=(rows, context), steps=2)
    assert_close(flow.context.loc, context.mean(0))
    x, c = torch.randn(3, 2), context[:3]
    bare = cnf.Flow(flow.base, flow.layers)
    scaled = (c - flow.context.loc) / flow.context.scale
    assert_close(flow.log_prob(x, c), bare.log_prob(x, scaled))
    assert_close(flow.path(x, 3, c), bare.path(x, 3, scaled))
    assert_close(seeded_draw(flow, (), c), seeded_draw(bare, (), scaled))
    # Gradients reach its encoder.
    encoder, flow = torch.nn.Linear(5, 3), moving(context_dim=3)
    for find in (lambda c: flow.log_prob(torch.randn(4, 2), c), lambda c: flow.rsample((), c)):
        encoder.zero_grad()
        find(encoder(torch.randn(4, 5))).sum().backward()
        assert (encoder.weight.grad != 0).any()
    # A flow with features of x can be pickled.
    flow, x = moving(field_options={"x_features": 4}), torch.randn(3, 2)
    again = pickle.loads(pickle.dumps(flow))
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


def test_a_hyper_field_that_starts_at_zero_learns():
    flow = cnf.ffjord(2, hidden=(8,), field="hyper")
    optimizer = torch.optim.SGD(flow.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-flow.log_prob(torch.randn(20, 2)).mean()).backward()
        optimizer.step()
    assert all((p.grad != 0).any() for p in flow.parameters())


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda flow, x: flow.log_prob(x.numpy())),
        ("x", lambda flow, x: flow.score(x.numpy())),
        ("data", lambda flow, x: cnf.fit(flow, x.numpy(), steps=1)),
        ("context", lambda flow, x: cnf.fit(flow, x, context=x.numpy(), steps=1)),
        ("weight", lambda flow, x: cnf.fit(flow, x, weight=x[:, 0].numpy(), steps=1)),
    ],
)
def test_an_array_is_told_from_a_tensor_in_one_line(name, call):
    told = rf"Expected {name} to be a tensor; got ndarray: pass torch\.as_tensor\({name}\)"
    with pytest.raises(TypeError, match=told):
        call(cnf.ffjord(2, (4,)), torch.zeros(10, 2))


CALLERS = [torch.float16, torch.float32, DOUBLE]


@pytest.mark.parametrize("own", [torch.float32, DOUBLE])
@pytest.mark.parametrize("given", CALLERS)
def test_any_floating_dtype_goes_in_and_comes_out(own, given):
    torch.manual_seed(0)
    flow = moving(context_dim=1).to(own)
    x, context = (torch.randn(5, size).to(given).requires_grad_() for size in (2, 1))
    inside = x.detach().to(own), context.detach().to(own)
    p, expected = flow.distribution(context), flow.log_prob(*inside)
    for found in (flow.log_prob(x, context), p.log_prob(x), flow.log_prob(x, context, seed=1)):
        assert found.dtype == given
        assert torch.equal(found, expected.to(given))
        slopes = torch.autograd.grad(found.sum(), [x, context])
        assert all(slope.dtype == given and slope.any() for slope in slopes)
    scores, same = flow.score(x, context), flow.score(*inside)
    for name in ("log_prob", "stderr", "solver_error", "tighter"):
        assert torch.equal(getattr(scores, name), getattr(same, name).to(getattr(scores, name)))
    assert scores.uncertainty.dtype == given
    assert scores.tighter.dtype == DOUBLE
    draws = {"sample": (2, context), "rsample": (2, context)}
    for name, arguments in draws.items():
        drawn = seeded_draw(flow, *arguments, draw=name)
        assert drawn.dtype == given
        assert torch.equal(drawn, seeded_draw(flow, 2, inside[1], draw=name).to(given))
        pair = seeded_draw(p, 2, draw=f"{name}_and_log_prob")
        assert [each.dtype for each in pair] == [given, given]
    transform = flow.transform_given(context)
    z = transform.inv(x)
    log_det = transform.log_abs_det_jacobian(z, x)
    assert transform(z) is x
    assert z.dtype == log_det.dtype == transform.with_cache(0)(z).dtype == given
    assert torch.autograd.grad(log_det.sum(), x)[0].any()
    pulled = flow.pull(*inside)
    assert torch.equal(z, pulled.value.to(given))
    assert torch.equal(log_det, -pulled.log_det.to(given))


def test_a_support_takes_any_dtype_through_a_solve():
    base = Independent(pytorch.Uniform(-3 * torch.ones(2), 3 * torch.ones(2)), 1)
    flow = flow_over(base)
    x = torch.tensor([[0.1, 0.2], [90.0, 0.0]], dtype=DOUBLE)
    assert flow.support().check(x).tolist() == flow.support().check(x.float()).tolist()
    p = flow.distribution(validate_args=True)
    assert p.log_prob(x[:1]).dtype == DOUBLE
    refused("support", p.log_prob, x)
    context = torch.zeros(2, 1, dtype=DOUBLE)
    flow = cnf.Flow(base, moving(context_dim=1).layers)
    assert flow.support(context).check(x).tolist() == [True, False]


def test_a_flow_without_parameters_has_its_bases_dtype():
    for dtype in CALLERS:
        flow = cnf.Flow(Independent(Normal(torch.zeros(2, dtype=dtype), 1.0), 1), [])
        assert flow.like.dtype == dtype
    assert cnf.Flow(Independent(Normal(torch.zeros(2), 1.0), 1), []).sample((3,)).shape == (3, 2)


@pytest.mark.parametrize(
    ("told", "change"),
    [
        (
            r"{} of a floating dtype; got torch\.int64: pass {}\.to\(torch\.float32\)",
            torch.Tensor.long,
        ),
        (r"{} of a floating dtype; got torch\.complex64", lambda x: x + 0j),
        (r"{} on the flow's device, cpu; got meta: pass {}\.to\('cpu'\)", lambda x: x.to("meta")),
    ],
)
def test_tensors_that_no_cast_serves_are_told_in_one_line(told, change):
    flow, x, context = moving(context_dim=1), torch.zeros(5, 2), torch.zeros(5, 1)
    wrong, p = change(x), flow.distribution(context, validate_args=False)
    for call in (flow.log_prob, flow.score):
        refused(told.format("x", "x"), call, wrong, context)
        refused(told.format("context", "context"), call, x, change(context))
    refused(told.format("x", "x"), p.log_prob, wrong)
    refused(told.format("x", "x"), flow.transform_given(context), wrong)
    refused(told.format("context", "context"), flow.sample, (), change(context))
