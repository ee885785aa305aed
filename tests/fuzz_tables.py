"""Files of tables, valid and damaged, for every program; pandas and NumPy read them, too."""

import csv
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fuzzing import (
    QUICK,
    QUICK_SERIES,
    SERIES,
    Case,
    Check,
    Draw,
    Outcome,
    Place,
    changed_bytes,
    series_text,
)
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from hypothesis.extra import pandas as frames
from test_scripts_running import COLUMNS, rows_of_table

import cnf

LARGEST = np.finfo(np.float32).max
CELLS = (
    "", " ", "nan", "NA", "N/A", "null", "None", "inf", "-inf", "Infinity", "1e300", "-1e300",
    "1e39", "1e400", "1e-320", "1e-46", "1e-400", "1,5", "1.234,5", "1 234", "1'234", "1,234,567",
    "\u22123", "12%", "$3", "3 kg", "tall", "1_000", "0x10", "0x1p3", "1e", "e5", ".", "-", "+",
    "+4", ".5", "5.", "1.5.2", "--1", "True", "false", "yes", "#N/A", "1#INF", "\uff11\uff12", "½",
    "1\u00a0234", "\u200b5", "5\u00a0", "\ufeff5", "1d5", "1f", "'5'", '"5"', "=1+1", "2024-01-01",
    "12:30", "(5)", "1;2", "1\t2", "1j", "9" * 400, "9" * 5000, "1" + "0" * 308, "-0", "1e308",
    "x" * 3000, "\x1b[31m5", "5\x0b",
)  # fmt: skip
# Decimal commas, units, thousands, quotes, blanks, other sizes, constants, texts, booleans, gaps.
STYLES = (
    lambda cell: cell.replace(".", ","), "{}%".format, "1,{}".format, "1'{}".format,
    '"{}"'.format, "  {}  ".format, "{}e300".format, "{}e20".format, "{}e-310".format, "1".format,
    "red".format, lambda cell: str(cell > "1"), "".format,
)  # fmt: skip
HEADERS = ("height", "HEIGHT", "Width ", " depth", "hieght", "", " ", "x0", "1", "\ufeffheight")
MISSING = ("", "na", "n/a", "nan", "null", "none")
CODES = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "utf-7", "cp037")


values = st.integers(0, 9).map(lambda seed: rows_of_table(12, seed)) | frames.data_frames(
    frames.columns(COLUMNS, elements=st.floats(-1e3, 1e3) | st.floats(width=32), dtype=float),
    index=frames.range_indexes(min_size=1, max_size=12),
).map(lambda frame: frame.to_numpy())
any_array = arrays.arrays(
    arrays.scalar_dtypes()
    | arrays.unicode_string_dtypes()
    | arrays.byte_string_dtypes()
    | arrays.array_dtypes(max_size=3),
    arrays.array_shapes(max_dims=3, max_side=12, min_side=0),
)


def csv_bytes(draw: Draw) -> tuple[bytes, bool]:
    """Return a CSV, and whether it is an unchanged table in UTF-8."""
    rows = [list(COLUMNS), *([repr(x) for x in row] for row in draw(values).tolist())]
    changes = draw(st.integers(0, 2))
    for _ in range(changes):
        if rows and all(len(row) >= 3 for row in rows):
            csv_changed(draw, rows)
    end = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", " \n"]))
    separator = draw(st.sampled_from([",", ",", ",", ",", ";", "\t", ", ", "|"]))
    quote = draw(st.sampled_from(['"{}"'.format, str, str, None]))
    text = end.join(separator.join(_quoted(cell, quote) for cell in row) for row in rows)
    code = draw(st.sampled_from(["utf-8"] * 6 + [*CODES]))
    plain = code.startswith("utf-8") and separator.strip() == "," and not changes and end != " \n"
    return (text + draw(st.sampled_from([end, ""]))).encode(code, "replace"), plain


def _quoted(cell: str, quote: Any) -> str:
    if quote and any(mark in cell for mark in ',"\r\n'):
        return '"' + cell.replace('"', '""') + '"'
    return quote(cell) if quote else cell  # as it is, whatever is in it


