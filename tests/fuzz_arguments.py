"""Arguments of every program: any option, any value, any path."""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from shutil import copytree
from unittest import mock

from fuzzing import QUICK, QUICK_SERIES, SERIES, Case, Draw, Place
from hypothesis import strategies as st

from cnf.scripts.__main__ import PROGRAMS
from cnf.scripts.program import Parser

NUMBERS = (
    "", " ", "-1", "0", "-0", "0.5", "nan", "inf", "-inf", "1e309", "1e-320", "1e300", "0x10",
    "1_0", "+5", " 5 ", "1e3", "\uff11\uff12", "٣", "true", "None", "1,2", ",", "½", "2", "1",
)  # fmt: skip
BEYOND = ("9" * 30, "9" * 5000, str(2**63), str(2**64), "-" + "9" * 400)
TEXTS = (
    "ü", "\udcff", "a\nb", "\x1b[31m", "x" * 300, "x" * 50_000, "~", "*", "--", "-", "@x", "[]",
    "{}", "moons", "wine", "exact", "auto", "../..", "%s", "{0}", "\u202e", "🙂", "height",
    "height,width", "height,height", "gaussian", "a" * 251 + ".csv", "a" * 252 + ".html",
    "a/" * 3000 + "b.csv",
)  # fmt: skip
# Large values ask for a long task or for much memory, which is no mistake.
LONG = (
    "--steps", "--epochs", "--samples", "--draws", "--points", "--repeats", "--blocks", "-n",
    "--hidden", "--flows", "--latent-dim", "--features", "--field", "--time-features",
    "--x-features", "--budget", "--cap", "--splits", "--validations",
)  # fmt: skip


@cache
def actions(program: str) -> tuple[argparse.Action, ...]:
    """Return a program's arguments except --help."""
    main = import_module(f"cnf.scripts.{program.replace('-', '_')}").main
    caught = mock.patch.object(Parser, "parse_args", autospec=True, side_effect=SystemExit)
    with caught as parse, suppress(SystemExit):
        main([])
    return tuple(each for each in parse.call_args.args[0]._actions if each.dest != "help")


def paths(folder: Path) -> list[str]:
    """Return files and folders of every kind, none of them a table."""
    for name in ("folder.csv", "empty"):
        (folder / name).mkdir()
    (folder / "text.csv").write_text("mine\n")
    (folder / "bytes.json").write_bytes(bytes(range(256)))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "list.json").write_text("[1, 2]")
    (folder / "loop.csv").symlink_to(folder / "loop.csv")
    for name in ("pipe", "pipe.csv", "pipe.npy", "pipe.json", "pipe.html"):
        os.mkfifo(folder / name)
    new = ("missing/deeper.csv", "text.csv/under.csv", "empty/new.csv", "new.npy", "new.html",
           "new.parquet", "new.CSV", "new.txt", ".csv", "pipe.npz:a", "text.npz:")  # fmt: skip
    own = [str(folder / name) for name in (*sorted(os.listdir(folder)), *new)]
    return [*own, "/dev/null", "/dev/zero", "/dev/full", "/", ".", "/proc/self/mem", "/dev/stdin\0"]


def valid(draw: Draw, place: Place, program: str) -> list[str]:
    """Return arguments that a program takes, quick ones."""
    work, model, rows = place.work, str(place.folder / "model"), str(place.folder / "rows.csv")
    typed = str(place.folder / "typed")  # a model of codes
    drawn = str(work / "drawn.csv")
    if program == "plot":  # which writes to the folder
        copytree(model, work / "copy")
    tiny = ["--epochs", "1", "--hidden", "4", "--latent-dim", "1", "--samples", "1"]
    series = str(place.folder / "series.csv")
    seen = [str(place.folder / "series"), "--data", series]
    trained = ["--out", str(work / "out")] if draw(st.integers(0, 19)) == 7 else ["--show-recipe"]
    return {
        "train": [rows, *trained, *QUICK],
        "train-vae": ["digits", "--out", str(work / "out"), *tiny, "--posterior", "gaussian"],
        "train-series": [series, *SERIES, *QUICK_SERIES, "--out", str(work / "out")],
        "predict": [*seen, "--times", str(place.folder / "times.csv"), "--out", drawn],
        "distil": [model, "--out", str(work / "out"), "--updates", "1", "--data", rows],
        "evaluate": [model, "--data", rows],
        "sample": [model, "-n", "2", "--out", drawn],
        "log-prob": [model, "--data", rows, "--out", str(work / "scores.csv")],
        "impute": [typed, "--data", f"{typed}.csv", "--out", str(work / "filled.csv")],
        "plot": [str(work / "copy")],
        "check": [model, "--data", rows, "--rows", "5", "--points", "5"],
        "benchmark": ["tables", "--section", "nll", "--tables", "wine", "--data-dir", str(work)],
    }[program]


def changed(draw: Draw, program: str, argv: list[str], places: Sequence[str]) -> list[str]:
    """Return arguments with one given, changed, twice, without a value, or gone."""
    action = draw(st.sampled_from(actions(program)))
    option = draw(st.sampled_from(action.option_strings or [""]))
    large = () if option in LONG else (st.sampled_from([10**6, 2**31, 2**53]).map(str),)
    kinds = (NUMBERS, TEXTS, *[places] * 3, BEYOND, [*map(str, action.choices or NUMBERS)])
    any_text = st.text(st.characters(categories=["L", "P", "Z", "C"]))
    words = draw(st.one_of(*map(st.sampled_from, kinds), any_text, *large))
    what = draw(st.sampled_from(["given", "given", "joined", "twice", "bare", "gone", "cut"]))
    if what == "gone" and argv:
        at = draw(st.integers(0, len(argv) - 1))
        return argv[:at] + argv[at + 1 :]
    if not option:  # positional
        return [*argv, words] if what == "twice" else [words, *argv[1:]]
    if option in argv and what == "given":
        at = argv.index(option) + 1
        return [*argv[:at], words, *argv[at + 1 :]]
    if action.nargs == 0 or what == "bare":
        return [*argv, option]
    cut = option[: draw(st.integers(2, len(option)))]
    added = {"joined": [f"{option}={words}"], "twice": [option, words] * 2, "cut": [cut, words]}
    return [*argv, *added.get(what, [option, words])]


def case(draw: Draw, place: Place, program: str) -> Case:
    """Change one or two of a program's arguments."""
    work = place.cleared()
    places = paths(work)
    argv = valid(draw, place, program)
    for _ in range(draw(st.integers(1, 2))):
        argv = changed(draw, program, argv, places)
    outs = [work / word for argument in argv for word in (argument, argument.partition("=")[2])]
    # New paths and empty folders may be written.
    made = [
        out for out in outs if work in out.parents and not (os.path.isdir(out) and os.listdir(out))
    ]
    made += [work / name for name in ("out", "runs", "copy/figures")]
    return Case(program, tuple(argv), outs=(*made, place.folder / "model" / "report.html"))


CASES = {program: partial(case, program=program) for program in PROGRAMS}
