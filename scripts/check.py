"""`check DIR`: asks a trained flow to prove itself; pass, warn and fail, with the numbers.

Exit status 1 where a check fails.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnf.diagnostics.checks import POINTS, ROWS, check
from cnf.scripts.program import Parser, positive_integer, program, say, seed
from cnf.scripts.trained import Trained, add_row_options


def parser() -> Parser:
    """What the program can be asked."""
    parser = Parser("check", description=__doc__)
    add_row_options(parser, doing="check on")
    parser.add_argument(
        "--rows",
        metavar="N",
        type=positive_integer,
        default=ROWS,
        help=f"of the data that are taken, at most (default {ROWS})",
    )
    parser.add_argument(
        "--points",
        metavar="N",
        type=positive_integer,
        default=POINTS,
        help=f"at which the density is evaluated for its integral, at most (default {POINTS})",
    )
    parser.add_argument(
        "--seed", metavar="N", type=seed, default=0, help="of all that is drawn (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    return parser


@program("check")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    trained = Trained.read(arguments.dir, arguments.divergence)
    rows, _ = trained.rows_or_held_out(
        arguments.data, arguments.context_data, arguments.missing, doing="check on"
    )
    trained.schema.check(rows.x)
    numbers = {"rows": arguments.rows, "points": arguments.points, "seed": arguments.seed}
    report = check(trained.flow, *rows.tensors(trained.flow.like), **numbers)
    say(*([report.json()] if arguments.json else report.lines()))
    return 1 if report.verdict == "fail" else 0


if __name__ == "__main__":
    raise SystemExit(main())
