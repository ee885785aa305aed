"""`benchmark solver`, `flow`, `toys`, `tables`, `vae`: measurements, beside other libraries'.

Sections of solver: detest (accuracy), overhead, rows, memory. Sections of flow: toy and table
(training steps), log_prob (exact log p in many dimensions), memory, regularizers (what they gain
and cost; trains six flows, which takes a quarter of an hour). Sections of toys: fit (KL to the
truth after --budget seconds, for every toy), objectives (hybrid, flow matching alone, maximum
likelihood alone), seeds (five of them), ffjord (the time that FFJORD's method as published takes to
come as close). With --out, toys keeps what is finished in DIR/toys.jsonl and DIR/models, and does
not train it again: interrupt it, and go on by the same command. Sections of tables: nll and
two-sample (density estimators on the UCI's tables, each fitted in --budget seconds for every table
and split: how they score held-out rows, and how well a classifier tells their samples from those);
with --out, what is finished is in DIR/tables.jsonl. Sections of vae: bounds (VAEs of digits, MNIST
and the Frey Faces, their posterior a Gaussian, planar flows or one of this library's: bounds on
test images; takes hours), and cost (training steps of a convolutional VAE); with --out, what is
finished is in DIR/vae.jsonl and DIR/models, and a training that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cnf.datasets import DATA_DIR, TOYS
from cnf.scripts.benchmarks import (
    accuracy,
    memory,
    overhead,
    race,
    rows,
    scoring,
    step_memory,
    tables,
    toys,
    trade_off,
    training_step,
    vae,
)
from cnf.scripts.benchmarks.methods import METHODS
from cnf.scripts.benchmarks.options import Options
from cnf.scripts.benchmarks.page import Page, circumstances
from cnf.scripts.benchmarks.peers import peer
from cnf.scripts.benchmarks.uci import FILE, NAMES
from cnf.scripts.benchmarks.vae_trials import POSTERIORS, SETTINGS
from cnf.scripts.program import Parser, positive_integer, positive_number, program, say


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        lines: Its lines, from what the command line asks.
        peers: The libraries that it needs.
    """

    lines: Callable[[Options], Iterator[str]]
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        options: Those that its sections read, by their names in `Options`.
        sections: Its tables by name.
    """

    options: tuple[str, ...]
    sections: dict[str, Section]


SUBJECTS = {
    "solver": Subject(
        ("repeats", "out"),
        {
            "detest": Section(lambda _: accuracy.lines(), ("torchdiffeq",)),
            "overhead": Section(
                lambda given: overhead.lines(given.repeats), ("torchdiffeq", "torchode")
            ),
            "rows": Section(lambda given: rows.lines(given.repeats)),
            "memory": Section(lambda given: memory.lines(given.out)),
        },
    ),
    "flow": Subject(
        ("repeats", "out"),
        {
            "toy": Section(
                lambda given: training_step.toy_lines(given.repeats, given.out),
                ("torchdiffeq", "zuko"),
            ),
            "table": Section(
                lambda given: training_step.table_lines(given.repeats), ("torchdiffeq",)
            ),
            "log_prob": Section(lambda given: scoring.lines(given.repeats), ("torchdiffeq",)),
            "memory": Section(lambda _: step_memory.lines(), ("torchdiffeq", "zuko")),
            "regularizers": Section(lambda given: trade_off.lines(given.out)),
        },
    ),
    "toys": Subject(
        ("budget", "toys", "cap", "out"),
        {
            "fit": Section(toys.fit_lines),
            "objectives": Section(toys.objective_lines),
            "seeds": Section(toys.seed_lines),
            "ffjord": Section(race.lines, ("torchdiffeq",)),
        },
    ),
    "tables": Subject(
        ("budget", "tables", "methods", "splits", "data_dir", "out"),
        {
            "nll": Section(tables.nll_lines),
            "two-sample": Section(tables.two_sample_lines),
        },
    ),
    "vae": Subject(
        ("repeats", "images", "posteriors", "data_dir", "out"),
        {
            "bounds": Section(vae.bound_lines, ("pyro",)),
            "cost": Section(lambda given: vae.cost_lines(given.repeats), ("pyro",)),
        },
    ),
}


@program("benchmark")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    subject = SUBJECTS[arguments.subject]
    if arguments.section not in (None, *subject.sections):
        parser().error(
            f"expected a section of {arguments.subject} among {', '.join(subject.sections)}; "
            f"got {arguments.section!r}"
        )
    options = _options(arguments)
    names = [arguments.section] if arguments.section else list(subject.sections)
    chosen = [subject.sections[name] for name in names]
    for library in {library: None for section in chosen for library in section.peers}:
        peer(library)
    if options.out is not None:
        _make(options.out)
    page = None if arguments.page is None else Page(arguments.page)
    for name, section in zip(names, chosen, strict=True):
        told, lines = circumstances(section.peers), []
        for line in section.lines(options):
            say(line)
            lines.append(line)
        say("")
        if page is not None:  # after each table, so that an interruption loses one at most
            page.put(f"{arguments.subject}: {name}", _command(arguments, name), told, lines)
    return 0


def _make(folder: Path) -> None:
    """Make the folder of --out."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = "it is no folder" if os.path.exists(folder) else getattr(error, "strerror", error)
        raise ValueError(
            f"Expected --out to be a folder to write to; got {folder}: {why}"
        ) from None


