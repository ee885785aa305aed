"""Tables that have no density."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.collinear import collinear_columns
from cnf.datasets.surface import on_surface

__all__ = ["Degeneracy", "degeneracies"]

MOST_ROWS = 100_000  # that are looked at
UNBOUNDED = "the rows have no density, and the NLL falls for as long as one trains"


@dataclass(frozen=True)
class Degeneracy:
    """Why rows have no density.

    Attributes:
        why: A sentence.
        advice: What to do.
        column: The one that is too many; empty where none is more so than others.
    """

    why: str
    advice: str
    column: str = ""

    def __str__(self) -> str:
        return f"{self.why}. {self.advice}"


def degeneracies(values: NDArray[np.float64], names: Sequence[str]) -> list[Degeneracy]:
    """Why rows of real numbers have no density, as far as they tell.

    Args:
        values: Shape (rows, columns); the first of many stand for all. Constant columns, of which
            nothing is modelled, are none of them.
        names: The columns' names.

    Example:
        >>> a, b = np.random.default_rng(0).normal(size=(2, 50))
        >>> [found.column for found in degeneracies(np.stack([a, b, a - b], 1), ["a", "b", "c"])]
        ['c']
    """
    varying: list[int] = np.flatnonzero(np.ptp(values, 0) > 0).tolist()
    values, names = values[:MOST_ROWS, varying], [names[i] for i in varying]
    rows, columns = values.shape
    if columns < 2:
        return []
    if rows <= columns:
        few = f"{rows} training rows of {columns} columns lie on a plane"
        return [Degeneracy(f"{few}: {UNBOUNDED}", "Add rows, or leave out columns")]
    makers = collinear_columns(values)
    found = [_collinear(names[i], [names[maker] for maker in makers[i]]) for i in makers]
    kept = [i for i in range(columns) if i not in makers]
    if on_surface(values[:, kept]):
        curved = ", ".join(repr(names[i]) for i in kept)
        found.append(
            Degeneracy(
                f"columns {curved} seem to lie on a curve or a curved surface: {UNBOUNDED}",
                "Model coordinates along it, such as an angle, or leave a column out",
            )
        )
    return found


def _collinear(name: str, makers: Sequence[str]) -> Degeneracy:
    others = ", ".join(map(repr, makers))
    why = f"column {name!r} is a linear combination of {others}: {UNBOUNDED}"
    return Degeneracy(why, "Leave it out", name)
