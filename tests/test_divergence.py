"""Divergences: exact ones, the moments and errors of estimates, and which one is chosen."""

import pytest
import torch
from helpers import DOUBLE, Linear, refused
from torch import nn
from torch.testing import assert_close

from cnf.fields import ConcatSquash, as_field, make_field
from cnf.fields.divergence import (
    DIVERGENCES,
    AutogradTrace,
    FieldTrace,
    Hutchinson,
    HutchPlusPlus,
    TangentTrace,
    choose_divergence,
    describe,
    trace_of,
)


class Constant(nn.Module):
    def forward(self, t, x):
        return torch.ones_like(x)


def linear_and_rows(dim):
    return Linear(torch.randn(dim, dim, dtype=DOUBLE)), torch.randn(4, dim, dtype=DOUBLE)


@pytest.mark.parametrize("way", [FieldTrace(), TangentTrace(), AutogradTrace(), HutchPlusPlus(8)])
def test_exact_trace_of_a_linear_field(way):
    """Hutch++ is exact too where its columns span everything."""
    field, x = linear_and_rows(3)
    traced = trace_of(field, x, way)
    assert_close(traced.velocity, x @ field.matrix.T)
    assert_close(traced.trace, field.matrix.trace().expand(4))
    assert (traced.estimates is None) == (not isinstance(way, HutchPlusPlus))


def test_rademacher_is_exact_for_a_diagonal_jacobian():
    field = Linear(torch.diag(torch.arange(5.0, dtype=DOUBLE)))
    traced = trace_of(field, torch.randn(4, 5, dtype=DOUBLE), Hutchinson())
    assert_close(traced.trace, torch.full_like(traced.trace, 10.0))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_is_differentiable_just_where_autograd_records(name):
    """A field that ignores x has none."""
    field, x = linear_and_rows(3)
    assert (trace_of(Constant(), x, DIVERGENCES[name]()).trace == 0).all()
    for recording in (False, True):
        with torch.set_grad_enabled(recording):
            traced = trace_of(field, x, DIVERGENCES[name]())
        assert traced.velocity.requires_grad == traced.trace.requires_grad == recording
    if name == "autograd":
        (grad,) = torch.autograd.grad(traced.trace.sum(), field.matrix)
        assert_close(grad, 4 * torch.eye(3, dtype=DOUBLE))


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("module", [False, True])
def test_hutchinson_is_unbiased(noise, count, module):
    """The mean over 10,000 probes is within four standard errors of the exact trace."""
    field = make_field("concat_squash", dim=6, hidden=(16, 16)).double()
    x = torch.randn(1, 6, dtype=DOUBLE).expand(10_000 // count, 6)

    class Wrapped(nn.Module):
        def forward(self, t, x):
            return field(t, x)

    with torch.no_grad():
        exact = trace_of(field, x[:1], FieldTrace(), t=0.3).trace
        found = trace_of(Wrapped() if module else field, x, Hutchinson(count, noise), t=0.3)
    assert found.estimates.shape == (10_000 // count, count)
    assert_close(found.estimates.mean(1), found.trace)
    stderr = found.estimates.std() / 100
    assert stderr > 0
    assert (found.trace.mean() - exact).abs() < 4 * stderr


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutch_plus_plus_is_unbiased_and_has_the_lower_variance_at_equal_products(noise):
    """The eigenvalues are 1, 1/2, 1/4 …; products are 3 for Q, 3 of its columns, 3 for the rest."""
    turned, _ = torch.linalg.qr(torch.randn(20, 20, dtype=DOUBLE))
    matrix = turned * 0.5 ** torch.arange(20, dtype=DOUBLE) @ turned.T
    x = torch.zeros(5000, 20, dtype=DOUBLE)
    found = trace_of(Linear(matrix), x, HutchPlusPlus(6, noise)).trace
    assert (found.mean() - matrix.trace()).abs() < 4 * found.std() / 5000**0.5
    assert found.var() < 0.2 * trace_of(Linear(matrix), x, Hutchinson(9, noise)).trace.var()


@pytest.mark.parametrize("way", [Hutchinson, HutchPlusPlus])
def test_as_many_estimates_as_asked_for_by_the_generators_probes(way):
    for estimates in (1, 2, 3, 4, 9):
        found = trace_of(*linear_and_rows(3), way().with_estimates(estimates, dim=3))
        assert found.estimates.shape == (4, estimates)
    field, x = ConcatSquash(3), torch.randn(4, 3)
    traces = []
    for seed in (1, 1, 2):
        divergence = way(4, generator=torch.Generator().manual_seed(seed))
        traces.append(trace_of(field, x, divergence).trace)
    assert torch.equal(traces[0], traces[1])
    assert not torch.equal(traces[0], traces[2])


@pytest.mark.parametrize(
    ("wanted", "field", "dim", "expected"),
    [
        ("auto", ConcatSquash(100, (4, 4)), 100, FieldTrace()),
        ("auto", ConcatSquash(32, (4, 4, 4)), 32, FieldTrace()),
        ("auto", ConcatSquash(33, (4, 4, 4)), 33, Hutchinson()),
        ("auto", Constant(), 32, FieldTrace()),
        ("auto", Constant(), 33, Hutchinson()),
        ("exact", ConcatSquash(33, (4, 4, 4)), 33, FieldTrace()),
        ("exact", Constant(), 33, FieldTrace()),
        ("autograd", Constant(), 2, AutogradTrace()),
        ("hutchinson-gaussian", Constant(), 2, Hutchinson(noise="gaussian")),
        (Hutchinson(7), ConcatSquash(2), 2, Hutchinson(7)),
    ],
)
def test_choice(wanted, field, dim, expected):
    assert choose_divergence(wanted, as_field(field), dim) == expected


def test_descriptions_and_wrong_arguments():
    field = ConcatSquash(2, (4, 4, 4))
    assert describe(FieldTrace(), field) == "exact by tangents"
    assert describe(FieldTrace(), as_field(Constant())) == "exact by autograd"
    assert describe(Hutchinson(3), field) == "Hutchinson(count=3, noise='rademacher')"
    told = "divergence to be one of auto, exact, .*; got 'trace'"
    refused(told, choose_divergence, "trace", as_field(Constant()), 2)
    refused("noise to be rademacher or gaussian; got 'cauchy'", Hutchinson, noise="cauchy")
    refused("count to be at least 1 probe; got 0", Hutchinson, 0)
    refused("count of at least 2 products; got 1", HutchPlusPlus, 1)
    field, x = Linear(torch.ones(1, 2)), torch.randn(4, 2)
    refused(r"shape of x, \(4, 2\); got \(4, 1\)", trace_of, field, x, AutogradTrace())
