"""Files of tables with something wrong with them."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
from fuzz_readers import TRUTHS, Truth
from test_scripts_running import COLUMNS

CELLS = (
    "", " ", "nan", "NaN", "NA", "N/A", "null", "None", "inf", "-inf", "Infinity", "1e300",
    "-1e300", "1e39", "1e400", "1e-320", "5e-324", "1e-46", "1e-400", "1,5", "1.234,5", "1 234",
    "1'234", "1,234,567", "\u22123", "12%", "$3", "3 kg", "tall", "1_000", "0x10", "0x1p3", "1e",
    "e5", ".", "-", "+", "+4", ".5", "5.", "1.5.2", "--1", "1e5e5", "True", "false", "TRUE", "yes",
    "#N/A", "#DIV/0!", "1#INF", "١٢", "\uff11\uff12", "½", "1\u00a0234", "\u200b5", "5\u00a0",
    "\ufeff5", "1d5", "1f", "'5'", '"5"', "=1+1", "2024-01-01", "12:30", "(5)", "1;2", "1\t2",
    "1j", "9" * 400, "9" * 5000, "1" + "0" * 308, "0." + "0" * 400 + "1", "-0", "0", "1e308",
    "x" * 3000, "\x1b[31m5", "5\x0b",
)  # fmt: skip
SWAPS = ("height", "HEIGHT", "Width ", " depth", "hieght", "", " ", "x0", "1", "\ufeffheight", "ü")
PIECES = (
    b"\0", b"\r", b"\n", b"\r\n", b",", b'"', b";", b"\xff", b"\xef\xbb\xbf", b"\x80", b"e", b".",
    b"-", b" ", b"\x1a", b"\t", b"\xc2\xa0", b"'",
)  # fmt: skip
CODES = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "utf-7", "cp037")


def cell_changed(random: Random, rows: list[list[str]]) -> str:
    i, j = random.randrange(1, len(rows)), random.randrange(3)
    rows[i][j] = random.choice(CELLS)
    return f"cell {i},{j} {rows[i][j][:40]!r}"


def column_changed(random: Random, rows: list[list[str]]) -> str:
    """All cells of a column in another style: commas, units, quotes."""
    j = random.randrange(3)
    name, style = random.choice([*STYLES.items()])
    for row in rows[1:]:
        row[j] = style(row[j])
    return f"column {j} {name}"


STYLES: dict[str, Callable[[str], str]] = {
    "decimal commas": lambda cell: cell.replace(".", ","),
    "percent": lambda cell: f"{cell}%",
    "currency": lambda cell: f"${cell}",
    "unicode minus": lambda cell: cell.replace("-", "\u2212"),
    "thousands": lambda cell: f"1,{cell}",
    "apostrophes": lambda cell: f"1'{cell}",
    "spaces": lambda cell: f"1 {cell}",
    "quotes": lambda cell: f'"{cell}"',
    "huge": lambda cell: f"{cell}e300",
    "large": lambda cell: f"{cell}e20",
    "tiny": lambda cell: f"{cell}e-310",
    "constant": lambda _: "1",
    "text": lambda _: "red",
    "truths": lambda cell: str(cell > "1"),
    "padded": lambda cell: f"  {cell}  ",
    "empty": lambda _: "",
}


def header_changed(random: Random, rows: list[list[str]]) -> str:
    rows[0] = [random.choice(SWAPS) if random.random() < 0.4 else name for name in rows[0]]
    return f"header {rows[0]}"


def header_cased(random: Random, rows: list[list[str]]) -> str:
    change = random.choice([str.upper, str.title, lambda name: f"{name} "])
    random.shuffle(rows[0])
    rows[0] = [change(name) for name in rows[0]]
    return f"header {rows[0]}"


def row_changed(random: Random, rows: list[list[str]]) -> str:
    i = random.randrange(len(rows))
    what = random.choice(["short", "long", "gone", "twice", "blank", "spaces"])
    change = {
        "short": [rows[i][:2]],
        "long": [[*rows[i], "1"]],
        "gone": [],
        "twice": [rows[i], list(rows[i])],
        "blank": [[], rows[i]],
        "spaces": [["   "], rows[i]],
    }[what]
    rows[i : i + 1] = change
    return f"row {i} {what}"


def columns_changed(random: Random, rows: list[list[str]]) -> str:
    """Columns in another order, one of text, of numbers or twice beside them, or fewer."""
    what = random.choice(["shuffled", "text", "numbers", "twice", "fewer", "index"])
    order = random.sample(range(3), 2 if what == "fewer" else 3)
    for i, row in enumerate(rows):
        more = {"text": f"t{i % 3}", "numbers": str(i), "twice": row[0]}.get(what)
        own = [row[j] for j in order] if what in ("shuffled", "fewer") else list(row)
        if what == "index":
            own = [str(i - 1) if i else "", *own]
        rows[i] = own if more is None else [*own, more]
    return f"columns {what}"


def few_rows(random: Random, rows: list[list[str]]) -> str:
    keep = random.choice([0, 1, 2, 3, 9, 10])
    del rows[keep:]
    return f"{keep} lines"


CHANGES = (cell_changed, cell_changed, cell_changed, column_changed, header_changed, header_cased,
           row_changed, columns_changed, few_rows)  # fmt: skip


def quoted(cell: str, always: bool) -> str:
    needs = always or any(mark in cell for mark in ',"\r\n')
    return '"' + cell.replace('"', '""') + '"' if needs else cell


def csv_bytes(random: Random, rows: list[list[str]]) -> tuple[bytes, str]:
    """Rows as bytes, in one of many dialects, and perhaps with bytes changed."""
    ends = random.choice(["\n"] * 6 + ["\r\n", "\r", "\n\n", " \n"])
    separator = random.choice([","] * 8 + [";", "\t", ", ", "|"])
    always, raw = random.random() < 0.1, random.random() < 0.1
    text = ends.join(
        separator.join(cell if raw else quoted(cell, always) for cell in row) for row in rows
    ) + random.choice([ends, ""])
    code = random.choice(["utf-8"] * 12 + list(CODES))
    content = text.encode(code, "replace")
    story = f"{code} {separator!r} {ends!r}{' raw' * raw}{' quoted' * always}"
    if random.random() < 0.35:
        content, more = bytes_changed(random, content)
        story += more
    return content, story


def bytes_changed(random: Random, content: bytes) -> tuple[bytes, str]:
    """A bit flipped, a piece put in, cut off, doubled, or zeroed."""
    at = random.randrange(len(content) or 1)
    what = random.choice(["bit", "piece", "cut", "doubled", "zeroed", "lost", "longer"])
    end = min(len(content), at + random.choice([1, 4, 32]))
    if what == "bit" and content:
        made = content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]
    elif what == "piece":
        made = content[:at] + random.choice(PIECES) + content[at:]
    elif what == "cut":
        made = content[:at]
    elif what == "doubled":
        made = content[:at] + content[at:end] + content[at:]
    elif what == "zeroed":
        made = content[:at] + bytes(end - at) + content[end:]
    elif what == "lost":
        made = content[:at] + content[end:]
    else:
        made = content + random.randbytes(random.choice([1, 16]))
    return made, f", {what} at {at}"


def csv_file(random: Random, values: np.ndarray) -> tuple[bytes, str, bool]:
    rows = [list(COLUMNS), *([repr(x) for x in row] for row in values.round(4).tolist())]
    changes = random.choice([0, 1, 1, 1, 2])
    stories = []
    for _ in range(changes):
        whole = len(rows) > 3 and all(len(row) >= 3 for row in rows)
        stories.append(random.choice(CHANGES if whole else [row_changed])(random, rows or [[]]))
    content, story = csv_bytes(random, rows)
    plain = re.match(r"utf-8(-sig)? ',( ?)' '(\\r)?(\\n){0,2}'( raw| quoted)*$", story)
    return content, "; ".join([*stories, story]), not changes and plain is not None


def arrays(random: Random, values: np.ndarray) -> tuple[np.ndarray, str]:
    """An array with something odd about it."""
    hole = values.copy()
    odd = random.choice([np.nan, np.inf, -np.inf, 1e300, 5e-324, -1e39, 1e20, 1e38])
    hole[random.randrange(len(values)), random.randrange(3)] = odd
    choices = {
        "as it is": values,
        f"with {odd}": hole,
        "0-d": np.array(1.0),
        "1-d": values[:, 0],
        "3-d": values[:, :, None],
        "empty": values[:0],
        "no columns": values[:, :0],
        "complex": values + 1j,
        "object": values.astype(object),
        "pickled": np.array([{"a": 1}, None]),
        "dates": values.astype("datetime64[s]"),
        "spans": values.astype("timedelta64[s]"),
        "text": values.astype(str),
        "bytes": values.astype("S8"),
        "structured": np.zeros(12, [("height", "f8"), ("width", "f8"), ("depth", "f8")]),
        "void": np.zeros((12, 3), "V4"),
        "half": values.astype(np.float16),
        "single": values.astype(np.float32),
        "long": values.astype(np.longdouble),
        "long beyond": np.full((12, 3), np.longdouble("1e400")),
        "whole": values.astype(np.int64),
        "small": values.astype(np.uint8),
        "truths": values > 1,
        "huge whole": np.full((12, 3), 2**64 - 1, np.uint64),
        "swapped": values.astype(">f8"),
        "Fortran": np.asfortranarray(values),
        "two columns": values[:, :2],
        "four columns": np.hstack([values, values[:, :1]]),
    }
    name = random.choice([*choices] + ["as it is"] * 15)
    return choices[name], name


def npy_file(random: Random, values: np.ndarray) -> tuple[bytes, str, bool]:
    array, story = arrays(random, values)
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return damaged(random, stream.getvalue(), story, header=128)


def damaged(random: Random, content: bytes, story: str, header: int = 0) -> tuple[bytes, str, bool]:
    """Perhaps with bytes changed, often in the header."""
    valid = story == "as it is"
    if random.random() < 0.6:
        valid = False
        if header and random.random() < 0.6:
            made, more = bytes_changed(random, content[:header])
            content = made + content[header:]
        else:
            content, more = bytes_changed(random, content)
        story += more
    return content, story, valid


def npz_file(random: Random, values: np.ndarray) -> tuple[bytes, str, bool]:
    array, story = arrays(random, values)
    names = random.choice(
        [None, np.array(COLUMNS), np.array(COLUMNS[::-1]), np.array(COLUMNS, "S8"),
         np.array(COLUMNS, object), np.array("height"), np.array([COLUMNS]), np.arange(3),
         np.array(COLUMNS[:2]), np.array(["a", "a", "b"]), np.array(["Ü", "", "b"]),
         np.array(["HEIGHT", "DEPTH", "WIDTH"])]
    )  # fmt: skip
    stream = io.BytesIO()
    write = random.choice([np.savez, np.savez_compressed])
    write(stream, values=array, **({} if names is None else {"columns": names}))
    foreign = random.choice([""] * 8 + ["text", "named", "two", "deep", "none", "alone"])
    story = "; ".join(filter(None, [story, foreign, "" if names is None else f"named {names}"]))
    if foreign == "alone":
        stream = io.BytesIO()
    if foreign:
        with zipfile.ZipFile(stream, "w" if foreign == "none" else "a") as archive:
            name = {"named": "columns", "two": "b.npy", "deep": "../values.npy"}.get(foreign, "a")
            if foreign != "none":
                archive.writestr(name, b"not an array")
    return damaged(random, stream.getvalue(), story)


def parquet_file(random: Random, values: np.ndarray) -> tuple[bytes, str, bool]:
    frame = pd.DataFrame(values, columns=list(COLUMNS))
    i, n = random.randrange(3), len(values)
    odd: dict[str, Callable[[], object]] = {
        "as it is": lambda: values[:, i],
        "lists": lambda: [[1.0]] * n,
        "objects": lambda: [{"a": 1}] * n,
        "dates": lambda: pd.date_range("2024", periods=n),
        "zones": lambda: pd.date_range("2024", periods=n, tz="UTC"),
        "spans": lambda: pd.to_timedelta(range(n), unit="s"),
        "text": lambda: ["red", "blue"] * (n // 2),
        "numbers as text": lambda: [str(x) for x in values[:, i]],
        "bytes": lambda: [b"a"] * n,
        "gaps": lambda: [None, *values[1:, i]],
        "nulls": lambda: [None] * n,
        "whole": lambda: pd.array([None, *range(n - 1)], dtype="Int64"),
        "categories": lambda: pd.Categorical(["a", "b"] * (n // 2)),
        "number categories": lambda: pd.Categorical([1, 2] * (n // 2)),
        "text and gap": lambda: ["red", None] * (n // 2),
        "truths": lambda: [True, False] * (n // 2),
        "infinite": lambda: [np.inf, *values[1:, i]],
        "huge": lambda: np.full(n, 1e300),
        "periods": lambda: pd.period_range("2024", periods=n, freq="D"),
        "decimals": lambda: [__import__("decimal").Decimal("1.5")] * n,
        "single": lambda: values[:, i].astype(np.float32),
        "large": lambda: np.full(n, 2**63 - 1) - np.arange(n),
    }
    name = random.choice([*odd] + ["as it is"] * 8)
    frame[COLUMNS[i]] = odd[name]()
    what = random.choice(["", "", "", "shuffled", "cased", "fewer", "numbered"])
    if what == "shuffled":
        frame = frame[random.sample(COLUMNS, 3)]
    elif what == "cased":
        frame.columns = [column.upper() for column in random.sample(COLUMNS, 3)]
    elif what == "fewer":
        frame = frame[list(COLUMNS[:2])]
    elif what == "numbered":
        frame.columns = range(3)
    stream = io.BytesIO()
    frame.to_parquet(stream, index=False, compression=random.choice(["snappy", None]))
    content, story, valid = damaged(random, stream.getvalue(), name)
    return content, f"{story} {what}", valid and what in ("", "shuffled")


MAKERS = {".csv": csv_file, ".npy": npy_file, ".npz": npz_file, ".parquet": parquet_file}
SHARES = (".csv",) * 6 + (".npy", ".npz", ".npz", ".parquet", ".parquet")
UNSURE = {".npz": ("deep",)}  # names that readers may see otherwise


def table(random: Random, folder: Path, values: np.ndarray) -> tuple[Path, str, bool, Truth | None]:
    """A file, what is wrong with it, whether nothing is, and what it holds."""
    ending = random.choice(SHARES)
    content, story, valid = MAKERS[ending](random, values)
    file = folder / f"fuzzed{ending}"
    file.write_bytes(content)
    return file, f"{ending}: {story}", valid, TRUTHS[ending](content)
