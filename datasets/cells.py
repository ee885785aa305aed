"""Cells of text as numbers, booleans or text, with one decimal mark throughout a file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnf.datasets.column_types import LARGEST_EXACT, ColumnType
from cnf.datasets.dates import parse_dates
from cnf.datasets.frames import frame_table
from cnf.datasets.reading import (
    DECIMAL_MARKS,
    FINITE,
    MAX_SHOWN,
    ReadOptions,
    cell_error,
    drop_option,
    table_name,
)
from cnf.datasets.table import Table

if TYPE_CHECKING:  # functions import them, since they take long
    import pandas as pd
    import pyarrow as pa

# pandas' missing values, and those in lower or upper case, such as "NONE".
GAP_TEXTS = frozenset(
    form
    for text in (
        "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "1.#IND", "1.#QNAN", "<NA>",
        "N/A", "NA", "NULL", "NaN", "None",
    )
    for form in (text, text.lower(), text.upper())
)  # fmt: skip
NUMBER_GAPS = ("?", ".", "-", "--")  # missing values where other cells are numbers or dates
SPACES = " \u00a0\u202f"
APOSTROPHES = "'\u2019"
BOOLEANS = ("True", "False")
INDEX_NAME = "Unnamed: 0"
INFINITE = r"^[+-]?(?i:inf|infinity)$"
LEADING_ZERO = r"^0\d+$"
# Formatted numbers: a Unicode minus, a unit, or marks that are not understood; "1.2.3" is none.
FORMATTED = "^[$€£¥]?[-+\u2212]?[$€£¥]?[{0}]*\\d[{0}]*[%$€£¥]?$".replace(
    "{0}", r"\d_.,;\s" + SPACES + APOSTROPHES
)
DOTTED = r"^\d+(?:\.\d+){2,}$"


def number_pattern(decimal: str, marks: str) -> str:
    """Return the regular expression of numbers with a decimal mark and marks of thousands."""
    groups = "".join(rf"|[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{3}})+" for mark in marks)
    point = re.escape(decimal)
    return rf"^[+-]?(?:(?:\d+{groups})(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?$"


POINT_NUMBER = number_pattern(".", "," + SPACES + APOSTROPHES)
COMMA_NUMBER = number_pattern(",", "." + SPACES + APOSTROPHES)
PLAIN_NUMBER = re.compile(number_pattern(".", ""), re.ASCII)
BOTH_NUMBERS = (POINT_NUMBER, COMMA_NUMBER)


def is_number(text: str) -> bool:
    """Return whether a text is a number, with either decimal mark."""
    return any(re.search(pattern, text.strip(), re.ASCII) for pattern in BOTH_NUMBERS)


@dataclass(frozen=True, eq=False)
class RawTable:
    """The columns of a file before their cells are parsed."""

    file: Path
    columns: dict[str, pa.ChunkedArray | pd.Series[Any]]  # trimmed texts, or values of any type
    lines: Sequence[int]  # of the rows
    unnamed: frozenset[str]  # names of columns that have none in the file
    first: str  # the name of the file's first column, where an index stands
    sep: str = ""  # the separator of cells in text
    notes: list[str] = field(default_factory=list)

    def place(self, row: int) -> str:
        """Return the place of a row in words."""
        return f"data row {row + 1} (line {self.lines[row]})"


def parsed_table(raw: RawTable, options: ReadOptions) -> Table:
    """Parse the cells of a file.

    Raises:
        ValueError: If numbers and text are mixed in a column, a number is infinite or not exact in
            float64, or the decimal mark is not clear.
    """
    import pandas as pd  # here, since it takes long to import

    parser = CellParser(raw, options)
    frame = pd.DataFrame({name: parser.parse(name) for name in list(raw.columns)})
    frame = frame.drop(columns=parser.left_out(frame))
    table = frame_table(frame, os.fspath(raw.file), options.types)
    types = dict(table.types)
    for name, spelling in parser.spellings.items():
        types[name] = replace(types[name], format=spelling)
    notes = (", ".join([*raw.notes, *parser.notes]),) if raw.notes or parser.notes else ()
    return replace(table, name=table_name(raw.file), types=types, notes=notes)


class CellParser:
    """A parser of the columns of one file."""

    def __init__(self, raw: RawTable, options: ReadOptions) -> None:
        self._raw = raw
        self._options = options
        self._names = list(raw.columns)
        self.notes: list[str] = []
        self.spellings: dict[str, str] = {}  # of booleans, by column
        for name, column in raw.columns.items():
            if _is_text(column):
                raw.columns[name] = self._without_gaps(column)
        # pandas takes -999.0 for -999.
        self._absent = [float(each) for each in options.na_values if PLAIN_NUMBER.search(each)]
        self.decimal = options.decimal or self._found_decimal()
        marks = options.thousands or ("," if self.decimal == "." else ".") + " '"
        marks = marks.replace(" ", SPACES).replace("'", APOSTROPHES)
        self._number = number_pattern(self.decimal, marks)
        self._marks = marks
        if self.decimal == ",":
            self._note("decimal comma")

    def parse(self, name: str) -> pd.Series[Any]:
        """Return a column as numbers, booleans or text, and forget its cells."""
        import pandas as pd

        cells = self._raw.columns.pop(name)
        if not _is_text(cells):
            return self._without_absent(cells)
        if self._stays_text(name):
            return _series(cells)
        present = cells.drop_null()
        if not len(present):
            return pd.Series(np.full(len(cells), np.nan))
        if present[0].as_py().lower() in ("true", "false") and _are_booleans(present):
            return self._booleans(name, cells)
        return self._numbers_or_text(name, cells)

    def left_out(self, frame: pd.DataFrame) -> list[str]:
        """Return the columns without a name that are a row index or empty."""
        wanted = self._options.only or ()
        names = [name for name in frame if name in self._raw.unnamed and name not in wanted]
        empty = [name for name in names if frame[name].isna().all()]
        index = [
            name
            for name in frame.columns[:1]
            if name == self._raw.first == INDEX_NAME and name not in (*empty, *wanted)
            if frame[name].dtype == np.int64 and frame[name].is_unique and frame[name].min() >= 0
        ]
        if len(left_out := empty + index) == frame.shape[1]:
            return []
        if index:
            self._note("row index left out")
        if empty:
            self._note("empty columns without a name left out")
        return left_out

    def _stays_text(self, name: str) -> bool:
        """Return whether a model knows a column as text, even if this file has only numbers."""
        kind = self._options.types.get(name, ColumnType())
        return kind.family == "text" or (kind.family == "category" and kind.label_type is None)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _without_gaps(self, cells: pa.ChunkedArray) -> pa.ChunkedArray:
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = pa.array([*GAP_TEXTS, *self._options.na_values])
        return _nulled(cells, pc.is_in(cells, texts))

    def _without_absent(self, values: pd.Series[Any]) -> pd.Series[Any]:
        absent = values.isin(self._absent)
        if values.dtype.kind == "b" or not absent.any():
            return values
        return values.astype("Int64" if values.dtype == np.int64 else values.dtype).mask(absent)

    def _without_number_gaps(
        self, cells: pa.ChunkedArray, numbers: pa.ChunkedArray
    ) -> pa.ChunkedArray:
        """Return cells in which "?" is a gap if most others are numbers."""
        import pyarrow as pa
        import pyarrow.compute as pc

        gaps = pc.is_in(cells, pa.array(NUMBER_GAPS))
        others = len(cells) - cells.null_count - pc.sum(gaps).as_py()
        return self._without_marked(cells, gaps) if 2 * pc.sum(numbers).as_py() > others else cells

    def _without_date_gaps(self, name: str, cells: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return cells in which "?" is a gap if all others are dates."""
        import pyarrow as pa
        import pyarrow.compute as pc

        gaps = pc.is_in(cells, pa.array(NUMBER_GAPS))
        if not pc.any(gaps).as_py():
            return cells
        are_dates = self._options.types.get(name, ColumnType()).family == "date"
        if not are_dates:
            others = pc.unique(cells.filter(pc.invert(gaps)).drop_null()).to_pylist()
            with suppress(ValueError):  # of an order of days and months that is not clear
                are_dates = parse_dates(others) is not None
        return self._without_marked(cells, gaps) if are_dates else cells

    def _without_marked(self, cells: pa.ChunkedArray, gaps: pa.ChunkedArray) -> pa.ChunkedArray:
        import pyarrow.compute as pc

        for mark in pc.unique(cells.filter(gaps)).to_pylist():
            self._note(f"{mark!r} for missing values")
        return _nulled(cells, gaps)

    def _found_decimal(self) -> str:
        """Return the decimal mark that the file's numbers agree on."""
        import pyarrow.compute as pc

        if self._options.thousands in DECIMAL_MARKS:
            return "," if self._options.thousands == "." else "."
        texts = {
            name: cells
            for name, cells in self._raw.columns.items()
            if _is_text(cells) and not self._stays_text(name)
        }
        # Where semicolons are separators, "1.234" may be a thousand, too.
        doubtful = "[,.]" if self._raw.sep == ";" else ","
        marked = {
            name: cells.filter(marks)
            for name, cells in texts.items()
            if pc.any(marks := pc.match_substring_regex(cells, doubtful)).as_py()
        }
        if not marked:
            return "."
        proofs: dict[str, tuple[str, str]] = {}  # a column and its cell, by decimal mark
        unclear = None
        for name, cells in texts.items():
            point, comma = (pc.match_substring_regex(cells, each) for each in BOTH_NUMBERS)
            if not _mostly(pc.or_(point, comma).drop_null()):
                continue
            balance = pc.sum(point).as_py() - pc.sum(comma).as_py()
            if balance:
                alone = pc.and_not(point, comma) if balance > 0 else pc.and_not(comma, point)
                proofs.setdefault(
                    DECIMAL_MARKS[balance < 0], (name, cells.filter(alone)[0].as_py())
                )
            elif name in marked:
                unclear = unclear or (name, marked[name][0].as_py())
        return self._agreed_decimal(proofs, unclear)

    def _agreed_decimal(
        self, proofs: dict[str, tuple[str, str]], unclear: tuple[str, str] | None
    ) -> str:
        file = self._raw.file
        if len(proofs) > 1:
            (one, cell), (other, another) = proofs.values()
            raise ValueError(
                f"Expected one decimal mark in {file}; got {cell!r} in column {one!r} and "
                f"{another!r} in column {other!r}: give --decimal, or leave a column out with "
                f"{drop_option(other)}."
            )
        if unclear and not proofs:
            name, cell = unclear
            raise ValueError(
                f"Expected numbers in {file} that show their decimal mark; got {cell!r} in column "
                f"{name!r}, a decimal comma or a mark of thousands: give --decimal , or --decimal ."
            )
        return next(iter(proofs), ".")

    def _booleans(self, name: str, cells: pa.ChunkedArray) -> pd.Series[Any]:
        import pyarrow.compute as pc

        spelt = pc.unique(cells.drop_null()).to_pylist()
        for style in (str.upper, str.lower):
            if all(cell == style(cell) for cell in spelt):
                self.spellings[name] = "/".join(map(style, BOOLEANS))
        return _series(pc.equal(pc.utf8_lower(cells), "true"))

    def _numbers_or_text(self, name: str, cells: pa.ChunkedArray) -> pd.Series[Any]:
        import pyarrow.compute as pc

        numbers = pc.match_substring_regex(cells, self._number)
        if is_number := pc.all(numbers).as_py():
            odd = False
        else:
            cells = self._without_number_gaps(cells, numbers)
            is_number = _mostly(self._may_be_number(cells).drop_null())
            numbers = _nulled(numbers, cells.is_null())
            odd = not pc.all(numbers).as_py()
        if pc.any(pc.match_substring_regex(cells, LEADING_ZERO)).as_py():
            self._note(f"column {name!r} is text, with leading zeros")
            return _series(cells)
        if not is_number:
            cells = self._without_date_gaps(name, cells)
            self._check_text(name, cells)
            return _series(cells)
        if odd:
            remedy = "correct it, name it in --na-values if it is a gap"
            raise self._error(name, cells, pc.invert(numbers), remedy=remedy)
        return self._numbers(name, cells)

    def _numbers(self, name: str, cells: pa.ChunkedArray) -> pd.Series[Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        texts, values = self._floats(name, cells)
        whole = not pc.any(pc.match_substring_regex(texts, "[.eE]")).as_py()
        if self._absent:
            values = _nulled(values, pc.is_in(values, pa.array(self._absent)))
        large = pc.greater_equal(pc.abs(values), LARGEST_EXACT if whole else np.inf)
        if pc.any(large).as_py():
            kind = "whole numbers below 2^53" if whole else FINITE
            raise self._error(name, cells, large, kind)
        return _series(values.cast(pa.int64()) if whole else values)

    def _floats(self, name: str, cells: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Return numbers as plain text, and their values."""
        import pyarrow as pa

        if self.decimal == ".":
            with suppress(pa.ArrowInvalid):  # marks of thousands
                return cells, cells.cast(pa.float64())
        texts = self._without_marks(name, cells)
        return texts, texts.cast(pa.float64())

    def _without_marks(self, name: str, cells: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return numbers without marks of thousands, and with a decimal point."""
        import pyarrow.compute as pc

        pattern = f"[{re.escape(self._marks)}]"
        marked = pc.match_substring_regex(cells, pattern)
        if pc.any(marked).as_py():
            cell = cells.filter(marked)[0].as_py()
            mark = next(mark for mark in self._marks if mark in cell)
            if mark in SPACES and self._names == [name] and mark in name:
                raise ValueError(
                    f"Expected columns with a separator in {self._raw.file}; got one column "
                    f"{name!r} with cells such as {cell!r}: give --sep ' ', or --thousands ' '."
                )
            kind = "spaces" if mark in SPACES else repr(mark)
            self._note(f"{kind} between thousands")
            cells = pc.replace_substring_regex(cells, pattern, "")
        return pc.replace_substring(cells, ",", ".") if self.decimal == "," else cells

    def _check_text(self, name: str, cells: pa.ChunkedArray) -> None:
        """Refuse a number among texts, and formatted numbers that are no numbers here."""
        import pyarrow.compute as pc

        numbers = self._may_be_number(cells)
        if pc.any(numbers).as_py():
            text = cells.filter(pc.invert(numbers))[0].as_py()
            row = numbers.index(True).as_py()
            raise ValueError(
                f"Expected text in {self._raw.file}, such as {repr(text)[:MAX_SHOWN]}; got "
                f"{cells[row].as_py()!r} "
                f"in column {name!r} at {self._raw.place(row)}: write all cells as text or as "
                f"numbers, or leave the column out with {drop_option(name)}."
            )
        formatted = pc.and_not(
            pc.match_substring_regex(cells, FORMATTED), pc.match_substring_regex(cells, DOTTED)
        )
        if _mostly(formatted.drop_null()):
            remedy = "correct it, give --sep, --decimal or --thousands"
            raise self._error(name, cells, formatted, remedy=remedy)

    def _may_be_number(self, cells: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return whether cells are numbers, finite or not."""
        import pyarrow.compute as pc

        finite = pc.match_substring_regex(cells, self._number)
        return pc.or_(finite, pc.match_substring_regex(cells, INFINITE))

    def _error(
        self,
        name: str,
        cells: pa.ChunkedArray,
        wrong: pa.ChunkedArray,
        kind: str = FINITE,
        remedy: str = "correct it",
    ) -> ValueError:
        row = wrong.index(True).as_py()
        place = self._raw.place(row)
        return cell_error(self._raw.file, cells[row].as_py(), name, place, kind, remedy)


def _is_text(column: pa.ChunkedArray | pd.Series[Any]) -> bool:
    return hasattr(column, "drop_null")


def _nulled(cells: pa.ChunkedArray, gaps: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.if_else(gaps, pa.scalar(None, cells.type), cells)


def _mostly(true: pa.ChunkedArray) -> bool:
    """Return whether most booleans are true; the first decides where half of them are."""
    import pyarrow.compute as pc

    count = 2 * (pc.sum(true).as_py() or 0) - len(true)
    return bool(count > 0 or (count == 0 and len(true) and true[0].as_py()))


def _are_booleans(present: pa.ChunkedArray) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    return bool(pc.all(pc.is_in(pc.utf8_lower(present), pa.array(["true", "false"]))).as_py())


def _series(values: pa.ChunkedArray) -> pd.Series[Any]:
    """Return a column in pandas' plain dtype, or in its nullable one where values are missing."""
    import pandas as pd
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    series: pd.Series[Any] = values.to_pandas(
        types_mapper=nullable.get if values.null_count else None
    )
    return series
