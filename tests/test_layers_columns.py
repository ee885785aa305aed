"""Layers of single columns: bounds, whole numbers, categories, side by side."""

import math

import numpy as np
import pytest
import torch
from helpers import DOUBLE, refused, standard
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch.distributions import Normal
from torch.testing import assert_close

import cnf
from cnf.layers import Argmax, Bounded, Concatenate, Dequantize, Identity, Positive
from cnf.training.recipes import Recipe


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, DOUBLE])
@given(low=st.floats(-1e30, 1e30), z=st.floats(-1e4, 60))
@settings(max_examples=40, deadline=None)
def test_what_is_pushed_above_a_bound_is_above_it(dtype, low, z):
    layer = Positive([low]).to(dtype)
    x, log_det = layer(torch.full((1, 1), z, dtype=dtype))
    assert (x > layer.low).all()
    assert layer.in_range(x).all()
    assert log_det == torch.tensor(z, dtype=dtype)
    back, log_det_back = layer.inverse(x)
    assert back.isfinite().all()
    assert log_det_back == -back.sum()


SINGLE = [(low, 1.0, torch.float32) for low in (0.0, 10.0, -1000.3)]
DOUBLES = [(low, 0.2, DOUBLE) for low in (0.0, 0.1, 0.7, -1000.3)]


@pytest.mark.parametrize(("low", "width", "dtype"), SINGLE + DOUBLES)
def test_bounds_hold_and_their_ends_have_a_density(low, width, dtype):
    layer = Bounded([low], [low + width]).to(dtype)
    x, _ = layer(100 * torch.randn(1000, 1, dtype=dtype))
    assert ((x >= layer.low) & (x <= layer.high)).all()
    ends = torch.tensor([[low], [low + width]], dtype=dtype)
    z, log_det = layer.inverse(ends)
    assert all(each.isfinite().all() for each in (z, log_det))
    assert_close(layer(z)[0], ends)
    outside = ends + torch.tensor([[-0.01], [0.01]])
    assert not layer.inverse(outside)[1].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("largest", [3, 10**6])
def test_whole_numbers_come_back_as_they_were(dtype, largest):
    x = torch.randint(-largest, largest, (10_000, 2)).to(dtype)
    z, log_det = Dequantize(2).inverse(x)
    assert torch.equal(Dequantize(2)(z)[0], x)
    assert (log_det == 0).all()
    if largest == 3:
        assert kstest((z - x).flatten().numpy(), "uniform").pvalue > 1e-3


def test_the_bound_of_a_whole_numbers_mass_tightens_to_it():
    """z ~ N(0, 1), x = ⌊z⌋: the mass of x is Φ(x + 1) − Φ(x)."""
    flow = cnf.Flow(standard(1), [Dequantize(1)])
    x = torch.tensor([[-3.0], [0.0], [2.0]], dtype=DOUBLE)
    exact = (Normal(0.0, 1.0).cdf(x + 1) - Normal(0.0, 1.0).cdf(x)).log().flatten()
    generator = torch.Generator().manual_seed(0)
    bounds = []
    for probes in (2, 8, 64):
        rows = x.repeat(20_000 // probes, 1)
        own = torch.arange(len(rows), dtype=DOUBLE).unsqueeze(1)  # equal rows would have one noise
        found = flow.score(rows, own, probes=probes, generator=generator).log_prob
        bounds.append(found.reshape(-1, 3).mean(0))
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[1] < exact + 5e-3).all()
    assert_close(bounds[2], exact, rtol=0, atol=0.02)
    scores = flow.score(x, probes=400, generator=generator)
    assert ((scores.log_prob - exact).abs() < 4 * scores.stderr).all()
    assert flow.noisy


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.2, 0.7, 0.1], [0.1] * 10])
def test_the_noise_of_a_category_lies_where_it_is_the_largest(shares):
    layer = Argmax(shares).double()
    x = torch.arange(len(shares), dtype=DOUBLE).repeat(200).unsqueeze(1)
    z, log_det = layer.inverse(x)
    assert z.shape == (len(x), len(shares) - 1)
    again, minus = layer(z)
    assert torch.equal(again, x)
    assert_close(minus, -log_det)


