"""The held-out NLL of row models on tables of mixed types, and the similarity of their draws."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import log, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cnf.datasets import DATA_DIR, Table, frame_table, load, row_groups, split, table_frame
from cnf.diagnostics.similarity import similarity
from cnf.scripts.benchmarks.compared import MIXED_FOLDER, MIXED_TABLES
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS, Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.rival_programs import run_program
from cnf.tables import Column, Schema
from cnf.tables.coding import Coding
from cnf.tables.kinds import CategoricalColumn
from cnf.tables.row_training import fit_rows, new_row_model
from cnf.utils.random import seeded

Array = NDArray[np.float64]

OURS = "ours"
TIMES = ("training", "sampling", "scoring")
MEASURES = (
    *("NLL", "± NLL", "impossible", "draws", "detection", "detector", "shape error"),
    *("pair error", "nearer"),
    *(f"{name} s" for name in TIMES),
)
"""The columns of a result: "impossible" is the share of test rows without any mass."""
STEP_EXPONENT = -3  # of the width of cells, from the standard deviation's


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each table, split and method, each kept as it ends."""
    names = options.tables or MIXED_TABLES
    paths = {name: mixed_file(options.data_dir, name) for name in names}
    yield (
        "Log-mass of held-out rows on a grid, in nats, and the similarity of as many draws as "
        f"training rows to these; {options.budget:g} s each, splits: {options.splits}, "
        f"{threads_used()}"
    )
    for name, path in paths.items():
        table = load(str(path))
        for seed in range(options.splits):
            yield _trial_of(options, name, table, seed)
            for rival in options.rivals:
                method, _, python = rival.partition("=")
                yield _trial_of(options, name, table, seed, method, Path(python))


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


def _trial_of(
    options: BenchmarkOptions,
    name: str,
    table: Table,
    seed: int,
    method: str = OURS,
    python: Path | None = None,
) -> Row:
    """Return the trial of a method on a split of a table, run unless it is cached."""
    names = {"table": name, "split": seed, "budget": options.budget}
    key = key_of(names if python is None else {**names, "method": method}, table.values)
    trial = options.results.recall(key, partial(_run, table, options.budget, seed, method, python))
    return {"table": name, "split": seed, "method": method, **trial}


@dataclass(frozen=True)
class MixedSplit:
    """A table's rows for training, selection and testing, and the step of its columns of numbers.

    Attributes:
        schema: The columns.
        train: Their numbers, as `Schema.numbers` returns them.
        validation: Those to select on.
        test: Those to score.
        steps: The width of the cells that a log-mass is of, in the table's units: the grid's own,
            or a thousandth of the standard deviation's power of ten; None for categories.
    """

    schema: Schema
    train: Array
    validation: Array
    test: Array
    steps: Mapping[str, float | None]

    @staticmethod
    def of(table: Table, seed: int) -> MixedSplit:
        """Return a split of a table."""
        schema = Schema.infer(table)
        numbers = schema.numbers(table.values, table.categories, table.types)
        parts = split(len(table.values), seed, row_groups(table.values))
        train, validation, test = (
            numbers[each] for each in (parts.train, parts.validation, parts.test)
        )
        pairs = zip(schema.columns, table.values.T, strict=True)
        steps = {each.name: step_of(each, x) for each, x in pairs}
        return MixedSplit(schema, train, validation, test, steps)


def step_of(column: Column, values: Array) -> float | None:
    """Return the width of a column's cells; see `MixedSplit.steps`."""
    if isinstance(column.of_kind, CategoricalColumn):
        return None
    if column.kind in ("integer", "grid"):
        return column.step or 1.0
    return float(10.0 ** (np.floor(np.log10(values.std())) + STEP_EXPONENT))


@dataclass(frozen=True)
class MixedResult:
    """The draws of a method as a table, log-masses of the test rows, and seconds."""

    draws: Table
    log_mass: Array
    seconds: Mapping[str, float]


