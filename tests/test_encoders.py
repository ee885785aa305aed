"""Encoders of series: independence of padding and neighbours, gradients, series of nothing."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from cnf.ode import solve
from cnf.series.batch import SeriesBatch
from cnf.series.encoders import ENCODERS, Encoder, ODERNNEncoder

COLUMNS, STATIC = 3, 2


@pytest.fixture(params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Return an encoder of each kind, in double precision."""
    torch.manual_seed(0)
    made = ENCODERS[request.param](COLUMNS, hidden=8, static=STATIC).double()
    torch.nn.init.normal_(made.unobserved)
    return made


def batch_of(lengths: list[int], extra: int = 0) -> SeriesBatch:
    """Return a batch of random series of these lengths, padded by `extra` more times."""
    generator = torch.Generator().manual_seed(1)
    rows: list[tuple[Tensor, ...]] = []
    count = max(lengths) + extra
    for length in lengths:
        drawn = torch.rand(length, 1 + 2 * COLUMNS, generator=generator, dtype=torch.float64)
        times = drawn[:, 0].sort().values
        mask = (drawn[:, 1 : 1 + COLUMNS] < 0.6).double()
        last = times[-1:] if length else times.new_zeros(1)
        times = torch.cat([times, last.expand(count - length)])
        values = drawn[:, 1 + COLUMNS :] * mask
        rows.append((times, *(pad(each, (0, 0, 0, count - length)) for each in (values, mask))))
    times, values, mask = (torch.stack(each) for each in zip(*rows, strict=True))
    static = torch.randn(len(lengths), STATIC, generator=generator, dtype=torch.float64)
    static[0, 1] = torch.nan
    return SeriesBatch(times, values, mask, static, torch.tensor(lengths))


def taken(batch: SeriesBatch, rows: Any) -> SeriesBatch:
    """Return some series of a batch."""
    found = {name: getattr(batch, name) for name in ("times", "values", "mask", "static")}
    return SeriesBatch(**{k: each[rows] for k, each in found.items()}, lengths=batch.lengths[rows])


def test_result_is_of_the_series_alone(encoder: Encoder) -> None:
    batch = batch_of([7, 0, 1, 12, 5])
    whole = encoder(batch)
    assert whole.shape == (5, encoder.size)
    assert whole.isfinite().all()
    assert (whole - whole[:1]).abs().amax(1)[1:].min() > 1e-4  # series differ
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(encoder(batch_of([7, 0, 1, 12, 5], extra=4)), whole, **close)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(encoder(taken(batch, order)), whole[order], **close)
    for row in range(5):
        torch.testing.assert_close(encoder(taken(batch, [row])), whole[[row]], **close)


def test_times_without_observations_do_not_count(encoder: Encoder) -> None:
    batch = batch_of([7, 9])
    hidden = batch.mask.clone()
    hidden[:, 3] = 0.0
    shown = replace(batch, values=batch.values * hidden, mask=hidden)
    kept = [0, 1, 2, 4, 5, 6, 7, 8]
    without = {name: getattr(shown, name)[:, kept] for name in ("times", "values", "mask")}
    expected = encoder(replace(shown, **without))
    torch.testing.assert_close(encoder(shown), expected, rtol=1e-9, atol=1e-9)


def test_every_observation_and_parameter_has_influence(encoder: Encoder) -> None:
    batch = batch_of([6, 4, 0])
    values = batch.values.clone().requires_grad_()
    encoder(replace(batch, values=values)).square().sum().backward()
    assert values.grad is not None
    assert (values.grad[batch.mask > 0] != 0).all()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_series_of_nothing_have_a_learned_vector(encoder: Encoder) -> None:
    batch = batch_of([0, 0])
    assert batch.times.shape == (2, 0)
    batch = replace(batch, static=torch.full_like(batch.static, torch.nan))
    assert torch.equal(encoder(batch), encoder.unobserved.expand(2, -1))


def test_odernn_solves_between_observations() -> None:
    torch.manual_seed(0)
    encoder, batch = ODERNNEncoder(COLUMNS, hidden=8, units=8).double(), batch_of([6, 4, 0])
    torch.nn.init.normal_(encoder.unobserved)
    inputs, expected = torch.cat([batch.values, batch.mask], -1), []
    before = torch.full((3, 6, 8), torch.nan, dtype=torch.float64)
    for row, length in enumerate(batch.lengths.tolist()):
        times = batch.times[row, :length].tolist()
        seen = [place for place in range(length) if batch.mask[row, place].any()]
        backwards = (
            [(times[i], times[j]) for i, j in pairwise(seen[::-1])] + [(times[seen[0]], 0.0)]
            if seen
            else []
        )
        h = encoder.unobserved
        for place, (begin, end) in zip(seen[::-1], backwards, strict=True):
            h = solved(encoder, encoder.cell(inputs[row, place], h), begin, end)
        expected.append(h)
        h, last = encoder.unobserved, 0.0
        for place in range(length):
            h = solved(encoder, h, last, times[place])
            before[row, place], last = h, times[place]
            h = encoder.cell(inputs[row, place], h) if place in seen else h
    close = {"rtol": 0, "atol": 1e-4}  # of single steps
    torch.testing.assert_close(encoder(batch), torch.stack(expected), **close)
    found, after = encoder.states(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        torch.testing.assert_close(found[row, :length], before[row, :length], **close)
    later = replace(batch, values=batch.values.clone())
    later.values[:, 3] += batch.mask[:, 3]
    changed, changed_after = encoder.states(later)
    assert torch.equal(changed[:, :4], found[:, :4])  # a filter does not see what follows
    assert torch.equal(changed_after[:, :3], after[:, :3])
    assert not torch.allclose(changed_after[:2, 3], after[:2, 3])


def solved(encoder: ODERNNEncoder, h: Tensor, begin: float, end: float) -> Tensor:
    """Return the state of the field at another time, by an adaptive solve."""
    if begin == end:
        return h
    tight = {"rtol": 1e-9, "atol": 1e-9}
    return solve(lambda t, y, _: encoder.field(y), h[None], [begin, end], **tight).ys[-1, 0]


def test_arguments() -> None:
    with pytest.raises(ValueError, match="Expected columns and hidden of at least 1"):
        ENCODERS["set"](0, 8)
    assert ENCODERS["gru"](2, 4).shift is None
