"""Splits of rows, and rows that repeat each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnf.datasets import load, row_groups, split
from cnf.training.data import Rows, hold_out

RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(60, 2))
COUNTS = RNG.poisson([3, 30], (1000, 2)).astype(float)
SPENT = np.where(RNG.random((1000, 1)) < 0.93, 0.0, RNG.lognormal(size=(1000, 1)))
CODES = RNG.integers(0, 10, (1000, 1))  # five columns of them, mostly equal
LIKE = np.where(RNG.random((1000, 5)) < 0.8, CODES, RNG.integers(0, 10, (1000, 5))).astype(float)
INTEGERS = np.round(20 * RNG.normal(size=(1000, 8)))


def parts_of(parts):
    return parts.test, parts.validation, parts.train


@settings(max_examples=30)
@given(rows=st.integers(10, 500), seed=st.integers(0, 2**32))
def test_split_is_disjoint_exhaustive_and_repeatable(rows, seed):
    parts, again = split(rows, seed), split(rows, seed, 7 * np.arange(rows)[::-1])
    together = np.concatenate(parts_of(parts))
    np.testing.assert_array_equal(np.sort(together), np.arange(rows))
    assert len(parts.validation) == len(parts.test) == rows // 10
    # Groups of one row each change nothing: held-out rows of stored models are these.
    for one, other in zip(parts_of(parts), parts_of(again), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        parts.test, np.random.default_rng(seed).permutation(rows)[: len(parts.test)]
    )
    if rows >= 100:
        assert not np.array_equal(parts.test, split(rows, seed + 1).test)


@settings(max_examples=60)
@given(groups=st.lists(st.integers(0, 40), min_size=10, max_size=300), seed=st.integers(0, 99))
def test_groups_stay_together_in_parts_near_their_sizes(groups, seed):
    groups = np.array(groups)
    sizes = np.bincount(groups)
    if (sizes > 0).sum() < 3:
        with pytest.raises(ValueError, match="at least 3 different rows, .*: add rows"):
            split(len(groups), seed, groups)
        return
    test, validation, train = parts_of(split(len(groups), seed, groups))
    np.testing.assert_array_equal(np.sort(np.r_[test, validation, train]), np.arange(len(groups)))
    assert min(map(len, (test, validation, train))) > 0
    held = [set(groups[part]) for part in (test, validation, train)]
    assert sum(map(len, held)) == len(set(groups))
    tenth = len(groups) // 10
    if sizes.max() <= tenth:  # the last group of a part is in it where that is nearer
        assert max(abs(len(part) - tenth) for part in (test, validation)) <= sizes.max() / 2


def test_a_group_of_most_rows_is_trained_on():
    groups = np.r_[np.zeros(95, int), 1:6]
    parts = split(100, 0, groups)
    assert set(range(95)) < set(parts.train.tolist())
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (98, 1, 1)


def test_split_refuses():
    for rows, seed, message in ((9, 0, "10 rows, .*; got 9: add"), (10, -1, "a seed; got -1")):
        with pytest.raises(ValueError, match=message):
            split(rows, seed)


@pytest.mark.parametrize(
    ("values", "repeated"),
    [
        (np.tile(FLOATS, (5, 1)), 240),
        (np.tile(FLOATS[:, :1], (5, 1)), 240),
        (np.tile(np.column_stack([np.arange(60), FLOATS]), (5, 1)), 240),
        (np.vstack([FLOATS[:30], FLOATS[30:] + np.array([np.nan, 0])] * 2), 60),
        (np.vstack([FLOATS * [0, 1], FLOATS * [-0.0, 1]]), 60),
        (np.vstack([RNG.normal(size=(1000, 3)), np.tile(FLOATS[:, [0, 1, 1]], (10, 1))]), 540),
        (np.vstack([INTEGERS, INTEGERS[:200]]), 200),
        # Equal by chance, or with a mass.
        (FLOATS, 0),
        (COUNTS[:, :1], 0),
        (COUNTS, 0),
        (np.round(RNG.lognormal(3, 1, (5000, 1)), 2), 0),
        (np.repeat(CODES, 3, 1).astype(float), 0),
        (LIKE, 0),
        (SPENT, 0),
        (np.hstack([SPENT, COUNTS[:, :1] % 2]), 0),
        (np.vstack([np.zeros((500, 4)), RNG.normal(size=(500, 4))]), 0),
        (np.minimum(RNG.lognormal(size=(2000, 1)), 5), 0),
        (np.full((20, 2), 3.0), 0),
        (load("iris").values, 0),
        (np.empty((0, 2)), 0),
    ],
)
def test_rows_repeat_each_other_unless_by_chance(values, repeated):
    groups = row_groups(values)
    assert (groups <= np.arange(len(values))).all()
    np.testing.assert_array_equal(values[groups], values)  # NaN and −0 included
    assert len(np.unique(groups)) == len(values) - repeated


def test_fits_own_held_out_rows_repeat_none_that_it_trains_on():
    x, context = torch.from_numpy(np.tile(FLOATS, (5, 1))), torch.arange(300.0).unsqueeze(1)
    generator = torch.Generator().manual_seed(0)
    train, held_out = hold_out(Rows(x), generator)
    assert len(held_out) == 30
    assert not {*map(tuple, train.x.tolist())} & {*map(tuple, held_out.x.tolist())}
    # A context tells rows apart; then the rows are the first tenth of the generator's order.
    train, held_out = hold_out(Rows(x, context), generator.manual_seed(0))
    order = torch.randperm(300, generator=generator.manual_seed(0))
    assert torch.equal(held_out.context, context[order[:30]])
    assert torch.equal(train.context, context[order[30:]])
