"""`predict DIR --data FILE --times FILE --out FILE`: predict series at any times.

The file in --data has what is seen of the series. --times has a column of times, at which all of
them are predicted, or ids and times. --out has the ids and times as they came and, for each column
of the model, the mean and quantiles of observations there, such as `x`, `x q0.05`, `x q0.95`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnf.scripts.options import READ_OPTIONS, SHARED_OPTIONS, add_options
from cnf.scripts.program import Parser, program, say


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("predict", description=__doc__)
    add_options(parser, "dir")
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="what is seen, in the training's columns"
    )
    parser.add_argument("--times", **{**SHARED_OPTIONS["--times"], "required": True})
    add_options(parser, "--static", *READ_OPTIONS, "--out", "--seed")
    return parser


@program("predict")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.output import check_out
    from cnf.scripts.series.tables import write_predictions

    files = {name: getattr(arguments, name) for name in ("data", "times", "static")}
    check_out(arguments.out, **files)
    say(write_predictions(arguments))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
