"""Text files of cells: their encoding, separator and comments are found out."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from cnf.datasets.cells import GAP_TEXTS, RawTable, is_number
from cnf.datasets.reading import (
    COMPRESSED,
    ReadOptions,
    decoding,
    file_ending,
    numbered_names,
)

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'", " ": "spaces"}
FOUND_SEPARATORS = (",", ";", "\t", "|")  # spaces stand in names and numbers too often
SAMPLE_BYTES = 2**20
MAX_CELL_CHARACTERS = 2**31 - 1  # in place of the csv module's 131,072; C's long limits it
SAMPLE_ROWS = 1000
CHUNK_ROWS = 20_000
MIN_COUNTED_ROWS = 10  # the first cells of fewer may be 1, 2, … by chance
BYTE_ORDER_MARKS = (  # those of UTF-32 begin as those of UTF-16 do
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
PLAIN_ENCODINGS = ("utf-8", "utf-8-sig")
ENCODING_NAMES = {"cp1252": "Windows-1252"}
DECLARED = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)  # Excel's first line
UTF8_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")
# Bytes that no Western text in Windows-1252 has: control characters, and words of accents alone.
FOREIGN = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]|[\xc0-\xff]{4}")


@dataclass(frozen=True)
class Layout:
    """The layout of a text file."""

    sep: str
    names: tuple[str, ...]
    named_by_comment: bool = False  # the names stand in a comment, as numpy.savetxt writes them
    hashed: bool = False  # the texts of the first column begin with "#"

    def is_comment(self, line: str) -> bool:
        """Return whether a line that begins with "#" is no row."""
        cells = next(csv.reader([line], delimiter=self.sep, skipinitialspace=True))
        if cells[0].strip() in GAP_TEXTS:
            return False
        is_row = self.hashed and not line.startswith("# ") and len(cells) == len(self.names)
        return not is_row


def read_delimited(file: Path, options: ReadOptions) -> RawTable:
    """Read the cells of a text file, in the columns that the options keep.

    Raises:
        ValueError: If it is not text in a known encoding, its separator is not clear, a row has
            too few or too many cells, or quotes do not match.
    """
    encoding = options.encoding or _encoding(file)
    layout = _layout(file, encoding, options)
    names = numbered_names(layout.names)
    kept = options.kept_columns(file, names)
    with _open(file, encoding) as stream:
        lines = _Lines(stream, layout)
        parts, places = _columns(file, lines, layout, kept)
    notes = []
    if codecs.lookup(encoding).name not in PLAIN_ENCODINGS:
        notes.append(f"encoding {ENCODING_NAMES.get(encoding, encoding.upper())}")
    if layout.sep != ("\t" if file_ending(file).startswith(".tsv") else ",") and len(names) > 1:
        notes.append(f"separated by {SEPARATORS.get(layout.sep, repr(layout.sep))}")
    if layout.named_by_comment:
        notes.append("names from a comment")
    elif lines.comments:
        notes.append(f"{lines.comments} comment line{'s' * (lines.comments > 1)}")
    unnamed = frozenset(name for name, own in zip(names, layout.names, strict=True) if name != own)
    columns = {names[i]: part for i, part in zip(kept, parts, strict=True)}
    return RawTable(file, columns, places, unnamed, names[0], layout.sep, notes)


class _Lines:
    """The lines of a text but its comments."""

    def __init__(self, stream: Iterable[str], layout: Layout | None = None) -> None:
        self._stream = iter(stream)
        self._layout = layout
        self.number = 0  # of the last line
        self.comments = 0
        self.leading = ""  # the comment before the first row
        self.in_row = False  # in a quoted cell, where a line cannot be a comment
        self._started = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for line in self._stream:
            self.number += 1
            if self.number == 1 and DECLARED.match(line):
                continue
            if "\0" in line:
                raise ValueError(f"a NUL on line {self.number}, which is not UTF-8's or not text")
            if line.startswith("#") and not self.in_row and self._is_comment(line):
                self.comments += 1
                self.leading = self.leading if self._started else line.lstrip("# ")
                continue
            self._started = self._started or bool(line.strip())
            self.in_row = True
            return line
        raise StopIteration

    def _is_comment(self, line: str) -> bool:
        return self._layout is None or not self._started or self._layout.is_comment(line)


def _binary(file: Path) -> IO[bytes]:
    compressed = file.suffix.lower() == COMPRESSED
    return cast(IO[bytes], gzip.open(file)) if compressed else file.open("rb")


def _open(file: Path, encoding: str) -> IO[str]:
    return io.TextIOWrapper(_binary(file), encoding, newline="")


def _encoding(file: Path) -> str:
    """Find a file's encoding: by its first bytes, or UTF-8 or Windows-1252 by all of them."""
    with decoding(file), _binary(file) as stream:
        head = stream.read(SAMPLE_BYTES)
        for mark, name in BYTE_ORDER_MARKS:
            if head.startswith(mark):
                return name
        zeros = head[::2].count(0), head[1::2].count(0)  # half of the bytes of most UTF-16
        if max(zeros) > len(head) / 4 and min(zeros) < len(head) / 100:
            return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    try:
        for _ in codecs.iterdecode(_chunks(file), "utf-8"):
            pass
    except UnicodeDecodeError as error:
        if _is_windows(file):
            return "cp1252"
        raise ValueError(
            f"Expected {file} to be text in UTF-8, UTF-16 or Windows-1252; got another encoding, "
            f"or damage ({error}): give --encoding."
        ) from error
    return "utf-8"


