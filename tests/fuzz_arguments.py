"""Arguments with something wrong with them: any option of any program, any value, any path."""

import argparse
import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random
from shutil import copytree
from typing import Any
from unittest import mock

from fuzz_tables import QUICK
from fuzzing import Case, Place, chance, pipe

from cnf.scripts.__main__ import PROGRAMS
from cnf.scripts.program import Parser

NUMBERS = (
    "", " ", "-1", "0", "-0", "1.5", "0.5", "nan", "inf", "-inf", "1e309", "1e-320", "1e300",
    "0x10", "1_0", "+5", " 5 ", "1e3", "\uff11\uff12", "٣", "true", "None", "1,2", ",", "5;",
    "5.0", "½", "2", "1", "3",
)  # fmt: skip
BEYOND = ("9" * 30, "9" * 5000, str(2**63), str(2**64), "-" + "9" * 400)
TEXTS = (
    "ü", "\udcff", "a\nb", "a\r\nb", "\x1b[31m", "x" * 300, "x" * 50_000, "~", "*", "--", "-",
    "@x", "[]", "{}", "moons", "wine", "exact", "auto", "../..", "a b", "'", '"', "\\", "$(ls)",
    "%s", "{0}", "\u202e", "🙂", "height", "height,width", "height,height", "CON", "cnf",
    "gaussian", "a" * 251 + ".csv", "a" * 252 + ".html", "a" * 300 + ".csv", "a/" * 3000 + "b.csv",
)  # fmt: skip
# Of a long task, or of as much memory as there is: no mistake, and nothing that ends in seconds.
LONG = (
    "--steps", "--epochs", "--samples", "--draws", "--points", "--repeats", "--blocks", "-n",
    "--hidden", "--flows", "--latent-dim", "--features", "--field", "--time-features",
    "--x-features", "--budget", "--cap", "--splits", "--validations",
)  # fmt: skip


class CaughtError(Exception):
    """What ends a program where it would parse its arguments."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@cache
def actions(program: str) -> tuple[Any, ...]:
    """All that a program takes, but for --help."""

    def parse(self: argparse.ArgumentParser, _: object = None) -> None:
        raise CaughtError(self)

    main = import_module(f"cnf.scripts.{program.replace('-', '_')}").main
    with mock.patch.object(Parser, "parse_args", parse):
        try:
            main([])
        except CaughtError as caught:
            return tuple(each for each in caught.parser._actions if each.dest != "help")
    raise AssertionError(program)


def paths(folder: Path) -> tuple[str, ...]:
    """Files and folders of every kind, none of them as it should be, in a folder."""
    (folder / "folder.csv").mkdir(exist_ok=True)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "empty.csv").touch()
    (folder / "text.csv").write_text("mine\n")
    (folder / "bytes.json").write_bytes(bytes(range(256)))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "loop.csv").symlink_to(folder / "loop.csv")
    (folder / "list.json").write_text("[1, 2]")
    names = [path.name for path in folder.iterdir()]
    pipes = [
        pipe(folder / f"pipe{ending}").name for ending in ("", ".csv", ".npy", ".json", ".html")
    ]
    others = ("missing", "missing/deeper.csv", "text.csv/under.csv", "empty/new.csv", "new.npy",
              "new.html", "new.parquet", "new.CSV", "new.txt", ".csv", "pipe.npz:a", "text.npz:",
              "empty.csv:a")  # fmt: skip
    own = [str(folder / name) for name in (*names, *pipes, *others)]
    return (*own, "/dev/null", "/dev/zero", "/dev/full", "/", ".", "/proc/self/mem", "/dev/stdin\0")


def base(place: Place, program: str, random: Random) -> list[str]:
    """Arguments that a program takes, of the quick ones."""
    work, model, rows = place.work, str(place.folder / "model"), str(place.folder / "rows.csv")
    data = ["--data", rows]
    if program == "plot":  # which writes to the folder
        copytree(place.folder / "model", work / "copy")
    vae = ["--epochs", "1", "--hidden", "4", "--latent-dim", "1", "--samples", "1"]
    return {
        "train": [rows, "--out", str(work / "out"), *QUICK]
        if random.random() < 0.05
        else [rows, "--show-recipe", *QUICK],  # quick without --show-recipe, too
        "train-vae": ["digits", "--out", str(work / "out"), *vae, "--posterior", "gaussian"],
        "evaluate": [model, *data],
        "sample": [model, "-n", "2", "--out", str(work / "drawn.csv")],
        "log-prob": [model, *data, "--out", str(work / "scores.csv")],
        "plot": [str(work / "copy")],
        "check": [model, *data, "--rows", "5", "--points", "5"],
        "benchmark": ["tables", "--section", "nll", "--tables", "wine", "--data-dir", str(work)],
    }[program]


def value(random: Random, option: str, places: Sequence[str]) -> str:
    """Any value for an option."""
    kinds: list[Sequence[str]] = [NUMBERS, NUMBERS, TEXTS, places, places, BEYOND]
    if option not in LONG:
        kinds.append(("1000000", str(2**31), str(2**53)))
    chosen = random.choice(random.choice(kinds))
    if option in ("--report", "--out", "--data", "--schema", "--recipe") and random.random() < 0.4:
        chosen = random.choice(places)
    return chosen


def changed(random: Random, program: str, argv: list[str], places: Sequence[str]) -> list[str]:
    """Arguments with one of them given, changed, twice, without a value, or gone."""
    action = random.choice(actions(program))
    option = random.choice(action.option_strings or [""])
    given = value(random, option, places)
    if action.choices and random.random() < 0.3:
        given = random.choice([str(choice) for choice in action.choices])
    what = random.choice(["given"] * 6 + ["joined", "twice", "bare", "gone", "first", "cut"])
    if what == "gone" and argv:
        at = random.randrange(len(argv))
        return argv[:at] + argv[at + 1 :]
    if not option:  # of a place
        return [given, *argv[1:]] if random.random() < 0.8 else [*argv, given]
    if option in argv and what != "bare" and random.random() < 0.7:
        at = argv.index(option) + 1
        return [*argv[:at], given, *argv[at + 1 :]]
    if action.nargs == 0 or what == "bare":
        return [*argv, option]
    words = {"joined": [f"{option}={given}"], "twice": [option, given, option, given],
             "cut": [option[: random.randint(2, len(option))], given]}  # fmt: skip
    return [*argv, *words.get(what, [option, given])]


def case(place: Place, program: str, number: int) -> Case:
    """Arguments for a program, one or two of them changed."""
    random, work = chance("arguments", program, number), place.cleared()
    places = paths(work)
    argv = base(place, program, random)
    for _ in range(random.choice([1, 1, 2])):
        argv = changed(random, program, argv, places)
    outs = [work / word for argument in argv for word in (argument, argument.partition("=")[2])]
    # What is new, or an empty folder, may be written to.
    made = [
        out for out in outs if work in out.parents and not (os.path.isdir(out) and os.listdir(out))
    ]
    made += [work / name for name in ("out", "runs", "copy/figures")]
    made += [place.folder / "model" / "report.html"]
    return Case(program, tuple(argv), "arguments", outs=tuple(made))


CASES = dict.fromkeys(PROGRAMS)
