"""The first sheet of an Excel file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnf.datasets.cells import RawTable
from cnf.datasets.column_types import LARGEST_EXACT
from cnf.datasets.delimited import check_header
from cnf.datasets.reading import ReadOptions, decoding, numbered_names

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd
    import pyarrow as pa


def read_excel(file: Path, options: ReadOptions) -> RawTable:
    """Read the first sheet of an Excel file, in the columns that the options keep.

    Raises:
        ValueError: If openpyxl is not installed, or the file has no header.
    """
    try:
        import openpyxl
    except ImportError:
        raise ValueError(
            f"Expected openpyxl, which reads {file}; got none: pip install 'openpyxl>=3.1', or "
            "save the sheet as .csv."
        ) from None
    with decoding(file), warnings.catch_warnings(action="ignore"):
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets, title = len(book.worksheets), book.worksheets[0].title
        rows = [*_rows(book.worksheets[0].values)]
        book.close()
    if not rows:
        raise ValueError(
            f"Expected a header and rows in {file}; got an empty sheet {title!r}: write it again."
        )
    lines, cells = zip(*rows, strict=True)
    columns = list(zip_longest(*cells))
    header = ["" if column[0] is None else str(column[0]) for column in columns]
    check_header(file, header)
    names = numbered_names(header)
    kept = options.kept_columns(file, names)
    return RawTable(
        file,
        {names[i]: _column(columns[i][1:]) for i in kept},
        lines[1:],
        frozenset(name for name, own in zip(names, header, strict=True) if name != own),
        names[0],
        notes=[f"sheet {title!r} of {sheets}"] if sheets > 1 else [],
    )


def _rows(rows: Iterable[Sequence[Any]]) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows that are neither empty nor a comment, with their numbers."""
    for number, row in enumerate(rows, start=1):
        cells = [cell for cell in row if cell not in (None, "")]
        if cells and not (len(cells) == 1 < len(row) and str(cells[0]).startswith("#")):
            yield number, row


def _column(cells: Sequence[Any]) -> pa.ChunkedArray | pd.Series[Any]:
    """Return a column of one type; as texts where cells are texts, or of several types."""
    import pandas as pd
    import pyarrow as pa

    present = [cell for cell in cells if cell is not None]
    kinds, gaps = {type(cell) for cell in present}, len(present) < len(cells)
    if kinds == {bool}:
        return pd.Series(cells, dtype="boolean" if gaps else "bool")
    if kinds == {int} and max(map(abs, present)) <= LARGEST_EXACT:
        return pd.Series(cells, dtype="Int64" if gaps else "int64")
    if kinds in ({float}, {int, float}):
        return pd.Series(cells, dtype="float64")
    if kinds == {datetime}:
        return pd.Series(cells)
    texts = [None if cell is None else str(cell).strip() for cell in cells]
    return pa.chunked_array([pa.array(texts, pa.string())])
