"""Flows: exact log-densities, the two directions, shapes, bases and gradients."""

import math
import pickle

import pytest
import torch
from helpers import exact_log_prob, max_difference
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

import cnf
from cnf.datasets import TOYS

DOUBLE = torch.float64
BASES = {
    "normal": Independent(Normal(torch.zeros(2), torch.ones(2)), 1),
    "laplace": Independent(Laplace(torch.zeros(2), torch.ones(2)), 1),
    "student": Independent(StudentT(torch.full((2,), 5.0)), 1),
    "correlated": MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "mixture": MixtureSameFamily(
        Categorical(logits=torch.zeros(3)),
        Independent(Normal(torch.randn(3, 2), torch.ones(3, 2)), 1),
    ),
}


def flow_over(base, **settings):
    return cnf.Flow(base, [cnf.CNF(cnf.ConcatSquash(2, (8, 8)), **settings), cnf.Standardize(2)])


def test_log_prob_agrees_with_an_independent_integration(fitted):
    x = torch.from_numpy(TOYS["moons"].sample(10, seed=3))
    tight = fitted.with_solver(rtol=1e-9, atol=1e-9)
    expected = exact_log_prob(fitted, x)
    assert max_difference(tight.log_prob(x), expected) < 1e-6


def test_log_prob_of_a_deep_stack_agrees_with_an_independent_integration():
    flow = cnf.ffjord(
        3, hidden=(6, 5, 4), blocks=2, activation="softplus", rtol=1e-9, atol=1e-9, zero_last=False
    )
    flow.layers[-1].fit(torch.randn(100, 3) * 3 + 1)
    x = torch.randn(5, 3, dtype=DOUBLE)
    expected = exact_log_prob(flow.double(), x)
    assert max_difference(flow.log_prob(x), expected) < 1e-6


def test_there_and_back_at_the_default_tolerance(fitted):
    z = fitted.base.sample((1000,))
    x = z
    for layer in fitted.layers:
        x, _ = layer(x)
    for layer in reversed(fitted.layers):
        x, _ = layer.inverse(x)
    assert max_difference(z, x) < 1e-5


def test_a_fitted_density_integrates_to_one(fitted):
    side = torch.linspace(-8, 8, 201, dtype=DOUBLE)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        total = sum(fitted.log_prob(part).exp().sum() for part in grid.split(8000))
    assert total.item() * (16 / 200) ** 2 == pytest.approx(1.0, abs=1e-3)


def test_gradcheck_of_log_prob():
    flow = cnf.ffjord(
        2, hidden=(3, 3), context_dim=1, rtol=1e-10, atol=1e-10, zero_last=False
    ).double()
    x = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    context = torch.randn(2, 1, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, context, *_: flow.log_prob(x, context), (x, context, *flow.parameters())
    )


@pytest.mark.parametrize("name", BASES)
def test_sample_and_log_prob_agree_for_any_base(name):
    flow = flow_over(BASES[name], rtol=1e-8, atol=1e-8).double()
    x, log_prob = flow.sample_and_log_prob((4, 3))
    assert x.shape == (4, 3, 2)
    assert x.dtype == DOUBLE
    assert not x.requires_grad
    assert max_difference(flow.log_prob(x), log_prob) < 1e-6


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


def test_rsample_is_differentiable_and_sample_is_not():
    flow = flow_over(BASES["normal"])
    assert not flow.sample(3).requires_grad
    flow.rsample(3).square().sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
    x, log_prob = flow.rsample_and_log_prob(3)
    assert x.requires_grad
    assert log_prob.requires_grad


def test_rsample_needs_a_base_that_has_it():
    flow = flow_over(BASES["mixture"])
    assert flow.sample(3).shape == (3, 2)
    with pytest.raises(ValueError, match="rsample"):
        flow.rsample(3)


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
    flow = cnf.ffjord(2, hidden=(4,), context_dim=3 if context is not None else 0, zero_last=False)
    given = None if context is None else torch.randn(*context, 3)
    assert flow.sample(shape, given).shape == expected
    x, log_prob = flow.sample_and_log_prob(shape, given)
    assert x.shape == expected
    assert log_prob.shape == expected[:-1]


