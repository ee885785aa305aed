"""Tables in files: .csv, .npy, .npz and .parquet, read strictly and written all or nothing."""

import csv
import errno
import os
import re
import stat
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite, isinf, isnan
from pathlib import Path
from typing import IO, Any, Literal, get_args
from uuid import uuid4

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cnf.datasets.frames import MOST, frame_table, table_frame, too_many
from cnf.datasets.table import Table, closest

__all__ = ["ENDINGS", "MISSING", "Missing", "check_writable", "read_table", "write_table"]

ENDINGS = ".csv, .npy, .npz, .npz:ARRAY or .parquet"
ARCHIVE = ".npz"
NAMES = "columns"  # the array in an archive that names the columns of the others
BOOLEANS = {"true": 1.0, "false": 0.0}
# Numbers of another style: with commas, spaces or apostrophes in them, another minus, a unit.
MISWRITTEN = re.compile(
    r"\s*[$€£¥]?[-+\u2212]?[$€£¥]?[\d_.,;'\u2019\s]*\d[\d_.,;'\u2019\s]*[%$€£¥]?\s*"
)
FILE = "a file"
NO_FILE = "no such file"
GAPS = ("", "na", "n/a", "nan", "null", "none")  # what stands where a value is missing, in any case

Missing = Literal["refuse", "drop"]
MISSING: tuple[Missing, ...] = get_args(Missing)
"""What is done about missing values: the table is refused, or their rows are dropped."""

Array = NDArray[np.float64]


def read_table(path: str | os.PathLike[str], missing: Missing = "refuse") -> Table:
    r"""Read a table of finite numbers and of categories from a file.

    - `.csv`: UTF-8, separated by commas, with a header; blank lines are skipped.
    - `.npy`: a one- or two-dimensional array, mapped into memory; its columns are x0, x1, …
    - `.npz`, or `FILE.npz:ARRAY` where it holds several arrays. An array of text called `columns`
      names the columns. Pickled objects are never loaded.
    - `.parquet`.

    Whole numbers become floats, and so do booleans, as 0 and 1. A column that holds text and no
    number, in .csv or .parquet, is one of categories: its values are their numbers in alphabetical
    order, from 0. A value is missing where there is NaN or null, and in .csv where a cell is empty
    or says na, n/a, nan, null or none, in any case.

    Args:
        path: The file, its kind told by its name's ending.
        missing: What is done where values are missing: `"refuse"` the table, or `"drop"` their
            rows.

    Returns:
        The table, called as the file is, without the ending.

    Raises:
        ValueError: If there is no such file or array, it cannot be read, or it has no rows; if it
            holds infinity, or text beside numbers, and then the first such row and column are
            named; if more than a hundred different texts stand in a column; if values are missing,
            and then their number in each column.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "pairs.csv"
        ...     _ = file.write_text("x,y\n1,2.5\n3,4.5\n")
        ...     table = read_table(file)
        >>> table.name, table.columns, table.values.tolist()
        ('pairs', ('x', 'y'), [[1.0, 2.5], [3.0, 4.5]])
    """
    stem, found, member = os.fspath(path).partition(f"{ARCHIVE}:")
    file = Path(stem + ARCHIVE if found else stem)
    ending = file.suffix.lower()
    got = found_at(file)
    if got != FILE:
        raise ValueError(f"Expected a file at {file}; got {got}: check the path.")
    if ending not in WRITERS:
        raise ValueError(f"Expected a path that ends in {ENDINGS}; got {file}: convert the file.")
    table = _read_npz(file, member) if ending == ARCHIVE else READERS[ending](file)
    if not table.values.size:
        raise ValueError(f"Expected rows in {file}; got an empty table: check how it was written.")
    return _without_gaps(file, table, missing)


