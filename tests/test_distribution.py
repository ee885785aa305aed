"""A flow as one of PyTorch's distributions: what one promises, against those with closed forms."""

import math

import pytest
import torch
from helpers import Counted, standard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    ExpTransform,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    constraints,
    kl_divergence,
)

import cnf
from cnf.layers import Concatenate, Dequantize, Identity, Layer, Positive, TransformResult

pytestmark = pytest.mark.usefixtures("validating")

DOUBLE = torch.float64
LOC, SCALE = [1.0, -2.0], [2.0, 0.5]


def normal(loc, scale):
    return Independent(Normal(loc, scale), 1)


def scaled(base):
    """The flow loc + scale ∘ z: a Gaussian where the base is one."""
    flow = cnf.Flow(base, [cnf.Standardize(2)]).double()
    flow.layers[0].loc.copy_(torch.tensor(LOC))
    flow.layers[0].scale.copy_(torch.tensor(SCALE))
    return flow


def gaussian():
    """That flow's distribution, and the same of PyTorch's."""
    loc, scale = torch.tensor(LOC, dtype=DOUBLE), torch.tensor(SCALE, dtype=DOUBLE)
    return scaled(standard(2)).distribution(), normal(loc, scale)


class Shift(Layer):
    """x = z + context: with a standard normal base, N(context, 1)."""

    name = "shift"

    def push(self, z, context=None):
        return TransformResult(z + context, z.new_zeros(len(z)))

    def pull(self, x, context=None):
        return TransformResult(x - context, x.new_zeros(len(x)))

    def config(self):
        return {}


def shifted(context):
    """A flow's N(context, 1), and PyTorch's."""
    flow = cnf.Flow(standard(context.shape[-1]), [Shift()])
    return flow.distribution(context), normal(context, torch.ones_like(context))


@pytest.mark.parametrize("correlated", [False, True])
def test_a_flow_that_is_a_gaussian(correlated):
    q, p = gaussian()
    if correlated:
        covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE)
        loc, scale = torch.tensor(LOC, dtype=DOUBLE), torch.tensor(SCALE, dtype=DOUBLE)
        q = scaled(MultivariateNormal(torch.ones(2, dtype=DOUBLE), covariance)).distribution()
        p = MultivariateNormal(loc + scale, scale.outer(scale) * covariance)
    assert (q.batch_shape, q.event_shape, q.has_rsample) == (p.batch_shape, p.event_shape, True)
    assert isinstance(q, Distribution)
    assert q.support is constraints.real_vector
    assert q.arg_constraints == {}
    x = torch.randn(3, 4, 2, dtype=DOUBLE)
    torch.testing.assert_close(q.log_prob(x), p.log_prob(x))
    for draw in ("sample", "rsample"):
        torch.manual_seed(1)
        drawn = getattr(q, draw)((5, 3))
        torch.manual_seed(1)
        torch.testing.assert_close(drawn, getattr(p, draw)((5, 3)))
    x, log_q = q.sample_and_log_prob(7)
    torch.testing.assert_close(log_q, p.log_prob(x))


sides = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@settings(max_examples=40, deadline=None)
@given(sides, sides, sides, st.data())
def test_shapes_and_values_are_those_of_pytorchs_own(batch, shape, more, data):
    q, p = shifted(torch.randn(*batch, 2, dtype=DOUBLE))
    larger = (*more, *(data.draw(st.integers(1, 3)) if side == 1 else side for side in batch))
    for one, other in [(q, p), (q.expand(larger), p.expand(larger))]:
        assert one.batch_shape == other.batch_shape
        assert one.event_shape == other.event_shape
        assert one.sample(shape).shape == other.sample(shape).shape
        x, log_prob = one.rsample_and_log_prob(shape)
        assert x.shape == other.sample(shape).shape
        torch.testing.assert_close(log_prob, other.log_prob(x))
        sized = [data.draw(st.sampled_from([1, side])) for side in one.batch_shape]
        drop = data.draw(st.integers(0, len(sized)))
        value = torch.randn(*sized[drop:], 2, dtype=DOUBLE)
        torch.testing.assert_close(one.log_prob(value), other.log_prob(value))
        longer = torch.randn(*shape, *one.batch_shape, 2, dtype=DOUBLE)
        torch.testing.assert_close(one.log_prob(longer), other.log_prob(longer))


