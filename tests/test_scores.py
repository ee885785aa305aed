"""Scores: standard errors that cover the truth, the solver's errors, statuses where rows fail."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, Uniform

import cnf
from cnf.fields.divergence import Hutchinson, HutchPlusPlus
from cnf.ode import Status

DOUBLE = torch.float64


def flow_of(dim, *layers):
    base = Independent(Normal(torch.zeros(dim).double(), torch.ones(dim).double()), 1)
    return cnf.Flow(base, layers)


@pytest.fixture(scope="module")
def bent():
    """A flow in 8 dimensions that is far from the identity."""
    torch.manual_seed(0)
    field = cnf.ConcatSquash(8, hidden=(32, 32)).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(2)
    return flow_of(8, cnf.CNF(field, rtol=1e-6, atol=1e-6))


def test_an_exact_trace_has_no_standard_error(bent):
    x = torch.randn(5, 8, dtype=DOUBLE)
    scores = bent.score(x)
    assert (scores.stderr == 0).all()
    torch.testing.assert_close(scores.log_prob, bent.log_prob(x))
    assert (scores.status == Status.FINISHED).all()
    assert scores.stats.evaluations.shape == (5,)


@pytest.mark.parametrize("divergence", [Hutchinson(), Hutchinson(noise="gaussian")])
def test_standard_errors_of_16_probes_cover_the_truth(bent, divergence):
    """At two standard errors 90 to 98 times in 100 (of Student's t with 15 degrees, 93.6)."""
    x = torch.randn(1000, 8, dtype=DOUBLE)
    scores = bent.with_solver(divergence=divergence).score(x)
    assert (scores.stderr > 0).all()
    off = (scores.log_prob - bent.log_prob(x)).abs()
    covered = (off < 2 * scores.stderr).double().mean().item()
    assert 0.90 <= covered <= 0.98


def test_hutch_plus_plus_has_standard_errors_too(bent):
    x = torch.randn(500, 8, dtype=DOUBLE)
    scores = bent.with_solver(divergence=HutchPlusPlus()).score(x, probes=6)
    off = (scores.log_prob - bent.log_prob(x)).abs()
    assert 0.85 <= (off < 2 * scores.stderr).double().mean().item() <= 0.99


@pytest.mark.parametrize("divergence", ["hutchinson", "hutch++"])
def test_one_probe_has_no_standard_error_and_says_so(bent, divergence):
    with pytest.warns(UserWarning, match="One probe has no standard error"):
        scores = bent.with_solver(divergence=divergence).score(torch.zeros(3, 8).double(), probes=1)
    assert scores.stderr.isnan().all()
    assert scores.log_prob.isfinite().all()


def test_variances_of_layers_add_up():
    torch.manual_seed(0)
    layers = [
        cnf.CNF(cnf.ConcatSquash(4, hidden=(8, 8)).double(), divergence="hutchinson")
        for _ in range(2)
    ]
    x, generator = torch.randn(400, 4, dtype=DOUBLE), torch.Generator().manual_seed(0)
    both = flow_of(4, *layers).score(x, generator=generator).stderr
    alone = [flow_of(4, layer).score(x, generator=generator).stderr for layer in layers]
    expected = (alone[0].square().mean() + alone[1].square().mean()).sqrt()
    assert both.square().mean().sqrt().item() == pytest.approx(expected.item(), rel=0.2)


def test_a_generator_decides(bent):
    flow, x = bent.with_solver(divergence="hutchinson"), torch.randn(3, 8, dtype=DOUBLE)
    one, same, other = (
        flow.score(x, generator=torch.Generator().manual_seed(seed)).log_prob for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_solvers_error_is_about_what_it_is(bent):
    x = torch.randn(50, 8, dtype=DOUBLE)
    loose = bent.with_solver(rtol=1e-3, atol=1e-3)
    scores = loose.score(x)
    truth = bent.with_solver(rtol=1e-10, atol=1e-10).log_prob(x)
    off = (scores.log_prob - truth).abs()
    ratio = scores.solver_error.mean() / off.mean()
    assert 0.5 < ratio < 2
    # Probes are the same in both solves: their noise is no part of it.
    noisy = loose.with_solver(divergence="hutchinson").score(x)
    assert noisy.solver_error.mean() < 0.1 * noisy.stderr.mean()


class Broken(nn.Module):
    def forward(self, t, x):
        return torch.where(x[:, :1] > 5, torch.nan, -x)


def test_a_failed_row_has_a_status_and_nan_and_the_others_their_values():
    flow = flow_of(2, cnf.CNF(Broken()), cnf.CNF(Broken()))
    x = torch.tensor([[0.1, 0.2], [9.0, 0.0], [-0.3, 0.1]], dtype=DOUBLE)
    scores = flow.score(x)
    assert [status is Status.FINISHED for status in scores.status] == [True, False, True]
    assert scores.status[1] is Status.NOT_FINITE
    assert scores.log_prob.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores.log_prob[::2], flow.log_prob(x[::2]))


def test_a_relative_tolerance_alone(bent):
    """The log-determinant begins at exactly zero."""
    x = torch.stack([torch.zeros(8), torch.linspace(-1, 1, 8)]).to(DOUBLE)
    scores = bent.with_solver(rtol=1e-9, atol=0.0, max_steps=500).score(x)
    assert (scores.status == Status.FINISHED).all()
    torch.testing.assert_close(scores.log_prob, bent.log_prob(x), rtol=1e-4, atol=1e-4)


def test_half_precision_asks_for_tolerances_that_it_has():
    torch.manual_seed(0)
    flow, x = cnf.ffjord(2, hidden=(16, 16), zero_last=False), torch.randn(5, 2)
    expected, flow = flow.log_prob(x), flow.to(torch.bfloat16)
    for method in (flow.log_prob, flow.score):
        with pytest.raises(ValueError, match="bfloat16; got 1e-05: pass rtol=8e-03 and atol=8e-03"):
            method(x.bfloat16())
    found = flow.with_solver(rtol=8e-3, atol=8e-3).log_prob(x.bfloat16())
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


def test_batch_shapes_and_contexts():
    flow = cnf.ffjord(2, hidden=(8,), context_dim=1, zero_last=False)
    x, context = torch.randn(4, 2), torch.randn(3, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = flow.score(x, context)
    assert scores.log_prob.shape == scores.stderr.shape == scores.solver_error.shape == (3, 4)
    assert scores.status.shape == (3, 4)
    torch.testing.assert_close(scores.log_prob, flow.log_prob(x, context))


def test_scoring_leaves_no_gradient(bent):
    assert not bent.score(torch.zeros(2, 8).double()).log_prob.requires_grad


def test_fixed_steps_have_an_error_too(bent):
    x = torch.randn(20, 8, dtype=DOUBLE)
    coarse = bent.with_solver(method="rk4", step_size=0.5)
    scores = coarse.score(x)
    off = (scores.log_prob - bent.with_solver(rtol=1e-9, atol=1e-9).log_prob(x)).abs()
    assert 0.5 < scores.solver_error.mean() / off.mean() < 2


def test_a_row_outside_of_the_bases_support_is_minus_infinity():
    base = Independent(Uniform(-torch.ones(2).double(), torch.ones(2).double()), 1)
    flow = cnf.Flow(base, [cnf.CNF(cnf.ConcatSquash(2).double())])
    scores = flow.score(torch.tensor([[0.1, 0.2], [9.0, 9.0]], dtype=DOUBLE))
    assert scores.log_prob[0].isfinite()
    assert scores.log_prob[1] == -torch.inf
    assert scores.solver_error[1] == 0


def test_wrong_probes(bent):
    with pytest.raises(ValueError, match="probes of at least 1; got 0"):
        bent.score(torch.zeros(2, 8, dtype=DOUBLE), probes=0)
