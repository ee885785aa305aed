"""Tables with something wrong with them, and what an independent reader makes of their bytes."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pyarrow.parquet
import torch
from fuzzing import Case, Outcome, Place, chance
from test_scripts_running import COLUMNS, rows_of_table

import cnf

LARGEST = np.finfo(np.float32).max
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # of any script
BOOLEANS = {"true": 1.0, "false": 0.0}
TINY = ("--steps", "1", "--hidden", "4")
QUICK = (*TINY, "--objective", "mle", "--scaling", "standardize", "--batch-size", "4")

Truth = tuple[list[str], dict[str, np.ndarray]]  # all names in order, and the columns of numbers


# --- an independent reader ------------------------------------------------------------------------


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


def npy_truth(content: bytes) -> Truth | None:
    """What a .npy file holds."""
    try:
        return array_truth(np.load(io.BytesIO(content), allow_pickle=False))
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


# --- what is done to a CSV ------------------------------------------------------------------------

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


# --- arrays and parquet ---------------------------------------------------------------------------


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


# --- cases ----------------------------------------------------------------------------------------


def scores(folder: Path, x: np.ndarray) -> np.ndarray:
    """Log p of rows by the model itself, one by one."""
    flow = cnf.load(folder)
    with torch.no_grad():
        return flow.log_prob(torch.from_numpy(x).to(flow.like)).double().numpy()


def alike(got: np.ndarray, wanted: np.ndarray) -> bool:
    return got.shape == wanted.shape and np.allclose(
        got, wanted, rtol=1e-5, atol=1e-5, equal_nan=False
    )


def log_prob_case(place: Place, random: Random) -> Case:
    """Each row has its own log p, whatever is beside it."""
    file, story, valid, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
    out, model = place.work / "scores.npy", place.folder / "model"

    def check(_: Outcome) -> str:
        x = selected(truth, COLUMNS)
        if x is None:
            return "taken, though it holds no rows of the model's"
        got, wanted = np.load(out)[:, 0], scores(model, x)
        return "" if alike(got, wanted) else f"wrong: {got} for {wanted}"

    argv = (str(model), "--data", str(file), "--out", str(out))
    return Case("log-prob", argv, story, check, (out,), valid)


def evaluate_case(place: Place, random: Random) -> Case:
    """The NLL is minus the mean of what log-prob says, over all rows."""
    file, story, valid, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
    model = place.folder / "model"

    def check(came: Outcome) -> str:
        x = selected(truth, COLUMNS)
        if x is None:
            return "taken, though it holds no rows of the model's"
        said, wanted = json.loads(came.out), -scores(model, x).mean()
        if said["n"] != len(x) or not alike(np.array(said["nll"]), np.array(wanted)):
            return f"wrong: {said} for {len(x)} rows of NLL {wanted}"
        return ""

    return Case("evaluate", (str(model), "--data", str(file), "--json"), story, check, (), valid)


def check_case(place: Place, random: Random) -> Case:
    """Checks on rows that are no rows, most of them; few are made, since they take seconds."""
    for _ in range(20):
        file, story, _, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
        if selected(truth, COLUMNS) is None or random.random() < 0.05:
            break
    argv = (str(place.folder / "model"), "--data", str(file), "--points", "5", "--rows", "5")

    def check(_: Outcome) -> str:
        return "" if selected(truth, COLUMNS) is not None else "taken, though it holds no rows"

    return Case("check", argv, story, check, (), False)


def sample_case(place: Place, random: Random) -> Case:
    """Draws for each context, in their order and with them beside."""
    file, story, valid, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
    out, n, named = place.work / "drawn.csv", random.choice([1, 2]), file.suffix == ".csv"

    def check(_: Outcome) -> str:
        context = selected(truth, COLUMNS[:1])
        if context is None:
            return "taken, though it holds no contexts"
        drawn = pd.read_csv(out)
        right = (
            list(drawn) == list(COLUMNS)
            and len(drawn) == n * len(context)
            and np.isfinite(drawn.to_numpy()).all()
            and np.array_equal(drawn[COLUMNS[0]], np.repeat(context[:, 0], n))
        )
        return "" if right else f"wrong draws: {drawn}"

    argv = (str(place.folder / "given"), "-n", str(n), "--out", str(out))
    return Case(
        "sample", (*argv, "--context-data", str(file)), story, check, (out,), valid and named
    )


def train_case(place: Place, random: Random) -> Case:
    """What is trained on has the file's rows and columns; mostly it is only read."""
    file, story, valid, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
    out = place.work / "out"
    words = (*QUICK, "--out", str(out)) if random.random() < 0.06 else ("--show-recipe",)

    def check(_: Outcome) -> str:
        if truth is None:
            return "taken, though it holds no table"
        for name, column in truth[1].items():
            if not (np.abs(column) <= LARGEST).all():
                return f"taken, though {name} holds {np.abs(column).max()}"
        if not out.exists():
            return ""
        metadata = json.loads((out / "config.json").read_text())["metadata"]
        names = [name for name, kind in metadata["schema"].items() if kind["kind"] != "constant"]
        return "" if set(names) <= set(truth[0]) else f"trained on {names} of {truth[0]}"

    return Case("train", (str(file), *words), story, check, (out,), valid)


