"""`benchmark solver` and `benchmark flow`: measurements beside other libraries'.

Sections of solver: detest (accuracy), overhead, rows, memory. Sections of flow: toy and table
(training steps), log_prob (exact log p in many dimensions), memory, regularizers (what they gain
and cost; trains six flows, which takes a quarter of an hour).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnf.scripts.benchmarks import (
    accuracy,
    memory,
    overhead,
    rows,
    scoring,
    step_memory,
    trade_off,
    training_step,
)
from cnf.scripts.benchmarks.peers import peer
from cnf.scripts.program import Parser, positive_integer, program, say


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        lines: Its lines, from the number of repeats and the folder for figures.
        peers: The libraries that it needs.
    """

    lines: Callable[[int, Path | None], Iterator[str]]
    peers: tuple[str, ...] = ()


SUBJECTS = {
    "solver": {
        "detest": Section(lambda _, out: accuracy.lines(), ("torchdiffeq",)),
        "overhead": Section(
            lambda repeats, out: overhead.lines(repeats), ("torchdiffeq", "torchode")
        ),
        "rows": Section(lambda repeats, out: rows.lines(repeats)),
        "memory": Section(lambda _, out: memory.lines(out)),
    },
    "flow": {
        "toy": Section(training_step.toy_lines, ("torchdiffeq", "zuko")),
        "table": Section(lambda repeats, out: training_step.table_lines(repeats), ("torchdiffeq",)),
        "log_prob": Section(lambda repeats, out: scoring.lines(repeats), ("torchdiffeq",)),
        "memory": Section(lambda _, out: step_memory.lines(), ("torchdiffeq", "zuko")),
        "regularizers": Section(lambda _, out: trade_off.lines(out)),
    },
}


@program("benchmark")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = Parser("benchmark", description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS, help="what to measure")
    parser.add_argument("--section", help="one table of the subject; all when not given")
    parser.add_argument(
        "--repeats", type=positive_integer, default=7, help="of every timing (default: 7)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where figures go; none otherwise")
    arguments = parser.parse_args(argv)
    sections = SUBJECTS[arguments.subject]
    if arguments.section not in (None, *sections):
        parser.error(
            f"expected a section of {arguments.subject} among {', '.join(sections)}; "
            f"got {arguments.section!r}"
        )
    chosen = [sections[arguments.section]] if arguments.section else list(sections.values())
    for library in {library: None for section in chosen for library in section.peers}:
        peer(library)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    for section in chosen:
        for line in section.lines(arguments.repeats, arguments.out):
            say(line)
        say("")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
