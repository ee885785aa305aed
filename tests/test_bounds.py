"""Bounds against a log p(x) that is known, for posteriors that are and are not the true one."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, OneHotCategorical

import cnf

DOUBLE = torch.float64
A = torch.tensor([[1.0, 0.8], [0.6, 1.0], [1.0, 1.0]], dtype=DOUBLE)
NOISE = 0.5
PRIOR = Independent(Normal(torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)), 1)


@pytest.fixture
def x():
    return torch.randn(4, 3, dtype=DOUBLE)


def likelihood(x):
    return lambda z: Independent(Normal(z @ A.T, NOISE), 1).log_prob(x)


def evidence(x):
    covariance = A @ A.T + NOISE**2 * torch.eye(3, dtype=DOUBLE)
    return MultivariateNormal(torch.zeros(3, dtype=DOUBLE), covariance).log_prob(x)


def true_posterior(x):
    precision = torch.eye(2, dtype=DOUBLE) + A.T @ A / NOISE**2
    loc = x @ A / NOISE**2 @ precision.inverse()
    return MultivariateNormal(loc, precision_matrix=precision)


def best_factorised(x):
    true = true_posterior(x)
    scale = true.precision_matrix.diagonal(dim1=-2, dim2=-1) ** -0.5
    return Independent(Normal(true.loc, scale), 1)


def wide(x):
    """A Gaussian as wide as the true posterior in each coordinate: all weights are bounded."""
    true = true_posterior(x)
    return Independent(Normal(true.mean, true.variance.sqrt()), 1)


@pytest.mark.parametrize("samples", [1, 7])
def test_the_true_posterior_has_no_gap(x, samples):
    bound = cnf.elbo(true_posterior(x), PRIOR, likelihood(x), samples=samples)
    torch.testing.assert_close(bound.value, evidence(x))
    torch.testing.assert_close(bound.log_likelihood - bound.kl, bound.value)
    found = cnf.iwae(true_posterior(x), PRIOR, likelihood(x), samples=samples)
    torch.testing.assert_close(found, evidence(x))


def test_elbo_is_log_p_less_the_divergence_from_the_true_posterior(x):
    q, true = best_factorised(x), true_posterior(x)
    as_one = MultivariateNormal(q.mean, q.variance.diag_embed())
    gap = torch.distributions.kl_divergence(as_one, true)
    found = cnf.elbo(q, PRIOR, likelihood(x), samples=100_000)
    torch.testing.assert_close(found.value, evidence(x) - gap, rtol=0, atol=0.02)
    prior = MultivariateNormal(torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE))
    kl = torch.distributions.kl_divergence(as_one, prior)
    torch.testing.assert_close(found.kl, kl, rtol=0, atol=0.02)


def test_beta_weighs_the_kl(x):
    bound = cnf.elbo(best_factorised(x), PRIOR, likelihood(x), samples=3, beta=0.25)
    torch.testing.assert_close(bound.value, bound.log_likelihood - 0.25 * bound.kl)


def test_iwae_rises_to_log_p_from_below(x):
    gaps = []
    for samples in (1, 10, 100, 10_000):
        q = wide(x).expand((400 if samples < 1000 else 8, 4))
        found = cnf.iwae(q, PRIOR, likelihood(x), samples=samples, rows=40_000)
        gaps.append((evidence(x) - found.mean(0)).mean().item())
    assert gaps[0] > 1.5 * gaps[1] > 2.25 * gaps[2] > 0
    assert abs(gaps[3]) < 0.02


def test_chunks_are_one_sum_with_one_gradient(x):
    seen = []

    def recorded(weight):
        def log_p(z):
            seen.append(z.shape[0])
            return Independent(Normal(z @ weight.T, NOISE), 1).log_prob(x)

        return log_p

    weight = A.clone().requires_grad_()
    torch.manual_seed(1)
    found = cnf.iwae(best_factorised(x), PRIOR, recorded(weight), samples=7, rows=15)
    assert seen == [3, 3, 1]
    found.sum().backward()
    assert sorted(seen[3:]) == [1, 3, 3]
    torch.manual_seed(1)
    other = A.clone().requires_grad_()
    logs = []
    for size in (3, 3, 1):
        z = best_factorised(x).rsample((size,))
        log_q = best_factorised(x).log_prob(z)
        logs.append(recorded(other)(z) + PRIOR.log_prob(z) - log_q)
    expected = torch.cat(logs).logsumexp(0) - math.log(7)
    expected.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weight.grad, other.grad)


def test_more_data_than_rows_takes_one_sample_at_a_time(x):
    seen = []

    def log_p(z):
        seen.append(z.shape[0])
        return likelihood(x)(z)

    with torch.no_grad():
        cnf.iwae(best_factorised(x), PRIOR, log_p, samples=3, rows=1)
    assert seen == [1, 1, 1]


MISTAKES = {
    "no sample": ({"samples": 0}, r"Expected samples of at least 1; got 0"),
    "a negative beta": ({"beta": -1.0}, r"Expected beta of at least 0; got -1.0"),
    "axes of x that are not summed": (
        {"log_likelihood": lambda z: torch.zeros(4, 3)},
        r"the likelihood's log-density to have the shape of log q\(z \| x\), \(4,\); got \(4, 3\)",
    ),
    "axes of z that are not summed": (
        {"prior": Normal(0.0, 1.0)},
        r"the prior's log-density to have the shape .*; got \(4, 2\). .*Independent",
    ),
    "no rsample": (
        {"posterior": OneHotCategorical(torch.ones(4, 2))},
        r"Expected a posterior with rsample.*; got OneHotCategorical",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(x, mistake):
    changes, message = MISTAKES[mistake]
    arguments = {"posterior": best_factorised(x), "prior": PRIOR, "log_likelihood": likelihood(x)}
    with pytest.raises(ValueError, match=message):
        cnf.elbo(**{**arguments, **changes})


@pytest.mark.parametrize(("changes", "name"), [({"samples": 0}, "samples"), ({"rows": 0}, "rows")])
def test_mistakes_of_iwae(x, changes, name):
    with pytest.raises(ValueError, match=f"Expected {name} of at least 1; got 0"):
        cnf.iwae(best_factorised(x), PRIOR, likelihood(x), **{"samples": 2, **changes})
