"""Independent readers: what the bytes of a table hold, without this project's own code."""

import io
import re
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet

LARGEST = np.finfo(np.float32).max
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # of any script
BOOLEANS = {"true": 1.0, "false": 0.0}

Truth = tuple[list[str], dict[str, np.ndarray]]  # all names in order, and the columns of numbers


def records(text: str) -> list[list[str]] | None:
    """The cells of a CSV by RFC 4180, spaces before a cell left out; None where it is none."""
    found: list[list[str]] = []
    row: list[str] = []
    rest = text
    while rest:
        cell, rest = _cell(rest.lstrip(" "))
        if cell is None:
            return None
        row.append(cell)
        if rest.startswith(","):
            rest = rest[1:] or "\n"  # a last cell, which is empty
            continue
        if row != [""]:
            found.append(row)
        row, rest = [], rest[1:]
    return found


def _cell(text: str) -> tuple[str | None, str]:
    """The first cell and what comes after it; None where a quote is not closed at its end."""
    if not text.startswith('"'):
        cell = re.match(r"[^,\r\n]*", text)[0]
        return cell, text[len(cell) :]
    match = re.match(r'"((?:[^"]|"")*)"(?=[,\r\n]|$)', text)
    return (match[1].replace('""', '"'), text[match.end() :]) if match else (None, "")


def number(cell: str) -> float | None:
    """A cell's number; None where it has none."""
    told = cell.strip()
    return float(told) if NUMBER.fullmatch(told) else BOOLEANS.get(told.lower())


def csv_truth(content: bytes) -> Truth | None:
    """What a CSV holds, the columns of numbers alone; None where it holds no table."""
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError:
        return None
    rows = None if "\0" in text else records(text)
    if not rows or len(rows) < 2 or len({len(row) for row in rows}) > 1:
        return None
    header, *body = rows
    if len(set(header)) < len(header) or not all(name.strip() for name in header):
        return None
    if all(number(name) is not None for name in header):
        return None
    columns = {}
    for name, *cells in zip(header, *body, strict=True):
        numbers = [number(cell) for cell in cells]
        if None not in numbers:
            columns[name] = np.array(numbers, dtype=np.float64)
        elif any(each is not None for each in numbers) or "" in cells:
            return None
    return header, columns


def loaded(content: bytes) -> Any:
    """What NumPy makes of a file, whatever it warns of, such as a header like Python 2's."""
    with warnings.catch_warnings(action="ignore"):
        return np.load(io.BytesIO(content), allow_pickle=False)


def npy_truth(content: bytes) -> Truth | None:
    """What a .npy file holds."""
    try:
        return array_truth(loaded(content))
    except Exception:
        return None


def npz_truth(content: bytes) -> Truth | None:
    """What a .npz file with one array holds."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {
                name.removesuffix(".npy"): np.lib.format.read_array(
                    io.BytesIO(archive.read(name)), allow_pickle=False
                )
                for name in archive.namelist()
            }
    except Exception:
        return None
    names = arrays.pop("columns", None)
    if len(arrays) != 1:
        return None
    (values,) = arrays.values()
    told = None if names is None or names.ndim != 1 or names.dtype.kind not in "US" else names
    return array_truth(values, told)


def array_truth(values: np.ndarray, names: np.ndarray | None = None) -> Truth | None:
    """What an array holds."""
    if not isinstance(values, np.ndarray) or values.ndim not in (1, 2) or not values.size:
        return None
    if values.dtype.kind not in "buif":
        return None
    matrix = values.reshape(len(values), -1)
    named = names is not None and len(names) == matrix.shape[1]
    header = list(map(str, names.astype(str))) if named else []
    header = header or [f"x{i}" for i in range(matrix.shape[1])]
    with np.errstate(over="ignore", invalid="ignore"):
        columns = dict(zip(header, matrix.T.astype(np.float64), strict=True))
    return (header, columns) if len(columns) == len(header) else None


def numbered(table: pyarrow.Table) -> bool:
    """Whether a data frame's columns were called by numbers, as far as it says so."""
    try:
        labels = table.schema.pandas_metadata["column_indexes"]
        return labels[0]["pandas_type"] == "int64"
    except Exception:
        return False


def parquet_truth(content: bytes) -> Truth | None:
    """What a .parquet file holds, by Arrow alone."""
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read()
        names = [f"x{name}" if numbered(table) else name for name in table.column_names]
        cells = [column.to_pylist() for column in table.columns]
    except Exception:
        return None
    columns = {
        name: np.array(column, dtype=np.float64)
        for name, column in zip(names, cells, strict=True)
        if all(isinstance(cell, int | float) for cell in column)
    }
    return (names, columns) if table.num_rows else None


TRUTHS = {".csv": csv_truth, ".npy": npy_truth, ".npz": npz_truth, ".parquet": parquet_truth}


def selected(truth: Truth | None, wanted: Sequence[str]) -> np.ndarray | None:
    """The columns of a model in single precision's range; by place where no name is there."""
    if truth is None:
        return None
    header, columns = truth
    if not set(wanted) & set(header) and len(wanted) == len(header):
        ours, theirs = ([name.strip().lower() for name in names] for names in (wanted, header))
        if any(name in ours and name != own for name, own in zip(theirs, ours, strict=True)):
            return None  # the same names, but for their letters' case, in another order
        wanted = header
    if not all(name in columns for name in wanted):
        return None
    found = np.stack([columns[name] for name in wanted], 1)
    return found if np.isfinite(found).all() and np.abs(found).max() <= LARGEST else None
