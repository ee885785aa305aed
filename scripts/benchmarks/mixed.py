"""The held-out NLL of row models on tables of mixed types, and the similarity of their draws."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from cnf.datasets import DATA_DIR, Table, load, row_groups, split
from cnf.diagnostics.similarity import similarity
from cnf.scripts.benchmarks.compared import MIXED_FOLDER, MIXED_TABLES
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS, Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.tables import Schema
from cnf.tables.row_training import fit_rows, new_row_model
from cnf.utils.random import seeded


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each table and split, each kept as it ends."""
    names = options.tables or MIXED_TABLES
    paths = {name: mixed_file(options.data_dir, name) for name in names}
    yield (
        "NLL of held-out rows in nats, and the similarity of as many draws as training rows to "
        f"these; {options.budget:g} s each, splits: {options.splits}, {threads_used()}"
    )
    for name, path in paths.items():
        table = load(str(path))
        for seed in range(options.splits):
            yield _trial_of(options, name, table, seed)


def mixed_file(data_dir: str | None, name: str) -> Path:
    """Return the CSV file of a table in a folder, the environment's CNF_DATA when None.

    Raises:
        ValueError: There is no such file.
    """
    folder = data_dir or os.environ.get(DATA_DIR)
    path = Path(folder or "", MIXED_FOLDER, f"{name}.csv")
    if not folder or not path.is_file():
        raise ValueError(
            f"Expected a folder with {MIXED_FOLDER}/{name}.csv; got {folder or 'none'}: give "
            f"--data-dir DIR, or set {DATA_DIR}"
        )
    return path


def _trial_of(options: BenchmarkOptions, name: str, table: Table, seed: int) -> Row:
    """Return the trial of a split of a table, run unless it is cached."""
    names = {"table": name, "split": seed, "budget": options.budget}
    key = key_of(names, table.values)
    trial = options.results.recall(key, partial(_run, table, options.budget, seed))
    return {"table": name, "split": seed, **trial}


def _run(table: Table, budget: float, seed: int) -> Row:
    """Train a model on a split, and score its held-out rows and its draws.

    The schema and the codes are of all rows, so that each held-out value has a code.
    """
    schema, parts = Schema.infer(table), split(len(table.values), seed, row_groups(table.values))
    numbers = schema.numbers(table.values, table.categories, table.types)
    training, validation, test = (
        numbers[rows] for rows in (parts.train, parts.validation, parts.test)
    )
    times = [perf_counter()]
    model = new_row_model(schema, numbers, seed=seed)
    fit_rows(model, training, validation=validation, budget=budget, seed=seed, threads=1)
    times.append(perf_counter())
    with seeded(seed):
        draws = model.sample(len(training)).numpy()
    times.append(perf_counter())
    with torch.no_grad():
        log_prob = model.log_prob(
            torch.from_numpy(test), max_batch=BENCHMARK_CHUNK_ROWS, seed=seed
        ).numpy()
    times.append(perf_counter())
    real, held_out, drawn = (schema.table(each) for each in (training, test, draws))
    nll, alike = Average.of(-log_prob), similarity(real, held_out, drawn)
    return {
        "rows": len(table.values),
        "NLL": nll.mean,
        "± NLL": nll.stderr,
        "detection": alike.detection.score,
        "detector": alike.detection.detector,
        "shape error": alike.mean_shape,
        "nearer": alike.nearer_to_training,
        "training s": times[1] - times[0],
        "sampling s": times[2] - times[1],
        "scoring s": times[3] - times[2],
        "note": "",
    }
