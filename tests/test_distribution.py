"""A flow as one of PyTorch's distributions: what one promises, against those with closed forms."""

import math

import pytest
import torch
from helpers import DOUBLE, Counted, near, refused, scaled, seeded_draw, standard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as pytorch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

import cnf
from cnf.layers import Concatenate, Dequantize, Identity, Layer, Positive, TransformResult

pytestmark = pytest.mark.usefixtures("validating")

LOC, SCALE = torch.tensor([[1.0, -2.0], [2.0, 0.5]], dtype=DOUBLE)


def normal(loc, scale):
    return Independent(Normal(loc, scale), 1)


def scaled_flow(base):
    """The flow loc + scale ∘ z: a Gaussian where the base is one."""
    return cnf.Flow(base, [scaled(LOC.tolist(), SCALE.tolist())]).double()


def gaussian():
    return scaled_flow(standard(2)).distribution(), normal(LOC, SCALE)


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
    flow = cnf.Flow(standard(context.shape[-1]), [Shift()])
    return flow.distribution(context), normal(context, torch.ones_like(context))


@pytest.mark.parametrize("correlated", [False, True])
def test_a_flow_that_is_a_gaussian(correlated):
    q, p = gaussian()
    if correlated:
        covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE)
        base = pytorch.MultivariateNormal(torch.ones(2, dtype=DOUBLE), covariance)
        q = scaled_flow(base).distribution()
        p = pytorch.MultivariateNormal(LOC + SCALE, SCALE.outer(SCALE) * covariance)
    assert (q.batch_shape, q.event_shape, q.has_rsample) == (p.batch_shape, p.event_shape, True)
    assert isinstance(q, pytorch.Distribution)
    assert q.support is pytorch.constraints.real_vector
    assert q.arg_constraints == {}
    x = torch.randn(3, 4, 2, dtype=DOUBLE)
    assert_close(q.log_prob(x), p.log_prob(x))
    for draw in ("sample", "rsample"):
        assert_close(*(seeded_draw(each, (5, 3), draw=draw) for each in (q, p)))
    x, log_q = q.sample_and_log_prob(7)
    assert_close(log_q, p.log_prob(x))
    with pytest.raises(NotImplementedError):
        pytorch.kl_divergence(q, p)


sides = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@settings(max_examples=20, deadline=None)
@given(sides, sides, sides, st.data())
def test_shapes_and_values_are_those_of_pytorchs_own(batch, shape, more, data):
    q, p = shifted(torch.randn(*batch, 2, dtype=DOUBLE))
    larger = (*more, *(data.draw(st.integers(1, 3)) if side == 1 else side for side in batch))
    for one, other in [(q, p), (q.expand(larger), p.expand(larger))]:
        assert (one.batch_shape, one.event_shape) == (other.batch_shape, other.event_shape)
        assert one.sample(shape).shape == other.sample(shape).shape
        x, log_prob = one.rsample_and_log_prob(shape)
        assert x.shape == other.sample(shape).shape
        assert_close(log_prob, other.log_prob(x))
        sized = [data.draw(st.sampled_from([1, side])) for side in one.batch_shape]
        drop = data.draw(st.integers(0, len(sized)))
        for value in (
            torch.randn(*sized[drop:], 2, dtype=DOUBLE),
            torch.randn(*shape, *one.batch_shape, 2, dtype=DOUBLE),
        ):
            assert_close(one.log_prob(value), other.log_prob(value))


@settings(max_examples=8, deadline=None)
@given(sides, sides)
def test_without_a_context_a_batch_is_of_independent_draws(batch, shape):
    q, p = (each.expand(batch) for each in gaussian())
    x = q.sample(shape)
    assert x.shape == p.sample(shape).shape
    assert len(x.reshape(-1, 2).unique(dim=0)) == math.prod((*shape, *batch))
    y, log_q = q.rsample_and_log_prob(shape)
    assert_close(log_q, p.log_prob(y))
    for value in (x, torch.zeros(2, dtype=DOUBLE)):
        assert_close(q.log_prob(value), p.log_prob(value))


def test_expand_only_expands():
    q = gaussian()[0].expand((3, 1))
    assert q.expand((2, 3, 4)).batch_shape == (2, 3, 4)
    for shape in [(3,), (2, 1), (4, 3)]:
        refused(r"batch shape that \(3, 1\) expands to", q.expand, shape)
    q, _ = shifted(torch.zeros(3, 2, dtype=DOUBLE))
    refused(r"batch shape that \(3,\) expands to; got \(4,\)", q.expand, (4,))


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
        near(together[:, i], alone.log_prob(x[:, 0]), 1e-6)
    assert together.std(1).min() > 1e-3


def test_a_pair_takes_one_solve_and_has_its_gradients():
    layer = Counted(cnf.ConcatSquash(2, (5,)), rtol=1e-7, atol=1e-7)
    q = cnf.Flow(standard(2), [layer]).double().distribution()
    for draw in (q.sample_and_log_prob, q.rsample_and_log_prob):
        layer.solves = 0
        x, log_q = draw((3,))
        assert layer.solves == 1
        near(q.log_prob(x), log_q, 1e-6)
    # Gradients are there where they are promised.
    flow = cnf.ffjord(2, hidden=(4,), context_dim=1, zero_last=False)
    context = torch.randn(3, 1, requires_grad=True)
    q = flow.distribution(context)
    assert not any(each.requires_grad for each in (q.sample(), *q.sample_and_log_prob()))
    for found in (q.rsample(), *q.rsample_and_log_prob(), q.log_prob(torch.zeros(3, 2))):
        inputs = [context, *flow.parameters()]
        slopes = torch.autograd.grad(found.square().sum(), inputs, retain_graph=True)
        assert (slopes[0] != 0).any()


