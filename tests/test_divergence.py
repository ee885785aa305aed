"""Divergences: exact by autograd for any module, Hutchinson's mean, and which one is chosen."""

import pytest
import torch
from torch import nn

from cnf.divergence import (
    DIVERGENCES,
    AutogradTrace,
    FieldTrace,
    Hutchinson,
    choose_divergence,
)
from cnf.fields import ConcatSquash
from cnf.ode import take_rows

T = torch.tensor(0.3, dtype=torch.float64)


class Linear(nn.Module):
    """f(t, x) = A x, whose divergence is tr A everywhere."""

    def __init__(self, dim):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(dim, dim, dtype=torch.float64))

    def forward(self, t, x):
        return x @ self.matrix.T


class Constant(nn.Module):
    """A field that does not look at x."""

    def forward(self, t, x):
        return torch.ones_like(x)


def test_autograd_trace_of_a_linear_field():
    field, x = Linear(5), torch.randn(4, 5, dtype=torch.float64)
    velocity, trace = AutogradTrace()(field, T, x, None, ())
    torch.testing.assert_close(velocity, x @ field.matrix.T)
    torch.testing.assert_close(trace, field.matrix.trace().expand(4))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_field_that_ignores_x_has_no_divergence(name):
    divergence, x = DIVERGENCES[name], torch.randn(4, 5)
    _, trace = divergence(
        Constant(), T, x, None, take_rows(divergence.constants(Constant(), x), None)
    )
    assert (trace == 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("recording", [False, True])
def test_divergence_is_differentiable_just_where_autograd_records(name, recording):
    field, x = Linear(3), torch.randn(4, 3, dtype=torch.float64)
    divergence = DIVERGENCES[name]
    with torch.set_grad_enabled(recording):
        velocity, trace = divergence(
            field, T, x, None, take_rows(divergence.constants(field, x), None)
        )
    assert velocity.requires_grad == trace.requires_grad == recording
    if recording and name == "autograd":
        (grad,) = torch.autograd.grad(trace.sum(), field.matrix)
        torch.testing.assert_close(grad, 4 * torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(noise):
    """The mean over 10,000 probes is within four standard errors of the exact trace."""
    field = ConcatSquash(6, hidden=(16, 16)).double()
    x = torch.randn(1, 6, dtype=torch.float64).expand(10_000, 6)
    divergence = Hutchinson(noise)
    with torch.no_grad():
        _, exact = FieldTrace()(field, T, x[:1], None, field.constants())
        _, estimates = divergence(
            field, T, x, None, take_rows(divergence.constants(field, x), None)
        )
    stderr = estimates.std() / 100
    assert stderr > 0
    assert (estimates.mean() - exact).abs() < 4 * stderr


def test_rademacher_is_exact_for_a_diagonal_jacobian():
    field, x = Linear(5), torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        field.matrix.copy_(torch.diag(torch.arange(5.0)))
    divergence = Hutchinson()
    _, trace = divergence(field, T, x, None, take_rows(divergence.constants(field, x), None))
    torch.testing.assert_close(trace, torch.full_like(trace, 10.0))


def test_probes_have_unit_variance_and_differ_between_solves():
    x = torch.empty(20_000, 3)
    for noise in ("rademacher", "gaussian"):
        (probe,), (other,) = (
            take_rows(Hutchinson(noise).constants(nn.Identity(), x), None) for _ in range(2)
        )
        torch.testing.assert_close(probe.mean(), torch.tensor(0.0), rtol=0, atol=0.02)
        torch.testing.assert_close(probe.var(), torch.tensor(1.0), rtol=0, atol=0.03)
        assert not torch.equal(probe, other)
    assert set(Hutchinson().constants(nn.Identity(), x)[0].tensor.unique().tolist()) == {-1, 1}


@pytest.mark.parametrize(
    ("name", "field", "dim", "expected"),
    [
        ("auto", ConcatSquash(100, (4, 4)), 100, FieldTrace()),
        ("auto", ConcatSquash(32, (4, 4, 4)), 32, FieldTrace()),
        ("auto", ConcatSquash(33, (4, 4, 4)), 33, Hutchinson()),
        ("auto", Constant(), 32, AutogradTrace()),
        ("auto", Constant(), 33, Hutchinson()),
        ("exact", ConcatSquash(33, (4, 4, 4)), 33, FieldTrace()),
        ("exact", Constant(), 33, AutogradTrace()),
        ("hutchinson-gaussian", Constant(), 2, Hutchinson("gaussian")),
    ],
)
def test_choice(name, field, dim, expected):
    assert choose_divergence(name, field, dim) == expected


def test_wrong_arguments():
    with pytest.raises(ValueError, match="divergence to be one of auto, exact, .*; got 'trace'"):
        choose_divergence("trace", Constant(), 2)
    with pytest.raises(ValueError, match="noise to be rademacher or gaussian; got 'cauchy'"):
        Hutchinson("cauchy")


def test_a_field_of_the_wrong_shape():
    class Wrong(nn.Module):
        def forward(self, t, x):
            return x[:, :1]

    with pytest.raises(ValueError, match=r"shape of x, \(4, 2\); got \(4, 1\)"):
        AutogradTrace()(Wrong(), T, torch.randn(4, 2), None, ())
