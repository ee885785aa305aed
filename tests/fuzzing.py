"""Programs run on drawn inputs: the folder of a case, its outcome, and what is a fault in it."""

import json
import os
import re
import resource
import signal
import stat
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import strategies as st
from test_scripts_running import COLUMNS, done, rows_of_table, write_csv

from cnf.storage import with_checksum

PATIENCE = 30  # seconds after which a program hangs
ROOM = 4 * 2**30  # bytes that a program may take on top of the process's
HELPFUL = re.compile(r"[Ee]xpected |--help\)$")
# All that exit status 1 may report.
FAILED = re.compile(
    "allocate|memory|cannot be integrated|never finite|NaN or infinite|step limit was hit"
)
SERIES = ("--id", "height", "--time", "time")  # its columns
QUICK_SERIES = ("--steps", "1", "--hidden", "4", "--latent-dim", "1")
QUICK = ("--steps", "1", "--hidden", "4", "--objective", "mle", "--scaling", "standardize",
         "--batch-size", "4")  # fmt: skip

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Place(NamedTuple):
    """A folder of valid models and tables, and the folder in it that holds a case's files."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def cleared(self) -> Path:
        """Empty the folder of the case."""
        rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        return self.work


@contextmanager
def place_in(folder: Path) -> Iterator[Place]:
    """Train `model`, `given` (its first column), `typed` (integers and categories), `series`, and
    `sourced` (a model whose table is in the case's folder). No figures are drawn, which takes long.
    """
    place = Place(folder)
    write_csv(folder / "rows.csv", rows_of_table(12, seed=1).round(4))
    typed = "x,n,colour\n" + "".join(f"{i / 7},{i % 7},{'rgb'[i % 3]}\n" for i in range(12))
    (folder / "typed.csv").write_text(typed)
    (folder / "series.csv").write_text(series_text())
    (folder / "times.csv").write_text("height,time\ns1,0.5\ns0,3\n")
    with mock.patch("cnf.scripts.figures.png", return_value=b"drawn"):
        for name, data, *words in (
            ("model", "rows.csv"),
            ("given", "rows.csv", "--context", COLUMNS[0]),
            ("typed", "typed.csv"),
        ):
            done("train", folder / data, "--out", folder / name, *words, *QUICK)
            rmtree(folder / name / "figures")
        words = ("--out", folder / "series", *SERIES, *QUICK_SERIES, "--baseline", "none")
        done("train-series", folder / "series.csv", *words)
        rmtree(folder / "series" / "figures")
        path = copytree(folder / "model", folder / "sourced") / "config.json"
        config = json.loads(path.read_text())
        config["metadata"]["data"] = str(place.work / "source.csv")
        path.write_text(json.dumps(with_checksum(config)))
        place.cleared()
        yield place


def series_text() -> str:
    """Ten series of three times; no column has the name of one of the tables'."""
    lines = (f"s{i},{t + i / 50},{i % 3 + t},{i - t}" for i in range(10) for t in range(3))
    return "height,time,a,b\n" + "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class Outcome:
    """The result of a program, and the files before and after it."""

    status: object
    out: str
    err: str
    escaped: str  # the end of a traceback; "hang" if the program did not end
    before: dict[Path, object]
    after: dict[Path, object]


Check = Callable[[Outcome], str]


@dataclass(frozen=True)
class Case:
    """A program's arguments, and a check of its answer that returns a fault or nothing.

    `outs` are the paths that it may write, and all beneath them; `must_take`: nothing is wrong.
    """

    program: str
    argv: tuple[Any, ...]
    check: Check = lambda _: ""
    outs: tuple[Path, ...] = ()
    must_take: bool = False

    @property
    def words(self) -> list[str]:
        return [str(word) for word in self.argv]


class HangingError(BaseException):
    """The end of a program out of time; no program catches it."""


def outcome(case: Case, place: Place) -> Outcome:
    """Run a program in this process."""
    main = import_module(f"cnf.scripts.{case.program.replace('-', '_')}").main
    before = snapshot(place.folder)
    out = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)  # strict, as a terminal's
    err, escaped, status = StringIO(), "", None
    with redirect_stdout(out), redirect_stderr(err), chdir(place.work), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            with _limits():
                status = main(case.words)
        except SystemExit as exited:
            status = exited.code
        except HangingError:
            escaped = "hang"
        except BaseException:
            escaped = " | ".join(traceback.format_exc().splitlines()[-5:])
    out.seek(0)
    return Outcome(status, out.read(), err.getvalue(), escaped, before, snapshot(place.folder))


@contextmanager
def _limits() -> Iterator[None]:
    """Set an alarm, and a limit of memory below the machine's."""

    def ring(*_: object) -> None:
        raise HangingError

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    space = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, space[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, space)
        signal.signal(signal.SIGALRM, handler)


def snapshot(folder: Path) -> dict[Path, object]:
    """Return all paths in a folder with their content, or their kind if they are no files."""
    modes = {path: path.lstat().st_mode for path in sorted(folder.rglob("*"))}
    return {
        path: path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
        for path, mode in modes.items()
    }


def fault(case: Case, came: Outcome) -> str:
    """Return what is wrong with an outcome; nothing if all is well."""
    if came.escaped:
        return came.escaped
    if "Traceback" in came.err or (came.err and not came.err.endswith("\n")):
        return f"a traceback, or half a line: {came.err!r}"
    warning = f"cnf {case.program}: warning: "
    told = [line for line in came.err.splitlines() if not line.startswith(warning)]
    written = {path for path in came.after if {path, *path.parents} & set(case.outs)}
    if came.status == 0:
        return f"status 0, but {told}" if told else _changes(came, written) or case.check(came)
    if case.must_take:
        return f"refused valid input: {came.status} {came.err}"
    if case.program == "check" and came.status == 1 and not told:
        return ""  # its answer is no
    if came.status not in (1, 2) or len(told) != 1 or len(told[0]) > 3000:
        return f"status {came.status!r}, and not one short line: {came.err[:5000]!r}"
    if not (FAILED if came.status == 1 else HELPFUL).search(told[0]):
        return f"status {came.status}, and not a line that helps: {told[0]!r}"
    empty = {path for path in case.outs if os.path.isdir(path) and not os.listdir(path)}
    allowed = {parent for path in empty for parent in (path, *path.parents)}
    return _changes(came, written if came.status == 1 else allowed)


def _changes(came: Outcome, allowed: set[Path]) -> str:
    """Return what was left over, written, changed or lost except for what may be."""
    left = [path.name for path in came.after if path.name.endswith((".tmp", ".lock"))]
    paths = {*came.before, *came.after} - allowed
    changed = [path for path in paths if came.before.get(path) != came.after.get(path)]
    return f"left over: {left}" if left else f"changed: {changed}" if changed else ""


def changed_bytes(draw: Draw, content: bytes) -> bytes:
    """Flip a bit, or put a piece in, cut, double, zero or lose bytes; most often in the header."""
    at = draw(st.integers(0, min(len(content), 150)) | st.integers(0, len(content)))
    end = at + draw(st.sampled_from([1, 4, 32]))
    before, piece, after = content[:at], content[at:end], content[end:]
    flipped = bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) if at < len(content) else b"a"
    new = draw(
        st.sampled_from([b"\0", b"\r", b'"', b",", b"\xff", b"\x1a"]) | st.binary(max_size=4)
    )
    made = (flipped + content[at + 1 :], new + piece + after, b"", piece * 2 + after,
            bytes(len(piece)) + after, after)  # fmt: skip
    return before + draw(st.sampled_from(made))
