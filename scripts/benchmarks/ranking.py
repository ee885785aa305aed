"""Ranks of methods by a number, the lower the better, on several splits of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan

import numpy as np

Numbers = Mapping[str, Sequence[float]]  # for each method, split by split


@dataclass(frozen=True)
class Average:
    """A mean over splits or images, with its standard error.

    Attributes:
        mean: The mean; NaN where one of the values is not finite.
        stderr: The standard deviation over the root of the count; NaN for a single value.
    """

    mean: float
    stderr: float

    @staticmethod
    def of(numbers: Sequence[float]) -> Average:
        """Average numbers over splits or images.

        Example:
            >>> Average.of([1.0, 3.0])
            Average(mean=2.0, stderr=1.0)
        """
        values = np.asarray(numbers, np.float64)
        if not np.isfinite(values).all():
            return Average(nan, nan)
        stderr = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else nan
        return Average(float(values.mean()), float(stderr))

    def __str__(self) -> str:
        error = f" ± {self.stderr:.3f}" if isfinite(self.stderr) else ""
        return f"{self.mean:.3f}{error}" if isfinite(self.mean) else "failed"


def ranks(numbers: Numbers) -> dict[str, float]:
    """Rank methods by their means, from 1; ties, and failed methods, share a rank.

    Example:
        >>> ranks({"a": [2.0], "b": [1.0], "c": [nan], "d": [2.0]})
        {'a': 2.5, 'b': 1.0, 'c': 4.0, 'd': 2.5}
    """
    means = {name: _mean(values) for name, values in numbers.items()}
    return {
        name: 1
        + sum(other < mean for other in means.values())
        + (sum(other == mean for other in means.values()) - 1) / 2
        for name, mean in means.items()
    }


def best(numbers: Numbers) -> set[str]:
    """Return the methods with the lowest mean; an empty set where all failed.

    Example:
        >>> best({"a": [2.0], "b": [1.0], "c": [nan]})
        {'b'}
    """
    means = {name: _mean(values) for name, values in numbers.items()}
    least = min(means.values())
    return {name for name, mean in means.items() if mean == least and isfinite(mean)}


def mean_ranks(tables: Sequence[Numbers]) -> dict[str, float]:
    """Return each method's mean rank over tables.

    Example:
        >>> mean_ranks([{"a": [1.0], "b": [2.0]}, {"a": [1.0], "b": [1.0]}])
        {'a': 1.25, 'b': 1.75}
    """
    each = [ranks(numbers) for numbers in tables]
    return {name: sum(found[name] for found in each) / len(each) for name in each[0]}


def is_near_best(numbers: Numbers, name: str) -> bool:
    """Return whether a method is the best, or within one standard error of it.

    The standard error is that of the difference from the best over the common splits; it is
    undefined for a single split.

    Example:
        >>> numbers = {"a": [1.0, 4.0], "b": [2.0, 3.5], "c": [1.5, 4.5]}
        >>> [name for name in numbers if is_near_best(numbers, name)]
        ['a', 'b']
    """
    leading = best(numbers)
    if name in leading or not isfinite(_mean(numbers[name])):
        return name in leading
    other = numbers[min(leading)]
    off = Average.of([a - b for a, b in zip(numbers[name], other, strict=True)])
    return off.mean <= off.stderr


def is_worse(numbers: Numbers, name: str, other: str) -> bool:
    """Return whether a method failed, or has a mean above another's.

    Example:
        >>> is_worse({"a": [2.0], "b": [1.0]}, "a", "b"), is_worse({"a": [nan]}, "a", "b")
        (True, True)
    """
    mean = _mean(numbers[name])
    return not isfinite(mean) or mean > _mean(numbers.get(other, [inf]))


def _mean(values: Sequence[float]) -> float:
    """Return the mean, infinite where it is not finite."""
    mean = Average.of(values).mean
    return mean if isfinite(mean) else inf