def test_log_prob_broadcasts_rows_against_contexts():
    flow = cnf.ffjord(2, hidden=(4,), context_dim=3, rtol=1e-7, atol=1e-7, zero_last=False).double()
    x, context = torch.randn(5, 1, 2, dtype=DOUBLE), torch.randn(4, 3, dtype=DOUBLE)
    together = flow.log_prob(x, context)
    assert together.shape == (5, 4)
    assert together[2, 3].item() == pytest.approx(
        flow.log_prob(x[2, 0], context[3]).item(), abs=1e-5
    )
    assert together.std(1).min() > 0  # the context matters


def test_standardisation_is_part_of_log_prob():
    """With a field of zeros, the flow is the Gaussian with the data's mean and variances."""
    flow = flow_over(BASES["normal"]).double()
    for parameter in flow.layers[0].field.last.parameters():
        torch.nn.init.zeros_(parameter)
    data = torch.randn(100, 2, dtype=DOUBLE) * torch.tensor([0.1, 30.0]) + 5
    flow.layers[1].fit(data)
    gaussian = Independent(Normal(data.mean(0), data.std(0, correction=0)), 1)
    torch.testing.assert_close(flow.log_prob(data), gaussian.log_prob(data))


def test_with_solver_shares_the_very_parameters():
    flow = flow_over(BASES["normal"])
    other = flow.with_solver(rtol=1e-9, atol=1e-9)
    assert all(a is b for a, b in zip(flow.parameters(), other.parameters(), strict=True))
    assert other.layers[0].settings.rtol == 1e-9


def test_the_base_follows_the_flow_to_another_dtype():
    for base in BASES.values():
        flow = flow_over(base).double()
        assert flow.base.sample().dtype == DOUBLE
        assert flow.log_prob(torch.zeros(3, 2, dtype=DOUBLE)).dtype == DOUBLE


def test_path_runs_from_base_to_samples_through_a_stack():
    flow = cnf.ffjord(2, hidden=(8,), blocks=3, rtol=1e-8, atol=1e-8, zero_last=False)
    flow.layers[-1].fit(torch.randn(50, 2) * 4 + 10)
    flow.double()
    z = torch.randn(6, 2, dtype=DOUBLE)
    path = flow.path(z, frames=8)
    assert path.shape == (8, 6, 2)
    torch.testing.assert_close(path[0], flow.layers[-1](z)[0])  # the base, in the data's units
    end = z
    for layer in flow.layers:
        end, _ = layer(end)
    assert max_difference(path[-1], end) < 1e-6
    assert (path.diff(dim=0).abs().amax((1, 2)) > 0).all()
    with pytest.raises(ValueError, match="at least 2 frames"):
        flow.path(z, frames=1)


@pytest.mark.parametrize(
    "base", [Normal(0.0, 1.0), Normal(torch.zeros(2), torch.ones(2)), Categorical(torch.ones(3))]
)
def test_a_base_must_be_over_vectors(base):
    with pytest.raises(ValueError, match=r"event shape \(dim,\)"):
        cnf.Flow(base, [])


def test_wrong_arguments():
    flow = cnf.ffjord(2, hidden=(4,), zero_last=False)
    with pytest.raises(ValueError, match=r"x of shape \(..., 2\); got \(5, 3\)"):
        flow.log_prob(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="blocks of at least 1"):
        cnf.ffjord(2, blocks=0)


def test_a_row_of_nan_is_named():
    x = torch.zeros(5, 2)
    x[3, 1] = math.nan
    with pytest.raises(cnf.SolveError, match="rows 3"):
        cnf.ffjord(2, hidden=(4,), zero_last=False).log_prob(x)


