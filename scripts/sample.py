"""`sample DIR -n N --out FILE`: draw rows from a trained flow."""

from __future__ import annotations

from collections.abc import Sequence

from cnf.datasets import check_writable, write_table
from cnf.scripts.program import Parser, positive_integer, program, say, seed
from cnf.scripts.trained import Trained


@program("sample")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = Parser("sample", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument("-n", type=positive_integer, required=True, help="number of rows")
    parser.add_argument(
        "--out", metavar="FILE", required=True, help=".csv, .npy, .npz or .parquet, by its ending"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the draws (default 0)")
    arguments = parser.parse_args(argv)
    check_writable(arguments.out)
    trained = Trained.read(arguments.dir)
    write_table(arguments.out, trained.sample(arguments.n, arguments.seed), trained.columns)
    say(f"{arguments.n} rows in {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