def test_no_rsample_without_a_gradient():
    component = normal(torch.randn(3, 2, dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE))
    mixture = MixtureSameFamily(Categorical(torch.ones(3, dtype=DOUBLE)), component)
    for flow in (scaled_flow(mixture), cnf.Flow(standard(2), [Dequantize(2)])):
        q = flow.distribution()
        assert not q.has_rsample
        assert not q.expand((3,)).has_rsample
        assert q.sample((4,)).shape == (4, 2)
        for draw in (q.rsample, q.rsample_and_log_prob):
            refused("rsample and columns of real numbers", draw, (4,))
    expected = mixture.log_prob(torch.zeros(2, dtype=DOUBLE)) - SCALE.log().sum()
    assert_close(scaled_flow(mixture).distribution().log_prob(LOC), expected)


def test_arguments_are_validated_as_pytorch_does():
    columns = [Concatenate([Positive([0.0]), Identity(1)], [[0], [1]])]
    flow = cnf.Flow(standard(2), columns).double()
    outside = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
    q, unchecked = flow.distribution(), flow.distribution(validate_args=False)
    told = r"within the support \(Reach\(concatenate.*FlowDistribution"
    refused(told, q.log_prob, outside)
    refused("within the support", q.expand((3, 2)).log_prob, outside)
    assert unchecked.log_prob(outside)[0] == -math.inf
    assert unchecked.expand((3, 2)).log_prob(outside).shape == (3, 2)
    refused("event_shape", q.log_prob, torch.zeros(4, 3, dtype=DOUBLE))
    refused(r"x of shape \(..., 2\)", unchecked.log_prob, torch.zeros(4, 3, dtype=DOUBLE))
    refused("broadcastable", q.expand((3,)).log_prob, torch.ones(4, 2, dtype=DOUBLE))
    # PyTorch's default holds.
    pytorch.Distribution.set_default_validate_args(False)  # the fixture sets it again
    assert flow.distribution().log_prob(outside)[0] == -math.inf
    refused("support", flow.distribution(validate_args=True).log_prob, outside)


def test_a_context_is_validated_and_must_be_the_flows():
    flow = cnf.Flow(standard(2), [Shift()])
    context = torch.full((3, 2), math.nan, dtype=DOUBLE)
    refused("parameter context", flow.distribution, context)
    assert flow.distribution(context, validate_args=False).batch_shape == (3,)
    assert flow.distribution(torch.zeros(3, 2)).arg_constraints["context"].event_dim == 1
    refused(r"\(..., size\) in distribution.*; got \(\)", flow.distribution, torch.tensor(1.0))
    flow = cnf.ffjord(2, hidden=(4,), context_dim=3)
    refused(r"context of shape \(..., 3\) in distribution.*got none", flow.distribution)
    refused(r"context of shape \(..., 3\).*got \(5, 2\)", flow.distribution, torch.zeros(5, 2))
    alone = cnf.ffjord(2, hidden=(4,)).distribution
    refused(r"no context .*got \(5, 2\)", alone, torch.zeros(5, 2))
    bare = cnf.Flow(flow.base, flow.layers[:1])  # its context as it is
    assert bare.distribution(torch.zeros(5, 3)).batch_shape == (5,)
    assert repr(flow.distribution(torch.zeros(5, 3))) == (
        f"FlowDistribution(base: {flow.base}, layers: [CNF, Standardize], "
        "batch_shape: torch.Size([5]), event_shape: torch.Size([2]))"
    )


def test_inside_pytorchs_others():
    q, p = (Independent(each, 1) for each in shifted(torch.randn(4, 3, 2, dtype=DOUBLE)))
    assert (q.batch_shape, q.event_shape, q.has_rsample) == ((4,), (3, 2), True)
    x = q.rsample((5,))
    assert x.shape == (5, 4, 3, 2)
    assert_close(q.log_prob(x), p.log_prob(x))
    assert q.support.check(x).shape == (5, 4)
    assert_close(q.expand((2, 4)).log_prob(x[0]), p.expand((2, 4)).log_prob(x[0]))
    # Under transforms.
    q, p = gaussian()
    affine = pytorch.AffineTransform(3.0, torch.tensor([2.0, 5.0], dtype=DOUBLE), event_dim=1)
    moved, expected = (pytorch.TransformedDistribution(each, affine) for each in (q, p))
    x = moved.sample((5,))
    assert_close(moved.log_prob(x), expected.log_prob(x))
    exponential = pytorch.TransformedDistribution(q, pytorch.ExpTransform())
    y = exponential.rsample((5,))
    assert_close(exponential.log_prob(y), Independent(pytorch.LogNormal(LOC, SCALE), 1).log_prob(y))
    assert (exponential.batch_shape, exponential.event_shape) == ((), (2,))
    refused("support", exponential.log_prob, -y)
    # As the components of a mixture.
    q, p = shifted(torch.randn(3, 2, dtype=DOUBLE))
    weights = Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE))
    mixture = MixtureSameFamily(weights, q)
    x = mixture.sample((50,))
    assert_close(mixture.log_prob(x), MixtureSameFamily(weights, p).log_prob(x))


def test_evidence_lower_bound_of_a_likelihood_of_one_is_the_divergence():
    q, p = gaussian()
    bound = cnf.elbo(q, standard(2), lambda z: z.new_zeros(z.shape[:-1]), samples=4000)
    exact = pytorch.kl_divergence(p, standard(2)).item()
    assert -bound.value.item() == pytest.approx(exact, rel=0.1)