def csv_changed(draw: Draw, rows: list[list[str]]) -> None:
    """Change a cell, a column, the header, a row, the columns, or the number of rows."""
    kinds = ["cell", "cell", "cell", "column", "header", "row", "columns", "cut"]
    what, row = draw(st.sampled_from(kinds)), draw(st.integers(0, len(rows) - 1))
    column = draw(st.integers(0, 2))
    if what == "cell":
        rows[row][column] = draw(st.sampled_from(CELLS) | st.floats().map(repr) | st.text())
    elif what == "column":
        style = draw(st.sampled_from(STYLES))
        for cells in rows[1:]:
            cells[column] = style(cells[column])
    elif what == "header":
        case = draw(st.sampled_from([str, str.upper, str.title, "{} ".format]))
        names = [case(name) for name in draw(st.permutations(COLUMNS))]
        rows[0] = draw(st.just(names) | st.lists(st.sampled_from(HEADERS), min_size=3, max_size=3))
    elif what == "row":
        own = rows[row]
        changes = ([own[:2]], [[*own, "1"]], [], [own, list(own)], [[], own], [["   "], own])
        rows[row : row + 1] = draw(st.sampled_from(changes))
    elif what == "columns":
        order = draw(st.permutations(range(3)))[: draw(st.integers(2, 3))]
        more = draw(st.sampled_from([None, lambda i: f"t{i % 3}", str, lambda i: rows[i][0]]))
        index = draw(st.booleans())
        for i, cells in enumerate(rows):
            added = [] if more is None else [more(i)]
            rows[i] = [*[str(i - 1) if i else ""] * index, *(cells[j] for j in order), *added]
    else:
        del rows[draw(st.sampled_from([0, 1, 2, 3, 9, 10])) :]


def an_array(draw: Draw) -> tuple[np.ndarray, bool]:
    """Return an array, and whether it is an unchanged table of float64."""
    table = draw(values)
    single = table.clip(-1e4, 1e4)
    special = (table.astype(object), np.array([{"a": 1}, None]), table.astype(np.longdouble),
               np.full((12, 3), np.longdouble("1e400")), np.asfortranarray(table), table[:, :2],
               table[:, 0], single.astype(np.float16), table.astype("S8"))  # fmt: skip
    which = draw(st.sampled_from(["table", "table", "special", "any"]))
    if which == "table":
        return table, True
    return draw(st.sampled_from(special) if which == "special" else any_array), False


