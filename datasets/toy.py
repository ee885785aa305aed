"""Base class of toys: sampling, and the exact log-density."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cnf.datasets.table import Array

# A density by quadrature holds a few (rows, nodes) arrays: chunks keep each of them at a few
# megabytes, about the size of a cache.
LOG_PROB_CHUNK_ROWS = 512


def generator_for(n: int, seed: int | np.random.Generator) -> np.random.Generator:
    """Return a generator to draw `n` rows with; raise a ValueError if `n` or `seed` is negative."""
    if n < 0:
        raise ValueError(f"Expected a number of rows; got {n}: ask for 0 or more.")
    if not isinstance(seed, np.random.Generator) and seed < 0:
        raise ValueError(f"Expected a seed; got {seed}: give 0 or more.")
    return np.random.default_rng(seed)


def finite_rows(quantity: str, values: ArrayLike, width: int) -> Array:
    """Convert values to finite float64 rows (n, width); `quantity` names them in errors.

    Raises:
        ValueError: If the values have another shape, or hold NaN or infinity.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(
            f"Expected {quantity} of shape (n, {width}); got shape {rows.shape}: reshape."
        )
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"Expected finite {quantity}; got {rows[row].tolist()} at index {row}: drop it."
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class Toy(ABC):
    """A two-dimensional distribution that can be sampled and whose log-density is known.

    Rows are independent and identically distributed: angles and labels are random rather than
    evenly spaced, so that the mean of `log_prob` over a sample estimates minus the entropy.

    Attributes:
        name: Name in `TOYS`.
        bounds: Window for plots, ((xmin, xmax), (ymin, ymax)).

    References:
        Grathwohl et al., FFJORD (2019), https://arxiv.org/abs/1810.01367: the eight toys and their
        scale, `lib/toy_data.py` of its code. The densities are this project's.

    Example:
        >>> from cnf.datasets import TOYS
        >>> x = TOYS["moons"].sample(1000, seed=0)
        >>> x.shape, TOYS["moons"].log_prob(x).shape
        ((1000, 2), (1000,))
    """

    name: str
    bounds: tuple[tuple[float, float], tuple[float, float]] = ((-4.0, 4.0), (-4.0, 4.0))

    def sample(self, n: int, seed: int | np.random.Generator) -> Array:
        """Draw rows (n, 2) with a seed, or with a generator, which is advanced.

        Raises:
            ValueError: If `n` or `seed` is negative.
        """
        return self._sample(n, generator_for(n, seed))

    def log_prob(self, x: ArrayLike) -> Array:
        """Evaluate the log-density (n,) of points (n, 2), in nats, in the units of the samples.

        It is minus infinity outside a bounded support.

        Raises:
            ValueError: If `x` has another shape, or holds NaN or infinity.

        Example:
            >>> from cnf.datasets import TOYS
            >>> TOYS["checkerboard"].log_prob([[-3.0, -3.0], [9.0, 9.0]])
            array([-3.4657359,       -inf])
        """
        points = finite_rows("points", x, 2)
        size = LOG_PROB_CHUNK_ROWS
        starts = range(0, max(len(points), 1), size)
        return np.concatenate([self._log_prob(points[i : i + size]) for i in starts])

    @abstractmethod
    def _sample(self, n: int, rng: np.random.Generator) -> Array: ...

    @abstractmethod
    def _log_prob(self, x: Array) -> Array: ...
