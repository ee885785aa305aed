"""Divergences: exact ones, the moments and errors of estimates, and which one is chosen."""

import pytest
import torch
from torch import nn

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

DOUBLE = torch.float64
WAYS = {"exact": FieldTrace, **DIVERGENCES}


class Linear(nn.Module):
    """f(t, x) = A x, whose divergence is tr A everywhere."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, x):
        return x @ self.matrix.T


class Constant(nn.Module):
    """A field that does not look at x."""

    def forward(self, t, x):
        return torch.ones_like(x)


def random_linear(dim):
    return Linear(torch.randn(dim, dim, dtype=DOUBLE))


@pytest.mark.parametrize("way", [FieldTrace(), TangentTrace(), AutogradTrace()])
def test_exact_trace_of_a_linear_field(way):
    field, x = random_linear(5), torch.randn(4, 5, dtype=DOUBLE)
    traced = trace_of(field, x, way)
    torch.testing.assert_close(traced.velocity, x @ field.matrix.T)
    torch.testing.assert_close(traced.trace, field.matrix.trace().expand(4))
    assert traced.estimates is None


@pytest.mark.parametrize("name", WAYS)
def test_a_field_that_ignores_x_has_no_divergence(name):
    traced = trace_of(Constant(), torch.randn(4, 5), WAYS[name]())
    assert (traced.trace == 0).all()


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("recording", [False, True])
def test_divergence_is_differentiable_just_where_autograd_records(name, recording):
    field, x = random_linear(3), torch.randn(4, 3, dtype=DOUBLE)
    with torch.set_grad_enabled(recording):
        traced = trace_of(field, x, WAYS[name]())
    assert traced.velocity.requires_grad == traced.trace.requires_grad == recording
    if recording and name == "autograd":
        (grad,) = torch.autograd.grad(traced.trace.sum(), field.matrix)
        torch.testing.assert_close(grad, 4 * torch.eye(3, dtype=DOUBLE))


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
    torch.testing.assert_close(found.estimates.mean(1), found.trace)
    stderr = found.estimates.std() / 100
    assert stderr > 0
    assert (found.trace.mean() - exact).abs() < 4 * stderr


def decaying(dim):
    """A matrix with eigenvalues 1, 1/2, 1/4 …, turned at random."""
    turned, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=DOUBLE))
    return turned * 0.5 ** torch.arange(dim, dtype=DOUBLE) @ turned.T


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutch_plus_plus_is_unbiased(noise):
    matrix, x = decaying(20), torch.zeros(5000, 20, dtype=DOUBLE)
    found = trace_of(Linear(matrix), x, HutchPlusPlus(6, noise))
    stderr = found.trace.std() / 5000**0.5
    assert (found.trace.mean() - matrix.trace()).abs() < 4 * stderr


def test_hutch_plus_plus_has_the_lower_variance_at_equal_products():
    """Those that find the columns of Q counted too: 3 of them, 3 for Q and 3 for the rest."""
    matrix, x = decaying(20), torch.zeros(5000, 20, dtype=DOUBLE)
    plus = trace_of(Linear(matrix), x, HutchPlusPlus(6)).trace
    plain = trace_of(Linear(matrix), x, Hutchinson(9)).trace
    assert plus.var() < 0.2 * plain.var()


def test_hutch_plus_plus_is_exact_where_its_columns_span_everything():
    field, x = random_linear(3), torch.randn(4, 3, dtype=DOUBLE)
    torch.testing.assert_close(
        trace_of(field, x, HutchPlusPlus(8)).trace, field.matrix.trace().expand(4)
    )


@pytest.mark.parametrize("way", [Hutchinson(), HutchPlusPlus()])
@pytest.mark.parametrize("estimates", [1, 2, 3, 4, 9])
def test_as_many_estimates_as_asked_for(way, estimates):
    field, x = random_linear(3), torch.randn(4, 3, dtype=DOUBLE)
    found = trace_of(field, x, way.with_estimates(estimates, dim=3))
    assert found.estimates.shape == (4, estimates)


def test_rademacher_is_exact_for_a_diagonal_jacobian():
    field = Linear(torch.diag(torch.arange(5.0, dtype=DOUBLE)))
    traced = trace_of(field, torch.randn(4, 5, dtype=DOUBLE), Hutchinson())
    torch.testing.assert_close(traced.trace, torch.full_like(traced.trace, 10.0))


def test_probes_have_unit_variance_and_differ_between_solves():
    x, field = torch.empty(20_000, 3), as_field(Constant())
    for noise in ("rademacher", "gaussian"):
        probe, other = (Hutchinson(1, noise).probes(field, None, x) for _ in range(2))
        assert probe.shape == (20_000, 1, 3)
        torch.testing.assert_close(probe.mean(), torch.tensor(0.0), rtol=0, atol=0.02)
        torch.testing.assert_close(probe.var(), torch.tensor(1.0), rtol=0, atol=0.03)
        assert not torch.equal(probe, other)
    assert set(Hutchinson().probes(field, None, x).unique().tolist()) == {-1, 1}


@pytest.mark.parametrize("way", [Hutchinson, HutchPlusPlus])
def test_a_generator_decides_the_probes(way):
    field, x = ConcatSquash(3), torch.randn(4, 3)
    traces = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(traces))  # which must not matter
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


def test_what_was_chosen_in_words():
    field = ConcatSquash(2, (4, 4, 4))
    assert describe(FieldTrace(), field) == "exact by tangents"
    assert describe(FieldTrace(), as_field(Constant())) == "exact by autograd"
    assert describe(Hutchinson(3), field) == "Hutchinson(count=3, noise='rademacher')"


def test_wrong_arguments():
    with pytest.raises(ValueError, match="divergence to be one of auto, exact, .*; got 'trace'"):
        choose_divergence("trace", as_field(Constant()), 2)
    with pytest.raises(ValueError, match="noise to be rademacher or gaussian; got 'cauchy'"):
        Hutchinson(noise="cauchy")
    with pytest.raises(ValueError, match="count to be at least 1 probe; got 0"):
        Hutchinson(0)
    with pytest.raises(ValueError, match="count of at least 2 products; got 1"):
        HutchPlusPlus(1)


def test_a_field_of_the_wrong_shape():
    class Wrong(nn.Module):
        def forward(self, t, x):
            return x[:, :1]

    with pytest.raises(ValueError, match=r"shape of x, \(4, 2\); got \(4, 1\)"):
        trace_of(Wrong(), torch.randn(4, 2), AutogradTrace())
