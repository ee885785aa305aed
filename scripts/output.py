"""The tables that programs write: samples, and log-densities with their errors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnf.datasets import check_writable, write_table
from cnf.ode import Status
from cnf.scripts.rows import Array, ContextRows
from cnf.scripts.trained import TrainedModel

MAX_EXACT_INTEGER = 2.0**53  # float64 represents every whole number up to this
STATUS_NAMES = tuple(status.name for status in Status)
TEXT_ENDINGS = (".csv", ".parquet")  # of files that can hold text as well as numbers


def check_out(out: str, **inputs: str | None) -> None:
    """Raise a ValueError unless --out is writable, and not one of the inputs, by their options."""
    check_writable(out)
    for option, name in inputs.items():
        if name and os.path.exists(name) and os.path.exists(out) and os.path.samefile(name, out):
            raise ValueError(
                f"Expected --out to be another file than --{option.replace('_', '-')}; got {out}"
            )


def write_samples(out: str, trained: TrainedModel, context: Array, seed: int) -> str:
    """Write a sample for each context, with the context in the first columns; return a summary."""
    schema, given = trained.schema, trained.context_columns
    rows = ContextRows(schema.tabled(trained.sample(context, seed)), context)
    whole = (*whole_contexts(context, given), *schema.whole)
    write_table(out, rows.joined(), (*given, *schema.names), schema.texts, whole)
    return f"{len(rows)} rows in {out}"


def whole_contexts(context: Array, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the context columns that hold whole numbers only."""
    whole = ((context % 1 == 0) & (np.abs(context) < MAX_EXACT_INTEGER)).all(axis=0)
    return tuple(name for name, is_whole in zip(names, whole, strict=True) if is_whole)


def write_log_prob(out: str, trained: TrainedModel, rows: ContextRows, draws: int) -> str:
    """Write log p of rows, and return a summary."""
    log_prob, _ = trained.score(rows, draws)
    write_table(out, log_prob[:, None], ["log_prob"])
    return f"{len(rows)} rows in {out}, mean log p {log_prob.mean():.4f}"


def write_scores(out: str, trained: TrainedModel, rows: ContextRows, draws: int) -> str:
    """Write log p of rows with its errors and, where text fits, its status; return a summary."""
    scores = trained.score_with_errors(rows, draws)
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
