"""The tables that programs write: samples, and log-densities with their errors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cnf.datasets import Table, check_writable, write_table
from cnf.ode import Status
from cnf.scripts.evaluation import folded_rows, warn_between, warn_of_rows
from cnf.scripts.given_cells import GivenCells
from cnf.scripts.rows import Array, ContextRows, joined_table
from cnf.scripts.trained import TrainedModel

# What a row's status can be, beyond how its solve went: a gap makes it NaN, and a category that the
# model does not know, or a value out of a column's bounds, −∞; so does a fold of explicit steps.
STATUS_NAMES = (*(status.name for status in Status), "MISSING", "IMPOSSIBLE")
TEXT_ENDINGS = (".csv", ".parquet")  # of files that can hold text as well as numbers


def check_out(out: str, **inputs: str | None) -> None:
    """Raise a ValueError unless --out is writable, and not one of the inputs, by their options."""
    check_writable(out)
    for option, name in inputs.items():
        if name and os.path.exists(name) and os.path.exists(out) and os.path.samefile(name, out):
            raise ValueError(
                f"Expected --out to be another file than --{option.replace('_', '-')}; got {out}"
            )


def write_samples(out: str, trained: TrainedModel, context: Array, given: Table, seed: int) -> str:
    """Write a sample for each context, whose table has the first columns; return a summary."""
    write_table(out, joined_table(given, trained.schema.table(trained.sample(context, seed))))
    return f"{len(context)} rows in {out}"


def write_given_samples(
    out: str, trained: TrainedModel, cells: GivenCells, context: Array, of_context: Table, seed: int
) -> str:
    """Write a sample for each row of given cells and its context; return a summary."""
    drawn = trained.impute(ContextRows(cells.x, context), seed, cells.given)
    write_table(out, joined_table(of_context, cells.restore(trained.schema.table(drawn))))
    return f"{len(context)} rows in {out}, given {', '.join(cells.table.columns)}"


def write_log_prob(
    out: str, trained: TrainedModel, rows: ContextRows, draws: int, given: Tensor | None = None
) -> str:
    """Write log p of rows, given some columns, in double precision, and return a summary.

    In single precision a row alone differs by some 1e-6 nats from the same row among others.
    """
    log_prob, _ = trained.in_double().score(rows, draws, given)
    write_table(out, Table("scores", log_prob[:, None], ("log_prob",)))
    warn_of_rows(trained, rows, log_prob)
    summary = f"{len(rows)} rows in {out}, {_mean(log_prob)}"
    folded = folded_rows(trained, rows, log_prob).sum()
    return f"{summary}: {folded} lie where explicit steps fold" if folded else summary


def write_scores(
    out: str, trained: TrainedModel, rows: ContextRows, draws: int, given: Tensor | None = None
) -> str:
    """Write log p of rows with its errors and, where text fits, its status; return a summary."""
    scores = trained.in_double().score_with_errors(rows, draws, given)
    names = ["log_prob", "stderr", "solver_error", "uncertainty"]
    columns = [getattr(scores, name).double().cpu().numpy() for name in names]
    status = _status_codes(scores.status, columns[0], rows, trained.possible(rows))
    text = Path(out).suffix.lower() in TEXT_ENDINGS
    if text:
        names.append("status")
        columns.append(status)
    categories = {"status": STATUS_NAMES} if text else {}
    write_table(out, Table("scores", np.stack(columns, 1), tuple(names), categories=categories))
    warn_between(trained, rows)
    done = status == STATUS_NAMES.index("FINISHED")
    return ", ".join([f"{len(rows)} rows in {out}", _mean(columns[0][done]), *_unscored(status)])


def _mean(log_prob: Array) -> str:
    """Return the mean of those that are known in words."""
    known = log_prob[~np.isnan(log_prob)]
    return f"mean log p {known.mean():.4f}" if len(known) else "no row has a log p"


def _status_codes(
    statuses: NDArray[np.object_], log_prob: Array, rows: ContextRows, possible: NDArray[np.bool_]
) -> Array:
    """Return the positions in `STATUS_NAMES` of rows' statuses."""
    codes = np.array([STATUS_NAMES.index(status.name) for status in statuses], dtype=np.float64)
    gaps = np.isnan(rows.joined()).any(axis=1) | ~possible
    codes[gaps & np.isnan(log_prob)] = STATUS_NAMES.index("MISSING")
    unfolded = codes != STATUS_NAMES.index("FOLDED")
    codes[(log_prob == -np.inf) & unfolded] = STATUS_NAMES.index("IMPOSSIBLE")
    return codes


def _unscored(status: Array) -> list[str]:
    """Return the numbers of rows without a log p, with the reasons, for display."""
    names = np.array(STATUS_NAMES)[status.astype(np.int64)]
    special = ("FOLDED", "MISSING", "IMPOSSIBLE")
    folded, gaps, impossible = (np.count_nonzero(names == name) for name in special)
    failed = np.count_nonzero(names != "FINISHED") - folded - gaps - impossible
    counts = {
        "failed and are NaN": failed,
        "lie where the explicit steps fold and are -inf": folded,
        "with a gap are NaN": gaps,
        "of unknown categories or out of bounds are -inf": impossible,
    }
    return [f"{count} {reason}" for reason, count in counts.items() if count]
