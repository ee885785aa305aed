"""A flow as one of PyTorch's transforms: both ways, its log-determinant, and what is kept."""

import copy

import pytest
import torch
from helpers import Counted, standard
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Independent,
    Normal,
    TransformedDistribution,
    constraints,
    kl_divergence,
)
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import cnf
from cnf.flow.cylinder import Cylinder
from cnf.layers import Argmax, Concatenate, Constant, Dequantize, Identity, Positive

pytestmark = pytest.mark.usefixtures("validating")

DOUBLE = torch.float64


def counted(context_dim=0, rtol=1e-6):
    """A flow over two columns, and the layer that counts."""
    layer = Counted(cnf.ConcatSquash(2, (5,), context_dim=context_dim), rtol=rtol, atol=rtol)
    context = cnf.Standardize(context_dim) if context_dim else None
    flow = cnf.Flow(standard(2), [layer, cnf.Standardize(2)], context).double()
    flow.layers[1].loc.copy_(torch.tensor([1.0, -2.0]))
    flow.layers[1].scale.copy_(torch.tensor([2.0, 0.5]))
    return flow, layer


def test_the_log_determinant_comes_with_the_point():
    flow, layer = counted()
    transform = flow.transform
    z = flow.base.sample((4,))
    x = transform(z)
    log_det = transform.log_abs_det_jacobian(z, x)
    assert transform(z) is x
    assert transform.inv(x) is z
    assert torch.equal(transform.inv.log_abs_det_jacobian(x, z), -log_det)
    assert layer.solves == 1
    again = x.clone()
    back = transform.inv(again)
    log_det_back = transform.log_abs_det_jacobian(back, again)
    assert transform(back) is again
    assert layer.solves == 2
    torch.testing.assert_close(back, z, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_det_back, log_det, rtol=0, atol=1e-5)
    assert x.shape == (4, 2)
    assert log_det.shape == (4,)


def test_log_prob_of_what_was_drawn_takes_no_other_solve():
    flow, layer = counted()
    p = TransformedDistribution(flow.base, flow.transform)
    x = p.rsample((5,))
    log_prob = p.log_prob(x)
    assert layer.solves == 1
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-5)
    p.log_prob(x.clone())
    assert layer.solves == 3  # one for flow.log_prob


def test_a_transformed_base_is_the_flow():
    flow, _ = counted()
    p = TransformedDistribution(flow.base, flow.transform)
    x = 2 * torch.randn(3, 4, 2, dtype=DOUBLE)
    torch.testing.assert_close(p.log_prob(x), flow.log_prob(x))
    torch.manual_seed(1)
    drawn = p.sample((6,))
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, flow.sample(6), rtol=0, atol=1e-4)
    assert p.support is constraints.real_vector
    assert (p.batch_shape, p.event_shape, p.has_rsample) == ((), (2,), True)


def test_contexts_make_a_batch():
    flow, _ = counted(context_dim=3)
    context = torch.randn(4, 3, dtype=DOUBLE)
    transform = flow.transform_given(context)
    p = TransformedDistribution(flow.base, transform)
    assert (p.batch_shape, p.event_shape) == ((4,), (2,))
    assert p.sample((6,)).shape == (6, 4, 2)
    x = torch.randn(6, 1, 2, dtype=DOUBLE)
    torch.testing.assert_close(p.log_prob(x), flow.log_prob(x, context))
    one = transform(torch.zeros(2, dtype=DOUBLE))
    assert one.shape == transform.forward_shape((2,)) == (4, 2)
    alone = flow.transform_given(context[2])(torch.zeros(2, dtype=DOUBLE))
    torch.testing.assert_close(one[2], alone, rtol=0, atol=1e-5)


def test_log_determinant_is_that_of_the_jacobian():
    flow, _ = counted(rtol=1e-9)
    transform = flow.transform
    z = torch.randn(2, dtype=DOUBLE)
    jacobian = torch.autograd.functional.jacobian(transform, z)
    log_det = transform.log_abs_det_jacobian(z, transform(z))
    assert log_det.shape == ()
    torch.testing.assert_close(log_det, jacobian.det().abs().log(), rtol=0, atol=1e-6)


