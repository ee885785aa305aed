"""Tables in files: .csv, .npy, .npz and .parquet, read strictly and written atomically."""

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
from numpy.typing import ArrayLike, NDArray

from cnf.datasets.frames import MAX_CATEGORIES, frame_table, table_frame, too_many_categories
from cnf.datasets.table import Table, closest

ENDINGS = ".csv, .npy, .npz, .npz:ARRAY or .parquet"
ARCHIVE_ENDING = ".npz"
NAMES_ARRAY = "columns"  # array of an archive with the names of the others' columns
BOOLEAN_VALUES = {"true": 1.0, "false": 0.0}
# Formatted numbers: with commas, spaces or apostrophes, a Unicode minus, or a unit.
FORMATTED_NUMBER = re.compile(
    r"\s*[$€£¥]?[-+\u2212]?[$€£¥]?[\d_.,;'\u2019\s]*\d[\d_.,;'\u2019\s]*[%$€£¥]?\s*"
)
REGULAR_FILE = "a file"
NO_FILE = "no such file"
MISSING_TEXTS = ("", "na", "n/a", "nan", "null", "none")  # in lower case

Missing = Literal["refuse", "drop"]
MISSING: tuple[Missing, ...] = get_args(Missing)
"""Treatments of missing values: refuse the table, or drop their rows."""


def read_table(path: str | os.PathLike[str], missing: Missing = "refuse") -> Table:
    r"""Read a table of finite numbers and of categories from a file.

    - `.csv`: UTF-8, separated by commas, with a header; blank lines are skipped.
    - `.npy`: a one- or two-dimensional array, mapped into memory; its columns are x0, x1, …
    - `.npz`, or `FILE.npz:ARRAY` where it holds several arrays. An array of text called `columns`
      names the columns. Pickled objects are never loaded.
    - `.parquet`.

    Integers become floats, and so do booleans, as 0 and 1. A column of .csv or .parquet that holds
    text and no numbers is categorical: its values are the categories' codes in alphabetical order,
    from 0. NaN and null are missing values, and so are cells of .csv that are empty or contain na,
    n/a, nan, null or none, in any case.

    Args:
        path: The file; its ending determines the format.
        missing: Treatment of missing values: `"refuse"` the table, or `"drop"` their rows.

    Returns:
        The table, named as the file without the ending.

    Raises:
        ValueError: If there is no such file or array, it cannot be read, or it has no rows; if it
            holds infinity, text among numbers, or missing values (the message says where); if a
            column has more than a hundred different texts.

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
    stem, separator, member = os.fspath(path).partition(f"{ARCHIVE_ENDING}:")
    file = Path(stem + ARCHIVE_ENDING if separator else stem)
    ending = file.suffix.lower()
    got = path_kind(file)
    if got != REGULAR_FILE:
        raise ValueError(f"Expected a file at {file}; got {got}: check the path.")
    if ending not in WRITERS:
        raise ValueError(f"Expected a path that ends in {ENDINGS}; got {file}: convert the file.")
    table = _read_npz(file, member) if ending == ARCHIVE_ENDING else READERS[ending](file)
    if not table.values.size:
        raise ValueError(f"Expected rows in {file}; got an empty table: check how it was written.")
    return _without_missing(file, table, missing)


def check_writable(path: str | os.PathLike[str], endings: Collection[str] | None = None) -> None:
    """Check in advance that a path can be written to.

    Args:
        path: The future file.
        endings: Permitted endings; those that `write_table` supports when None.

    Raises:
        ValueError: If its ending is not permitted, it is a folder, or its folder is not writable.
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
    got = path_kind(file)
    if got not in (REGULAR_FILE, NO_FILE):
        raise ValueError(f"Expected a path for a file; got {got} at {file}: choose another name.")
    probe = _temporary(file)
    try:  # permission bits are not enough: file systems may be read-only, and root ignores them
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno == errno.ENOSPC:  # not a user's mistake
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
    """Write a table to a file such that `read_table` returns the same float64 numbers.

    The file is written atomically: under a temporary name in the same folder, then renamed.

    Args:
        path: The file; its ending, .csv, .npy, .npz or .parquet, determines the format. An .npy
            file has no names; an .npz file holds `columns` and `values`.
        values: Real numbers of shape (rows, columns), or (rows,) for one column.
        columns: Names of the columns.
        categories: Categories of columns of codes, stored as text in .csv and .parquet.
        whole: Names of columns that are stored as integers in .csv and .parquet.

    Raises:
        ValueError: If the path cannot be written to, or the names do not fit the values.
        OSError: If writing fails, as on a full disk.

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
    categorical = {name: tuple(texts) for name, texts in (categories or {}).items()}
    table = Table(file.stem, matrix, tuple(columns), categories=categorical)
    temporary = _temporary(file)
    try:
        with temporary.open("wb") as stream:
            WRITERS[file.suffix.lower()](stream, table, whole)
        temporary.replace(file)
    except OSError as error:  # NumPy's errors do not name the file
        raise OSError(f"Could not write {file} ({error}): is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def path_kind(path: Path) -> str:
    """Describe a path in words: `REGULAR_FILE`, `NO_FILE`, or the obstacle to a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return NO_FILE
    except OSError as error:
        return f"{error.strerror}".lower()
    except ValueError as error:  # not a path
        return str(error)
    if stat.S_ISREG(mode):
        return REGULAR_FILE
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"


