"""`benchmark solver`, `flow`, `toys`, `tables`, `vae`: measurements against other libraries.

Sections of solver: detest (accuracy), overhead, rows, memory. Sections of flow: toy and table
(training steps), log_prob (exact log p in many dimensions), memory, regularizers (their gain and
their cost; trains six flows, which takes a quarter of an hour). Sections of toys: fit (KL to the
truth after --budget seconds, for every toy), objectives (hybrid, flow matching alone, maximum
likelihood alone), seeds (five of them), ffjord (the time that FFJORD's method as published takes to
reach the same KL). With --out, finished results of toys are cached in DIR/toys.jsonl and
DIR/models and not trained again: after an interruption, repeat the command to continue. Sections of
tables: nll and two-sample (density estimators on the UCI's tables, each fitted in --budget seconds
for every table and split: their score on held-out rows, and how well a classifier tells their
samples from those rows); with --out, finished results are cached in DIR/tables.jsonl. Sections of
vae: bounds (VAEs of digits, MNIST and the Frey Faces, with a Gaussian, planar flows or a flow of
this library as the posterior: bounds on test images; takes hours), and cost (training steps of a
convolutional VAE); with --out, finished results are cached in DIR/vae.jsonl and DIR/models, and an
interrupted training resumes.
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
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.page import BenchmarkPage, circumstances
from cnf.scripts.benchmarks.peers import peer
from cnf.scripts.benchmarks.uci import UCI_FILE, UCI_TABLES
from cnf.scripts.benchmarks.vae_trials import VAE_POSTERIORS, VAE_SETTINGS
from cnf.scripts.program import Parser, positive_integer, positive_number, program, say


@dataclass(frozen=True)
class BenchmarkSection:
    """A table of a benchmark.

    Attributes:
        lines: Yields the table's lines, given the options of the command line.
        peers: The libraries that the table needs.
    """

    lines: Callable[[BenchmarkOptions], Iterator[str]]
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchmarkSubject:
    """A subject of measurement, with its tables.

    Attributes:
        options: Names of the attributes of `BenchmarkOptions` that the sections read.
        sections: The tables by name.
    """

    options: tuple[str, ...]
    sections: dict[str, BenchmarkSection]


BENCHMARK_SUBJECTS = {
    "solver": BenchmarkSubject(
        ("repeats", "out"),
        {
            "detest": BenchmarkSection(lambda _: accuracy.lines(), ("torchdiffeq",)),
            "overhead": BenchmarkSection(
                lambda given: overhead.lines(given.repeats), ("torchdiffeq", "torchode")
            ),
            "rows": BenchmarkSection(lambda given: rows.lines(given.repeats)),
            "memory": BenchmarkSection(lambda given: memory.lines(given.out)),
        },
    ),
    "flow": BenchmarkSubject(
        ("repeats", "out"),
        {
            "toy": BenchmarkSection(
                lambda given: training_step.toy_lines(given.repeats, given.out),
                ("torchdiffeq", "zuko"),
            ),
            "table": BenchmarkSection(
                lambda given: training_step.table_lines(given.repeats), ("torchdiffeq",)
            ),
            "log_prob": BenchmarkSection(
                lambda given: scoring.lines(given.repeats), ("torchdiffeq",)
            ),
            "memory": BenchmarkSection(lambda _: step_memory.lines(), ("torchdiffeq", "zuko")),
            "regularizers": BenchmarkSection(lambda given: trade_off.lines(given.out)),
        },
    ),
    "toys": BenchmarkSubject(
        ("budget", "toys", "cap", "out"),
        {
            "fit": BenchmarkSection(toys.fit_lines),
            "objectives": BenchmarkSection(toys.objective_lines),
            "seeds": BenchmarkSection(toys.seed_lines),
            "ffjord": BenchmarkSection(race.lines, ("torchdiffeq",)),
        },
    ),
    "tables": BenchmarkSubject(
        ("budget", "tables", "methods", "splits", "data_dir", "out"),
        {
            "nll": BenchmarkSection(tables.nll_lines),
            "two-sample": BenchmarkSection(tables.two_sample_lines),
        },
    ),
    "vae": BenchmarkSubject(
        ("repeats", "images", "posteriors", "data_dir", "out"),
        {
            "bounds": BenchmarkSection(vae.bound_lines, ("pyro",)),
            "cost": BenchmarkSection(lambda given: vae.cost_lines(given.repeats), ("pyro",)),
        },
    ),
}


@program("benchmark")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    subject = BENCHMARK_SUBJECTS[arguments.subject]
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
    page = None if arguments.page is None else BenchmarkPage(arguments.page)
    for name, section in zip(names, chosen, strict=True):
        setting, lines = circumstances(section.peers), []
        for line in section.lines(options):
            say(line)
            lines.append(line)
        say("")
        if page is not None:  # after each table, so that an interruption loses one at most
            page.put(f"{arguments.subject}: {name}", _command(arguments, name), setting, lines)
    return 0


def _make(folder: Path) -> None:
    """Make the folder of --out."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = "it is not a folder" if os.path.exists(folder) else getattr(error, "strerror", error)
        raise ValueError(
            f"Expected --out to be a folder to write to; got {folder}: {why}"
        ) from None


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("benchmark", description=__doc__)
    parser.add_argument("subject", choices=BENCHMARK_SUBJECTS, help="what to measure")
    parser.add_argument("--section", help="one table of the subject; all when not given")
    parser.add_argument(
        "--page",
        metavar="FILE",
        type=Path,
        help="a Markdown page to write each table into, under its command and in place of an "
        "earlier version",
    )
    parser.add_argument(
        "--repeats",
        type=positive_integer,
        help=f"solver, flow and vae: repeats of every timing (default: {BenchmarkOptions.repeats})",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder for figures and, of toys, tables and vae, finished results (default: none)",
    )
    parser.add_argument(
        "--budget",
        metavar="SECONDS",
        type=positive_number,
        help="toys: training time of every flow; tables: time for every method on every split of "
        f"a table (default: {BenchmarkOptions.budget:g})",
    )
    parser.add_argument(
        "--cap",
        metavar="SECONDS",
        type=positive_number,
        help="toys, section ffjord: the longest training time of FFJORD's method "
        f"(default: {BenchmarkOptions.cap:g})",
    )
    parser.add_argument(
        "--splits",
        metavar="N",
        type=positive_integer,
        help=f"tables: number of splits of each table (default: {BenchmarkOptions.splits})",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help=f"tables: the folder with {UCI_FILE}; vae: the folder with the images' files "
        f"(default: the value of {DATA_DIR})",
    )
    for subject, what, known, usual in (
        ("toys", "toys", TOYS, "all; two in seeds and ffjord"),
        ("tables", "tables", UCI_TABLES, "all"),
        ("tables", "methods", METHODS, "all"),
        ("vae", "images", VAE_SETTINGS, "all"),
        ("vae", "posteriors", VAE_POSTERIORS, "all"),
    ):
        parser.add_argument(
            _option(what),
            metavar="NAME,NAME",
            type=partial(_names, what, known),
            help=f"{subject}: some of {', '.join(known)} (default: {usual})",
        )
    return parser


def _options(arguments: argparse.Namespace) -> BenchmarkOptions:
    """Return the options, and refuse those that the subject does not read."""
    given = _given(arguments)
    known = BENCHMARK_SUBJECTS[arguments.subject].options
    for name in given:
        if name not in known:
            parser().error(
                f"expected for {arguments.subject} only {', '.join(map(_option, known))}; got "
                f"{_option(name)}, which it does not read"
            )
    return BenchmarkOptions(**given)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by their names in `BenchmarkOptions`."""
    others = ("subject", "section", "page")
    return {k: v for k, v in vars(arguments).items() if k not in others and v is not None}


def _command(arguments: argparse.Namespace, section: str) -> str:
    """Return the command that makes one table with the same options."""
    words = ["cnf", "benchmark", arguments.subject, "--section", section]
    for name, value in _given(arguments).items():
        words += [_option(name), ",".join(value) if isinstance(value, tuple) else f"{value}"]
    return shlex.join(words)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _names(what: str, known: Collection[str], text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of known names, each kept once."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"expected {what} among {', '.join(known)}; got {name!r}"
            )
    return names


if __name__ == "__main__":
    raise SystemExit(main())
