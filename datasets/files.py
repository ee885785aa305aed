"""Tables in files: text, .xlsx, .npy, .npz and .parquet, read strictly and written atomically."""

import errno
import os
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, get_args
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.cells import parsed_table
from cnf.datasets.column_types import ColumnType
from cnf.datasets.delimited import check_header, read_delimited
from cnf.datasets.excel import read_excel
from cnf.datasets.frames import column_names, frame_table, table_frame
from cnf.datasets.reading import (
    ReadOptions,
    cell_error,
    decoding,
    drop_option,
    file_ending,
    table_name,
)
from cnf.datasets.table import Table, closest

TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
ENDINGS = ".csv, .tsv, .txt (or .csv.gz, …), .xlsx, .npy, .npz, .npz:ARRAY or .parquet"
ARCHIVE_ENDING = ".npz"
NAMES_ARRAY = "columns"  # array of an archive with the names of the others' columns
REGULAR_FILE = "a file"
NO_FILE = "no such file"

Missing = Literal["refuse", "drop", "model", "keep"]
MISSING: tuple[Missing, ...] = ("refuse", "drop", "model")
"""Treatments of missing values: refuse the table, drop their rows, or model them as gaps."""


def read_table(
    path: str | os.PathLike[str],
    missing: Missing = "refuse",
    options: ReadOptions | None = None,
) -> Table:
    r"""Read a table of numbers, booleans, dates and categories from a file.

    - `.csv`, `.tsv` and `.txt`, also with `.gz`: text with a header. The separator (comma,
      semicolon, tab or bar), the decimal mark, marks of thousands and the encoding (UTF-8, UTF-16
      or Windows-1252) are found out. Blank lines and comments, which begin with "#", are skipped.
    - `.xlsx`: the first sheet, by openpyxl.
    - `.npy`: a one- or two-dimensional array, mapped into memory; its columns are x0, x1, …
    - `.npz`, or `FILE.npz:ARRAY` where it holds several arrays. An array of text called `columns`
      names the columns. Pickled objects are never loaded.
    - `.parquet`.

    In text, a column of whole numbers is int64 and other numbers are float64; True and False, in
    any case, are booleans; digits with leading zeros are text. Missing values are NaN, null and, in
    text, cells that pandas takes for them, and `?`, `.` and `-` among numbers and dates. A row
    index that pandas wrote without a name is left out, and so are empty columns without a name.

    Args:
        path: The file; its ending determines the format.
        missing: Treatment of missing values: `"refuse"` the table, `"drop"` their rows, or `"keep"`
            them as NaN, also for a model of gaps (`"model"`).
        options: Choices about separators and columns; those that are None are found out.

    Returns:
        The table, named as the file without the ending. Its note says what was found out where that
        is not the plain case.

    Raises:
        ValueError: If there is no such file or array, it cannot be read, or it has no rows; if it
            holds infinity, text among numbers, or missing values (the message says where); if the
            separator or the decimal mark is not clear.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "pairs.csv"
        ...     _ = file.write_text("x;y\n1;2,5\n3;4,5\n")
        ...     table = read_table(file)
        >>> table.name, table.columns, table.values.tolist(), table.notes
        ('pairs', ('x', 'y'), [[1.0, 2.5], [3.0, 4.5]], ("separated by ';', decimal comma",))
    """
    options = options or ReadOptions()
    stem, separator, member = os.fspath(path).partition(f"{ARCHIVE_ENDING}:")
    file = Path(stem + ARCHIVE_ENDING if separator else stem)
    ending = file_ending(file)
    got = path_kind(file)
    if got != REGULAR_FILE:
        raise ValueError(f"Expected a file at {file}; got {got}: check the path.")
    if ending not in (*READERS, ARCHIVE_ENDING):
        raise ValueError(f"Expected a path that ends in {ENDINGS}; got {file}: convert the file.")
    if ending not in (*TEXT_ENDINGS, ".xlsx"):
        options.check_text(file)
    if ending == ARCHIVE_ENDING:
        table = _read_npz(file, member, options)
    else:
        table = READERS[ending](file, options)
    if not table.values.size:
        raise _empty_table(file)
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


def write_table(path: str | os.PathLike[str], table: Table) -> None:
    """Write a table to a file such that `read_table` returns the same float64 numbers.

    The file is written atomically: under a temporary name in the same folder, then renamed.

    Args:
        path: The file; its ending, .csv, .npy, .npz or .parquet, determines the format. An .npy
            file has no names; an .npz file holds `columns` and `values`.
        table: The table; .csv and .parquet have its values in the columns' types. In .csv a missing
            value is nan among numbers, and an empty cell in other columns.

    Raises:
        ValueError: If the path cannot be written to, or all names of columns are numbers in .csv.
        OSError: If writing fails, as on a full disk.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Table("scores", np.array([[0.5], [0.1]]), ("log_prob",))
        ...     write_table(Path(folder) / "scores.npz", table)
        ...     read_table(Path(folder) / "scores.npz").values.tolist()
        [[0.5], [0.1]]
    """
    check_writable(path)
    file = Path(path)
    temporary = _temporary(file)
    try:
        with temporary.open("wb") as stream:
            WRITERS[file.suffix.lower()](stream, table)
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


def _empty_table(file: Path) -> ValueError:
    return ValueError(f"Expected rows in {file}; got an empty table: check how it was written.")


