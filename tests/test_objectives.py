"""Objectives against closed forms: what they are least for is known for Gaussians.

On straight paths from N(a, b²) to N(m, s²) with independent ends, x_t is N(μ_t, σ_t²) with
μ_t = (1 − t) a + t m and σ_t² = (1 − t)² b² + t² s². Flow matching is least for the field

    E[x − z | x_t] = m − a + (t s² − (1 − t) b²) / σ_t² · (x_t − μ_t),

and what it leaves is Var[x − z | x_t] = b² s² / σ_t², over all times π b s / 2 for each column.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import max_difference, standard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

import cnf
from cnf.fields.regularizers import Regularization
from cnf.layers import CNF
from cnf.training.couplings import COUPLINGS, independent, optimal_transport
from cnf.training.objectives import OBJECTIVES, FlowMatching, MaximumLikelihood
from cnf.training.recipes import Recipe

ROWS = 100_000
LOC = torch.tensor([1.5, -0.5], dtype=torch.float64)
SCALE = torch.tensor([0.4, 2.0], dtype=torch.float64)
ONE = torch.ones(2, dtype=torch.float64)


class Exact(torch.nn.Module):
    """A piece of the field that carries N(a, b²) to N(m, s²), with something added to the whole."""

    def __init__(self, loc=LOC, scale=SCALE, base=(0 * ONE, ONE), piece=(0, 1), added=None):
        super().__init__()
        self.loc, self.scale, self.base, self.piece, self.added = loc, scale, base, piece, added
        self.dummy = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t, x, context=None):
        k, count = self.piece
        t = (k + t) / count
        loc = self.loc if context is None else self.loc * context
        start, width = self.base
        variance = ((1 - t) * width) ** 2 + (t * self.scale) ** 2
        slope = (t * self.scale**2 - (1 - t) * width**2) / variance
        whole = loc - start + slope * (x - (1 - t) * start - t * loc)
        if self.added is not None:
            whole = whole + self.added(t, x)
        return whole / count + self.dummy


def truth(x, loc=LOC):
    return Normal(loc, SCALE).log_prob(x).sum(1)


def gaussian(rows, loc=LOC):
    return loc + SCALE * torch.randn(rows, 2, dtype=torch.float64)


def least(scales, base=ONE):
    """The least loss, and the standard error of what ROWS rows give for it."""
    t = (torch.arange(10_000, dtype=torch.float64).unsqueeze(1) + 0.5) / 10_000
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


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_matching_of_the_exact_field_is_its_least(pieces):
    flow = cnf.Flow(standard(), [CNF(Exact(piece=(k, pieces))) for k in range(pieces)])
    loss, error = least(SCALE)
    assert loss_of(flow, gaussian(ROWS)) == pytest.approx(loss, abs=5 * error)


@pytest.mark.parametrize("pieces", [1, 3])
def test_pieces_of_the_exact_field_are_the_gaussian(pieces):
    """The very field that matching is least for is the density's, in its pieces' order."""
    layers = [CNF(Exact(piece=(k, pieces)), rtol=1e-9, atol=1e-9) for k in range(pieces)]
    flow, x = cnf.Flow(standard(), layers), gaussian(20)
    assert max_difference(flow.log_prob(x).detach(), truth(x)) < 1e-6
    turned = cnf.Flow(standard(), layers[::-1])
    if pieces > 1:
        assert max_difference(turned.log_prob(x).detach(), truth(x)) > 1e-2


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
        fields = [Exact(piece=(k, pieces), added=term) for k in range(pieces)]
        torch.manual_seed(1)
        losses.append(loss_of(cnf.Flow(standard(), [CNF(field) for field in fields]), x))
    t = torch.rand(ROWS, 1, dtype=torch.float64)
    points = (1 - t) * torch.randn(ROWS, 2, dtype=torch.float64) + t * x
    grown = added(t, points).square().sum(1).mean().item()
    assert grown > 0
    assert losses[1] - losses[0] == pytest.approx(grown, rel=0.2)


def test_fixed_layers_on_both_sides_are_passed():
    """The base's make it another base, the data's other data."""
    before, after = cnf.Standardize(2).double(), cnf.Standardize(2).double()
    before.loc.copy_(torch.tensor([3.0, -1.0]))
    before.scale.copy_(torch.tensor([0.5, 2.0]))
    after.loc.copy_(torch.tensor([100.0, 10.0]))
    after.scale.copy_(torch.tensor([10.0, 0.1]))
    base = before.loc.clone(), before.scale.clone()
    layers = [CNF(Exact(base=base, piece=(k, 2)), rtol=1e-9, atol=1e-9) for k in range(2)]
    flow = cnf.Flow(standard(), [before, *layers, after])
    inner = gaussian(ROWS)
    loss, error = least(SCALE, base[1])
    found = loss_of(flow, after.push(inner).value)
    assert found == pytest.approx(loss, abs=5 * error)
    x = after.push(inner[:10]).value
    expected = truth(inner[:10]) - after.scale.log().sum()
    assert max_difference(flow.log_prob(x).detach(), expected) < 1e-6


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_matching_of_a_conditional_flow(standardized, pieces):
    """x | c ~ N(c m, s²), where the layers see c or what standardising makes of it."""
    context = 2 + 3 * torch.rand(ROWS, 1, dtype=torch.float64)
    standardize = None
    seen = context
    if standardized:
        standardize = cnf.Standardize(1).double().fit(context)
        seen = standardize.pull(context).value
    x = gaussian(ROWS, LOC * seen)
    layers = [CNF(Exact(piece=(k, pieces)), rtol=1e-9, atol=1e-9) for k in range(pieces)]
    flow = cnf.Flow(standard(), layers, standardize)
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
            width = 1 - t + t * 2
            return 1 + (2 - 1) * (x - t * 1) / width

    flow = cnf.Flow(standard(1), [CNF(Sorted())])
    x = 1 + 2 * torch.randn(1000, 1, dtype=torch.float64)
    left = loss_of(flow, x, "optimal_transport")
    assert left < 0.05
    assert loss_of(flow, x) > 20 * left


def pairs(draw, rows, dim):
    numbers = st.lists(
        st.floats(-10, 10, allow_subnormal=False, width=32), min_size=dim, max_size=dim
    )
    both = [draw(st.lists(numbers, min_size=rows, max_size=rows)) for _ in range(2)]
    return [torch.tensor(points, dtype=torch.float64) for points in both]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_optimal_transport_is_the_best_of_all_permutations(data):
    rows, dim = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    z, x = pairs(data.draw, rows, dim)
    before = z.clone(), x.clone()
    paired = optimal_transport(z, x)
    assert torch.equal(z, before[0])
    assert torch.equal(x, before[1])
    assert paired.dtype == z.dtype
    assert sorted(paired.tolist()) == sorted(z.tolist())
    cost = (paired - x).square().sum().item()
    best = min(
        (z[list(order)] - x).square().sum().item() for order in itertools.permutations(range(rows))
    )
    assert cost == pytest.approx(best, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dim", [1, 3])
def test_optimal_transport_far_from_the_origin(dim):
    """Single precision holds the points, but not the products of such points."""
    z, x = torch.randn(64, dim) + 3e4, torch.randn(64, dim) + 3e4
    paired, wanted = optimal_transport(z, x), optimal_transport(z.double(), x.double())
    costs = [(points.double() - x.double()).square().sum().item() for points in (paired, wanted)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-9)
    if dim == 1:
        assert torch.equal(paired[x.argsort(0).flatten()], z.sort(0).values)


def test_couplings_keep_the_base_points():
    z, x = torch.randn(50, 2), torch.randn(50, 2)
    assert independent(z, x) is z
    for coupling in COUPLINGS.values():
        paired = coupling.pair(z, x)
        assert sorted(paired.tolist()) == sorted(z.tolist())


def test_matching_with_weights_has_the_gradient_of_finite_differences():
    flow = cnf.ffjord(2, hidden=(4,), blocks=2, context_dim=1, zero_last=False).double()
    x, context = gaussian(11), torch.randn(11, 1, dtype=torch.float64)
    flow.layers[-1].fit(x)

    def loss():
        torch.manual_seed(3)
        return FlowMatching()(flow, x, context).value

    parameters = list(flow.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    step = 1e-5
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            flat, wanted = parameter.view(-1), gradient.reshape(-1)
            for i in range(len(flat)):
                old, sides = flat[i].item(), []
                for sign in (1, -1):
                    flat[i] = old + sign * step
                    sides.append(loss().item())
                flat[i] = old
                found = (sides[0] - sides[1]) / (2 * step)
                assert found == pytest.approx(wanted[i].item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_batch_smaller_than_the_stack_is_matched(rows):
    flow = cnf.ffjord(2, hidden=(4,), blocks=3)
    loss = FlowMatching()(flow, torch.randn(rows, 2)).value
    loss.backward()
    assert loss.isfinite()


def test_matching_leaves_layers_of_another_kind_alone():
    flow = cnf.ffjord(2, hidden=(4,)).double()
    x = gaussian(30)
    flow.layers[-1].fit(x)
    before = flow.layers[-1].loc.clone(), flow.layers[-1].scale.clone()
    FlowMatching()(flow, x).value.backward()
    assert torch.equal(flow.layers[-1].loc, before[0])
    assert torch.equal(flow.layers[-1].scale, before[1])
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("layers", "coupling", "conditional", "message"),
    [
        ([cnf.Standardize(2)], "independent", False, "CNF layer for flow matching; got one with"),
        ([], "independent", False, "CNF layer for flow matching; got one without"),
        (
            [CNF(Exact()), cnf.Standardize(2), CNF(Exact())],
            "independent",
            False,
            "follow one another.*got Standardize between.*mle",
        ),
        ([CNF(Exact())], "optimal_transport", True, "independent.*optimal_transport.*context"),
    ],
)
def test_what_matching_cannot_train_is_refused(layers, coupling, conditional, message):
    flow = cnf.Flow(standard(), layers)
    with pytest.raises(ValueError, match=message) as refused:
        FlowMatching(coupling).check(flow, conditional=conditional)
    assert "\n" not in str(refused.value)
    context = torch.randn(40, 1) if conditional else None
    for objective in ("matching", "hybrid"):
        recipe = Recipe(objective=objective, coupling=coupling)
        with pytest.raises(ValueError, match=message):
            cnf.fit(flow, gaussian(40), context=context, recipe=recipe, steps=1)


def test_what_matching_can_train_is_not_refused():
    fixed = cnf.Standardize(2), cnf.Standardize(2)
    flow = cnf.Flow(standard(), [fixed[0], CNF(Exact()), CNF(Exact()), fixed[1]])
    FlowMatching("optimal_transport").check(flow, conditional=False)
    FlowMatching().check(flow, conditional=True)
    MaximumLikelihood().check(cnf.Flow(standard(), [*fixed]), conditional=False)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_flow_trained_by_matching_has_a_gaussians_density(coupling):
    mixing = torch.tensor([[3.0, 0.0], [2.0, 0.5]])
    wanted = torch.distributions.MultivariateNormal(torch.tensor([5.0, -7.0]), scale_tril=mixing)
    recipe = Recipe(
        objective="matching", coupling=coupling, hidden=(16, 16), matching_batch=128, validations=4
    )
    flow = recipe.flow(2)
    x = wanted.sample((4000,))
    flow.layers[-1].fit(x)
    before = (wanted.log_prob(x) - flow.log_prob(x).detach()).mean().item()
    history = cnf.fit(flow, x, recipe=recipe, steps=400)
    fresh = wanted.sample((2000,))
    difference = wanted.log_prob(fresh) - flow.log_prob(fresh).detach()
    assert before > 0.3
    assert difference.mean().item() < 0.03
    assert difference.abs().mean().item() < 0.2
    assert set(history.objective) == {"flow matching"}
    assert (history.nfe == 0).all()


def test_a_stack_trained_by_matching_has_a_gaussians_density():
    recipe = Recipe(
        objective="matching", hidden=(16, 16), blocks=3, matching_batch=256, validations=4
    )
    wanted = torch.distributions.MultivariateNormal(
        torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    )
    flow = recipe.flow(2)
    cnf.fit(flow, wanted.sample((4000,)), recipe=recipe, steps=300)
    fresh = wanted.sample((1000,))
    difference = wanted.log_prob(fresh) - flow.log_prob(fresh).detach()
    assert difference.mean().item() < 0.06


class Constant(torch.nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = torch.nn.Parameter(by.clone())

    def forward(self, t, x):
        return self.by.expand_as(x)


@pytest.mark.parametrize("kinetic", [0.0, 0.3])
def test_maximum_likelihood_of_a_shift(kinetic):
    """log p(x) = log N(x − v); the kinetic energy is |v|²; the gradient is that of both."""
    x = gaussian(50)
    flow = cnf.Flow(standard(), [CNF(Constant(LOC))])
    objective = MaximumLikelihood(Regularization(kinetic=kinetic) if kinetic else None)
    loss = objective(flow, x)
    nll = -standard().log_prob(x - LOC).mean()
    expected = nll + kinetic * LOC.square().sum()
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-10)
    (gradient,) = torch.autograd.grad(loss.value, list(flow.parameters()))
    wanted = (LOC - x).mean(0) + 2 * kinetic * LOC
    assert max_difference(gradient, wanted) < 1e-9
    assert np.sum(loss.stats.evaluations) > 0


def test_every_objective_has_a_name_of_its_own():
    names = [objective.name for objective in OBJECTIVES["hybrid"]]
    assert names == ["flow matching", "maximum likelihood"]
    assert OBJECTIVES["matching"] + OBJECTIVES["mle"] == OBJECTIVES["hybrid"]
    for objective in OBJECTIVES:
        recipe = dataclasses.replace(Recipe(), objective=objective, batch_size=32, hidden=(8,))
        assert cnf.fit(recipe.flow(2), torch.randn(80, 2), recipe=recipe, steps=3).steps == 3
