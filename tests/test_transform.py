"""A flow as one of PyTorch's transforms: both ways, its log-determinant, and what is kept."""

import copy

import pytest
import torch
from helpers import DOUBLE, Counted, enlarged, near, refused, scaled, seeded_draw, standard
from torch import distributions as pytorch
from torch.distributions import Independent, Normal, TransformedDistribution, kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.testing import assert_close

import cnf
from cnf.flow.cylinder import Cylinder
from cnf.layers import Argmax, Concatenate, Constant, Dequantize, Identity, Positive

pytestmark = pytest.mark.usefixtures("validating")


def counted(context_dim=0):
    layer = Counted(cnf.ConcatSquash(2, (5,), context_dim=context_dim), rtol=1e-6, atol=1e-6)
    context = cnf.Standardize(context_dim) if context_dim else None
    layers = [layer, scaled([1.0, -2.0], [2.0, 0.5])]
    return cnf.Flow(standard(2), layers, context).double(), layer


def distribution(flow, context=None, **options):
    transform = flow.transform if context is None else flow.transform_given(context)
    return TransformedDistribution(flow.base, transform, **options)


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
    near(back, z, 1e-5)
    near(log_det_back, log_det, 1e-5)
    assert (x.shape, log_det.shape) == ((4, 2), (4,))


def test_a_transformed_base_is_the_flow():
    flow, layer = counted()
    p = distribution(flow)
    assert p.support is pytorch.constraints.real_vector
    assert (p.batch_shape, p.event_shape, p.has_rsample) == ((), (2,), True)
    x = 2 * torch.randn(3, 4, 2, dtype=DOUBLE)
    assert_close(p.log_prob(x), flow.log_prob(x))
    near(seeded_draw(p, (6,)), seeded_draw(flow, 6), 1e-4)
    layer.solves = 0
    x = p.rsample((5,))
    log_prob = p.log_prob(x)  # of what was drawn takes no other solve
    assert layer.solves == 1
    near(copy.deepcopy(p).log_prob(x.detach()), log_prob, 1e-5)  # a copy leaves what is kept
    layer.solves = 0
    p.log_prob(x.clone())
    assert layer.solves == 1


def test_contexts_make_a_batch():
    flow, _ = counted(context_dim=3)
    context = torch.randn(4, 3, dtype=DOUBLE)
    transform, p = flow.transform_given(context), distribution(flow, context)
    assert (p.batch_shape, p.event_shape) == ((4,), (2,))
    assert p.sample((6,)).shape == (6, 4, 2)
    x = torch.randn(6, 1, 2, dtype=DOUBLE)
    assert_close(p.log_prob(x), flow.log_prob(x, context))
    one = transform(torch.zeros(2, dtype=DOUBLE))
    assert one.shape == transform.forward_shape((2,)) == (4, 2)
    near(one[2], flow.transform_given(context[2])(torch.zeros(2, dtype=DOUBLE)), 1e-5)


def test_gradients_go_through_what_is_kept():
    flow, layer = counted()
    transform, z = flow.transform, torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
    x = transform(z)
    inputs = [z, *flow.parameters()]
    kept = torch.autograd.grad(x.sum() + transform.log_abs_det_jacobian(z, x).sum(), inputs)
    assert layer.solves == 1
    pushed = flow.push(z)
    assert_close(kept, torch.autograd.grad(pushed.value.sum() + pushed.log_det.sum(), inputs))
    # So do those of rows that were drawn without one; modes do not matter.
    flow, _ = counted()
    p, parameters = distribution(flow), [*flow.parameters()]
    x = p.sample((4,))
    kept, expected = (torch.autograd.grad(q.log_prob(x).sum(), parameters) for q in (p, flow))
    assert_close(kept, expected)
    with torch.no_grad():
        z = flow.transform(x)
    assert not z.requires_grad
    assert flow.transform(x).requires_grad
    flow, layer = counted()
    transform = flow.transform
    with torch.inference_mode():
        z = flow.base.sample((2,))
        assert transform.inv(transform(z)) is z
    assert layer.solves == 1


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda flow, *_: enlarged(flow, 1.3),
        lambda flow, *_: vector_to_parameters(
            2 * parameters_to_vector(flow.parameters()), flow.parameters()
        ),
        lambda flow, *_: next(flow.parameters()).data.add_(1.0),
        lambda flow, *_: flow.layers[1].loc.data.add_(1.0),
        lambda flow, *_: flow.layers[1].fit(torch.randn(50, 2, dtype=DOUBLE)),
        lambda flow, x, context: x.add_(1.0),
        lambda flow, x, context: x.data.add_(1.0),
        lambda flow, x, context: context.data.add_(1.0),
    ],
)
def test_nothing_stale_is_returned(change, inverse):
    flow, layer = counted(context_dim=1)
    context, x = torch.randn(3, 1, dtype=DOUBLE), torch.randn(3, 2, dtype=DOUBLE)
    transform = flow.transform_given(context)
    transform, solve = (transform.inv, flow.pull) if inverse else (transform, flow.push)
    before = transform(x)
    assert transform(x) is before
    before = before.clone()
    change(flow, x, context)
    layer.solves = 0
    after = transform(x)
    assert layer.solves == 1
    assert not torch.equal(after, before)
    assert_close(after, solve(x, context).value)