def parser() -> Parser:
    """What the program can be asked."""
    parser = Parser("benchmark", description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS, help="what to measure")
    parser.add_argument("--section", help="one table of the subject; all when not given")
    parser.add_argument(
        "--page",
        metavar="FILE",
        type=Path,
        help="a Markdown page that each table is put into under its command, in the place of what "
        "stood there",
    )
    parser.add_argument(
        "--repeats",
        type=positive_integer,
        help=f"solver, flow and vae: of every timing (default: {Options.repeats})",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where figures go, and of toys, tables and vae what is finished; nowhere otherwise",
    )
    parser.add_argument(
        "--budget",
        metavar="SECONDS",
        type=positive_number,
        help="toys: training time of every flow; tables: time for every method on every split of "
        f"a table (default: {Options.budget:g})",
    )
    parser.add_argument(
        "--cap",
        metavar="SECONDS",
        type=positive_number,
        help="toys, section ffjord: the most training time of FFJORD's method "
        f"(default: {Options.cap:g})",
    )
    parser.add_argument(
        "--splits",
        metavar="N",
        type=positive_integer,
        help=f"tables: how many times each is split (default: {Options.splits})",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help=f"tables: the folder with {FILE}; vae: that with the images' files (default: what "
        f"{DATA_DIR} names)",
    )
    for subject, what, known, usual in (
        ("toys", "toys", TOYS, "all; two in seeds and ffjord"),
        ("tables", "tables", NAMES, "all"),
        ("tables", "methods", METHODS, "all"),
        ("vae", "images", SETTINGS, "all"),
        ("vae", "posteriors", POSTERIORS, "all"),
    ):
        parser.add_argument(
            _option(what),
            metavar="NAME,NAME",
            type=partial(_names, what, known),
            help=f"{subject}: some of {', '.join(known)} (default: {usual})",
        )
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    """What was given, checked to be read by the subject."""
    given = _given(arguments)
    known = SUBJECTS[arguments.subject].options
    for name in given:
        if name not in known:
            parser().error(
                f"expected of {arguments.subject} only {', '.join(map(_option, known))}; got "
                f"{_option(name)}, which it does not read"
            )
    return Options(**given)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked of the tables, by its name in `Options`."""
    own = ("subject", "section", "page")
    return {k: v for k, v in vars(arguments).items() if k not in own and v is not None}


def _command(arguments: argparse.Namespace, section: str) -> str:
    """What makes one table with the same options."""
    words = ["cnf", "benchmark", arguments.subject, "--section", section]
    for name, value in _given(arguments).items():
        words += [_option(name), ",".join(value) if isinstance(value, tuple) else f"{value}"]
    return shlex.join(words)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _names(what: str, known: Collection[str], text: str) -> tuple[str, ...]:
    """Names among those that are known, each once."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"expected {what} among {', '.join(known)}; got {name!r}"
            )
    return names


if __name__ == "__main__":
    raise SystemExit(main())
