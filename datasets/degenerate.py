"""Detection of tables that have no density."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.collinear import collinear_columns
from cnf.datasets.surface import on_surface

__all__ = ["Degeneracy", "degeneracies"]

MAX_CHECKED_ROWS = 100_000
UNBOUNDED_LIKELIHOOD = "the rows have no density, and the NLL falls without bound"


@dataclass(frozen=True)
class Degeneracy:
    """A reason why rows have no density.

    Attributes:
        why: Explanation, a sentence.
        advice: Remedy, a sentence.
        column: Redundant column; empty where no single one is to be left out.
    """

    why: str
    advice: str
    column: str = ""

    def __str__(self) -> str:
        return f"{self.why}. {self.advice}"


def degeneracies(values: NDArray[np.float64], names: Sequence[str]) -> list[Degeneracy]:
    """Find reasons why rows of real numbers have no density.

    Args:
        values: Shape (rows, columns), of which the first 100,000 rows are checked. Constant
            columns, which are not modelled, are ignored.
        names: Names of the columns.

    Returns:
        Reasons; empty if there are none.

    Example:
        >>> a, b = np.random.default_rng(0).normal(size=(2, 50))
        >>> [each.column for each in degeneracies(np.stack([a, b, a - b], 1), ["a", "b", "c"])]
        ['c']
    """
    varying: list[int] = np.flatnonzero(np.ptp(values, 0) > 0).tolist()
    values, names = values[:MAX_CHECKED_ROWS, varying], [names[i] for i in varying]
    rows, columns = values.shape
    if columns < 2:
        return []
    if rows <= columns:
        few = f"{rows} training rows of {columns} columns lie on a plane"
        return [Degeneracy(f"{few}: {UNBOUNDED_LIKELIHOOD}", "Add rows, or leave out columns")]
    combinations = collinear_columns(values)
    found = [_collinear(names[i], [names[j] for j in combinations[i]]) for i in combinations]
    independent = [i for i in range(columns) if i not in combinations]
    if on_surface(values[:, independent]):
        curved = ", ".join(repr(names[i]) for i in independent)
        found.append(
            Degeneracy(
                f"columns {curved} seem to lie on a curve or a curved surface: "
                f"{UNBOUNDED_LIKELIHOOD}",
                "Model coordinates along it, such as an angle, or leave a column out",
            )
        )
    return found


def _collinear(name: str, sources: Sequence[str]) -> Degeneracy:
    others = ", ".join(map(repr, sources))
    why = f"column {name!r} is a linear combination of {others}: {UNBOUNDED_LIKELIHOOD}"
    return Degeneracy(why, "Leave it out", name)
