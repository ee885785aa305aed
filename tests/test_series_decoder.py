"""The decoder of latent states against its formulas."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from cnf.series.batch import SeriesBatch
from cnf.series.decoder import NEAR, RATES, Decoder, LocalMean, kernel_sums

DOUBLE = torch.float64


def batch_of(series: int, length: int, columns: int, seed: int = 0) -> SeriesBatch:
    draw = torch.Generator().manual_seed(seed)
    times = torch.rand(series, length, generator=draw, dtype=DOUBLE).sort(1).values
    times[:, -2:] = times[:, -2:-1]  # as where a shorter series is padded
    values = torch.randn(series, length, columns, generator=draw, dtype=DOUBLE)
    mask = (torch.rand(values.shape, generator=draw) < 0.5).to(DOUBLE)
    mask[:, -1] = 0
    static, lengths = torch.zeros(series, 0, dtype=DOUBLE), torch.full((series,), length)
    return SeriesBatch(times, values * mask, mask, static, lengths)


def direct_sums(times, at, entries, rates):
    gaps = (times[:, :, None] - at[:, None]).abs()
    return torch.stack([(-rate * gaps).exp() @ entries for rate in rates.tolist()])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from([0.0, 1.0, 50.0, 1e4]), st.booleans())
def test_sums_of_kernels_are_those_over_all_pairs(length, rate, tied):
    times = torch.linspace(0, 1, length, dtype=DOUBLE).expand(2, -1).clone()
    if tied:
        times[:, : length // 2] = 0.0
    entries = torch.randn(2, length, 3, dtype=DOUBLE)
    rates = torch.tensor([rate, 2 * rate], dtype=DOUBLE)
    wanted = direct_sums(times, times, entries, rates)
    torch.testing.assert_close(kernel_sums(times, entries, rates), wanted, rtol=1e-10, atol=1e-12)


def test_local_means_and_features_follow_their_formulas_at_any_times():
    seen, baseline = batch_of(4, 6, 3), LocalMean(3).double()
    torch.nn.init.normal_(baseline.log_weight)
    other = torch.cat([seen.times + 0.1, seen.times, torch.full_like(seen.times, -3.0)], 1)
    for times in (seen.times, seen.times.clone(), other):
        mean, features = baseline(seen, times)
        rates = torch.tensor(RATES)
        total = direct_sums(times, seen.times, seen.values * seen.mask, rates)
        amount = direct_sums(times, seen.times, seen.mask, rates)
        weight, whole = baseline.log_weight[1:].exp()[:, None, None], baseline.log_weight[0].exp()
        upper = (weight * total).sum(0) + whole * (seen.values * seen.mask).sum(1)[:, None]
        lower = (weight * amount).sum(0) + whole * seen.mask.sum(1)[:, None]
        wanted = upper / (lower + torch.nn.functional.softplus(baseline.raw_prior))
        torch.testing.assert_close(mean, wanted)
        for i, place in enumerate(NEAR):
            deviation = (total[place] - amount[place] * wanted) / (0.5 + amount[place])
            torch.testing.assert_close(features[2 * i], deviation)
            torch.testing.assert_close(features[2 * i + 1], amount[place] / (0.5 + amount[place]))


def test_the_decoder_follows_its_formula():
    decoder = Decoder(3, 2, 5, 0, "local", state_noise=True).double()
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    seen = batch_of(4, 6, 3)
    states = torch.randn(4, 2, 6, 2, dtype=DOUBLE)
    loc, log_scale = decoder(states, seen.times, seen)
    baseline, features = decoder.baseline(seen, seen.times)
    near = torch.cat([*features], -1)[:, None].expand(-1, 2, -1, -1)
    u = torch.cat([states, near], -1)
    hidden = silu(decoder.hidden(u))
    torch.testing.assert_close(loc, decoder.out(torch.cat([hidden, u], -1)) + baseline[:, None])
    noise = decoder.log_scale + 1.5 * decoder.state_scale(hidden).tanh()
    torch.testing.assert_close(log_scale, noise)
