"""Objectives against closed forms: what they are least for is known for Gaussians.

On straight paths from N(a, b²) to N(m, s²) with independent ends, x_t is N(μ_t, σ_t²) with
μ_t = (1 − t) a + t m and σ_t² = (1 − t)² b² + t² s². Flow matching is least for the field

    E[x − z | x_t] = m − a + (t s² − (1 − t) b²) / σ_t² · (x_t − μ_t),

and what it leaves is Var[x − z | x_t] = b² s² / σ_t², over all times π b s / 2 for each column.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import DOUBLE, max_difference, scaled, standard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.distributions import Normal

import cnf
from cnf.fields.regularizers import Regularization
from cnf.layers import CNF
from cnf.training.couplings import optimal_transport
from cnf.training.objectives import FlowMatching, MaximumLikelihood
from cnf.training.recipes import COUPLINGS, Recipe

ROWS = 20_000
LOC, SCALE = torch.tensor([[1.5, -0.5], [0.4, 2.0]], dtype=DOUBLE)
ONE = torch.ones(2, dtype=DOUBLE)


class Exact(torch.nn.Module):
    """A piece of the field that carries N(a, b²) to N(m, s²), with something added to the whole."""

    def __init__(self, loc=LOC, scale=SCALE, base=(0 * ONE, ONE), piece=(0, 1), added=None):
        super().__init__()
        self.loc, self.scale, self.base, self.piece, self.added = loc, scale, base, piece, added
        self.dummy = torch.nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def forward(self, t, x, context=None):
        k, count = self.piece
        t = (k + t) / count
        loc = self.loc if context is None else self.loc * context
        start, width = self.base
        variance = ((1 - t) * width) ** 2 + (t * self.scale) ** 2
        slope = (t * self.scale**2 - (1 - t) * width**2) / variance
        whole = loc - start + slope * (x - (1 - t) * start - t * loc)
        added = 0 if self.added is None else self.added(t, x)
        return (whole + added) / count + self.dummy


def exact(pieces, **options):
    fields = [Exact(piece=(k, pieces), **options) for k in range(pieces)]
    return [CNF(field, rtol=1e-9, atol=1e-9) for field in fields]


def truth(x, loc=LOC):
    return Normal(loc, SCALE).log_prob(x).sum(1)


def gaussian(rows, loc=LOC):
    return loc + SCALE * torch.randn(rows, 2, dtype=DOUBLE)


def least(scales, base=ONE):
    """The least loss, and the standard error of what ROWS rows give for it."""
    t = (torch.arange(10_000, dtype=DOUBLE).unsqueeze(1) + 0.5) / 10_000
    left = (base * scales) ** 2 / (((1 - t) * base) ** 2 + (t * scales) ** 2)
    loss = (math.pi / 2 * base * scales).sum().item()
    assert loss == pytest.approx(left.sum(1).mean().item(), rel=1e-6)  # the integral is right
    # Of r² with r ~ N(0, v) the variance is 2 v²; that of v itself over the times is a bound.
    variance = (2 * left.square().sum(1)).mean() + left.sum(1).var()
    return loss, (variance / ROWS).sqrt().item()


def loss_of(flow, x, coupling="independent", context=None):
    objective = FlowMatching(coupling)
    objective.check(flow, conditional=context is not None)
    with torch.no_grad():
        loss = objective(flow, x, context)
    assert loss.value.shape == ()
    assert np.sum(loss.stats.evaluations) == 0  # nothing is solved
    return loss.value.item()


@pytest.mark.parametrize(("pieces", "fixed"), [(1, False), (3, False), (2, True)])
def test_matching_is_least_for_the_field_of_the_density(pieces, fixed):
    """Its pieces are the Gaussian in their order; fixed layers on both sides are passed."""
    # Those of the base make it another base, those of the data other data.
    before, after = [], []
    options, volume, inner = {}, 0.0, gaussian(ROWS)
    x, (loss, error) = inner, least(SCALE)
    if fixed:
        before, after = [scaled([3.0, -1.0], [0.5, 2.0])], [scaled([100.0, 10.0], [10.0, 0.1])]
        options["base"] = before[0].loc.clone(), before[0].scale.clone()
        x, volume = after[0].push(inner).value, after[0].scale.log().sum()
        loss, error = least(SCALE, before[0].scale)
    layers, expected = exact(pieces, **options), truth(inner[:10]) - volume
    flow = cnf.Flow(standard(), [*before, *layers, *after])
    assert loss_of(flow, x) == pytest.approx(loss, abs=5 * error)
    assert max_difference(flow.log_prob(x[:10]).detach(), expected) < 1e-6
    turned = cnf.Flow(standard(), [*before, *layers[::-1], *after])
    assert pieces == 1 or max_difference(turned.log_prob(x[:10]).detach(), expected) > 1e-2


@pytest.mark.parametrize(
    "added",
    [
        lambda t, x: torch.full_like(x, 0.2),
        lambda t, x: 0.2 * x,
        lambda t, x: 0.3 * torch.sin(6 * t) * torch.ones_like(x),
        lambda t, x: 0.2 * torch.cos(3 * x.flip(1)),
    ],
    ids=["constant", "in x", "in t", "across columns"],
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_matching_grows_by_the_square_of_what_is_added_to_the_exact_field(added, pieces):
    """E|f + δ − (x − z)|² = least + E|δ|², for f is a conditional mean."""
    x = gaussian(ROWS)
    losses = []
    for term in (None, added):
        torch.manual_seed(1)
        losses.append(loss_of(cnf.Flow(standard(), exact(pieces, added=term)), x))
    t = torch.rand(ROWS, 1, dtype=DOUBLE)
    points = (1 - t) * torch.randn(ROWS, 2, dtype=DOUBLE) + t * x
    grown = added(t, points).square().sum(1).mean().item()
    assert grown > 0
    assert losses[1] - losses[0] == pytest.approx(grown, rel=0.3)


@pytest.mark.parametrize(("standardized", "pieces"), [(False, 1), (True, 3)])
def test_matching_of_a_conditional_flow(standardized, pieces):
    """x | c ~ N(c m, s²), where the layers see c or what standardising makes of it."""
    context = 2 + 3 * torch.rand(ROWS, 1, dtype=DOUBLE)
    standardize = cnf.Standardize(1).double().fit(context) if standardized else None
    seen = standardize.pull(context).value if standardized else context
    x = gaussian(ROWS, LOC * seen)
    flow = cnf.Flow(standard(), exact(pieces), standardize)
    loss, error = least(SCALE)
    assert loss_of(flow, x, context=context) == pytest.approx(loss, abs=5 * error)
    shuffled = context[torch.randperm(ROWS)]
    assert loss_of(flow, x, context=shuffled) > loss + 20 * error
    found = flow.log_prob(x[:10], context[:10]).detach()
    assert max_difference(found, truth(x[:10], LOC * seen[:10])) < 1e-6


def test_matching_by_optimal_transport_leaves_next_to_nothing_in_one_dimension():
    """There it sorts: x = m + s z, and the velocity at a point of a path is known."""

    class Sorted(torch.nn.Module):
        def forward(self, t, x):
            return 1 + (x - t) / (1 + t)  # m = 1 and s = 2

    flow = cnf.Flow(standard(1), [CNF(Sorted())])
    x = 1 + 2 * torch.randn(1000, 1, dtype=DOUBLE)
    left = loss_of(flow, x, "optimal_transport")
    assert left < 0.05
    assert loss_of(flow, x) > 20 * left


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 3))
def test_optimal_transport_is_the_best_of_all_permutations(data, rows, dim):
    points = arrays(np.float64, (rows, dim), elements=st.floats(-10, 10, width=32))
    z, x = (torch.from_numpy(data.draw(points)) for _ in range(2))
    before = torch.stack([z, x])
    paired = optimal_transport(z, x)
    assert torch.equal(torch.stack([z, x]), before)
    assert paired.dtype == z.dtype
    assert sorted(paired.tolist()) == sorted(z.tolist())
    orders = itertools.permutations(range(rows))
    best = min((z[list(order)] - x).square().sum().item() for order in orders)
    assert (paired - x).square().sum().item() == pytest.approx(best, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dim", [1, 3])
def test_optimal_transport_far_from_the_origin(dim):
    """Single precision holds the points, but not the products of such points."""
    z, x = torch.randn(64, dim) + 3e4, torch.randn(64, dim) + 3e4
    paired, wanted = optimal_transport(z, x), optimal_transport(z.double(), x.double())
    assert COUPLINGS["independent"].pair(z, x, ()) is z
    assert torch.equal(COUPLINGS["optimal_transport"].pair(z, x, ()), paired)
    costs = [(points.double() - x.double()).square().sum().item() for points in (paired, wanted)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-9)
    if dim == 1:
        assert torch.equal(paired[x.argsort(0).flatten()], z.sort(0).values)


@pytest.mark.parametrize(("rows", "blocks"), [(1, 3), (2, 3), (4, 3), (11, 2)])
def test_matching_has_the_gradient_of_finite_differences(rows, blocks):
    """Other layers are left alone."""
    flow = cnf.ffjord(2, hidden=(3,), blocks=blocks, context_dim=1, zero_last=False).double()
    x, context = gaussian(rows), torch.randn(rows, 1, dtype=DOUBLE)
    scaling = flow.layers[-1].fit(gaussian(30))
    before = torch.stack([scaling.loc, scaling.scale])

    def loss(*_):  # gradcheck moves the parameters in their place
        torch.manual_seed(3)
        return FlowMatching()(flow, x, context).value

    numbers = {"eps": 1e-5, "atol": 1e-7, "rtol": 1e-5, "fast_mode": True}
    assert torch.autograd.gradcheck(loss, [*flow.parameters()], **numbers)
    assert torch.equal(torch.stack([scaling.loc, scaling.scale]), before)
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("layers", "conditional", "message"),
    [
        ([cnf.Standardize(2)], False, "CNF layer for flow matching; got one with"),
        ([], False, "CNF layer for flow matching; got one without"),
        ([*exact(1), cnf.Standardize(2), *exact(1)], False, "follow one.*got Standardize.*mle"),
        (exact(1), True, "independent.*optimal_transport.*context"),
    ],
)
def test_what_matching_cannot_train_is_refused(layers, conditional, message):
    flow, coupling = cnf.Flow(standard(), layers), ("independent", "optimal_transport")[conditional]
    with pytest.raises(ValueError, match=message) as refused:
        FlowMatching(coupling).check(flow, conditional=conditional)
    assert "\n" not in str(refused.value)
    context = torch.randn(40, 1) if conditional else None
    for objective in ("matching", "hybrid"):
        recipe = Recipe(objective=objective, coupling=coupling)
        with pytest.raises(ValueError, match=message):
            cnf.fit(flow, gaussian(40), context=context, recipe=recipe, steps=1)


@pytest.mark.parametrize(
    ("coupling", "blocks", "steps"), [("independent", 2, 220), ("optimal_transport", 1, 100)]
)
def test_a_flow_trained_by_matching_has_a_gaussians_density(coupling, blocks, steps):
    mixing = torch.tensor([[3.0, 0.0], [2.0, 0.5]])
    wanted = torch.distributions.MultivariateNormal(torch.tensor([5.0, -7.0]), scale_tril=mixing)
    numbers = {"hidden": (16, 16), "matching_batch": 128, "validations": 2}
    recipe = Recipe(objective="matching", coupling=coupling, blocks=blocks, **numbers)
    flow, x, fresh = recipe.flow(2), wanted.sample((2000,)), wanted.sample((200,))
    flow.layers[-1].fit(x)
    before = (wanted.log_prob(fresh) - flow.log_prob(fresh).detach()).mean().item()
    history = cnf.fit(flow, x, recipe=recipe, steps=steps)
    difference = wanted.log_prob(fresh) - flow.log_prob(fresh).detach()
    assert before > 0.3
    assert difference.mean().item() < 0.1
    assert difference.abs().mean().item() < 0.3
    assert set(history.objective) == {"flow matching"}
    assert (history.nfe == 0).all()


class Constant(torch.nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = torch.nn.Parameter(by.clone())

    def forward(self, t, x):
        return self.by.expand_as(x)


@pytest.mark.parametrize("kinetic", [0.0, 0.3])
def test_maximum_likelihood_of_a_shift(kinetic):
    """log p(x) = log N(x − v); the kinetic energy is |v|²; the gradient is that of both."""
    x, flow = gaussian(50), cnf.Flow(standard(), [CNF(Constant(LOC))])
    objective = MaximumLikelihood(Regularization(kinetic=kinetic) if kinetic else None)
    loss = objective(flow, x)
    nll = -standard().log_prob(x - LOC).mean()
    expected = nll + kinetic * LOC.square().sum()
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-10)
    (gradient,) = torch.autograd.grad(loss.value, list(flow.parameters()))
    wanted = (LOC - x).mean(0) + 2 * kinetic * LOC
    assert max_difference(gradient, wanted) < 1e-9
    assert np.sum(loss.stats.evaluations) > 0