def _temporary(file: Path) -> Path:
    return file.with_name(f".{uuid4().hex}.tmp")


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    """Turn a library's error about a damaged file into one line; wrap only its calls."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(
            f"{file} does not fit into memory, or is damaged ({error}): make it smaller, or write "
            "it again."
        ) from error
    except Exception as error:  # zipfile, zlib, struct and Arrow have their own errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"Expected a readable {file.suffix} file; got {file} ({reason}): write it again."
        ) from error


def _without_missing(file: Path, table: Table, missing: Missing) -> Table:
    if missing not in MISSING:
        raise ValueError(
            f"Expected missing to be one of {', '.join(MISSING)}; got {missing!r}: choose one."
        )
    absent = np.isnan(table.values)
    if not absent.any():
        return table
    complete = np.asarray(~absent.any(1))
    if missing == "drop" and complete.any():
        dropped = len(complete) - int(complete.sum())
        return Table(table.name, table.values[complete], table.columns, dropped, table.categories)
    counts = zip(absent.sum(0).tolist(), table.columns, strict=True)
    columns = [f"{count} in column {column!r}" for count, column in counts if count]
    more = f" and {len(columns) - 10} more columns" if len(columns) > 10 else ""
    rows = f"rows without any: {int(complete.sum())} of {len(complete)}"
    raise ValueError(
        f"Expected no missing values in {file}; got {', '.join(columns[:10])}{more}, the first in "
        f"row {int(complete.argmin()) + 1} ({rows}): fill them, or drop their rows, as train and "
        "evaluate do with --missing drop."
    )


def _cell_error(file: Path, value: object, column: str, place: str) -> ValueError:
    plain = value.item() if isinstance(value, np.generic) else value
    return ValueError(
        f"Expected finite numbers in {file}; got {plain!r} in column {column!r} at {place}: "
        "correct or drop it."
    )


def _check_finite(file: Path, cells: Callable[[int, int], object], table: Table) -> Table:
    wrong = np.isinf(table.values)
    if not wrong.any():
        return table
    row, column = divmod(int(wrong.argmax()), wrong.shape[1])
    place = f"row {row + 1} (counting from 1)"
    raise _cell_error(file, cells(row, column), table.columns[column], place)


# --- csv ------------------------------------------------------------------------------------------
# Python's own reader and float(): pandas is about as fast at exact parsing, but cannot report the
# line of a cell, and pads ragged rows.


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    with _decoding(file), file.open(newline="", encoding="utf-8-sig") as stream:
        # Strict, since text after a closing quote would become part of the cell.
        reader = csv.reader(_without_nul(stream), skipinitialspace=True, strict=True)
        yield from ((reader.line_num, row) for row in reader if row)


def _without_nul(lines: Iterable[str]) -> Iterator[str]:
    for i, line in enumerate(lines, start=1):
        if "\0" in line:
            raise ValueError(f"a NUL on line {i}, which is not UTF-8's or not text")
        yield line


def _read_csv(file: Path) -> Table:
    rows = _csv_rows(file)
    _, header = next(rows, (0, []))
    _check_header(file, header)
    numbers = array("d")  # eight bytes a cell, where a list of floats takes four times as many
    codes: dict[int, dict[str, float]] = {}  # of texts by column, in order of first appearance
    for row, (line, cells) in enumerate(rows, start=1):
        place = f"data row {row} (line {line})"
        if len(cells) != len(header):
            raise ValueError(
                f"Expected {len(header)} cells in each row of {file}, as in its header; "
                f"got {len(cells)} at {place}: correct that row."
            )
        numbers.extend(_csv_numbers(file, header, numbers, codes, cells, place))
    values = np.array(numbers, dtype=np.float64).reshape(-1, len(header))
    categories = {}
    for i, known in codes.items():
        texts = categories[header[i]] = tuple(sorted(known))
        ranks = np.argsort([known[text] for text in texts])  # by code, the alphabetical place
        here = ~np.isnan(values[:, i])
        values[here, i] = ranks[values[here, i].astype(np.int64)]
    return Table(file.stem, values, tuple(header), categories=categories)


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
    file: Path,
    header: Sequence[str],
    above: Sequence[float],
    codes: dict[int, dict[str, float]],
    cells: Sequence[str],
    place: str,
) -> list[float]:
    """Return the numbers of a row and the codes of its texts, given the values `above` it."""
    numbers = [*map(_number, cells)]
    for i, (cell, number) in enumerate(zip(cells, numbers, strict=True)):
        if isnan(number):
            if cell.strip().lower() in MISSING_TEXTS:
                continue
            has_numbers = i not in codes and not all(map(isnan, above[i :: len(header)]))
            if has_numbers or FORMATTED_NUMBER.fullmatch(cell):
                raise _cell_error(file, cell, header[i], place)
            known = codes.setdefault(i, {})
            numbers[i] = known.setdefault(cell.strip(), float(len(known)))
            if len(known) > MAX_CATEGORIES:
                raise too_many_categories(file, header[i], place)
        elif i in codes:
            raise ValueError(
                f"Expected text in {file}, as above; got {cell!r} in column {header[i]!r} at "
                f"{place}: correct it, or write numbers alone."
            )
        elif isinf(number):
            raise _cell_error(file, cell, header[i], place)
    return numbers


def _number(cell: str) -> float:
    """Parse a cell; return NaN for text. float() alone would parse 2024_05 as 202405."""
    try:
        return float("nan") if "_" in cell else float(cell)
    except ValueError:
        return BOOLEAN_VALUES.get(cell.strip().lower(), float("nan"))


def _write_csv(stream: IO[bytes], table: Table, whole: Collection[str]) -> None:
    _check_header(Path(f"{table.name}.csv"), table.columns)
    frame = table_frame(table, whole)
    frame.to_csv(stream, index=False, na_rep="nan", lineterminator="\n")


# --- npy and npz ----------------------------------------------------------------------------------


def _read_npy(file: Path) -> Table:
    with _decoding(file):
        # Copy on write: rows are read on use, and changes do not reach the file.
        values = np.lib.format.open_memmap(file, mode="c")
    return _from_array(file, values)


def _read_npz(file: Path, member: str) -> Table:
    with _decoding(file), file.open("rb") as stream:
        archive = dict(np.load(stream, allow_pickle=False))
        foreign = [name for name, value in archive.items() if not isinstance(value, np.ndarray)]
        if foreign:
            raise ValueError(f"{foreign[0]} in it is no array")
    names = archive.pop(NAMES_ARRAY, np.array(()))
    is_text = names.ndim == 1 and names.dtype.kind in "US"
    if not member and len(archive) == 1:
        member = next(iter(archive))
    if member not in archive:
        near = ", ".join(closest(member, archive)) if member else ", ".join(archive)
        got = f"no array {member!r}" if member else f"{len(archive)} arrays"
        advice = f"choose from {near}" if archive else "write it again"
        raise ValueError(f"Expected {file}:ARRAY with an array it holds; got {got}: {advice}.")
    return _from_array(file, archive[member], names.astype(str).tolist() if is_text else ())


def _from_array(file: Path, values: NDArray[Any], names: Sequence[str] = ()) -> Table:
    if values.ndim not in (1, 2):
        raise ValueError(
            f"Expected one or two dimensions in {file}; got shape {values.shape}: "
            "reshape to (rows, columns)."
        )
    matrix = values[:, None] if values.ndim == 1 else values
    named = len(names) == matrix.shape[1]
    columns = tuple(names) if named else tuple(f"x{i}" for i in range(matrix.shape[1]))
    if matrix.dtype.kind not in "buif":
        got = matrix.ravel()[0] if matrix.size else matrix.dtype
        raise _cell_error(file, str(got), columns[0], "row 1")
    with np.errstate(over="ignore"):  # numbers beyond float64 become infinite, and are refused
        table = Table(file.stem, np.asarray(matrix, dtype=np.float64), columns)
    return _check_finite(file, lambda *cell: table.values[cell], table)


def _write_npz(stream: IO[bytes], table: Table, whole: Collection[str]) -> None:
    np.savez(stream, values=table.values, columns=np.array(table.columns))


# --- parquet --------------------------------------------------------------------------------------


def _read_parquet(file: Path) -> Table:
    import pandas as pd  # here, since it takes long to import

    with _decoding(file):
        frame = pd.read_parquet(file)
    table = replace(frame_table(frame, os.fspath(file)), name=file.stem)
    return _check_finite(file, lambda *cell: frame.iat[cell], table)


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
