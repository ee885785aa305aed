"""`log-prob DIR --data FILE --out FILE`: the log-density of each row of a table, in nats."""

from __future__ import annotations

from collections.abc import Sequence

from cnf.datasets import write_table
from cnf.scripts.program import Parser, check_out, program, say
from cnf.scripts.trained import CONTEXT_DATA, DIVERGENCE, NOISE_DRAWS, Trained


@program("log-prob")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = Parser("log-prob", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="rows to score, with the model's columns"
    )
    parser.add_argument("--context-data", metavar="FILE", help=CONTEXT_DATA)
    parser.add_argument("--divergence", **DIVERGENCE)
    parser.add_argument("--draws", **NOISE_DRAWS)
    parser.add_argument(
        "--out", metavar="FILE", required=True, help=".csv, .npy, .npz or .parquet, by its ending"
    )
    arguments = parser.parse_args(argv)
    check_out(arguments.out, data=arguments.data, context_data=arguments.context_data)
    trained = Trained.read(arguments.dir, arguments.divergence)
    rows, _ = trained.rows(arguments.data, arguments.context_data)
    log_prob, _ = trained.score(rows, arguments.draws)
    write_table(arguments.out, log_prob[:, None], ["log_prob"])
    say(f"{len(rows)} rows in {arguments.out}, mean log p {log_prob.mean():.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
