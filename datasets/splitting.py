"""The division of a table's rows into training, validation and test rows, and repeated rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]

MIN_SPLIT_ROWS = 10  # a tenth of fewer rows would be empty

MAX_JUDGED_ROWS = 100_000  # from which the probability of equal rows is estimated
# Excess of pairs of equal rows over those expected by chance, which dependent columns raise.
MIN_EXCESS = 10
# A row has a mass, such as zeros in all columns, where it is this share of all rows and so many
# times as frequent as others.
MIN_MASS, MASS_FACTOR = 0.01, 10
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, as in splitmix64
ROUNDING = 1e-9  # of values, as a share of their range
MAX_OFF_GRID = 0.01  # distance of a value from a grid, in steps


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of training, validation and test rows, each part in random order."""

    train: Index
    validation: Index
    test: Index


def split(rows: int, seed: int, groups: Index | None = None) -> Split:
    """Divide rows at random into 80 % training, 10 % validation and 10 % test, rounded down.

    Args:
        rows: Number of rows.
        seed: Seed of the division.
        groups: Numbers of the rows' groups, shape (rows,), each of which lies wholly in one part,
            such as `row_groups` returns; every row is a separate group when None. Parts are as
            near their sizes as random groups allow, and none is empty.

    Raises:
        ValueError: If there are fewer than ten rows or three groups, or the seed is negative.

    Example:
        >>> parts = split(25, seed=0)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (21, 2, 2)
        >>> sorted(split(25, seed=0, groups=np.arange(25) // 5).test.tolist())
        [15, 16, 17, 18, 19]
    """
    if rows < MIN_SPLIT_ROWS:
        raise ValueError(
            f"Expected at least {MIN_SPLIT_ROWS} rows, to split them 80/10/10; got {rows}: add "
            "rows."
        )
    if seed < 0:
        raise ValueError(f"Expected a seed; got {seed}: give 0 or more.")
    order = np.random.default_rng(seed).permutation(rows)
    test, validation, train = divide(order, (rows // 10, rows // 10), groups)
    return Split(train, validation, test)


def divide(order: Index, sizes: Sequence[int], groups: Index | None = None) -> list[Index]:
    """Divide rows in a random order into parts of some sizes and the rest.

    Groups are taken in the order of their first rows; those larger than a part come last, the
    smallest first. Each part ends where it is nearest to its size, and has at least one group.

    Args:
        order: Indices of all rows in random order, shape (rows,).
        sizes: Numbers of rows of all parts but the last.
        groups: Numbers of the rows' groups, shape (rows,); every row is a separate group when None.

    Raises:
        ValueError: If there are fewer groups than parts.
    """
    if groups is None:
        return np.split(order, np.cumsum(sizes))
    _, first, group, counts = np.unique(
        groups[order], return_index=True, return_inverse=True, return_counts=True
    )
    parts = len(sizes) + 1
    if len(counts) < parts:
        raise ValueError(
            f"Expected at least {parts} different rows, to split them into {parts} parts with no "
            f"row in two; got {len(counts)}: add rows."
        )
    large = counts > min(sizes)
    sequence = np.lexsort((first, np.where(large, counts, 0)))
    ends = counts[sequence].cumsum()
    small = int(counts[~large].sum())
    cuts: list[int] = []  # numbers of groups up to the parts' ends
    for i, size in enumerate(sizes):
        start, done = (cuts[-1], ends[cuts[-1] - 1]) if cuts else (0, 0)
        nearest = int(np.abs(ends - done - min(size, small // parts)).argmin()) + 1
        cuts.append(min(max(nearest, start + 1), len(ends) - (len(sizes) - i)))
    part = np.empty_like(counts)
    part[sequence] = np.searchsorted(cuts, np.arange(len(counts)), side="right")
    return [order[part[group] == i] for i in range(parts)]


def row_groups(values: Array) -> Index:
    """Number the rows of a table, with one number for rows that repeat each other.

    Identical rows, NaN being equal to NaN, share the index of the first one. Rows that are equal
    by chance do not repeat each other: rows of columns of so few values that many are bound to be
    equal, and a row with a mass, such as zeros in all columns.

    Args:
        values: Shape (rows, columns).

    Returns:
        0, 1, 2, … where no row repeats another, of shape (rows,).

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(3, 2))
        >>> row_groups(np.vstack([rows, rows])).tolist()
        [0, 1, 2, 0, 1, 2]
        >>> dice = np.random.default_rng(0).integers(1, 7, size=(1000, 2)).astype(float)
        >>> len(np.unique(row_groups(dice)))
        1000
    """
    hashes, every = _hashes(values), np.arange(len(values))
    if len(np.unique(hashes)) == len(values):
        return every
    _, first, group, counts = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    mass = counts > max(MIN_MASS * len(values), MASS_FACTOR * np.median(counts))
    counts = np.where(mass, 1, counts)
    equal_pairs, pairs = counts @ (counts - 1) / 2, len(values) * (len(values) - 1) / 2
    if equal_pairs <= MIN_EXCESS * pairs * _coincidence(values, first):
        return every
    return np.where(mass[group], every, first[group])


def _hashes(values: Array) -> NDArray[np.uint64]:
    """Return hashes of rows (rows, columns) of 64 bits, much faster than a sort of the rows."""
    found = np.zeros(len(values), np.uint64)
    for column in values.T:
        normalized = column + 0.0  # without −0
        normalized[np.isnan(normalized)] = np.nan  # of which there are several
        found = (found ^ normalized.view(np.uint64)) * HASH_FACTOR
        found ^= found >> np.uint64(32)
    return found


def _coincidence(values: Array, first: Index) -> float:
    """Estimate the probability that two rows are equal by chance.

    It is the product over columns, without those that the column of the lowest probability
    determines.

    Args:
        values: Shape (rows, columns).
        first: Indices of the distinct rows.
    """
    if len(first) < 2:
        return 1.0
    distinct = values[first[:MAX_JUDGED_ROWS]]
    codes = [np.unique(column, return_inverse=True)[1] for column in distinct.T]
    columns = zip(codes, values[:MAX_JUDGED_ROWS].T, strict=True)
    shares = [max(_tied_share(code), _step_share(column)) for code, column in columns]
    lead = int(np.argmin(shares))
    values_of_lead = codes[lead].max() + 1
    found = shares[lead]
    for i, code in enumerate(codes):
        both = codes[lead] * (code.max() + 1) + code
        if i != lead and len(np.unique(both)) > values_of_lead:
            found *= shares[i]
    return float(found)


def _tied_share(codes: Index) -> float:
    """Return the share of pairs of distinct rows with the same value in a column."""
    counts = np.bincount(codes)
    return float(counts @ (counts - 1) / (len(codes) * (len(codes) - 1)))


def _step_share(column: Array) -> float:
    """Return a step over the spread of a column whose values are on a grid; 0 for others."""
    column = column[np.isfinite(column)]
    distinct = np.unique(column)
    gaps = np.diff(distinct)
    gaps = gaps[gaps > ROUNDING * np.ptp(distinct)] if len(gaps) else gaps
    if not len(gaps):
        return 1.0
    step = gaps.min()
    if np.abs(gaps / step - np.round(gaps / step)).max() > MAX_OFF_GRID:
        return 0.0
    low, high = np.quantile(column, (0.25, 0.75))
    return float(step / (high - low + step))