@settings(max_examples=20, deadline=None)
@given(sides, sides)
def test_without_a_context_a_batch_is_of_independent_draws(batch, shape):
    q, p = gaussian()
    q, p = q.expand(batch), p.expand(batch)
    x = q.sample(shape)
    assert x.shape == p.sample(shape).shape
    assert len(x.reshape(-1, 2).unique(dim=0)) == math.prod((*shape, *batch))
    torch.testing.assert_close(q.log_prob(x), p.log_prob(x))
    one = torch.zeros(2, dtype=DOUBLE)
    torch.testing.assert_close(q.log_prob(one), p.log_prob(one))
    y, log_q = q.rsample_and_log_prob(shape)
    torch.testing.assert_close(log_q, p.log_prob(y))


def test_expand_only_expands():
    q = gaussian()[0].expand((3, 1))
    assert q.expand((2, 3, 4)).batch_shape == (2, 3, 4)
    for shape in [(3,), (2, 1), (4, 3)]:
        with pytest.raises(ValueError, match=r"batch shape that \(3, 1\) expands to"):
            q.expand(shape)
    context = torch.zeros(3, 2, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"batch shape that \(3,\) expands to; got \(4,\)"):
        shifted(context)[0].expand((4,))


def test_a_context_in_a_field_makes_a_batch():
    flow = cnf.ffjord(2, hidden=(5,), context_dim=3, zero_last=False, rtol=1e-8, atol=1e-8).double()
    context = torch.randn(4, 3, dtype=DOUBLE)
    q = flow.distribution(context)
    assert q.batch_shape == (4,)
    x = torch.randn(5, 1, 2, dtype=DOUBLE)
    together = q.log_prob(x)
    assert together.shape == (5, 4)
    for i in range(4):
        alone = flow.distribution(context[i])
        assert alone.batch_shape == ()
        torch.testing.assert_close(together[:, i], alone.log_prob(x[:, 0]), rtol=0, atol=1e-6)
    assert together.std(1).min() > 1e-3


def test_a_pair_takes_one_solve():
    layer = Counted(cnf.ConcatSquash(2, (5,)), rtol=1e-7, atol=1e-7)
    q = cnf.Flow(standard(2), [layer]).double().distribution()
    for draw in (q.sample_and_log_prob, q.rsample_and_log_prob):
        layer.solves = 0
        x, log_q = draw((3,))
        assert layer.solves == 1
        torch.testing.assert_close(q.log_prob(x), log_q, rtol=0, atol=1e-6)


def test_gradients_are_there_where_they_are_promised():
    flow = cnf.ffjord(2, hidden=(4,), context_dim=1, zero_last=False)
    context = torch.randn(3, 1, requires_grad=True)
    q = flow.distribution(context)
    assert not q.sample().requires_grad
    assert not any(each.requires_grad for each in q.sample_and_log_prob())
    for found in (q.rsample(), *q.rsample_and_log_prob(), q.log_prob(torch.zeros(3, 2))):
        context.grad = None
        flow.zero_grad()
        found.square().sum().backward(retain_graph=True)
        assert (context.grad != 0).any()
        assert all(p.grad is not None for p in flow.parameters())


def test_no_rsample_without_a_gradient():
    component = normal(torch.randn(3, 2, dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE))
    mixture = MixtureSameFamily(Categorical(torch.ones(3, dtype=DOUBLE)), component)
    for flow in (scaled(mixture), cnf.Flow(standard(2), [Dequantize(2)])):
        q = flow.distribution()
        assert not q.has_rsample
        assert not q.expand((3,)).has_rsample
        assert q.sample((4,)).shape == (4, 2)
        for draw in (q.rsample, q.rsample_and_log_prob):
            with pytest.raises(ValueError, match="rsample and columns of real numbers"):
                draw((4,))
    torch.testing.assert_close(
        scaled(mixture).distribution().log_prob(torch.tensor(LOC, dtype=DOUBLE)),
        mixture.log_prob(torch.zeros(2, dtype=DOUBLE)) - math.log(2.0 * 0.5),
    )


