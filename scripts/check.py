"""`check DIR`: numerical checks of a trained flow: pass, warn or fail, with the numbers.

The exit status is 1 where a check fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cnf.diagnostics import MAX_CHECK_POINTS, MAX_CHECK_ROWS
from cnf.scripts.options import READ_OPTIONS, add_options, read_options
from cnf.scripts.program import Parser, positive_integer, program, say


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("check", description=__doc__)
    add_options(parser, "dir", "--data", "--context-data", "--missing", *READ_OPTIONS)
    add_options(parser, "--divergence")
    for name, most, of in (
        ("rows", MAX_CHECK_ROWS, "data rows used"),
        ("points", MAX_CHECK_POINTS, "points at which the density is integrated"),
    ):
        text = f"largest number of {of} (default {most})"
        parser.add_argument(
            f"--{name}", metavar="N", type=positive_integer, default=most, help=text
        )
    add_options(parser, "--seed", "--json")
    return parser


@program("check")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.diagnostics import check
    from cnf.scripts.trained import TrainedModel

    trained = TrainedModel.read(arguments.dir, arguments.divergence)
    files = (arguments.data, arguments.context_data, arguments.missing)
    rows, _ = trained.rows(*files, doing="check on", reading=read_options(arguments))
    trained.schema.check(rows.x, gaps=trained.gappy)
    numbers = {"rows": arguments.rows, "points": arguments.points, "seed": arguments.seed}
    report = check(trained.model, *rows.tensors(trained.model.like), **numbers)
    report = replace(report, notes=(*report.notes, *trained.remarks(rows.x)))
    say(*([report.json()] if arguments.json else report.lines()))
    return 1 if report.verdict == "fail" else 0


if __name__ == "__main__":
    raise SystemExit(main())