def _chunks(file: Path) -> Iterator[bytes]:
    with decoding(file), _binary(file) as stream:
        while chunk := stream.read(SAMPLE_BYTES):
            yield chunk


def _is_windows(file: Path) -> bool:
    """Return whether a file can be text in Windows-1252, and is not UTF-8 with damage."""
    try:
        for chunk in _chunks(file):
            if FOREIGN.search(chunk) or UTF8_SEQUENCE.search(chunk):
                return False
            chunk.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return True


def _layout(file: Path, encoding: str, options: ReadOptions) -> Layout:
    with decoding(file), _open(file, encoding) as stream:
        text = stream.read(SAMPLE_BYTES)
    lines = list(io.StringIO(text, newline=""))
    if len(text) == SAMPLE_BYTES and len(lines) > 1:
        lines.pop()  # it may have been cut
    separators = FOUND_SEPARATORS if options.sep is None else (options.sep,)
    if options.sep is None and lines and (declared := DECLARED.match(lines[0])):
        separators = (declared[1],)
    found = {sep: _sample(lines, sep) for sep in separators}
    best = [sep for sep, (rows, _) in found.items() if rows and len(rows[0]) > 1]
    for score in (_same_length, _numbers):
        if len(best) > 1:
            scores = {sep: score(found[sep][0]) for sep in best}
            best = [sep for sep in best if scores[sep] == max(scores.values())]
    if len(best) > 1:
        raise ValueError(
            f"Expected one separator of cells in {file}; got "
            f"{' and '.join(SEPARATORS[each] for each in best)}, which fit equally: give --sep."
        )
    default = "\t" if file_ending(file).startswith(".tsv") else ","
    sep = best[0] if best else default if default in found else separators[0]
    rows, plain = found[sep]
    if not rows:
        raise ValueError(
            f"Expected a header and rows in {file}; got an empty file: write it again."
        )
    return _named_layout(file, sep, rows, plain)


def _named_layout(file: Path, sep: str, rows: list[list[str]], lines: _Lines) -> Layout:
    """Return a layout with the names of the header, or of the comment above rows of numbers."""
    names, below = rows[0], rows[1:]
    above = next(csv.reader([lines.leading], delimiter=sep, skipinitialspace=True), [])
    headless = any(map(is_number, names)) and len(above) == len(names)
    if by_comment := headless and not any(map(is_number, above)):
        names, below = [name.strip() for name in above], rows
    check_header(file, names)
    names = _with_unnamed(names, below)
    first = [row[0] for row in below if row[0].strip()]
    is_text = sum(map(is_number, first)) * 2 <= len(first)
    return Layout(sep, tuple(names), by_comment, is_text and lines.comments >= len(first))