def fit_ours(rows: MixedSplit, budget: float, seed: int) -> MixedResult:
    """Train a `RowModel`, draw from it and score the test rows."""
    times = [perf_counter()]
    model = new_row_model(rows.schema, rows.train, seed=seed)
    fit_rows(model, rows.train, validation=rows.validation, budget=budget, seed=seed, threads=1)
    times.append(perf_counter())
    with seeded(seed):
        draws = model.sample(len(rows.train)).numpy()
    times.append(perf_counter())
    with torch.no_grad():
        x = torch.from_numpy(rows.test)
        log_prob = model.log_prob(x, max_batch=BENCHMARK_CHUNK_ROWS, seed=seed).double().numpy()
    times.append(perf_counter())
    seconds = dict(zip(TIMES, np.diff(times).tolist(), strict=True))
    log_mass = log_prob + log_widths(model.coding, rows).sum(1)
    return MixedResult(rows.schema.table(draws), log_mass, seconds)


def log_widths(coding: Coding, rows: MixedSplit) -> Array:
    """Return the logs of the widths of test rows' cells, (rows, columns).

    They are 0 where a model's log p is that of a mass itself.
    """
    found = np.zeros(rows.test.shape)
    with_density = coding.present(coding.encode(rows.test).codes)
    for i, each in enumerate(coding.coordinates):
        step = rows.steps[rows.schema.names[each.place]]
        if each.continuous and not each.noisy:
            found[:, each.place] = with_density[:, i] * log(step or 1.0)
    return found


def fit_rival(rows: MixedSplit, budget: float, seed: int, method: str, python: Path) -> MixedResult:
    """Run a rival's program by the interpreter of an environment with its library."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        run_rival(folder, rows, budget, seed, method, python)
        draws = _drawn(folder / "draws.csv", rows)
        seconds = json.loads((folder / "seconds.json").read_text())
        log_mass = np.loadtxt(folder / "log_mass.csv", skiprows=1)
    return MixedResult(draws, log_mass, seconds)


def run_rival(
    folder: Path, rows: MixedSplit, budget: float, seed: int, method: str, python: Path
) -> None:
    """Run a rival's program on a split, with the results in a folder.

    Raises:
        RuntimeError: The program failed.
    """
    for part in ("train", "test"):
        frame = table_frame(rows.schema.table(getattr(rows, part)))
        frame.to_csv(folder / f"{part}.csv", index=False)
    (folder / "columns.json").write_text(json.dumps(rows.steps))
    run_program(folder, method, python, budget, seed)


def _drawn(path: Path, rows: MixedSplit) -> Table:
    """Read draws as a table in the types and the rounding of the rows."""
    text = {name: "str" for name, step in rows.steps.items() if step is None}
    frame = pd.read_csv(path, dtype=text, keep_default_na=False)
    table = frame_table(frame[[*rows.schema.names]], "draws", rows.schema.types)
    numbers = rows.schema.numbers(table.values, table.categories, table.types, unknown="keep")
    return rows.schema.table(numbers)


def _run(table: Table, budget: float, seed: int, method: str, python: Path | None) -> Row:
    """Fit a method to a split, and score its held-out rows and its draws; note a failure."""
    rows = MixedSplit.of(table, seed)
    row: Row = {"rows": len(table.values), **dict.fromkeys(MEASURES, nan), "note": ""}
    try:
        if python is None:
            found = fit_ours(rows, budget, seed)
        else:
            found = fit_rival(rows, budget, seed, method, python)
    except RuntimeError as error:
        return row | {"note": f"failed: {error}"}
    possible = np.isfinite(found.log_mass)
    nll = Average.of(-found.log_mass[possible])
    real, held_out = (rows.schema.table(each) for each in (rows.train, rows.test))
    alike = similarity(real, held_out, found.draws)
    return row | {
        "NLL": nll.mean,
        "± NLL": nll.stderr,
        "impossible": float((~possible).mean()),
        "draws": alike.detection.rows,
        "detection": alike.detection.score,
        "detector": alike.detection.detector,
        "shape error": alike.mean_shape,
        "pair error": alike.mean_pair,
        "nearer": alike.nearer_to_training,
        **{f"{name} s": found.seconds[name] for name in TIMES},
    }