def _without_missing(file: Path, table: Table, missing: Missing) -> Table:
    if missing not in get_args(Missing):
        raise ValueError(
            f"Expected missing to be one of {', '.join(get_args(Missing))}; got {missing!r}: "
            "choose one."
        )
    absent = np.isnan(table.values)
    if missing in ("keep", "model") or not absent.any():
        return table
    complete = np.asarray(~absent.any(1))
    if missing == "drop" and complete.any():
        dropped = len(complete) - int(complete.sum())
        return replace(table, values=table.values[complete], dropped=dropped)
    counts = [each for each in zip(absent.sum(0).tolist(), table.columns, strict=True) if each[0]]
    columns = [f"{count} in column {column!r}" for count, column in counts]
    drop = drop_option(*(column for _, column in counts[:10]))
    more = f" and {len(columns) - 10} more columns" if len(columns) > 10 else ""
    rows = f"rows without any: {int(complete.sum())} of {len(complete)}"
    raise ValueError(
        f"Expected no missing values in {file}; got {', '.join(columns[:10])}{more}, the first in "
        f"row {int(complete.argmin()) + 1} ({rows}): model them with --missing model, drop their "
        f"rows with --missing drop, fill them, or leave columns out ({drop})."
    )


# --- text and Excel -------------------------------------------------------------------------------


def _read_text(file: Path, options: ReadOptions) -> Table:
    return parsed_table(read_delimited(file, options), options)


def _read_excel(file: Path, options: ReadOptions) -> Table:
    return parsed_table(read_excel(file, options), options)


def _write_csv(stream: IO[bytes], table: Table) -> None:
    check_header(Path(f"{table.name}.csv"), table.columns)
    frame = table_frame(table)
    for name, kind in table.types.items():
        if kind.family == "boolean" and kind.format:
            true, false = kind.format.split("/")
            frame[name] = frame[name].astype(object).map({True: true, False: false})
    for name in table.columns:
        gaps = frame[name].isna()
        number = table.types.get(name, ColumnType()).family in ("real", "whole")
        if gaps.any() and (name in table.categories or not number):
            frame[name] = frame[name].astype(str).mask(gaps, "")  # else it would read as text
    frame.to_csv(stream, index=False, na_rep="nan", lineterminator="\n")


# --- npy and npz ----------------------------------------------------------------------------------


def _read_npy(file: Path, options: ReadOptions) -> Table:
    with decoding(file):
        # Copy on write: rows are read on use, and changes do not reach the file.
        values = np.lib.format.open_memmap(file, mode="c")
    return _from_array(file, values, options)


def _read_npz(file: Path, member: str, options: ReadOptions) -> Table:
    with decoding(file), file.open("rb") as stream:
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
    texts = names.astype(str).tolist() if is_text else ()
    return _from_array(file, archive[member], options, texts)


def _from_array(
    file: Path, values: NDArray[Any], options: ReadOptions, names: Sequence[str] = ()
) -> Table:
    if values.ndim not in (1, 2):
        raise ValueError(
            f"Expected one or two dimensions in {file}; got shape {values.shape}: "
            "reshape to (rows, columns)."
        )
    if not values.size:
        raise _empty_table(file)
    matrix = values[:, None] if values.ndim == 1 else values
    named = len(names) == matrix.shape[1]
    columns = list(names) if named else [f"x{i}" for i in range(matrix.shape[1])]
    if matrix.dtype.kind not in "buif":
        raise cell_error(file, str(matrix.ravel()[0]), columns[0], "row 1")
    kept = options.kept_columns(file, columns)
    if len(kept) < len(columns):  # indexing would copy an array that is mapped into memory
        matrix, columns = matrix[:, kept], [columns[i] for i in kept]
    with np.errstate(over="ignore"):  # numbers beyond float64 become infinite, and are refused
        table = Table(table_name(file), np.asarray(matrix, dtype=np.float64), tuple(columns))
    wrong = np.isinf(table.values)
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), wrong.shape[1])
        got = float(table.values[row, column])
        raise cell_error(file, got, columns[column], f"row {row + 1} (counting from 1)")
    return table


def _write_npz(stream: IO[bytes], table: Table) -> None:
    np.savez(stream, values=table.values, columns=np.array(table.columns))


# --- parquet --------------------------------------------------------------------------------------


def _read_parquet(file: Path, options: ReadOptions) -> Table:
    import pandas as pd  # here, since it takes long to import
    from pyarrow.parquet import read_schema

    with decoding(file):
        stored = read_schema(file).names
        dropped = [name for name in stored if name in options.drop]
        parsed = [name for name in stored if name not in dropped] if dropped else None
        frame = pd.read_parquet(file, columns=parsed)
    kept = options.kept_columns(file, [*column_names(frame), *dropped])
    table = frame_table(frame.iloc[:, kept], os.fspath(file), options.types)
    return replace(table, name=table_name(file))


def _write_parquet(stream: IO[bytes], table: Table) -> None:
    table_frame(table).to_parquet(stream, index=False)


READERS: dict[str, Callable[[Path, ReadOptions], Table]] = {
    **dict.fromkeys(TEXT_ENDINGS, _read_text),
    ".xlsx": _read_excel,
    ".npy": _read_npy,
    ".parquet": _read_parquet,
}
WRITERS: dict[str, Callable[[IO[bytes], Table], None]] = {
    ".csv": _write_csv,
    ".npy": lambda stream, table: np.save(stream, table.values),
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