def check_writable(path: str | os.PathLike[str], endings: Collection[str] | None = None) -> None:
    """Check, before work is done for it, that a path can be written to.

    Args:
        path: The file to be.
        endings: What its name may end in; when None, what `write_table` can write.

    Raises:
        ValueError: If its ending is unknown, it is a folder, or its folder cannot be written to.
        OSError: If the disk is full.

    Example:
        >>> check_writable("a.txt")
        Traceback (most recent call last):
        ValueError: Expected a path that ends in .csv, .npy, .npz, .parquet; got a.txt: rename it.
    """
    file = Path(path)
    endings = WRITERS if endings is None else endings
    if file.suffix.lower() not in endings:
        raise ValueError(
            f"Expected a path that ends in {', '.join(endings)}; got {file}: rename it."
        )
    if not os.path.isdir(file.parent):
        raise ValueError(f"Expected a folder at {file.parent}; got none: create it first.")
    got = found_at(file)
    if got not in (FILE, NO_FILE):
        raise ValueError(f"Expected a path for a file; got {got} at {file}: choose another name.")
    probe = _temporary(file)
    try:  # permission bits do not tell all: file systems may be read-only, and root passes them
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno == errno.ENOSPC:  # no mistake of the user's
            raise
        raise ValueError(
            f"Expected a folder that can be written to; got {file.parent} "
            f"({error.strerror}): choose another."
        ) from error


