"""What fuzz tests share: a program run on anything, what came of it, and what would be a fault.

A case is made by its kind, its program and its number alone, so that it can be made again:
`python tests/fuzz.py KIND PROGRAM NUMBER`.
"""

import os
import re
import resource
import signal
import stat
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import NamedTuple

PATIENCE = 30  # seconds after which a program hangs
ROOM = 4 * 2**30  # bytes that one may take beyond what the process has
HELPFUL = re.compile(r"[Ee]xpected |--help\)$")
OUT_OF_MEMORY = re.compile(r"allocate|memory")
FAILED = re.compile(
    r"cannot be integrated|never finite|NaN or infinite|step limit was hit"
)  # what status 1 may say as well


class Place(NamedTuple):
    """A folder with what is valid, and the folder in it where each case has its files."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def cleared(self) -> Path:
        """The folder of a case, empty."""
        if self.work.exists():
            for path in self.work.rglob("*"):
                if path.is_dir():
                    path.chmod(0o755)
            rmtree(self.work)
        self.work.mkdir()
        return self.work


@dataclass(frozen=True)
class Outcome:
    """What a program did."""

    status: object
    out: str
    err: str
    seconds: float
    escaped: str  # the traceback of what it let through; "hang" where it did not end
    before: dict[Path, object]
    after: dict[Path, object]

    @property
    def taken(self) -> bool:
        return self.status == 0


@dataclass(frozen=True)
class Case:
    """A program's arguments, and what is wrong with what it makes of them; nothing where all is.

    `outs` are paths that it may write where it succeeds; what is beneath them counts as them.
    """

    program: str
    argv: tuple[str, ...]
    story: str
    check: Callable[[Outcome], str] = lambda _: ""
    outs: tuple[Path, ...] = ()
    must_take: bool = False


class Hanging(BaseException):
    """What a program is ended with; nothing in it catches this."""


def chance(kind: str, program: str, number: int) -> Random:
    """The random numbers of a case."""
    return Random(f"{kind} {program} {number}")


def outcome(program: str, argv: tuple[str, ...], watched: Path) -> Outcome:
    """What `main(argv)` of a program does, in this process."""
    main = import_module(f"cnf.scripts.{program.replace('-', '_')}").main
    before = snapshot(watched)
    out = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)  # strict, as a terminal's
    err, escaped, status = StringIO(), "", None
    start = time.monotonic()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        chdir(watched / "work"),
        limits(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        try:
            status = main(list(argv))
        except SystemExit as exited:
            status = exited.code
        except Hanging:
            escaped = "hang"
        except BaseException:
            escaped = " | ".join(traceback.format_exc().splitlines()[-5:])
    seconds = time.monotonic() - start
    out.seek(0)
    return Outcome(status, out.read(), err.getvalue(), seconds, escaped, before, snapshot(watched))


@contextmanager
def limits() -> Iterator[None]:
    """An alarm, and an end to memory before the machine's."""

    def ring(*_: object) -> None:
        raise Hanging

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
    """All that is in a folder: what files hold, and of what kind the others are."""
    found: dict[Path, object] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        found[path] = path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
    return found


def fault(case: Case, came: Outcome) -> str:
    """What is wrong with what came of a case; nothing where all is well."""
    if came.escaped:
        return came.escaped
    lines = came.err.splitlines()
    told = [line for line in lines if not line.startswith(f"cnf {case.program}: warning: ")]
    if "Traceback" in came.err or (came.err and not came.err.endswith("\n")):
        return f"not lines of its own on standard error: {came.err!r}"
    if came.taken:
        own = {path for path in came.after if _is_of(path, case.outs)}
        return (
            (told and f"status 0, and yet {told}") or _changes(came, own) or case.check(came) or ""
        )
    if case.must_take:
        return f"refused, though nothing is wrong: {came.status} {came.err}"
    is_answer = case.program == "check" and came.status == 1 and not told
    if not is_answer and (came.status not in (1, 2) or len(told) != 1):
        return f"status {came.status!r} and not one line: {came.err!r}"
    return "" if is_answer else _refusal(case, came, told[0])


def _refusal(case: Case, came: Outcome, line: str) -> str:
    """What is wrong with how a case is refused, or fails."""
    if len(line) > 3000:
        return f"a line of {len(line)} characters: {line[:200]}"
    if came.status == 1:  # what was finished before it failed stays
        if not (OUT_OF_MEMORY.search(line) or FAILED.search(line)):
            return f"status 1, though the world did not fail: {line}"
        return _changes(came, {path for path in came.after if _is_of(path, case.outs)})
    if not HELPFUL.search(line):
        return f"a line that does not help: {line!r}"
    empty = {path for path in case.outs if os.path.isdir(path) and not os.listdir(path)}
    return _changes(came, empty | {parent for path in empty for parent in path.parents})


def _is_of(path: Path, outs: tuple[Path, ...]) -> bool:
    return any(path == out or out in path.parents for out in outs)


def _changes(came: Outcome, own: set[Path]) -> str:
    """What was written, changed or lost beside what may be."""
    left = [path.name for path in came.after if path.name.endswith((".tmp", ".lock"))]
    paths = {*came.before, *came.after} - own
    changed = [path for path in paths if came.before.get(path) != came.after.get(path)]
    return f"left over: {left}" if left else f"changed: {changed}" if changed else ""


def verdict(kind: str, case: Case, number: int, watched: Path) -> tuple[str, bool]:
    """A fault with the case that shows it and how to see it again, nothing where there is none;
    and whether the case was taken.
    """
    came = outcome(case.program, case.argv, watched)
    wrong = fault(case, came)
    if not wrong:
        return "", came.taken
    words = " ".join(repr(word[:200]) for word in case.argv)
    told = (
        f"\n{kind} {case.program} {number}: {case.story}\n  cnf {case.program} {words}\n"
        f"  {wrong}\n  again: python tests/fuzz.py {kind} {case.program} {number}\n"
    )
    return told, came.taken


@contextmanager
def drawing_nothing() -> Iterator[None]:
    """Have figures made but not drawn, which takes longer than all that is fuzzed."""
    plot = import_module("cnf.scripts.plot")
    png, plot.png = plot.png, lambda figure: b"drawn"
    try:
        yield
    finally:
        plot.png = png


def pipe(path: Path) -> Path:
    """A pipe that nobody writes to."""
    with suppress(FileExistsError):
        os.mkfifo(path)
    return path
