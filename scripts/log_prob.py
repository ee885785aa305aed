"""`log-prob DIR --data FILE --out FILE`: the log-density of each row of a table, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnf.datasets import write_table
from cnf.flow.scores import Scores
from cnf.ode import Status
from cnf.scripts.program import Parser, check_out, program, say
from cnf.scripts.trained import CONTEXT_DATA, DIVERGENCE, NOISE_DRAWS, Trained

STATUSES = tuple(status.name for status in Status)
TEXT = (".csv", ".parquet")  # endings of files that hold text beside numbers


def parser() -> Parser:
    """What the program can be asked."""
    parser = Parser("log-prob", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="rows to score, with the model's columns"
    )
    parser.add_argument("--context-data", metavar="FILE", help=CONTEXT_DATA)
    parser.add_argument("--divergence", **DIVERGENCE)
    parser.add_argument("--draws", **NOISE_DRAWS)
    parser.add_argument(
        "--errors",
        action="store_true",
        help="add the columns stderr (of an estimated trace, or of noise), solver_error, "
        "uncertainty (all of it, for 95 in 100 rows) and, in .csv and .parquet, status; rows that "
        "fail are then NaN with their status and end nothing. Takes about three times as long",
    )
    parser.add_argument(
        "--out", metavar="FILE", required=True, help=".csv, .npy, .npz or .parquet, by its ending"
    )
    return parser


@program("log-prob")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    check_out(arguments.out, data=arguments.data, context_data=arguments.context_data)
    trained = Trained.read(arguments.dir, arguments.divergence)
    rows, _ = trained.rows(arguments.data, arguments.context_data)
    if arguments.errors:
        say(_write_scores(arguments.out, trained.assess(rows, arguments.draws)))
        return 0
    log_prob, _ = trained.score(rows, arguments.draws)
    write_table(arguments.out, log_prob[:, None], ["log_prob"])
    say(f"{len(rows)} rows in {arguments.out}, mean log p {log_prob.mean():.4f}")
    return 0


def _write_scores(out: str, scores: Scores) -> str:
    """Write scores as a table, and say what it is."""
    names = ["log_prob", "stderr", "solver_error", "uncertainty"]
    columns = [getattr(scores, name).double().cpu().numpy() for name in names]
    done = scores.status == Status.FINISHED
    text = Path(out).suffix.lower() in TEXT
    if text:
        names.append("status")
        columns.append(np.array([STATUSES.index(status.name) for status in scores.status]))
    write_table(out, np.stack(columns, 1), names, {"status": STATUSES} if text else None)
    mean = f"mean log p {columns[0][done].mean():.4f}" if done.any() else "none with a log p"
    failed = f", {np.count_nonzero(~done)} failed and are NaN" if not done.all() else ""
    return f"{len(done)} rows in {out}, {mean}{failed}"


if __name__ == "__main__":
    raise SystemExit(main())