def test_whole_numbers_have_a_bound_of_their_mass():
    flow = cnf.Flow(standard(1), [Dequantize(1)])
    q = flow.distribution()
    assert q.support.is_discrete
    x = torch.zeros(4000, 1, dtype=DOUBLE)
    cell = Normal(0.0, 1.0).cdf(torch.tensor(1.0)) - 0.5
    assert q.log_prob(x).exp().mean().item() == pytest.approx(cell.item(), abs=0.01)


def test_arguments_are_validated_as_pytorch_does():
    columns = [Concatenate([Positive([0.0]), Identity(1)], [[0], [1]])]
    flow = cnf.Flow(standard(2), columns).double()
    outside = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
    q = flow.distribution()
    with pytest.raises(
        ValueError, match=r"within the support \(Reach\(concatenate.*FlowDistribution"
    ):
        q.log_prob(outside)
    with pytest.raises(ValueError, match="within the support"):
        q.expand((3, 2)).log_prob(outside)
    unchecked = flow.distribution(validate_args=False)
    assert unchecked.log_prob(outside)[0] == -math.inf
    assert unchecked.expand((3, 2)).log_prob(outside).shape == (3, 2)
    with pytest.raises(ValueError, match="event_shape"):
        q.log_prob(torch.zeros(4, 3, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"x of shape \(..., 2\)"):
        unchecked.log_prob(torch.zeros(4, 3, dtype=DOUBLE))
    with pytest.raises(ValueError, match="broadcastable"):
        q.expand((3,)).log_prob(torch.ones(4, 2, dtype=DOUBLE))


def test_a_context_is_validated():
    flow = cnf.Flow(standard(2), [Shift()])
    context = torch.full((3, 2), math.nan, dtype=DOUBLE)
    with pytest.raises(ValueError, match="parameter context"):
        flow.distribution(context)
    assert flow.distribution(context, validate_args=False).batch_shape == (3,)
    assert flow.distribution(torch.zeros(3, 2)).arg_constraints["context"].event_dim == 1
    with pytest.raises(ValueError, match=r"\(..., size\) in distribution\(context\); got \(\)"):
        flow.distribution(torch.tensor(1.0))


def test_pytorchs_default_holds():
    flow = cnf.Flow(standard(1), [Positive([0.0])]).double()
    outside = torch.full((1,), -1.0, dtype=DOUBLE)
    Distribution.set_default_validate_args(False)
    try:
        assert flow.distribution().log_prob(outside) == -math.inf
        with pytest.raises(ValueError, match="support"):
            flow.distribution(validate_args=True).log_prob(outside)
    finally:
        Distribution.set_default_validate_args(True)


def test_a_context_must_be_the_flows():
    flow = cnf.ffjord(2, hidden=(4,), context_dim=3)
    with pytest.raises(ValueError, match=r"context of shape \(..., 3\) in distribution.*got none"):
        flow.distribution()
    with pytest.raises(ValueError, match=r"context of shape \(..., 3\).*got \(5, 2\)"):
        flow.distribution(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"no context .*got \(5, 2\)"):
        cnf.ffjord(2, hidden=(4,)).distribution(torch.zeros(5, 2))
    bare = cnf.Flow(flow.base, flow.layers[:1])  # its context as it is
    assert bare.distribution(torch.zeros(5, 3)).batch_shape == (5,)


def test_what_it_is_shows():
    q = cnf.ffjord(2, hidden=(4,), context_dim=3).distribution(torch.zeros(5, 3))
    assert repr(q) == (
        f"FlowDistribution(base: {q.flow.base}, layers: [CNF, Standardize], "
        "batch_shape: torch.Size([5]), event_shape: torch.Size([2]))"
    )


def test_inside_independent():
    q, p = shifted(torch.randn(4, 3, 2, dtype=DOUBLE))
    q, p = Independent(q, 1), Independent(p, 1)
    assert (q.batch_shape, q.event_shape, q.has_rsample) == ((4,), (3, 2), True)
    x = q.rsample((5,))
    assert x.shape == (5, 4, 3, 2)
    torch.testing.assert_close(q.log_prob(x), p.log_prob(x))
    assert q.support.check(x).shape == (5, 4)
    torch.testing.assert_close(q.expand((2, 4)).log_prob(x[0]), p.expand((2, 4)).log_prob(x[0]))


def test_under_transforms():
    q, p = gaussian()
    affine = AffineTransform(3.0, torch.tensor([2.0, 5.0], dtype=DOUBLE), event_dim=1)
    x = TransformedDistribution(q, affine).sample((5,))
    torch.testing.assert_close(
        TransformedDistribution(q, affine).log_prob(x),
        TransformedDistribution(p, affine).log_prob(x),
    )
    exponential = TransformedDistribution(q, ExpTransform())
    y = exponential.rsample((5,))
    loc, scale = torch.tensor(LOC, dtype=DOUBLE), torch.tensor(SCALE, dtype=DOUBLE)
    torch.testing.assert_close(
        exponential.log_prob(y), Independent(LogNormal(loc, scale), 1).log_prob(y)
    )
    assert (exponential.batch_shape, exponential.event_shape) == ((), (2,))
    with pytest.raises(ValueError, match="support"):
        exponential.log_prob(-y)


def test_as_the_components_of_a_mixture():
    q, p = shifted(torch.randn(3, 2, dtype=DOUBLE))
    weights = Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE))
    mixture = MixtureSameFamily(weights, q)
    x = mixture.sample((50,))
    torch.testing.assert_close(mixture.log_prob(x), MixtureSameFamily(weights, p).log_prob(x))