def test_log_prob_of_fixed_rows_is_trained_by_steps():
    """A cache that outlived a step would give the second backward a graph that is gone."""
    flow, _ = counted()
    p, optimizer = distribution(flow), torch.optim.SGD(flow.parameters(), 0.1)
    x, losses = p.sample((20,)) + 1, []
    for _ in range(3):
        optimizer.zero_grad()
        loss = -p.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_without_a_cache_and_composed_with_others():
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
    near(x, pushed.value, 1e-5)
    assert_close(log_det, pushed.log_det)
    refused("cache_size", flow.transform.with_cache, 2)
    # Composed with others it keeps its own.
    flow, layer = counted()
    affine = pytorch.AffineTransform(0.5, 2.0, event_dim=1)
    composed = pytorch.ComposeTransform([affine, flow.transform], 1)
    z = torch.randn(3, 2, dtype=DOUBLE)
    x = composed(z)
    log_det = composed.log_abs_det_jacobian(z, x)
    assert layer.solves == 1
    expected = flow.push(0.5 + 2 * z)
    assert_close(x, expected.value)
    assert_close(log_det, expected.log_det + 2 * torch.tensor(2.0).log().double())


def test_a_transform_knows_its_flow_and_context():
    flow, _ = counted(context_dim=1)
    context = torch.zeros(3, 1, dtype=DOUBLE)
    one, same = flow.transform_given(context), flow.transform_given(context)
    assert one == same
    assert one.inv == same.inv
    assert one != flow.transform_given(context.clone())
    assert one != pytorch.AffineTransform(0.0, 1.0)
    assert repr(one) == "FlowTransform(layers: [Counted, Standardize], context: torch.Size([3, 1]))"
    # The divergence of two bases is that of what the flow makes of them.
    flow, _ = counted()
    loc = torch.tensor([1.0, 0.5], dtype=DOUBLE)
    other = Independent(Normal(loc, torch.full_like(loc, 2.0)), 1)
    p, q = distribution(flow), TransformedDistribution(other, flow.transform)
    assert kl_divergence(p, q) == kl_divergence(flow.base, other)


def test_domain_and_codomain():
    flow = cnf.Flow(standard(2), [Concatenate([Positive([1.0]), Identity(1)], [[0], [1]])]).double()
    transform = flow.transform
    assert transform.domain.check(torch.zeros(2))
    assert transform.codomain.check(torch.tensor([2.0, -1.0]))
    assert not transform.codomain.check(torch.tensor([0.5, 1.0]))
    assert transform.domain.event_dim == transform.codomain.event_dim == 1
    assert transform.inv.domain.check(torch.tensor([2.0, -1.0]))
    p = distribution(flow, validate_args=True)
    refused("support", p.log_prob, torch.tensor([0.5, 0.0], dtype=DOUBLE))
    # Columns that are constant are left out.
    flow = cnf.Flow(standard(1), [Concatenate([Identity(1), Constant([7.0])], [[1], [0]])]).double()
    p = distribution(flow, validate_args=True)
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    x = p.sample((3,))
    assert (x[:, 0] == 7).all()
    assert_close(p.log_prob(x), flow.base.log_prob(x[:, 1:]))
    refused("support", p.log_prob, torch.zeros(2, dtype=DOUBLE))


def test_angles_come_back_in_the_first_turn():
    base = Cylinder(torch.zeros(1), torch.ones(1), circular=(1,))
    field = cnf.ConcatSquash(2, (4,), circular=(1,))
    vector_to_parameters(parameters_to_vector(field.parameters()) + 0.5, field.parameters())
    flow = cnf.Flow(base, [cnf.CNF(field)]).double()
    z, transform = flow.base.sample((50,)), flow.transform
    x = transform(z)
    assert x[:, 1].abs().max() > torch.pi  # out of the first turn on the way
    near(transform.inv(x.clone()), z, 1e-4)
    near(transform.inv(x + torch.tensor([0.0, 2 * torch.pi], dtype=DOUBLE)), z, 1e-4)
    # Given a context they make a batch.
    flow = cnf.ffjord(2, hidden=(4,), context_dim=1, circular=(0,)).double()
    context = torch.randn(3, 1, dtype=DOUBLE)
    p = distribution(flow, context)
    x = p.sample((5,))
    assert x.shape == (5, 3, 2)
    near(p.log_prob(x), flow.log_prob(x, context), 1e-4)


def test_wrong_arguments():
    for layer in (Dequantize(2), Argmax([0.5, 0.3, 0.2])):  # noise is no bijection
        with pytest.raises(ValueError, match=r"draws noise .* distribution\(\)"):
            _ = cnf.Flow(standard(2), [layer]).transform
    flow, _ = counted(context_dim=3)
    with pytest.raises(ValueError, match=r"context of shape \(..., 3\) in transform_given"):
        _ = flow.transform
    refused(r"context of shape \(..., 3\).*got \(4, 2\)", flow.transform_given, torch.zeros(4, 2))
    transform = counted()[0].transform
    refused(r"points of shape \(..., 2\); got \(4, 3\)", transform, torch.zeros(4, 3))
    refused(r"points of shape \(..., 2\); got \(\)", transform.inv, torch.tensor(1.0))
    # No points are no mistake.
    z = torch.zeros(0, 3, 2, dtype=DOUBLE)
    x = transform(z)
    assert x.shape == transform.inv(x.clone()).shape == (0, 3, 2)
    assert transform.log_abs_det_jacobian(z, x).shape == (0, 3)
