"""Mixtures of normal distributions: conditionals against closed forms, and their fit."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from cnf.mixtures.normal import NormalMixture

DIM, SIZES = 4, [2, 3]
NONE, ALL = torch.zeros(DIM, dtype=torch.bool), torch.ones(DIM, dtype=torch.bool)
CODES = torch.cartesian_prod(torch.arange(2), torch.arange(3))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def known_mixture(components=3, dim=DIM, sizes=SIZES):
    """A mixture of means apart, covariances of their own, and shares of codes."""
    mixture = NormalMixture(components, dim, sizes)
    root = normal(components, dim, dim, seed=1)
    mixture.log_weights.copy_(torch.linspace(1, 2, components).double().log_softmax(0))
    mixture.means.copy_(2 * normal(components, dim, seed=2))
    mixture.covariances.copy_(root @ root.mT + 0.1 * torch.eye(dim))
    for i, shares in enumerate(mixture.log_shares):
        shares.copy_(normal(*shares.shape, seed=3 + i).log_softmax(1))
    return mixture


def split_masks(rows, columns=DIM, seed=0):
    """Random disjoint masks of given and asked columns; each kind of row comes up."""
    kinds = torch.randint(3, (rows, columns), generator=generator(seed))
    return kinds == 0, kinds == 1


def scipy_log_density(mixture, z, codes, columns, coordinates):
    """log p of some columns of one row, and of some of its codes, by SciPy."""
    columns, terms = columns.nonzero()[:, 0], mixture.log_weights.numpy().copy()
    for k in range(mixture.components):
        if len(columns):
            covariance = mixture.covariances[k][columns][:, columns]
            law = multivariate_normal(mixture.means[k, columns].numpy(), covariance.numpy())
            terms[k] += law.logpdf(z[columns].numpy())
        for j, shares in enumerate(mixture.log_shares):
            if coordinates[j] and codes[j] >= 0:
                terms[k] += shares[k, codes[j]].item()
    return np.logaddexp.reduce(terms)


@pytest.mark.parametrize("numbers", [2**19, 500])  # rows at once, and in many blocks
def test_log_prob_is_the_joint_over_the_marginal(numbers, monkeypatch):
    monkeypatch.setattr("cnf.mixtures.normal.BLOCK_NUMBERS", numbers)
    mixture, rows = known_mixture(), 60
    z, (given, asked) = normal(rows, DIM, seed=5), split_masks(rows)
    codes = CODES[torch.arange(rows) % 6].clone()
    codes[::7, 0] = -1
    codes_given, codes_asked = split_masks(rows, 2, seed=1)
    expected = [
        scipy_log_density(mixture, *row, g | a, c | d) - scipy_log_density(mixture, *row, g, c)
        for *row, g, a, c, d in zip(z, codes, given, asked, codes_given, codes_asked, strict=True)
    ]
    ignored = torch.where(given | asked, z, torch.nan)
    found = mixture.log_prob(ignored, given, asked, codes, codes_given, codes_asked)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    shared = mixture.log_prob(
        z, given[3], asked[3], codes, codes_given[3], codes_asked[3]
    )  # one mask: as if it were each row's
    each = (mask[3].expand(rows, -1) for mask in (codes_given, codes_asked))
    of_rows = mixture.log_prob(
        z, given[3].expand(rows, -1), asked[3].expand(rows, -1), codes, *each
    )
    torch.testing.assert_close(shared, of_rows, atol=1e-12, rtol=0)
    assert mixture.log_prob(z.float(), given, asked).dtype == torch.float32
    assert mixture.log_prob(z[:0], given[:0], asked[:0]).shape == (0,)
    assert mixture.log_prob(z, given, NONE.expand(rows, -1)).abs().max() == 0


def test_chain_rule():
    """log p(all) = log p(a) + log p(b | a) + log p(c | a, b), for columns and codes at once."""
    mixture, rows = known_mixture(), 200
    z, (a, b) = normal(rows, DIM, seed=5), split_masks(rows)
    codes, (codes_a, codes_b) = CODES[torch.arange(rows) % 6], split_masks(rows, 2, seed=1)
    no_codes = codes_a & ~codes_a
    steps = [
        mixture.log_prob(z, a & ~a, a, codes, no_codes, codes_a),
        mixture.log_prob(z, a, b, codes, codes_a, codes_b),
        mixture.log_prob(z, a | b, ~(a | b), codes, codes_a | codes_b, ~(codes_a | codes_b)),
    ]
    whole = mixture.log_prob(z, NONE, ALL, codes, no_codes, ~no_codes)
    torch.testing.assert_close(sum(steps), whole, atol=1e-9, rtol=0)


def test_conditional_integrates_to_one():
    """Summed over two codes and integrated over one column, given another column."""
    mixture, grid = known_mixture(), torch.linspace(-30, 30, 4001, dtype=torch.float64)
    z = torch.full((len(grid), DIM), torch.nan, dtype=torch.float64)
    z[:, 1], z[:, 2] = 0.7, grid
    given, asked = torch.arange(DIM) == 1, torch.arange(DIM) == 2
    both = torch.ones(2, dtype=torch.bool)
    density = sum(
        mixture.log_prob(z, given, asked, c.expand(len(z), 2), ~both, both).exp() for c in CODES
    )
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-9)


def test_gradients_of_asked_columns():
    mixture, rows = known_mixture(sizes=[]), 6
    given, asked = split_masks(rows)
    z = normal(rows, DIM, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: mixture.log_prob(z, given, asked), (z,))
    (slope,) = torch.autograd.grad(mixture.log_prob(z, given, asked).sum(), z)
    assert (slope[asked] != 0).all()
    assert (slope[~given & ~asked] == 0).all()


def test_draws_and_means_follow_the_conditional():
    """Moments of draws given a column and a code, against sums over a grid."""
    mixture, rows = known_mixture(), 40_000
    z = torch.zeros(rows, DIM, dtype=torch.float64)
    z[:, 1] = 0.7
    codes = torch.tensor([-1, 2]).expand(rows, 2)
    given, asked = torch.arange(DIM) == 1, torch.arange(DIM) >= 2
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    drawn, drawn_codes = mixture.sample(z, given, asked, codes, second, first, generator(9))
    torch.testing.assert_close(drawn[:, :2], z[:, :2])
    assert (drawn_codes[:, 1] == 2).all()
    axis = torch.linspace(-20, 20, 401, dtype=torch.float64)
    grid = torch.zeros(401**2, DIM, dtype=torch.float64)
    grid[:, 1], grid[:, 2:] = 0.7, torch.cartesian_prod(axis, axis)
    coded = torch.tensor([0, 2]).expand(len(grid), 2)
    mass = mixture.log_prob(grid, given, asked, coded, second, second & first).exp()
    mass = mass / mass.sum()
    mean = mass @ grid[:, 2:]
    covariance = (mass[:, None] * (grid[:, 2:] - mean)).T @ (grid[:, 2:] - mean)
    torch.testing.assert_close(drawn[:, 2:].mean(0), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(drawn[:, 2:].T.cov(), covariance, atol=0.0, rtol=0.05)
    means = mixture.mean(z[:2], given, asked, codes[:2], second)
    torch.testing.assert_close(means[0, 2:], mean, atol=1e-7, rtol=0)
    share = mixture.log_prob(z[:1], given, NONE, torch.tensor([[1, 2]]), second, first).exp()
    assert (drawn_codes[:, 0] == 1).double().mean().item() == pytest.approx(share.item(), abs=0.01)


def test_draws_of_rows_with_masks_of_their_own():
    mixture, (given, asked) = known_mixture(sizes=[]), split_masks(50)
    z = normal(50, DIM, seed=5)
    drawn = mixture.sample(z.float(), given, asked, generator=generator(1))[0]
    assert drawn.dtype == torch.float32
    assert (drawn == z.float())[~asked].all()
    assert (drawn != z.float())[asked].all()
    torch.testing.assert_close(
        drawn, mixture.sample(z.float(), given, asked, generator=generator(1))[0]
    )


@pytest.fixture(scope="module")
def drawn():
    """Rows of a known mixture, their codes, and the mixture."""
    mixture, rows = known_mixture(2), 2000
    z, codes = torch.zeros(rows, DIM).double(), torch.zeros(rows, 2).long()
    both = torch.ones(2, dtype=torch.bool)
    return *mixture.sample(z, NONE, ALL, codes, ~both, both, generator(4)), mixture


def joint(mixture, z, codes=None):
    every = None if codes is None else codes >= 0
    return mixture.log_prob(z, NONE, ALL, codes, None, every).mean().item()


def test_fit_of_complete_rows_equals_scikit_learn(drawn):
    z, _, _ = drawn
    found = NormalMixture.fit(z, components=2, prior=0.0, floor=1e-6)
    rival = GaussianMixture(2, reg_covar=1e-6, random_state=0, tol=1e-6).fit(z.numpy())
    assert joint(found, z) == pytest.approx(rival.score(z.numpy()), abs=1e-3)
    order = rival.weights_.argsort()
    own = found.log_weights.argsort()
    np.testing.assert_allclose(found.means[own], rival.means_[order], atol=0.02)
    np.testing.assert_allclose(
        found.covariances[own], rival.covariances_[order], rtol=0.05, atol=0.02
    )


def test_fit_of_rows_with_gaps_recovers_the_law(drawn):
    z, codes, law = drawn
    gaps = torch.rand(z.shape, generator=generator(5)) < 0.3
    holes = torch.where(gaps, torch.nan, z)
    unknown = torch.where(torch.rand(codes.shape, generator=generator(6)) < 0.3, -1, codes)
    found = NormalMixture.fit(holes, unknown, SIZES, components=2, iterations=15)
    assert joint(found, z, codes) == pytest.approx(joint(law, z, codes), abs=0.02)


def test_weights_count_rows():
    z = normal(300, DIM)
    weight = torch.arange(300) % 3
    found = NormalMixture.fit(z, components=1, weight=weight, prior=0.0, floor=1e-9)
    expected = torch.cov(z.T, correction=0, fweights=weight)
    torch.testing.assert_close(found.covariances[0], expected, atol=1e-6, rtol=0)


def test_rows_and_columns_of_gaps_alone():
    """A row counts nothing: the very same fit, which a seed determines."""
    z = normal(300, DIM)
    z[::3, 1] = torch.nan
    empty = torch.full((50, DIM), torch.nan, dtype=torch.float64)
    found = NormalMixture.fit(z, components=3, iterations=3)
    again = NormalMixture.fit(torch.cat([z, empty]), components=3, iterations=3)
    assert all(torch.equal(a, b) for a, b in zip(found.buffers(), again.buffers(), strict=True))
    z[:, 2] = torch.nan
    assert NormalMixture.fit(z, components=3).covariances.isfinite().all()
    with pytest.raises(ValueError, match="Expected rows with numbers or codes"):
        NormalMixture.fit(empty)


def test_choose_takes_the_number_that_suits_held_out_rows(drawn):
    z, codes, law = drawn
    found = NormalMixture.choose(
        z[:600], z[600:], codes[:600], codes[600:], SIZES, max_components=5
    )
    assert found.components in (2, 5)
    assert joint(found, z[600:], codes[600:]) == pytest.approx(
        joint(law, z[600:], codes[600:]), abs=0.08
    )
    alone = NormalMixture.choose(normal(200, DIM), normal(500, DIM, seed=1), max_components=10)
    assert alone.components == 1
    assert NormalMixture.choose(z[:600], z[600:], seconds=0.0).components == 1
    assert NormalMixture.choose(z[:600], z[600:], max_components=1).components == 1


def test_config_state_and_precision():
    mixture = known_mixture().float()
    assert mixture.means.dtype == torch.float64
    again = NormalMixture.of(mixture.config())
    again.load_state_dict(mixture.state_dict())
    z, codes = normal(5, DIM), CODES[:5]
    assert joint(again, z, codes) == joint(mixture, z, codes)
    with pytest.raises(ValueError, match="Expected components of at least 1; got 0"):
        NormalMixture(0, 2)