def test_kl_is_known_by_its_draws():
    q, p = gaussian()
    other = standard(2)
    with pytest.raises(NotImplementedError):
        kl_divergence(q, other)
    x, log_q = q.sample_and_log_prob(4000)
    difference = log_q - other.log_prob(x)
    exact = kl_divergence(p, other)
    error = difference.std() / len(x) ** 0.5
    assert error < 0.1 * exact
    assert (difference.mean() - exact).abs() < 4 * error


class Linear(torch.nn.Module):
    """f(x) = A x + b, whose flow keeps Gaussians Gaussian."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, dtype=DOUBLE)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, t, x):
        return self.layer(x)


def test_as_the_guide_of_variational_inference():
    """Z ~ N(0, 1), x | z ~ N(A z, 1): the guide comes to the posterior, its bound to log p(x)."""
    a = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [1.0, 1.0]], dtype=DOUBLE)
    x = torch.tensor([1.0, -1.0, 2.0], dtype=DOUBLE)
    covariance = (torch.eye(2, dtype=DOUBLE) + a.T @ a).inverse()
    posterior = MultivariateNormal(covariance @ a.T @ x, covariance)
    evidence = MultivariateNormal(
        torch.zeros(3, dtype=DOUBLE), torch.eye(3, dtype=DOUBLE) + a @ a.T
    ).log_prob(x)

    def log_likelihood(z):
        return normal(z @ a.T, torch.ones_like(x)).log_prob(x)

    prior = standard(2)
    layer = cnf.CNF(Linear(), method="rk4", step_size=0.5, step="joint", gradient="backprop")
    q = cnf.Flow(prior, [layer]).distribution()
    for rate in [0.2] * 30 + [0.05] * 10:
        z, log_q = q.rsample_and_log_prob((500,))
        bound = (log_likelihood(z) + prior.log_prob(z) - log_q).mean()
        slopes = torch.autograd.grad(bound, list(layer.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(layer.parameters(), slopes, strict=True):
                parameter.add_(rate * slope)
    z = q.sample((4000,))
    torch.testing.assert_close(z.mean(0), posterior.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(z.T.cov(), covariance, rtol=0, atol=0.05)
    with torch.no_grad():
        assert (q.log_prob(z) - posterior.log_prob(z)).abs().mean() < 0.1
        value = cnf.elbo(q, prior, log_likelihood, samples=500).value
    assert evidence - 0.02 < value < evidence + 0.005
