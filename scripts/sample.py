"""`sample DIR -n N --out FILE`: draw rows from a trained flow.

From a conditional flow, draw N rows for each row of --context-data, in its order, with the context
in the first columns. With --given, draw N rows for each of that file's, whose cells stay as they
are. From a model of series, draw N series at the times of random training series, or at --times.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnf.scripts.options import READ_OPTIONS, add_options, read_options
from cnf.scripts.program import Parser, positive_integer, program, say


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("sample", description=__doc__)
    add_options(parser, "dir")
    parser.add_argument(
        "-n", type=positive_integer, required=True, help="number of rows, or of series"
    )
    parser.add_argument(
        "--context-data", metavar="FILE", help="contexts at which to sample a conditional model"
    )
    parser.add_argument(
        "--given",
        metavar="FILE",
        help="rows with some of the model's columns, in which gaps are drawn as well; of a model "
        "that is no flow",
    )
    add_options(parser, "--times", *READ_OPTIONS, "--out", "--seed")
    return parser


@program("sample")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.output import check_out, write_given_samples, write_samples
    from cnf.scripts.series.kind import OF_ROWS, OF_SERIES, is_series, refuse_options
    from cnf.scripts.trained import TrainedModel

    files = {"context_data": arguments.context_data, "given": arguments.given}
    check_out(arguments.out, **files, times=arguments.times)
    if is_series(arguments.dir):
        refuse_options(parser(), arguments, OF_SERIES, *files)
        from cnf.scripts.series.tables import write_drawn_series

        say(write_drawn_series(arguments))
        return 0
    refuse_options(parser(), arguments, OF_ROWS, "times")
    trained = TrainedModel.read(arguments.dir)
    reading = read_options(arguments)
    if arguments.given is not None:
        cells = trained.given_cells(arguments.given, arguments.n, arguments.context_data, reading)
        say(write_given_samples(arguments.out, trained, *cells, arguments.seed))
        return 0
    contexts = trained.sample_contexts(arguments.n, arguments.context_data, reading)
    say(write_samples(arguments.out, trained, *contexts, arguments.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
