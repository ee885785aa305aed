"""Conditional toys with exact density p(x | c), and their registry."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cnf.datasets.table import Array
from cnf.datasets.toy import finite_rows, generator_for


@dataclass(frozen=True, kw_only=True)
class ConditionalToy:
    """A mixture of two opposite isotropic Gaussians that move with a context.

        c ~ U(interval),   p(x | c) = (N(x; m(c), s(c)² I) + N(x; −m(c), s(c)² I)) / 2.

    Attributes:
        name: Name in `CONDITIONAL_TOYS`.
        columns: Names of x's columns.
        context_columns: Name of the context's one column.
        interval: Interval on which the context is uniform.
        center: Function m of contexts (n,) that returns points (n, columns).
        noise: Function s of contexts (n,) that returns positive standard deviations (n,).

    Example:
        >>> toy = CONDITIONAL_TOYS["rotor"]
        >>> x, context = toy.sample(1000, seed=0)
        >>> x.shape, context.shape, toy.log_prob(x, context).shape
        ((1000, 2), (1000, 1), (1000,))
    """

    name: str
    columns: tuple[str, ...]
    context_columns: tuple[str] = ("c",)
    interval: tuple[float, float]
    center: Callable[[Array], Array]
    noise: Callable[[Array], Array]

    def sample(self, n: int, seed: int | np.random.Generator) -> tuple[Array, Array]:
        """Draw rows (n, columns) and their contexts (n, 1), by a seed or with a generator.

        Raises:
            ValueError: If `n` or `seed` is negative.
        """
        rng = generator_for(n, seed)
        context = rng.uniform(*self.interval, n)
        center = self.center(context)
        x = center * rng.choice([-1.0, 1.0], (n, 1))
        x += self.noise(context)[:, None] * rng.normal(size=center.shape)
        return x, context[:, None]

    def log_prob(self, x: ArrayLike, context: ArrayLike) -> Array:
        """Evaluate log p(x | c) (n,) in nats of points (n, columns) given any contexts (n, 1).

        Raises:
            ValueError: If a shape does not fit, or there is NaN or infinity.

        Example:
            >>> CONDITIONAL_TOYS["fan"].log_prob([[0.0]], [[0.0]])  # -log(0.1 * sqrt(2 pi))
            array([1.38364656])
        """
        points = finite_rows("points", x, len(self.columns))
        contexts = finite_rows("contexts", context, len(self.context_columns))
        if len(points) != len(contexts):
            raise ValueError(
                f"Expected a context for each of {len(points)} points; got {len(contexts)}: repeat "
                "the context."
            )
        center, noise = self.center(contexts[:, 0]), self.noise(contexts[:, 0])
        offsets = np.stack([points - center, points + center]) / noise[:, None]
        exponents = -0.5 * (offsets**2).sum(axis=-1)
        constant = np.log(2) + len(self.columns) * np.log(np.sqrt(2 * np.pi) * noise)
        return np.asarray(np.logaddexp(*exponents) - constant)


CONDITIONAL_TOYS: dict[str, ConditionalToy] = {
    toy.name: toy
    for toy in (
        # A pair of blobs that rotates by half a circle, onto itself.
        ConditionalToy(
            name="rotor",
            columns=("x", "y"),
            interval=(0.0, np.pi),
            center=lambda c: 1.5 * np.column_stack([np.cos(c), np.sin(c)]),
            noise=lambda c: np.full_like(c, 0.2),
        ),
        # One narrow Gaussian that splits into two wider ones.
        ConditionalToy(
            name="fan",
            columns=("x",),
            interval=(0.0, 2.0),
            center=lambda c: c[:, None],
            noise=lambda c: 0.1 + 0.05 * c**2,
        ),
    )
}
"""The conditional toys by name."""
