"""`sample DIR -n N --out FILE`: draw rows from a trained flow.

From a conditional flow, draw N rows for each row of --context-data, in its order, with the context
in the first columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnf.datasets import write_table
from cnf.scripts.data import open_context
from cnf.scripts.program import Parser, check_out, positive_integer, program, say, seed
from cnf.scripts.rows import Array, ContextRows, no_context
from cnf.scripts.trained import TrainedModel

MAX_EXACT_INTEGER = 2.0**53  # float64 represents every whole number up to this


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("sample", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument("-n", type=positive_integer, required=True, help="number of rows")
    parser.add_argument(
        "--context-data", metavar="FILE", help="contexts at which to sample a conditional model"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="the file to write: .csv, .npy, .npz or .parquet",
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draws (default 0)")
    return parser


@program("sample")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    check_out(arguments.out, context_data=arguments.context_data)
    trained = TrainedModel.read(arguments.dir)
    if arguments.context_data is not None:
        context = open_context(arguments.context_data, trained.context_columns)
        context = np.repeat(context, arguments.n, axis=0)
    elif trained.context_columns:
        raise ValueError(
            "Expected --context-data, a file of the contexts to sample at, with columns "
            f"{', '.join(trained.context_columns)}; got none for a conditional model"
        )
    else:
        context = no_context(arguments.n)
    schema = trained.schema
    rows = ContextRows(schema.tabled(trained.sample(context, arguments.seed)), context)
    names = (*trained.context_columns, *schema.names)
    whole = (*whole_contexts(context, trained.context_columns), *schema.whole)
    write_table(arguments.out, rows.joined(), names, schema.texts, whole)
    say(f"{len(rows)} rows in {arguments.out}")
    return 0


def whole_contexts(context: Array, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the context columns that hold whole numbers only."""
    whole = ((context % 1 == 0) & (np.abs(context) < MAX_EXACT_INTEGER)).all(axis=0)
    return tuple(name for name, is_whole in zip(names, whole, strict=True) if is_whole)


if __name__ == "__main__":
    raise SystemExit(main())
