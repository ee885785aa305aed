"""`log-prob DIR --data FILE --out FILE`: the log-density of each row of a table, in nats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnf.scripts.options import READ_OPTIONS, add_options, read_options
from cnf.scripts.program import Parser, program, say

if TYPE_CHECKING:
    from cnf.scripts.rows import ContextRows
    from cnf.scripts.trained import TrainedModel


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("log-prob", description=__doc__)
    add_options(parser, "dir")
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="rows to score, with the model's columns"
    )
    add_options(parser, "--context-data", *READ_OPTIONS, "--divergence", "--draws", "--out")
    parser.add_argument(
        "--errors",
        action="store_true",
        help="add the columns stderr (of an estimated trace, or of noise), solver_error, "
        "uncertainty (the total, which covers 95 in 100 rows) and, in .csv and .parquet, status. "
        "Every row is scored then: one that fails is NaN, one with a gap too (MISSING), one with "
        "an unknown category or out of bounds -inf (IMPOSSIBLE), one where explicit steps fold too "
        "(FOLDED). Takes about three times as long",
    )
    return parser


@program("log-prob")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.output import check_out, write_log_prob, write_scores
    from cnf.scripts.trained import TrainedModel

    check_out(arguments.out, data=arguments.data, context_data=arguments.context_data)
    trained = TrainedModel.read(arguments.dir, arguments.divergence)
    rows = _rows(trained, arguments)
    write = write_scores if arguments.errors else write_log_prob
    say(write(arguments.out, trained, rows, arguments.draws))
    return 0


def _rows(trained: TrainedModel, arguments: argparse.Namespace) -> ContextRows:
    """Read the rows, with gaps and unknown categories where errors are asked for.

    Raises:
        ValueError: The rows cannot be read; the message names --errors where that would help.
    """
    names, reading = (arguments.data, arguments.context_data), read_options(arguments)
    if arguments.errors:
        return trained.rows(*names, missing="keep", reading=reading)[0]
    try:
        return trained.rows(*names, reading=reading)[0]
    except ValueError as error:
        try:
            trained.rows(*names, missing="keep", reading=reading)
        except ValueError:
            raise error from None
        raise ValueError(
            f"{str(error).rstrip('.')}; or score the other rows with --errors, which gives such "
            "rows NaN or -inf"
        ) from None


if __name__ == "__main__":
    raise SystemExit(main())