def test_a_context_is_standardised_on_its_way_in():
    flow = cnf.ffjord(2, hidden=(8,), context_dim=1, zero_last=False)
    context = 1e4 + 1e3 * torch.randn(50, 1)
    rows = torch.randn(50, 2)
    cnf.fit(flow, rows, context=context, validation=(rows, context), steps=2)
    torch.testing.assert_close(flow.context.loc, context.mean(0))
    x, c = torch.randn(3, 2), context[:3]
    bare = cnf.Flow(flow.base, flow.layers)
    scaled = (c - flow.context.loc) / flow.context.scale
    torch.testing.assert_close(flow.log_prob(x, c), bare.log_prob(x, scaled))
    torch.manual_seed(1)
    drawn = flow.sample((), c)
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, bare.sample((), scaled))
    torch.testing.assert_close(flow.path(x, 3, c), bare.path(x, 3, scaled))


def test_gradients_reach_a_contexts_encoder():
    encoder = torch.nn.Linear(5, 3)
    flow = cnf.ffjord(2, hidden=(8, 8), context_dim=3, zero_last=False)
    flow.log_prob(torch.randn(4, 2), encoder(torch.randn(4, 5))).sum().backward()
    assert (encoder.weight.grad != 0).any()
    encoder.zero_grad()
    flow.rsample((), encoder(torch.randn(4, 5))).sum().backward()
    assert (encoder.weight.grad != 0).any()


def test_a_context_of_the_wrong_size():
    flow = cnf.ffjord(2, hidden=(8,), context_dim=3)
    with pytest.raises(ValueError, match=r"context of shape \(rows, 3\); got \(4, 2\)"):
        flow.log_prob(torch.randn(4, 2), torch.randn(4, 2))


@pytest.mark.parametrize("field", cnf.fields.FIELDS)
def test_every_field_makes_a_density(field):
    """On a box that holds all but nothing of it, the density integrates to 1."""
    flow = cnf.ffjord(1, hidden=(6, 6), field=field, zero_last=False).double()
    grid = torch.linspace(-8, 8, 2001, dtype=torch.float64).unsqueeze(1)
    total = torch.trapezoid(flow.log_prob(grid).exp(), grid[:, 0])
    assert total.item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("step", ["joint", "per_sample"])
def test_no_rows_are_no_mistake(step):
    flow = cnf.ffjord(2, hidden=(8,)).with_solver(step=step)
    assert flow.log_prob(torch.zeros(0, 2)).shape == (0,)
    assert flow.score(torch.zeros(0, 2)).stderr.shape == (0,)
    assert flow.sample(0).shape == (0, 2)


def test_a_flow_with_features_of_x_can_be_pickled():
    flow = cnf.ffjord(2, hidden=(8,), field_options={"x_features": 4}, zero_last=False)
    again = pickle.loads(pickle.dumps(flow))
    x = torch.randn(3, 2)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


def test_a_hyper_field_that_starts_at_zero_learns():
    flow = cnf.ffjord(2, hidden=(8,), field="hyper")
    optimizer = torch.optim.SGD(flow.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-flow.log_prob(torch.randn(20, 2)).mean()).backward()
        optimizer.step()
    assert all((p.grad != 0).any() for p in flow.parameters())


@pytest.mark.parametrize("call", ["log_prob", "score", "fit", "context", "weight"])
def test_an_array_is_told_from_a_tensor_in_one_line(call):
    flow, x = cnf.ffjord(2, (4,)), torch.zeros(10, 2)
    calls = {
        "log_prob": ("x", lambda: flow.log_prob(x.numpy())),
        "score": ("x", lambda: flow.score(x.numpy())),
        "fit": ("data", lambda: cnf.fit(flow, x.numpy(), steps=1)),
        "context": ("context", lambda: cnf.fit(flow, x, context=x.numpy(), steps=1)),
        "weight": ("weight", lambda: cnf.fit(flow, x, weight=x[:, 0].numpy(), steps=1)),
    }
    name, wrong = calls[call]
    told = rf"Expected {name} to be a tensor; got ndarray: pass torch\.as_tensor\({name}\)"
    with pytest.raises(TypeError, match=told):
        wrong()
