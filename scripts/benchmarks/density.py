"""Densities that can be fitted in a given time, whatever their kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Density(ABC):
    """A density of rows, fitted."""

    @abstractmethod
    def log_prob(self, rows: Array) -> Array:
        """Log p of rows (rows, columns) in nats, shape (rows,)."""

    @abstractmethod
    def sample(self, count: int, seed: int) -> Array:
        """Draws, shape (count, columns)."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A density, and what was chosen on the validation rows.

    Attributes:
        density: The density.
        chosen: In words.
    """

    density: Density
    chosen: str


class Clock:
    """Seconds that are left of a budget, from now on.

    Example:
        >>> clock = Clock(60.0)
        >>> 59 < clock.left <= 60
        True
    """

    def __init__(self, budget: float) -> None:
        self.end = perf_counter() + budget

    @property
    def left(self) -> float:
        """Below 0 where the budget is spent."""
        return self.end - perf_counter()
