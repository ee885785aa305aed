"""`check DIR`: numerical checks of a trained flow: pass, warn or fail, with the numbers.

The exit status is 1 where a check fails.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnf.diagnostics.checks import CHECK_ROWS, INTEGRAL_POINTS, check
from cnf.scripts.program import Parser, positive_integer, program, say, seed
from cnf.scripts.trained import TrainedModel, add_row_options


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("check", description=__doc__)
    add_row_options(parser, doing="check on")
    parser.add_argument(
        "--rows",
        metavar="N",
        type=positive_integer,
        default=CHECK_ROWS,
        help=f"largest number of data rows used (default {CHECK_ROWS})",
    )
    parser.add_argument(
        "--points",
        metavar="N",
        type=positive_integer,
        default=INTEGRAL_POINTS,
        help="largest number of points at which the density is integrated "
        f"(default {INTEGRAL_POINTS})",
    )
    parser.add_argument(
        "--seed", metavar="N", type=seed, default=0, help="seed of all random draws (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    return parser


@program("check")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    trained = TrainedModel.read(arguments.dir, arguments.divergence)
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
