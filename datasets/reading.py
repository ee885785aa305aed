"""Choices and errors that all readers of tables share."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from cnf.datasets.column_types import ColumnType
from cnf.datasets.table import Table, closest

DECIMAL_MARKS = (".", ",")
THOUSANDS_MARKS = (",", ".", " ", "'")
COMPRESSED = ".gz"
MAX_SHOWN = 80  # characters of a cell
FINITE = "finite numbers"
TAB_NAMES = ("tab", "\\t")


@dataclass(frozen=True)
class ReadOptions:
    r"""The user's choices about how a file is read; the rest (None) is found out.

    Attributes:
        sep: The separator of cells in text files: one character, or `"tab"`.
        decimal: The decimal mark, a point or a comma.
        thousands: The mark between thousands: comma, point, space or apostrophe.
        encoding: Python's name of the encoding of a text file.
        na_values: Cells that are missing values, in addition to those that pandas takes for them.
        drop: Names of columns that are left out before anything is parsed.
        only: Names of columns of which those that are in the file are read; all where none is.
        types: A model's types of columns: its texts stay text, and its dates are counted from its
            origins.

    Raises:
        ValueError: If a choice is not one of those.

    Example:
        >>> ReadOptions(sep="tab", decimal=",").sep
        '\t'
    """

    sep: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    encoding: str | None = None
    na_values: Collection[str] = ()
    drop: Collection[str] = ()
    only: Collection[str] | None = None
    types: Mapping[str, ColumnType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sep in TAB_NAMES:
            object.__setattr__(self, "sep", "\t")
        if self.sep is not None and (len(self.sep) != 1 or self.sep in '"\r\n#'):
            raise ValueError(f"Expected sep to be one character, or tab; got {self.sep!r}")
        for name, marks in (("decimal", DECIMAL_MARKS), ("thousands", THOUSANDS_MARKS)):
            if (mark := getattr(self, name)) is not None and mark not in marks:
                known = " ".join(map(repr, marks))
                raise ValueError(f"Expected {name} to be one of {known}; got {mark!r}")
        if self.decimal and self.decimal == self.thousands:
            raise ValueError(
                f"Expected different marks of decimals and thousands; got {self.decimal!r} for both"
            )
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            raise ValueError(
                f"Expected an encoding that Python knows, such as cp1252; got {self.encoding!r}"
            ) from None

    def check_text(self, file: Path) -> None:
        """Raise a ValueError for choices about text for a file that holds no text.

        Example:
            >>> ReadOptions(sep=";").check_text(Path("rows.npy"))
            Traceback (most recent call last):
            ValueError: Expected no --sep with rows.npy, which is no text; got ';': leave it out.
        """
        for name in ("sep", "decimal", "thousands", "encoding", "na_values"):
            if given := getattr(self, name):
                raise ValueError(
                    f"Expected no --{name.replace('_', '-')} with {file}, which is no text; got "
                    f"{given!r}: leave it out."
                )

    def select(self, table: Table) -> Table:
        """Return the columns of a bundled table that are kept, after `check_text`."""
        file = Path(table.name)
        self.check_text(file)
        return table.select([table.columns[i] for i in self.kept_columns(file, table.columns)])

    def kept_columns(self, file: Path, names: Sequence[str]) -> list[int]:
        """Return the positions of the columns that are read, after checking `drop`."""
        name = table_name(file)
        for column in self.drop:
            if column not in names:
                near = ", ".join(closest(column, names))
                raise ValueError(
                    f"Expected --drop to name columns of {name}; got {column!r}: the closest names "
                    f"are {near}"
                )
        kept = [i for i, column in enumerate(names) if column not in self.drop]
        if names and not kept:
            raise ValueError(
                f"Expected --drop to leave a column of {name} to model; got all {len(names)} of "
                "them"
            )
        wanted = [i for i in kept if names[i] in (self.only or ())] or kept
        counts = Counter(names[i] for i in wanted)
        if repeated := [column for column, count in counts.items() if count > 1]:
            raise ValueError(
                f"Expected distinct column names in {file}; got {repeated} repeated: rename them, "
                f"or leave them out with {drop_option(repeated[0])}."
            )
        return wanted


def file_ending(file: Path) -> str:
    """Return a file's ending in lower case, `.csv.gz` rather than `.gz`."""
    compressed = file.suffix.lower() == COMPRESSED
    return "".join(file.suffixes[-2:] if compressed else [file.suffix]).lower()


def table_name(file: Path) -> str:
    """Return a file's name without its ending."""
    return file.name.removesuffix(file.name[len(file.name) - len(file_ending(file)) :])


def numbered_names(names: Sequence[str]) -> list[str]:
    """Return names of columns in which a blank one is `Unnamed: 0`, …, as pandas names it."""
    return [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(names)]


def drop_option(*columns: str) -> str:
    """Return the option that leaves columns out, as a shell takes it."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(columns)
    return f"--drop {quote(line.getvalue())}"


def cell_error(
    file: Path,
    cell: object,
    column: str,
    place: str,
    kind: str = FINITE,
    remedy: str = "correct it",
) -> ValueError:
    """Return the error for a cell that is not a number of the kind."""
    return ValueError(
        f"Expected {kind} in {file}; got {repr(cell)[:MAX_SHOWN]} in column {column!r} at {place}: "
        f"{remedy}, or leave the column out with {drop_option(column)}."
    )


@contextmanager
def decoding(file: Path) -> Iterator[None]:
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
            f"Expected a readable {file_ending(file)} file; got {file} ({reason}): write it again."
        ) from error