def test_the_noise_of_categories_is_a_density_over_their_region():
    """Each q(z | x) sums to 1 over the cells of a grid."""
    shares = torch.tensor([0.2, 0.7, 0.1], dtype=DOUBLE)
    layer = Argmax(shares.tolist()).double()
    ticks = torch.linspace(-20, 20, 801, dtype=DOUBLE)
    x, log_noise = layer(torch.cartesian_prod(ticks, ticks))
    totals = torch.zeros(3, dtype=DOUBLE)
    totals.index_add_(0, x.flatten().long(), log_noise.exp() * 0.05**2)
    assert_close(totals, torch.ones(3, dtype=DOUBLE), rtol=0, atol=0.03)
    # With x by its shares and z given x each z is logistic, as differences of Gumbels are.
    x = torch.multinomial(shares, 20_000, replacement=True).double().unsqueeze(1)
    z, _ = layer.inverse(x)
    for j in range(2):
        shift = (shares[j] / shares[2]).log()
        assert kstest((z[:, j] - shift).numpy(), "logistic").pvalue > 1e-3


def test_a_flow_over_categories_draws_what_it_says():
    """Masses by importance sampling against the shares of draws."""
    flow = cnf.Flow(standard(2), [Argmax([0.3, 0.3, 0.4]).double()])
    drawn = flow.sample(10_000).flatten().long().bincount(minlength=3).double()
    categories = torch.arange(3, dtype=DOUBLE).unsqueeze(1)
    scores = flow.score(categories, probes=300, generator=torch.Generator().manual_seed(0))
    masses = scores.log_prob.exp()
    assert masses.sum().item() == pytest.approx(1, abs=0.1)
    assert chisquare(drawn.numpy(), (masses / masses.sum() * drawn.sum()).numpy()).pvalue > 1e-6


def mixed():
    layers = [Identity(1), Argmax([0.5, 0.3, 0.2]), Positive([0.0]), Dequantize(1)]
    return Concatenate(layers, [[2], [0], [3], [1]]).double()


def test_layers_side_by_side_have_columns_each_which_are_not_the_bases(tmp_path):
    layer = mixed()
    assert layer.widths == (5, 4)
    x = torch.tensor([[2.0, 7.0, -1.5, math.e], [0.0, -3.0, 0.0, 1.0]], dtype=DOUBLE)
    z, log_det = layer.inverse(x)
    assert z[:, 0].tolist() == [-1.5, 0.0]
    assert_close(z[:, 3], torch.tensor([1.0, 0.0], dtype=DOUBLE))
    again, minus = layer(z)
    assert_close(again, x)
    assert_close(minus, -log_det)
    flow = cnf.Flow(standard(5), [cnf.Whiten(5).double(), mixed()])
    assert flow.dim == 4
    x, log_prob = flow.sample_and_log_prob((3, 2))
    assert x.shape == (3, 2, 4)
    assert log_prob.shape == (3, 2)
    assert set(x[..., 0].flatten().tolist()) <= {0.0, 1.0, 2.0}
    assert (x[..., 1] == x[..., 1].floor()).all()
    cnf.save(flow, tmp_path)
    one, other = (
        each.score(x, probes=3, generator=torch.Generator().manual_seed(1)).log_prob
        for each in (flow, cnf.load(tmp_path))
    )
    assert torch.equal(one, other)


def test_training_over_all_kinds_of_columns():
    rng = np.random.default_rng(0)
    category = rng.choice(3, p=[0.6, 0.3, 0.1], size=1000)
    count = rng.poisson(3 + 2 * category)
    positive = np.exp(0.5 * rng.normal(size=1000) + category)
    real = count + rng.normal(size=1000)
    data = torch.from_numpy(np.stack([category, count, real, positive], 1)).float()
    recipe = Recipe(hidden=(32,), scaling="whiten", objective="matching", validation_rows=100)
    layers = [Argmax([0.6, 0.3, 0.1]), Dequantize(1), Identity(1), Positive([0.0])]
    flow = recipe.flow(5, columns=[Concatenate(layers, [[0], [1], [2], [3]])])
    history = cnf.fit(flow, data, recipe=recipe, steps=300)
    assert history.validation_nll[-1] < history.validation_nll[0]
    drawn = flow.sample(2000)
    shares = drawn[:, 0].long().bincount(minlength=3) / 2000
    assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=0.06)
    assert torch.corrcoef(drawn[:, 1:3].T)[0, 1] > 0.8


def test_mistakes():
    refused("at least 2 categories", Argmax, [1.0])
    refused("above 0", Argmax, [0.5, 0.0])
    refused("lower bounds", Bounded, [0.0], [0.0])
    refused("lower bounds", Bounded, [0.0], [1.0, 2.0])
    refused("each column to have one of 2 layers", Concatenate, [Identity(1)] * 2, [[0], [0]])
    refused("each column to have one of 1 layers", Concatenate, [Identity(1)], [[1]])
    refused("1 columns for Argmax", Concatenate, [Argmax([0.5, 0.5])], [[0, 1]])
    told = "5 columns on the base's side of Concatenate; got 3"
    refused(told, cnf.Flow, standard(3), [mixed()])