def plot_case(place: Place, random: Random) -> Case:
    """The table that was trained on has changed, mostly; what is drawn is of the very values."""
    values = rows_of_table(12, seed=1)
    random_file, story, _, truth = table(random, place.cleared(), values)
    content = random_file.read_bytes()
    random_file.unlink()
    (place.work / "source.csv").write_bytes(content)
    model, original = place.folder / "sourced", csv_truth((place.folder / "rows.csv").read_bytes())
    truth = csv_truth(content)

    def check(_: Outcome) -> str:
        found, drawn = (selected(each, original[0]) for each in (truth, original))
        return "" if np.array_equal(found, drawn) else "drawn of a table that has changed"

    return Case("plot", (str(model),), story, check, (model / "figures",))


def images_case(place: Place, random: Random) -> Case:
    """Images are whole numbers from 0 to 255, three-dimensional."""
    grey = np.random.default_rng(0).integers(0, 256, (20, 3, 3)).astype(np.uint8)
    flat = grey.reshape(20, 9)
    odd = {
        "as it is": grey, "flat": flat, "4-d": grey[..., None], "floats": grey / 1.0,
        "ones": grey / 255, "negative": grey.astype(int) - 1, "large": grey.astype(int) + 1,
        "nan": np.where(grey > 250, np.nan, grey / 1.0), "infinite": np.full((20, 3, 3), np.inf),
        "few": grey[:9],
        "none": grey[:0], "text": grey.astype(str), "objects": grey.astype(object),
        "dates": grey.astype("datetime64[s]"), "truths": grey > 9, "complex": grey + 0j,
        "0-d": np.array(1), "thin": grey[:, :0], "structured": np.zeros((20, 3, 3), "u1,u1"),
        "black": grey * 0, "huge": grey * 1e300,
    }  # fmt: skip
    name = random.choice([*odd])
    ending, stream = random.choice([".npy", ".npz"]), io.BytesIO()
    if ending == ".npy":
        np.save(stream, odd[name], allow_pickle=True)
    else:
        np.savez(stream, images=odd[name], other=flat)
    content, story, _ = damaged(random, stream.getvalue(), name, 128 * (ending == ".npy"))
    file = place.cleared() / f"images{ending}"
    file.write_bytes(content)
    data = str(file) if ending == ".npy" else f"{file}:{random.choice(['images'] * 5 + ['no', ''])}"
    out = place.work / "out"
    words = ("--epochs", "1", "--hidden", "4", "--latent-dim", "1", "--samples", "1")
    argv = (data, "--out", str(out), *words, "--posterior", "gaussian")
    return Case("train-vae", argv, f"{ending}: {story}", _vae_check(content, data), (out,))


def _vae_check(content: bytes, data: str) -> Callable[[Outcome], str]:
    def check(came: Outcome) -> str:
        try:
            found = np.load(io.BytesIO(content))
            found = found if isinstance(found, np.ndarray) else found[data.rpartition(":")[2]]
        except Exception as error:
            return f"taken, though it cannot be read: {error}"
        right = found.ndim == 3 and f"of {found.shape[1]} x {found.shape[2]}" in came.out
        return "" if right and found.min() >= 0 and found.max() <= 255 else "taken for images"

    return check


def uci_case(place: Place, random: Random) -> Case:
    """The file of the UCI's tables, damaged."""
    array, story = arrays(random, rows_of_table(60, seed=1)[:12])
    stream = io.BytesIO()
    np.savez(stream, wine=array, housing=rows_of_table(12))
    content, story, _ = damaged(random, stream.getvalue(), story)
    (place.cleared() / "uci_small.npz").write_bytes(content)
    argv = ("tables", "--section", "nll", "--tables", "wine", "--methods", "gaussian")
    argv = (*argv, "--splits", "1", "--budget", "0.1", "--data-dir", str(place.work))
    return Case("benchmark", argv, story)


CASES: dict[str, Callable[[Place, Random], Case]] = {
    "train": train_case,
    "train-vae": images_case,
    "evaluate": evaluate_case,
    "sample": sample_case,
    "log-prob": log_prob_case,
    "plot": plot_case,
    "check": check_case,
    "benchmark": uci_case,
}


def case(place: Place, program: str, number: int) -> Case:
    """A table for a program."""
    return CASES[program](place, chance("tables", program, number))
