"""`benchmark solver`: accuracy, overhead, rows and memory, beside other libraries'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cnf.scripts.benchmarks import accuracy, memory, overhead, rows
from cnf.scripts.benchmarks.peers import peer
from cnf.scripts.program import Parser, positive_integer, program, say

# The sections, and what has to be installed for each.
SECTIONS = {
    "detest": ("torchdiffeq",),
    "overhead": ("torchdiffeq", "torchode"),
    "rows": (),
    "memory": (),
}


@program("benchmark")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = Parser("benchmark", description=__doc__)
    parser.add_argument("subject", choices=["solver"], help="what to measure")
    parser.add_argument("--section", choices=SECTIONS, help="one table; all when not given")
    parser.add_argument(
        "--repeats", type=positive_integer, default=7, help="of every timing (default: 7)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where figures go; none otherwise")
    arguments = parser.parse_args(argv)
    sections = [arguments.section] if arguments.section else list(SECTIONS)
    for library in {library for section in sections for library in SECTIONS[section]}:
        peer(library)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for line in _lines(section, arguments.repeats, arguments.out):
            say(line)
        say("")
    return 0


def _lines(section: str, repeats: int, out: Path | None) -> Iterator[str]:
    if section == "detest":
        return accuracy.lines()
    if section == "overhead":
        return overhead.lines(repeats)
    return rows.lines(repeats) if section == "rows" else memory.lines(out)


if __name__ == "__main__":
    raise SystemExit(main())
