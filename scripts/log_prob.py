"""`log-prob DIR --data FILE --out FILE`: the log-density of each row of a table, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnf.datasets import write_table
from cnf.flow.scores import Scores
from cnf.ode import Status
from cnf.scripts.program import Parser, check_out, program, say
from cnf.scripts.trained import (
    CONTEXT_DATA_HELP,
    DIVERGENCE_OPTION,
    NOISE_DRAWS_OPTION,
    TrainedModel,
)

STATUS_NAMES = tuple(status.name for status in Status)
TEXT_ENDINGS = (".csv", ".parquet")  # of files that can hold text as well as numbers


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("log-prob", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="rows to score, with the model's columns"
    )
    parser.add_argument("--context-data", metavar="FILE", help=CONTEXT_DATA_HELP)
    parser.add_argument("--divergence", **DIVERGENCE_OPTION)
    parser.add_argument("--draws", **NOISE_DRAWS_OPTION)
    parser.add_argument(
        "--errors",
        action="store_true",
        help="add the columns stderr (of an estimated trace, or of noise), solver_error, "
        "uncertainty (the total, which covers 95 in 100 rows) and, in .csv and .parquet, status; "
        "rows that fail then become NaN with their status, and no error. Takes about three times "
        "as long",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="the file to write: .csv, .npy, .npz or .parquet",
    )
    return parser


@program("log-prob")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    check_out(arguments.out, data=arguments.data, context_data=arguments.context_data)
    trained = TrainedModel.read(arguments.dir, arguments.divergence)
    rows, _ = trained.rows(arguments.data, arguments.context_data)
    if arguments.errors:
        say(_write_scores(arguments.out, trained.score_with_errors(rows, arguments.draws)))
        return 0
    log_prob, _ = trained.score(rows, arguments.draws)
    write_table(arguments.out, log_prob[:, None], ["log_prob"])
    say(f"{len(rows)} rows in {arguments.out}, mean log p {log_prob.mean():.4f}")
    return 0


def _write_scores(out: str, scores: Scores) -> str:
    """Write scores as a table, and return a line that describes it."""
    names = ["log_prob", "stderr", "solver_error", "uncertainty"]
    columns = [getattr(scores, name).double().cpu().numpy() for name in names]
    done = scores.status == Status.FINISHED
    text = Path(out).suffix.lower() in TEXT_ENDINGS
    if text:
        names.append("status")
        columns.append(np.array([STATUS_NAMES.index(status.name) for status in scores.status]))
    write_table(out, np.stack(columns, 1), names, {"status": STATUS_NAMES} if text else None)
    mean = f"mean log p {columns[0][done].mean():.4f}" if done.any() else "no row has a log p"
    failed = f", {np.count_nonzero(~done)} failed and are NaN" if not done.all() else ""
    return f"{len(done)} rows in {out}, {mean}{failed}"


if __name__ == "__main__":
    raise SystemExit(main())