def _with_unnamed(names: list[str], rows: list[list[str]]) -> list[str]:
    """Return a header with the name that it lacks where all rows have one cell more."""
    if not rows or any(len(row) != len(names) + 1 for row in rows):
        return names
    if not any(row[-1].strip() for row in rows):  # they end with a separator
        return [*names, ""]
    numbers = [str(i + 1) for i in range(len(rows))]
    counted = len(rows) >= MIN_COUNTED_ROWS and [row[0] for row in rows] == numbers
    return ["", *names] if counted else names  # R leaves out the name of its row numbers


def check_header(file: Path, names: Sequence[str]) -> None:
    """Raise a ValueError if all names of columns are numbers: the first row of data."""
    if all(map(is_number, names)):
        raise ValueError(
            f"Expected a header in {file}; got only numbers, {', '.join(names)[:40]}: "
            "put the columns' names on the first line."
        )


def _sample(lines: Sequence[str], sep: str) -> tuple[list[list[str]], _Lines]:
    """Return the first rows, and their lines, which know their comments."""
    rows: list[list[str]] = []
    plain = _Lines(lines)
    with suppress(csv.Error, ValueError):  # reported where the file is read
        for row in _reader(plain, sep):
            plain.in_row = False
            if not _is_blank(row):
                rows.append(row)
            if len(rows) > SAMPLE_ROWS:
                break
    return rows, plain


def _is_blank(row: Sequence[str]) -> bool:
    return not any(cell.strip() for cell in row)


def _same_length(rows: Sequence[Sequence[str]]) -> float:
    """Return the share of rows that are as long as the header."""
    return sum(len(row) == len(rows[0]) for row in rows[1:]) / max(1, len(rows) - 1)


def _numbers(rows: Sequence[Sequence[str]]) -> float:
    """Return the share of numbers among cells."""
    cells = [cell for row in rows[1:] for cell in row]
    return sum(map(is_number, cells)) / max(1, len(cells))


def _reader(lines: Iterable[str], sep: str) -> Any:
    if sep == " ":  # spaces at the end of lines separate nothing
        lines = (line.rstrip() + "\n" for line in lines)
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    # Strict, since text after a closing quote would become part of the cell.
    return csv.reader(lines, delimiter=sep, skipinitialspace=True, strict=True)


def _rows(file: Path, lines: _Lines, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows below the header, with their lines."""
    headed = layout.named_by_comment
    with decoding(file):
        for row in _reader(lines, layout.sep):
            lines.in_row = False
            if not row or (len(layout.names) > 1 and row == [""]):
                continue
            if headed:
                yield lines.number, row
            headed = headed or not _is_blank(row)


def _columns(
    file: Path, lines: _Lines, layout: Layout, kept: Sequence[int]
) -> tuple[list[pa.ChunkedArray], array[int]]:
    """Return the cells of columns, and the lines of rows."""
    import pyarrow as pa  # here, since it takes long to import
    import pyarrow.compute as pc

    parts: list[list[pa.Array]] = [[] for _ in kept]
    places = array("q")
    rows, width = _rows(file, lines, layout), len(layout.names)
    while chunk := list(islice(rows, CHUNK_ROWS)):
        for line, row in chunk:
            places.append(line)
            if len(row) != width:
                raise ValueError(
                    f"Expected {width} cell{'s' * (width > 1)} in each row of {file}, as in its "
                    f"header; got {len(row)} at data row {len(places)} (line {line}): correct that "
                    "row, or give --sep."
                )
        for part, i in zip(parts, kept, strict=True):
            cells = pa.array([row[i] for _, row in chunk], pa.string())
            part.append(pc.utf8_trim_whitespace(cells))
    return [pa.chunked_array(part, pa.string()) for part in parts], places
