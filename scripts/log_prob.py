"""`log-prob DIR --data FILE --out FILE`: the log-density of each row of a table, in nats."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cnf.datasets import check_writable, write_table
from cnf.scripts.data import open_rows
from cnf.scripts.program import Parser, program, say
from cnf.scripts.trained import Trained


@program("log-prob")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = Parser("log-prob", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="rows to score, with the model's columns"
    )
    parser.add_argument(
        "--out", metavar="FILE", required=True, help=".csv, .npy, .npz or .parquet, by its ending"
    )
    arguments = parser.parse_args(argv)
    check_writable(arguments.out)
    if os.path.exists(arguments.out) and os.path.samefile(arguments.data, arguments.out):
        raise ValueError(f"Expected --out to be another file than --data; got {arguments.out}")
    trained = Trained.read(arguments.dir)
    rows, _ = open_rows(arguments.data, trained.columns, trained.seed)
    log_prob, _ = trained.score(rows)
    write_table(arguments.out, log_prob[:, None], ["log_prob"])
    say(f"{len(rows)} rows in {arguments.out}, mean log p {log_prob.mean():.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
