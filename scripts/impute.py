"""`impute DIR --data FILE --out FILE`: fill a file's gaps with joint draws given what is there.

All other cells stay as they are. With --draws K the file has each row K times, and a column `draw`,
from 1, before the others. Gaps that are a value for the model stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnf.scripts.options import READ_OPTIONS, add_options, read_options
from cnf.scripts.program import Parser, positive_integer, program, say


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("impute", description=__doc__)
    add_options(parser, "dir")
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="rows with gaps, in the model's columns; others stay as they are",
    )
    add_options(parser, *READ_OPTIONS, "--out")
    parser.add_argument(
        "--draws",
        metavar="K",
        type=positive_integer,
        default=1,
        help="draws for each row (default 1)",
    )
    add_options(parser, "--seed")
    return parser


@program("impute")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.imputation import impute_file
    from cnf.scripts.output import check_out
    from cnf.scripts.trained import TrainedModel

    check_out(arguments.out, data=arguments.data)
    trained = TrainedModel.read(arguments.dir)
    known = (arguments.draws, arguments.seed, read_options(arguments))
    say(impute_file(arguments.data, arguments.out, trained, *known))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