def test_gradients_go_through_what_is_kept():
    flow, layer = counted()
    transform = flow.transform
    z = torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
    x = transform(z)
    transform.log_abs_det_jacobian(z, x).sum().backward()
    assert layer.solves == 1
    kept = [z.grad, *(p.grad for p in flow.parameters())]
    inputs = [z, *flow.parameters()]
    expected = torch.autograd.grad(flow.push(z).log_det.sum(), inputs, allow_unused=True)
    for one, other in zip(kept, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_nothing_stale_is_returned():
    flow, layer = counted()
    transform = flow.transform
    x = torch.randn(3, 2, dtype=DOUBLE)
    z = transform.inv(x)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3)
    moved = transform.inv(x)
    assert (moved - z).abs().max() > 1e-3
    torch.testing.assert_close(moved, flow.pull(x).value)
    x.add_(1.0)
    torch.testing.assert_close(transform.inv(x), flow.pull(x).value)
    with torch.no_grad():
        transform.inv(x)
    assert transform.inv(x).requires_grad
    flow.layers[1].fit(torch.randn(50, 2, dtype=DOUBLE))
    torch.testing.assert_close(transform.inv(x), flow.pull(x).value)
    layer.solves = 0
    assert transform.inv(x) is transform.inv(x)
    assert layer.solves == 0


CHANGES = {
    "vector_to_parameters": lambda flow: vector_to_parameters(
        2 * parameters_to_vector(flow.parameters()), flow.parameters()
    ),
    "a parameter's data": lambda flow: next(flow.parameters()).data.add_(1.0),
    "a buffer's data": lambda flow: flow.layers[1].loc.data.add_(1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_autograd_does_not_count_are_seen(change):
    flow, _ = counted()
    transform = flow.transform
    z = torch.randn(3, 2, dtype=DOUBLE)
    before = transform(z)
    CHANGES[change](flow)
    after = transform(z)
    assert not torch.equal(after, before)
    assert torch.equal(after, flow.push(z).value)


def test_a_points_and_a_contexts_data_are_seen():
    flow, layer = counted(context_dim=1)
    context, z = torch.randn(3, 1, dtype=DOUBLE), torch.randn(3, 2, dtype=DOUBLE)
    transform = flow.transform_given(context)
    for changed in (z, context):
        transform(z)
        changed.data.add_(1.0)
        layer.solves = 0
        assert torch.equal(transform(z), flow.push(z, context).value)
        assert layer.solves == 2


def test_log_prob_of_fixed_rows_is_trained_by_steps():
    """A cache that outlived a step would give the second backward a graph that is gone."""
    flow, _ = counted()
    p = TransformedDistribution(flow.base, flow.transform)
    with torch.no_grad():
        x = p.sample((20,)) + 1
    losses = []
    for _ in range(3):
        loss = -p.log_prob(x).mean()
        slopes = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, slope in zip(flow.parameters(), slopes, strict=True):
                if slope is not None:
                    parameter.sub_(0.1 * slope)
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_a_gradient_is_found_where_none_was_recorded():
    flow, _ = counted()
    p = TransformedDistribution(flow.base, flow.transform)
    x = p.sample((4,))
    p.log_prob(x).sum().backward()
    kept = [parameter.grad.clone() for parameter in flow.parameters() if parameter.grad is not None]
    flow.zero_grad()
    flow.log_prob(x).sum().backward()
    expected = [parameter.grad for parameter in flow.parameters() if parameter.grad is not None]
    torch.testing.assert_close(kept, expected)


def test_inference_mode_does_not_matter():
    flow, layer = counted()
    transform = flow.transform
    with torch.inference_mode():
        z = flow.base.sample((2,))
        x = transform(z)
        assert transform.inv(x) is z
    assert layer.solves == 1


def test_without_a_cache():
    flow, layer = counted()
    transform = flow.transform.with_cache(0)
    assert transform.with_cache(0) is transform
    z = flow.base.sample((2,))
    x = transform(z)
    log_det = transform.log_abs_det_jacobian(z, x)
    assert layer.solves == 2
    transform.inv(x)
    transform.inv(x)
    assert layer.solves == 4
    pushed = flow.push(z)
    torch.testing.assert_close(x, pushed.value, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_det, pushed.log_det)
    with pytest.raises(ValueError, match="cache_size"):
        flow.transform.with_cache(2)


def test_composed_with_others():
    flow, layer = counted()
    composed = ComposeTransform([AffineTransform(0.5, 2.0, event_dim=1), flow.transform], 1)
    z = torch.randn(3, 2, dtype=DOUBLE)
    x = composed(z)
    log_det = composed.log_abs_det_jacobian(z, x)
    assert layer.solves == 1
    expected = flow.push(0.5 + 2 * z)
    torch.testing.assert_close(x, expected.value)
    torch.testing.assert_close(log_det, expected.log_det + 2 * torch.tensor(2.0).log().double())


def test_a_transform_knows_its_flow_and_context():
    flow, _ = counted(context_dim=1)
    context = torch.zeros(3, 1, dtype=DOUBLE)
    one = flow.transform_given(context)
    assert one == flow.transform_given(context)
    assert one.inv == flow.transform_given(context).inv
    assert one != flow.transform_given(context.clone())
    assert one != AffineTransform(0.0, 1.0)
    assert repr(one) == "FlowTransform(layers: [Counted, Standardize], context: torch.Size([3, 1]))"


def test_kl_of_two_bases_is_that_of_what_the_flow_makes_of_them():
    flow, _ = counted()
    loc = torch.tensor([1.0, 0.5], dtype=DOUBLE)
    other = Independent(Normal(loc, torch.full_like(loc, 2.0)), 1)
    p = TransformedDistribution(flow.base, flow.transform)
    q = TransformedDistribution(other, flow.transform)
    assert kl_divergence(p, q) == kl_divergence(flow.base, other)
    x = p.sample((2000,))
    difference = p.log_prob(x) - q.log_prob(x)
    assert (difference.mean() - kl_divergence(p, q)).abs() < 4 * difference.std() / 2000**0.5


def test_domain_and_codomain():
    flow = cnf.Flow(standard(2), [Concatenate([Positive([1.0]), Identity(1)], [[0], [1]])]).double()
    transform = flow.transform
    assert transform.domain.check(torch.zeros(2))
    assert transform.codomain.check(torch.tensor([[2.0, -1.0], [0.5, 1.0]])).tolist() == [
        True,
        False,
    ]
    assert transform.domain.event_dim == transform.codomain.event_dim == 1
    assert transform.inv.domain.check(torch.tensor([2.0, -1.0]))
    p = TransformedDistribution(flow.base, transform, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor([0.5, 0.0], dtype=DOUBLE))


def test_columns_that_are_constant_are_left_out():
    flow = cnf.Flow(standard(1), [Concatenate([Identity(1), Constant([7.0])], [[1], [0]])]).double()
    p = TransformedDistribution(flow.base, flow.transform, validate_args=True)
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    x = p.sample((3,))
    assert (x[:, 0] == 7).all()
    torch.testing.assert_close(p.log_prob(x), flow.base.log_prob(x[:, 1:]))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.zeros(2, dtype=DOUBLE))


def test_angles_come_back_in_the_first_turn():
    base = Cylinder(torch.zeros(1), torch.ones(1), circular=(1,))
    field = cnf.ConcatSquash(2, (4,), circular=(1,))
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.5)
    flow = cnf.Flow(base, [cnf.CNF(field)]).double()
    z = flow.base.sample((50,))
    transform = flow.transform
    x = transform(z)
    assert x[:, 1].abs().max() > torch.pi  # out of the first turn on the way
    torch.testing.assert_close(transform.inv(x.clone()), z, rtol=0, atol=1e-4)
    turned = x + torch.tensor([0.0, 2 * torch.pi], dtype=DOUBLE)
    torch.testing.assert_close(transform.inv(turned), z, rtol=0, atol=1e-4)


