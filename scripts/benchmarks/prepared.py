"""Preparation of tables for a comparison: with a density, split and standardised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import collinear_columns, split

Array = NDArray[np.float64]

NOISE_SEED = 0


@dataclass(frozen=True, eq=False)
class StandardizedSplit:
    """The parts of a split, in units in which the training rows have mean 0 and deviation 1.

    Attributes:
        train: Training rows, shape (rows, columns).
        validation: Validation rows, shape (rows, columns).
        test: Test rows, shape (rows, columns).
    """

    train: Array
    validation: Array
    test: Array

    @property
    def dim(self) -> int:
        """The number of columns."""
        return int(self.train.shape[1])


@dataclass(frozen=True, eq=False)
class PreparedTable:
    """A table that has a density.

    Constant columns are left out, and so are linear combinations of the preceding columns. Noise
    U[0, gap) is added to a column with repeated values, where gap is the smallest difference
    between two distinct values.

    Attributes:
        values: The remaining columns, shape (rows, columns).
        constant: Constant columns, which are left out, counted from 0 in the whole table.
        collinear: Columns that the preceding ones determine, which are left out.
        gaps: For each column with noise, the gap in units of its standard deviation.
    """

    values: Array
    constant: tuple[int, ...]
    collinear: tuple[int, ...]
    gaps: dict[int, float]

    @staticmethod
    def of(table: Array, seed: int = NOISE_SEED) -> PreparedTable:
        """Prepare a table (rows, columns).

        Args:
            table: The table as read.
            seed: Seed of the noise.

        Example:
            >>> x = np.linspace(0.0, 1.0, 11)
            >>> table = np.stack([x, 0 * x, 2 - 3 * x, np.round(x)], 1)
            >>> prepared = PreparedTable.of(table)
            >>> prepared.constant, prepared.collinear, list(prepared.gaps)
            ((1,), (2,), [3])
        """
        constant = np.flatnonzero(table.min(0) == table.max(0)).tolist()
        varying = np.setdiff1d(np.arange(table.shape[1]), constant)
        collinear = varying[sorted(collinear_columns(table[:, varying]))].tolist()
        remaining = [i for i in varying.tolist() if i not in collinear]
        values = table[:, remaining]
        gaps = np.array([repeated_gap(column) for column in values.T])
        deviations = values.std(0)
        noise = gaps * np.random.default_rng(seed).random(values.shape)
        return PreparedTable(
            values + noise,
            tuple(constant),
            tuple(collinear),
            {i: float(gaps[j] / deviations[j]) for j, i in enumerate(remaining) if gaps[j]},
        )

    def parts(self, seed: int) -> StandardizedSplit:
        """Split the rows 80/10/10 by a seed, and standardise them by the training rows.

        Raises:
            ValueError: There are fewer than 10 rows.
        """
        indices = split(len(self.values), seed)
        train = self.values[indices.train]
        mean, scale = train.mean(0), train.std(0)
        return StandardizedSplit(
            *(
                (self.values[each] - mean) / scale
                for each in (indices.train, indices.validation, indices.test)
            )
        )

    def digest(self) -> str:
        """Return the SHA-256 of the values."""
        return hashlib.sha256(np.ascontiguousarray(self.values).tobytes()).hexdigest()

    def lines(self, name: str) -> Iterator[str]:
        """Yield lines that describe the preparation of a table of this name."""
        rows, columns = self.values.shape
        yield f"{name}: {rows} rows, {columns} columns{self._left_out()}"
        if self.gaps:
            gaps = ", ".join(f"{i}: {gap:.2g}" for i, gap in self.gaps.items())
            yield f"  noise U[0, gap) by column, counted from 0, gap in deviations: {gaps}"

    def _left_out(self) -> str:
        return "".join(
            f"; {what} columns left out, counted from 0: {', '.join(map(str, columns))}"
            for what, columns in (("constant", self.constant), ("collinear", self.collinear))
            if columns
        )


def repeated_gap(column: Array) -> float:
    """Return the smallest difference between distinct values if any is repeated, else 0.

    Example:
        >>> repeated_gap(np.array([1.0, 2.0, 2.0, 2.5])), repeated_gap(np.array([1.0, 2.0, 2.5]))
        (0.5, 0.0)
    """
    distinct = np.unique(column)
    return 0.0 if len(distinct) == len(column) else float(np.diff(distinct).min())