def _saved(save: Callable[..., None], *values: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # fields whose names are beyond latin-1
        save(stream, *values, **named)
    return stream.getvalue()


def npy_bytes(draw: Draw) -> tuple[bytes, bool]:
    array, plain = an_array(draw)
    return _saved(np.save, array), plain


def npz_bytes(draw: Draw) -> tuple[bytes, bool]:
    array, plain = an_array(draw)
    names = draw(
        st.sampled_from([None, np.array(COLUMNS), np.array(COLUMNS[::-1]), np.array(COLUMNS, "S8"),
                         np.array(COLUMNS, object), np.array(["HEIGHT", "DEPTH", "WIDTH"])])
        | any_array
    )  # fmt: skip
    save = draw(st.sampled_from([np.savez, np.savez_compressed]))
    stream = io.BytesIO(_saved(save, values=array, **({} if names is None else {"columns": names})))
    foreign = draw(st.sampled_from([None, None, None, "a", "b.npy", "columns", "../values.npy"]))
    if foreign:
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(stream, "a") as archive:
            archive.writestr(foreign, b"not an array")
    return stream.getvalue(), plain and names is None and not foreign


def parquet_bytes(draw: Draw) -> tuple[bytes, bool]:
    table = draw(values)
    frame, n, at = pd.DataFrame(table, columns=list(COLUMNS)), len(table), draw(st.integers(0, 2))
    odd: dict[str, Any] = {
        "lists": [[1.0]] * n,
        "objects": [{"a": 1}] * n,
        "dates": pd.date_range("2024", periods=n, tz=draw(st.sampled_from([None, "UTC"]))),
        "spans": pd.to_timedelta(range(n), unit="s"),
        "text": [draw(st.sampled_from(["red", "1", "", None])) for _ in range(n)],
        "bytes": [b"a"] * n,
        "nulls": [None] * n,
        "gaps": pd.array([None, *range(n - 1)], dtype="Int64"),
        "categories": pd.Categorical([("a", "b")[i % 2] for i in range(n)]),
        "numbers as categories": pd.Categorical([i % 2 for i in range(n)]),
        "booleans": np.arange(n) % 2 == 0,
        "periods": pd.period_range("2024", periods=n, freq="D"),
        "large": np.full(n, 2**63 - 1) - np.arange(n),
        "floats": draw(arrays.arrays(arrays.floating_dtypes(endianness="=", sizes=(32, 64)), n)),
    }
    name = draw(st.sampled_from(["", "", *odd]))
    if name:
        frame[COLUMNS[at]] = odd[name]
    order = draw(st.permutations(COLUMNS))[: draw(st.sampled_from([2, 3, 3]))]
    labels = [order, order, [name.upper() for name in order], range(len(order))]
    frame = frame[order].set_axis(draw(st.sampled_from(labels)), axis=1)
    stream = io.BytesIO()
    frame.to_parquet(stream, index=False, compression=draw(st.sampled_from(["snappy", None])))
    return stream.getvalue(), not name and set(frame.columns) == set(COLUMNS)


MAKERS = {".csv": csv_bytes, ".npy": npy_bytes, ".npz": npz_bytes, ".parquet": parquet_bytes}


def table(draw: Draw, folder: Path, name: str = "fuzzed") -> tuple[Path, bool]:
    """Write a table; return its file, and whether it is valid and near the models' rows."""
    ending = draw(st.sampled_from([".csv", ".csv", ".csv", *MAKERS]))
    content, plain = MAKERS[ending](draw)
    if damaged := draw(st.integers(0, 2)) == 0:
        content = changed_bytes(draw, content)
    file = folder / f"{name}{ending}"
    file.write_bytes(content)
    found = None if damaged or not plain else reading(file)
    near = found is not None and len(found) == 12 and float(found.abs().max(axis=None)) < 300
    return file, near


def reading(file: Path) -> pd.DataFrame | None:
    """Return what pandas and NumPy read from a file, numbers in float64; None if they cannot."""
    with warnings.catch_warnings(action="ignore"), suppress(Exception):
        frame = _read(file)
        return frame if frame.size and frame.columns.is_unique else None
    return None


def _read(file: Path) -> pd.DataFrame:
    if file.suffix == ".csv":
        return _named(_cells(_text(file.read_bytes()))).apply(_numbers)
    if file.suffix == ".parquet":
        frame = pd.read_parquet(file)
        frame.columns = [f"x{name}" if isinstance(name, int) else name for name in frame.columns]
        return frame.apply(_cast)
    stored, names = np.load(file, allow_pickle=False), None
    if file.suffix == ".npz":
        members = dict(stored)
        names = members.pop("columns", None)
        (stored,) = members.values()
    assert isinstance(stored, np.ndarray)
    assert stored.dtype.kind in "buif"
    assert stored.ndim in (1, 2)
    frame = pd.DataFrame(stored.reshape(len(stored), -1).astype(np.float64)).add_prefix("x")
    named = isinstance(names, np.ndarray) and names.dtype.kind in "US" and names.ndim == 1
    if named and len(names) == frame.shape[1]:
        frame.columns = names.astype(str)
    return frame


def _text(content: bytes) -> str:
    for code in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"):
        with suppress(UnicodeError):
            text = content.decode(code)
            if "\0" not in text and 2 * sum(map(str.isascii, text)) > len(text):
                return text
    raise ValueError


def _cells(text: str) -> pd.DataFrame:
    """Return the cells of a text, separated by the mark that its header has most of."""
    written = [line for line in io.StringIO(text, newline="") if line.strip('" ,;|\t\r\n')]
    lines = [line for line in written if line[0] != "#"]
    found = {sep: next(csv.reader(lines, delimiter=sep, skipinitialspace=True)) for sep in ",;\t|"}
    sep = max(found, key=lambda sep: len(found[sep]))
    options = {"keep_default_na": False, "skipinitialspace": True, "index_col": False}
    return pd.read_csv(io.StringIO("".join(lines)), header=None, dtype=object, sep=sep, **options)


def _named(cells: pd.DataFrame) -> pd.DataFrame:
    """Return cells below their names, without a row index and empty columns without a name."""
    names = [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(cells.iloc[0])]
    frame = cells.set_axis(names, axis=1).iloc[1:]
    first = frame.iloc[:, 0]
    index = names[0] == "Unnamed: 0" and first.is_unique and first.str.fullmatch(r"\d+").all()
    empty = [not own.strip() and (frame.iloc[:, i] == "").all() for i, own in cells.iloc[0].items()]
    left_out = [bool(index) or empty[0], *empty[1:]]
    return frame if all(left_out) else frame.loc[:, np.invert(left_out)]


def _cast(column: pd.Series) -> pd.Series:
    """Return a column of a Parquet file, numbers and categories of numbers as float64."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    return column.astype(np.float64) if pd.api.types.is_numeric_dtype(column) else column


def _ungrouped(number: re.Match[str]) -> str:
    return number[1] + re.sub(r"\D", "", number[2])


def _numbers(cells: pd.Series) -> pd.Series:
    """Return the numbers in cells, booleans as 0 and 1; texts as they are, gaps as NaN."""
    texts = cells.str.strip().str.lower().str.normalize("NFKC").replace({"true": "1", "false": "0"})
    texts = texts.mask(texts.isin(MISSING), "nan").str.replace("_", "no number")
    texts = texts.str.replace(
        r"^([+-]?\d{1,3})((?:[,' \u2019]\d{3})+)(?=\.|$)", _ungrouped, regex=True
    )
    texts = texts.str.replace(r"^([+-]?\d*),(\d+(?:e[+-]?\d+)?)$", r"\1.\2", regex=True)
    try:
        return texts.map(float)
    except ValueError:
        return cells.mask(texts == "nan")


def selected(frame: pd.DataFrame | None, wanted: Sequence[str]) -> np.ndarray | None:
    """Return a model's columns, by position if no name matches; None if they are not its rows."""
    header = [] if frame is None else list(frame.columns)
    if not set(wanted) & set(header) and len(wanted) == len(header):
        ours, theirs = ([str(name).strip().lower() for name in names] for names in (wanted, header))
        if any(name in ours and name != own for name, own in zip(theirs, ours, strict=True)):
            return None  # the same names but for their case, in another order
        wanted = header
    if not all(name in header and frame[name].dtype == np.float64 for name in wanted):
        return None
    found = np.ascontiguousarray(frame[list(wanted)])
    return found if np.isfinite(found).all() and np.abs(found).max() <= LARGEST else None


def same(got: Any, wanted: Any) -> bool:
    return np.shape(got) == np.shape(wanted) and np.allclose(got, wanted, rtol=1e-5, atol=1e-5)


def of_rows(file: Path, check: Callable[[Outcome, np.ndarray], str], columns: int = 3) -> Check:
    """Return a check of an answer about a file's rows of the model."""

    def run(came: Outcome) -> str:
        rows = selected(reading(file), COLUMNS[:columns])
        return "took a file without rows of the model" if rows is None else check(came, rows)

    return run


def scored_case(draw: Draw, place: Place, program: str) -> Case:
    """Each row has its own log p, and the NLL is minus the mean of all."""
    file, valid = table(draw, place.cleared())
    model, out = place.folder / "model", place.work / "scores.npy"

    def check(came: Outcome, rows: np.ndarray) -> str:
        if program == "check":
            return ""
        flow = cnf.load(model)
        flow = flow.in_double() if program == "log-prob" else flow
        wanted = flow.log_prob(torch.tensor(rows)).detach().numpy()
        if program == "log-prob":
            return "" if same(np.load(out)[:, 0], wanted) else "wrong log p"
        said, right = json.loads(came.out), [len(rows), -wanted.mean()]
        return "" if same([said["n"], said["nll"]], right) else f"wrong: {said} for {right}"

    words = {"log-prob": ("--out", out), "evaluate": ("--json",)}
    argv = (model, "--data", file, *words.get(program, ("--points", 5, "--rows", 5)))
    return Case(program, argv, of_rows(file, check), (out,), valid and program != "check")


def sample_case(draw: Draw, place: Place) -> Case:
    """Draws for each context, in their order and with their contexts."""
    file, valid = table(draw, place.cleared())
    out, n = place.work / "drawn.csv", draw(st.integers(1, 2))

    def check(_: Outcome, context: np.ndarray) -> str:
        drawn = pd.read_csv(out)
        right = list(drawn) == list(COLUMNS) and np.isfinite(drawn.to_numpy()).all()
        wanted = np.repeat(context[:, 0], n)
        return "" if right and same(drawn[COLUMNS[0]], wanted) else f"wrong draws: {drawn}"

    argv = (place.folder / "given", "-n", n, "--out", out, "--context-data", file)
    named = valid and file.suffix in (".csv", ".parquet")
    return Case("sample", argv, of_rows(file, check, 1), (out,), named)


def train_case(draw: Draw, place: Place) -> Case:
    """The trained columns are the file's; most files are only read."""
    file, valid = table(draw, place.cleared())
    out = place.work / "out"
    words = (*QUICK, "--out", out) if draw(st.integers(0, 15)) == 7 else ("--show-recipe",)

    def check(_: Outcome) -> str:
        found = reading(file)
        if found is None or found.isna().any(axis=None):
            return "took a file without a table, or with missing values"
        largest = found.select_dtypes(float).abs().max(axis=None)
        if largest > LARGEST:
            return f"took {largest}"
        if not out.exists():
            return ""
        metadata = json.loads((out / "config.json").read_text())["metadata"]
        names = [name for name, kind in metadata["schema"].items() if kind["kind"] != "constant"]
        return "" if set(names) <= set(found.columns) else f"trained on {names} of {list(found)}"

    return Case("train", (file, *words), check, (out,), valid)


def plot_case(draw: Draw, place: Place) -> Case:
    """The table of the training has usually changed; what is drawn has its very values."""
    file, _ = table(draw, place.cleared(), "source")
    file = file.rename(place.work / "source.csv")

    def check(_: Outcome, rows: np.ndarray) -> str:
        trained = reading(place.folder / "rows.csv")
        return "" if same(rows, trained) else "drew a table that has changed"

    model = place.folder / "sourced"
    return Case("plot", (model,), of_rows(file, check), (model / "figures",))


def images_case(draw: Draw, place: Place) -> Case:
    """Images are whole numbers from 0 to 255 in three dimensions."""
    grey = np.random.default_rng(0).integers(0, 256, (20, 3, 3)).astype(np.uint8)
    odd = (grey.reshape(20, 9), grey / 1.0, grey / 255, grey.astype(int) - 1, grey.astype(int) + 1,
           np.where(grey > 250, np.nan, grey / 1.0), grey[:9], grey[:0], grey[:, :0], grey * 0,
           grey.astype(object), grey * 1e300, grey > 9, grey[..., None])  # fmt: skip
    array, out = draw(st.sampled_from([grey, *odd]) | any_array), place.cleared() / "out"
    member = None if draw(st.booleans()) else draw(st.sampled_from(["images", "no", ""]))
    name = data = place.work / ("images.npy" if member is None else "images.npz")
    content = _saved(np.save, array)
    if member is not None:
        name, content = f"{data}:{member}", _saved(np.savez, images=array, other=grey)
    data.write_bytes(changed_bytes(draw, content) if draw(st.booleans()) else content)

    def check(came: Outcome) -> str:
        with warnings.catch_warnings(action="ignore"):
            found = np.load(data) if member is None else np.load(data)[member]
        right = found.ndim == 3 and f"of {found.shape[1]} x {found.shape[2]}" in came.out
        return "" if right and found.min() >= 0 and found.max() <= 255 else "took other images"

    tiny = ("--epochs", 1, "--hidden", 4, "--latent-dim", 1, "--samples", 1)
    argv = (name, "--out", out, *tiny, "--posterior", "gaussian")
    return Case("train-vae", argv, check, (out,))


def uci_case(draw: Draw, place: Place) -> Case:
    """The file of the UCI tables."""
    content = _saved(np.savez, wine=an_array(draw)[0], housing=rows_of_table(12))
    file = place.cleared() / "uci_small.npz"
    file.write_bytes(changed_bytes(draw, content) if draw(st.booleans()) else content)
    argv = ("tables", "--section", "nll", "--tables", "wine", "--methods", "gaussian")
    return Case("benchmark", (*argv, "--splits", 1, "--budget", 0.1, "--data-dir", place.work))


def series_case(draw: Draw, place: Place, program: str) -> Case:
    """Series with odd cells: what comes out has their ids, and numbers alone."""
    file, out = place.cleared() / "series.csv", place.work / "out.csv"
    lines = [line.split(",") for line in series_text().splitlines()]
    for _ in range(draw(st.integers(0, 3))):
        row, column = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, 3))
        lines[row][column] = draw(st.sampled_from(CELLS + HEADERS) | st.text(max_size=3))
    file.write_text("".join(",".join(line) + "\n" for line in lines), errors="replace")
    if program == "train-series":
        return Case(program, (file, *SERIES, *QUICK_SERIES, "--out", out), outs=(out,))

    def check(_: Outcome) -> str:
        found = pd.read_csv(out)
        right = found["height"].astype(str).str.startswith("s").all() and len(found) == 2
        finite = np.isfinite(found.drop(columns="height").to_numpy()).all()
        return "" if right and finite else f"wrong predictions: {found}"

    files = ("--data", file, "--times", place.folder / "times.csv", "--out", out)
    return Case(program, (place.folder / "series", *files), check, (out,))


CASES = {
    "train": train_case, "train-vae": images_case, "sample": sample_case, "plot": plot_case,
    "benchmark": uci_case,
    **{name: partial(series_case, program=name) for name in ("train-series", "predict")},
    **{name: partial(scored_case, program=name) for name in ("evaluate", "log-prob", "check")},
}  # fmt: skip
