"""Remarks on columns that are better left out: ids, and masses beside a density."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cnf.datasets.reading import drop_option
from cnf.tables.kinds import ColumnKind, find_atoms
from cnf.tables.kinds.lattice import Array
from cnf.tables.kinds.numeric import MAX_SHOWN_ATOMS

MIN_ID_ROWS = 30  # fewer may be different, or follow each other, by chance
MAX_ID_SPREAD = 1.5  # of numbers of rows, of which some may be in other parts, per row


def remarks_on(column: ColumnKind, numbers: Array, masses: bool = False) -> Iterator[str]:
    """Yield a line on why a column of numbers (rows,) is better left out.

    Values that occur with a mass are no reason for a model that has `masses`.
    """
    numbers = numbers[np.isfinite(numbers)]
    rows, name = len(numbers), column.name
    if not rows or not column.width:
        return
    distinct, counts = np.unique(numbers, return_counts=True)
    if not masses and column.on_line and (atoms := find_atoms(distinct, counts)):
        shares = [f"{value:g} in {100 * share:.0f} % of rows" for value, share in atoms]
        more = f" and {len(shares) - MAX_SHOWN_ATOMS} more" if len(shares) > MAX_SHOWN_ATOMS else ""
        yield (
            f"column {name!r} is {', '.join(shares[:MAX_SHOWN_ATOMS])}{more}: no density, the NLL "
            "falls for as long as one trains"
        )
    if len(distinct) < rows or rows < MIN_ID_ROWS:
        return
    advice = f"Leave it out ({drop_option(name)})"
    if column.coded:
        yield f"column {name!r} holds {rows} different texts in {rows} rows: an id? {advice}"
    elif _row_numbers(column, distinct):
        low, high = (column.text(each) for each in distinct[[0, -1]])
        span = f"the numbers from {low} to {high}, one a row"
        yield f"column {name!r} holds {span}: row numbers? {advice}"


def _row_numbers(column: ColumnKind, distinct: Array) -> bool:
    """Return whether the numbers of all rows, which are different, follow each other."""
    if column.table_type.family not in ("whole", "real") or (column.step or 1) % 1:
        return False
    spread = distinct[-1] - distinct[0] + 1
    return bool((distinct % 1 == 0).all() and spread <= MAX_ID_SPREAD * len(distinct))
