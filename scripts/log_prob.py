"""`log-prob DIR --data FILE --out FILE`: the log-density of each row of a table, in nats.

With --given it is that of the other columns given these. A row with a gap has that of what is
there, where the model was trained with --missing model, and NaN otherwise, as has a context of an
unknown category. Another unknown category or a value out of bounds has -inf. A model of series
scores each series, by a lower bound, with its standard error.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnf.scripts.options import READ_OPTIONS, add_options, listed, read_options
from cnf.scripts.program import Parser, program, say


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("log-prob", description=__doc__)
    add_options(parser, "dir")
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="rows to score, with the model's columns"
    )
    parser.add_argument(
        "--given",
        metavar="COL,COL",
        help="columns to condition on, beside the context, of a model that is no flow",
    )
    add_options(parser, "--context-data", "--static", *READ_OPTIONS)
    add_options(parser, "--divergence", "--draws", "--out")
    parser.add_argument(
        "--errors",
        action="store_true",
        help="add the columns stderr (of an estimated trace, or of noise), solver_error, "
        "uncertainty (the total, which covers 95 in 100 rows) and, in .csv and .parquet, status: "
        "FINISHED, MISSING (a gap, unless the model was trained on gaps, or a context or a given "
        "cell of an unknown category: NaN), IMPOSSIBLE (another unknown category, or out of "
        "bounds: -inf), FOLDED (where explicit steps fold: -inf), or why a row failed, which is "
        "NaN and ends nothing. Takes about three times as long",
    )
    return parser


@program("log-prob")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.output import check_out, write_log_prob, write_scores
    from cnf.scripts.series.kind import OF_ROWS, OF_SERIES, is_series, refuse_options
    from cnf.scripts.trained import TrainedModel

    check_out(arguments.out, data=arguments.data, context_data=arguments.context_data)
    if is_series(arguments.dir):
        of_rows = ("given", "context_data", "divergence", "draws", "errors")
        refuse_options(parser(), arguments, OF_SERIES, *of_rows)
        from cnf.scripts.series.tables import write_series_scores

        say(write_series_scores(arguments))
        return 0
    refuse_options(parser(), arguments, OF_ROWS, "static")
    trained = TrainedModel.read(arguments.dir, arguments.divergence)
    names = () if arguments.given is None else listed(arguments.given)
    if "" in names:
        raise ValueError(
            f"Expected names of columns in --given; got {arguments.given!r}, with an empty name: "
            "correct it"
        )
    given = trained.given_columns(names) if names else None
    files = (arguments.data, arguments.context_data)
    reading = read_options(arguments)
    rows, _ = trained.rows(*files, missing="keep", reading=reading, unknown="keep")
    write = write_scores if arguments.errors else write_log_prob
    say(write(arguments.out, trained, rows, arguments.draws, given))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