def test_angles_given_a_context_make_a_batch():
    flow = cnf.ffjord(2, hidden=(4,), context_dim=1, circular=(0,)).double()
    context = torch.randn(3, 1, dtype=DOUBLE)
    p = TransformedDistribution(flow.base, flow.transform_given(context))
    x = p.sample((5,))
    assert x.shape == (5, 3, 2)
    torch.testing.assert_close(p.log_prob(x), flow.log_prob(x, context), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layer", [Dequantize(2), Argmax([0.5, 0.3, 0.2])])
def test_noise_is_no_bijection(layer):
    flow = cnf.Flow(standard(2), [layer])
    with pytest.raises(ValueError, match=r"draws noise .* distribution\(\)"):
        _ = flow.transform


def test_wrong_arguments():
    flow, _ = counted(context_dim=3)
    with pytest.raises(ValueError, match=r"context of shape \(..., 3\) in transform_given"):
        _ = flow.transform
    with pytest.raises(ValueError, match=r"context of shape \(..., 3\).*got \(4, 2\)"):
        flow.transform_given(torch.zeros(4, 2))
    transform = cnf.ffjord(2, hidden=(4,)).transform
    with pytest.raises(ValueError, match=r"points of shape \(..., 2\); got \(4, 3\)"):
        transform(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"points of shape \(..., 2\); got \(\)"):
        transform.inv(torch.tensor(1.0))


def test_no_points_are_no_mistake():
    flow, _ = counted()
    transform = flow.transform
    z = torch.zeros(0, 3, 2, dtype=DOUBLE)
    x = transform(z)
    assert x.shape == transform.inv(x.clone()).shape == (0, 3, 2)
    assert transform.log_abs_det_jacobian(z, x).shape == (0, 3)


def test_a_copy_leaves_what_is_kept():
    flow, _ = counted()
    p = TransformedDistribution(flow.base, flow.transform)
    x = p.rsample((3,))
    other = copy.deepcopy(p)
    torch.testing.assert_close(other.log_prob(x.detach()), p.log_prob(x), rtol=0, atol=1e-5)
