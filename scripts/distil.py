"""`distil DIR --steps K --out DIR`: tune a few explicit steps to a trained flow.

The model in --out has the exact log p of K steps along the flow's field, an order of magnitude
faster than an adaptive solve, and is used as any other. It is tuned on the rows that DIR was
trained on, or on the flow's own draws where they cannot be read, with a penalty on folds: weights
whose folds have a mass above 0.001 are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnf.scripts.options import READ_OPTIONS, add_options
from cnf.scripts.program import Parser, positive_integer, positive_number, program


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("distil", description=__doc__)
    add_options(parser, "dir")
    parser.add_argument(
        "--steps",
        metavar="K",
        type=positive_integer,
        default=2,
        help="explicit steps in place of each adaptive solve (default 2)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument(
        "--method",
        metavar="NAME",
        default="midpoint",
        help="a Runge-Kutta method of at least two stages, such as rk4 (default midpoint)",
    )
    parser.add_argument(
        "--budget", metavar="SECONDS", type=positive_number, help="time of tuning (default 60)"
    )
    parser.add_argument(
        "--updates",
        metavar="N",
        type=positive_integer,
        help="number of optimizer steps; with --budget as well, the limit reached first ends it",
    )
    parser.add_argument(
        "--data",
        help="the rows to tune on: a name or a file, a tenth of which is held out for selection "
        "and one for the scores (default: the rows of the training)",
    )
    add_options(parser, "--context-data", "--missing", *READ_OPTIONS, "--seed", "--threads")
    return parser


@program("distil")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.distillation import distil_model

    distil_model(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