def write_table(
    path: str | os.PathLike[str],
    values: ArrayLike,
    columns: Sequence[str],
    categories: Mapping[str, Sequence[str]] | None = None,
    whole: Collection[str] = (),
) -> None:
    """Write a table to a file, such that `read_table` gives back the same float64 numbers.

    The file is written under a temporary name beside its place and then moved there: it appears
    whole or not at all.

    Args:
        path: The file, .csv, .npy, .npz or .parquet by its name's ending. An .npy file does not
            keep the columns' names; an .npz file holds them as `columns`, beside `values`.
        values: Real numbers of shape (rows, columns), or (rows,) for one column.
        columns: The columns' names.
        categories: Of columns that hold numbers of categories, what these stand for; a .csv or
            .parquet file has that as text.
        whole: Columns of whole numbers, which a .csv or .parquet file has as such.

    Raises:
        ValueError: If the path cannot be written to, or the names do not fit the values.
        OSError: If writing fails half-way, as on a full disk.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(Path(folder) / "scores.npz", [0.5, 0.1], ["log_prob"])
        ...     read_table(Path(folder) / "scores.npz").values.tolist()
        [[0.5], [0.1]]
    """
    check_writable(path)
    file = Path(path)
    numbers = np.asarray(values, dtype=np.float64)
    matrix = numbers[:, None] if numbers.ndim == 1 else numbers
    named = {name: tuple(own) for name, own in (categories or {}).items()}
    table = Table(file.stem, matrix, tuple(columns), categories=named)
    temporary = _temporary(file)
    try:
        with temporary.open("wb") as stream:
            WRITERS[file.suffix.lower()](stream, table, whole)
        temporary.replace(file)
    except OSError as error:  # NumPy's do not say what was written where
        raise OSError(f"Could not write {file} ({error}): is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def found_at(path: Path) -> str:
    """What is at a path, in words: `FILE`, `NO_FILE`, or what stands in a file's way."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return NO_FILE
    except OSError as error:
        return f"{error.strerror}".lower()
    except ValueError as error:  # no path at all
        return str(error)
    if stat.S_ISREG(mode):
        return FILE
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"


def _temporary(file: Path) -> Path:
    return file.with_name(f".{uuid4().hex}.tmp")


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    """Turn what a library says about a damaged file into one line; only its calls go inside.

    A damaged file can surface as anything: zipfile, zlib, struct and Arrow have their own errors.
    """
    try:
        yield
    except MemoryError as error:
        raise MemoryError(
            f"{file} does not fit into memory, or is damaged ({error}): make it smaller, or write "
            "it again."
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"Expected a readable {file.suffix} file; got {file} ({reason}): write it again."
        ) from error


def _without_gaps(file: Path, table: Table, missing: Missing) -> Table:
    """A table without missing values."""
    if missing not in MISSING:
        raise ValueError(f"Expected missing to be one of {', '.join(MISSING)}; got {missing!r}")
    gaps = np.isnan(table.values)
    if not gaps.any():
        return table
    full = np.asarray(~gaps.any(1))
    if missing == "drop" and full.any():
        dropped = len(full) - int(full.sum())
        return Table(table.name, table.values[full], table.columns, dropped, table.categories)
    counts = zip(gaps.sum(0).tolist(), table.columns, strict=True)
    named = [f"{count} in column {column!r}" for count, column in counts if count]
    more = f" and {len(named) - 10} more columns" if len(named) > 10 else ""
    whole = f"rows without any: {int(full.sum())} of {len(full)}"
    raise ValueError(
        f"Expected no missing values in {file}; got {', '.join(named[:10])}{more}, the first in "
        f"row {int(full.argmin()) + 1} ({whole}): fill them, or drop their rows, as train and "
        "evaluate do with --missing drop."
    )


def _refuse(file: Path, value: object, column: str, place: str) -> ValueError:
    plain = value.item() if isinstance(value, np.generic) else value
    return ValueError(
        f"Expected finite numbers in {file}; got {plain!r} in column {column!r} at {place}: "
        "correct or drop it."
    )


def _refuse_first(file: Path, cells: Callable[[int, int], object], table: Table) -> Table:
    """Pass a table of numbers and NaN on; name the first infinite cell as the file has it."""
    wrong = np.isinf(table.values)
    if not wrong.any():
        return table
    row, column = divmod(int(wrong.argmax()), wrong.shape[1])
    place = f"row {row + 1} (counting from 1)"
    raise _refuse(file, cells(row, column), table.columns[column], place)


# --- csv ------------------------------------------------------------------------------------------
# Python's own reader and float(): pandas would be about as fast at exact parsing, but cannot say on
# which line of the file a cell stands, and pads ragged rows.


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, and the line on which each ends."""
    with _decoding(file), file.open(newline="", encoding="utf-8-sig") as stream:
        # Strict: text after a closing quote would be taken for more of the cell.
        reader = csv.reader(_without_nul(stream), skipinitialspace=True, strict=True)
        yield from ((reader.line_num, row) for row in reader if row)


def _without_nul(lines: Iterable[str]) -> Iterator[str]:
    """Lines of text; a NUL in one is damage, or another encoding, which UTF-8 may pass for."""
    for i, line in enumerate(lines, start=1):
        if "\0" in line:
            raise ValueError(f"a NUL on line {i}, which is not UTF-8's or not text")
        yield line


def _read_csv(file: Path) -> Table:
    rows = _csv_rows(file)
    _, header = next(rows, (0, []))
    _check_header(file, header)
    numbers = array("d")  # eight bytes a cell, where a list of floats takes four times as many
    texts = _Texts(file, header)
    for row, (line, cells) in enumerate(rows, start=1):
        numbers.extend(_csv_numbers(numbers, texts, cells, f"data row {row} (line {line})"))
    values = np.array(numbers, dtype=np.float64).reshape(-1, len(header))
    categories = {}
    for i, places in texts.columns.items():
        values[:, i], categories[header[i]] = _alphabetical(values[:, i], list(places))
    return Table(file.stem, values, tuple(header), categories=categories)


class _Texts:
    """The texts in a file's columns, each with its number, in the order of their coming."""

    def __init__(self, file: Path, header: Sequence[str]) -> None:
        self.file, self.header = file, header
        self.columns: dict[int, dict[str, float]] = {}

    def number(self, i: int, cell: str, place: str) -> float:
        """The number of the text in a cell of column i."""
        known = self.columns.setdefault(i, {})
        number = known.setdefault(cell.strip(), float(len(known)))
        if len(known) > MOST:
            raise too_many(self.file, self.header[i], place)
        return number


def _alphabetical(numbers: Array, texts: Sequence[str]) -> tuple[Array, tuple[str, ...]]:
    """Numbers of categories, and what they stand for, by the texts' alphabet; NaN stays."""
    order = sorted(range(len(texts)), key=lambda place: texts[place])
    ranks = np.empty(len(texts))
    ranks[order] = np.arange(len(texts))
    found = numbers.copy()
    there = ~np.isnan(numbers)
    found[there] = ranks[numbers[there].astype(np.int64)]
    return found, tuple(texts[place] for place in order)


def _check_header(file: Path, header: Sequence[str]) -> None:
    if not header:
        raise ValueError(
            f"Expected a header and rows in {file}; got an empty file: write it again."
        )
    if all(isfinite(_number(cell)) for cell in header):
        raise ValueError(
            f"Expected a header in {file}; got only numbers, {', '.join(header)[:40]}: "
            "put the columns' names on the first line."
        )


def _csv_numbers(
    above: Sequence[float], texts: _Texts, cells: list[str], place: str
) -> list[float]:
    """The numbers of a row, and of its texts, beneath those that are `above`."""
    file, header = texts.file, texts.header
    if len(cells) != len(header):
        raise ValueError(
            f"Expected {len(header)} cells in each row of {file}, as in its header; "
            f"got {len(cells)} at {place}: mend that row."
        )
    numbers = [_number(cell) for cell in cells]
    for i, (cell, number) in enumerate(zip(cells, numbers, strict=True)):
        if isnan(number):
            if cell.strip().lower() in GAPS:
                continue
            amid = i not in texts.columns and not all(map(isnan, above[i :: len(header)]))
            if amid or MISWRITTEN.fullmatch(cell):
                raise _refuse(file, cell, header[i], place)
            numbers[i] = texts.number(i, cell, place)
        elif i in texts.columns:
            raise ValueError(
                f"Expected text in {file}, as above; got {cell!r} in column {header[i]!r} at "
                f"{place}: correct it, or write numbers alone."
            )
        elif isinf(number):
            raise _refuse(file, cell, header[i], place)
    return numbers


def _number(cell: str) -> float:
    """Read a cell; NaN for text. float() alone would also take 2024_05 as 202405."""
    try:
        return float("nan") if "_" in cell else float(cell)
    except ValueError:
        return BOOLEANS.get(cell.strip().lower(), float("nan"))


def _write_csv(stream: IO[bytes], table: Table, whole: Collection[str]) -> None:
    _check_header(Path(f"{table.name}.csv"), table.columns)
    frame = table_frame(table, whole)
    frame.to_csv(stream, index=False, na_rep="nan", lineterminator="\n")


# --- npy and npz ----------------------------------------------------------------------------------


def _read_npy(file: Path) -> Table:
    with _decoding(file):
        # Copy on write: nothing is read until it is used, and nothing done to it reaches the file.
        values = np.lib.format.open_memmap(file, mode="c")
    return _from_array(file, values)


def _read_npz(file: Path, member: str) -> Table:
    with _decoding(file), file.open("rb") as stream:
        archive = dict(np.load(stream, allow_pickle=False))
        foreign = [name for name, held in archive.items() if not isinstance(held, np.ndarray)]
        if foreign:
            raise ValueError(f"{foreign[0]} in it is no array")
        names = _names(archive.pop(NAMES, None))
    if not member and len(archive) == 1:
        member = next(iter(archive))
    if member not in archive:
        near = ", ".join(closest(member, archive)) if member else ", ".join(archive)
        got = f"no array {member!r}" if member else f"{len(archive)} arrays"
        advice = f"choose from {near}" if archive else "write it again"
        raise ValueError(f"Expected {file}:ARRAY with an array it holds; got {got}: {advice}.")
    return _from_array(file, archive[member], names)


def _names(found: NDArray[Any] | None) -> tuple[str, ...] | None:
    """The columns' names that an archive holds; None for none."""
    if found is None or found.ndim != 1 or found.dtype.kind not in "US":
        return None
    return tuple(map(str, found.astype(str)))


def _from_array(file: Path, values: NDArray[Any], columns: tuple[str, ...] | None = None) -> Table:
    if values.ndim not in (1, 2):
        raise ValueError(
            f"Expected one or two dimensions in {file}; got shape {values.shape}: "
            "reshape to (rows, columns)."
        )
    matrix = values[:, None] if values.ndim == 1 else values
    if columns is None or len(columns) != matrix.shape[1]:
        columns = tuple(f"x{i}" for i in range(matrix.shape[1]))
    if matrix.dtype.kind not in "buif":
        got = matrix.ravel()[0] if matrix.size else matrix.dtype
        raise _refuse(file, str(got), columns[0], "row 1")
    with np.errstate(over="ignore"):  # longer numbers than float64: infinite, and refused as such
        table = Table(file.stem, np.asarray(matrix, dtype=np.float64), columns)
    return _refuse_first(file, lambda *cell: table.values[cell], table)


def _write_npz(stream: IO[bytes], table: Table, whole: Collection[str]) -> None:
    np.savez(stream, values=table.values, columns=np.array(table.columns))


# --- parquet --------------------------------------------------------------------------------------


def _read_parquet(file: Path) -> Table:
    with _decoding(file):
        frame = pd.read_parquet(file)
    table = replace(frame_table(frame, os.fspath(file)), name=file.stem)
    return _refuse_first(file, lambda *cell: frame.iat[cell], table)


def _write_parquet(stream: IO[bytes], table: Table, whole: Collection[str]) -> None:
    table_frame(table, whole).to_parquet(stream, index=False)


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".npy": _read_npy,
    ".parquet": _read_parquet,
}
WRITERS: dict[str, Callable[[IO[bytes], Table, Collection[str]], None]] = {
    ".csv": _write_csv,
    ".npy": lambda stream, table, _: np.save(stream, table.values),
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
