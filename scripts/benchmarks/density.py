"""Density estimators that are fitted in a given time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class DensityEstimator(ABC):
    """A fitted density of rows."""

    @abstractmethod
    def log_prob(self, rows: Array) -> Array:
        """Return log p of rows (rows, columns) in nats, shape (rows,)."""

    @abstractmethod
    def sample(self, count: int, seed: int) -> Array:
        """Draw samples, shape (count, columns)."""


@dataclass(frozen=True, eq=False)
class FittedDensity:
    """A fitted density with a description of the selected model.

    Attributes:
        density: The density.
        chosen: The choices made on the validation rows, in words.
    """

    density: DensityEstimator
    chosen: str


class Deadline:
    """The end of a time budget that starts now.

    Example:
        >>> deadline = Deadline(60.0)
        >>> 59 < deadline.left <= 60
        True
    """

    def __init__(self, budget: float) -> None:
        self.end = perf_counter() + budget

    @property
    def left(self) -> float:
        """The remaining seconds; negative where the budget is spent."""
        return self.end - perf_counter()
