"""`evaluate DIR`: the NLL of held-out rows, against a Gaussian's and the truth if known.

Of a model of series: errors at hidden or future observations beside those of trivial baselines,
the coverage of intervals, and the bound on log p.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnf.scripts.options import READ_OPTIONS, add_options, read_options
from cnf.scripts.program import Parser, program, say

REPORT_FILE = "report.html"


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("evaluate", description=__doc__)
    add_options(parser, "dir", "--data", "--context-data", "--missing", *READ_OPTIONS)
    add_options(parser, "--static", "--labels", "--divergence", "--draws", "--json")
    parser.add_argument(
        "--report",
        metavar="FILE",
        nargs="?",
        const="",
        help="write a page on the calibration of the flow, an .html file (default: "
        f"DIR/{REPORT_FILE})",
    )
    return parser


@program("evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.series.kind import OF_ROWS, OF_SERIES, is_series, refuse_options

    if is_series(arguments.dir):
        of_rows = ("context_data", "missing", "divergence", "draws", "report")
        refuse_options(parser(), arguments, OF_SERIES, *of_rows)
        from cnf.scripts.series.evaluation import evaluate_series

        say(*evaluate_series(arguments))
        return 0
    refuse_options(parser(), arguments, OF_ROWS, "static", "labels")
    from cnf.scripts.evaluation import summarize, warn_of_rows, with_consistency
    from cnf.scripts.report import check_page, write_report
    from cnf.scripts.trained import TrainedModel
    from cnf.utils.distributed import process_group

    trained = TrainedModel.read(arguments.dir, arguments.divergence)
    files = (arguments.data, arguments.context_data, arguments.missing)
    rows, toy = trained.rows(*files, reading=read_options(arguments), unknown="keep")
    with process_group():
        page = Path(arguments.report or trained.folder / REPORT_FILE)
        if arguments.report is not None:
            check_page(page)
        log_prob, nfe = trained.score(rows, arguments.draws)
        warn_of_rows(trained, rows, log_prob)
        with_errors = trained.score_with_errors(trained.error_sample(rows), arguments.draws)
        evaluation = summarize(trained, rows, toy, log_prob, nfe, arguments.draws, with_errors)
        evaluation = with_consistency(evaluation, trained, rows)
        if not arguments.json:
            say(*evaluation.lines())
        if arguments.report is not None:
            names = filter(None, (arguments.data, arguments.context_data))
            known = (" with the contexts of ".join(names), evaluation.lines(), arguments.draws)
            found = write_report(page, trained, rows, log_prob, *known)
            evaluation = evaluation.with_similarity(found)
            if not arguments.json:
                say(*evaluation.similarity_lines(), f"  {page}")
        if arguments.json:
            say(evaluation.json())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
