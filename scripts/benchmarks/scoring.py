"""Rows that trained flows score and draw in a second, adaptive and discretised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cnf.datasets import TOYS
from cnf.flow import Flow
from cnf.ode import SolveError
from cnf.scripts.benchmarks.compared import peer
from cnf.scripts.benchmarks.density import SMALL_NETWORK, trained_flow
from cnf.scripts.benchmarks.measure import (
    BENCHMARK_CHUNK_ROWS,
    Array,
    Name,
    TableItem,
    median_seconds,
    threads_used,
)
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.tables import prepare, standardized, uci_table
from cnf.scripts.benchmarks.toys import fresh_rows
from cnf.scripts.data import open_data
from cnf.storage import load_flow, save
from cnf.training.recipes import Recipe, choose_recipe
from cnf.utils.random import seeded

SCORED_TABLES = ("protein", "bike")
SCORING_VIEWS: dict[str, dict[str, Any]] = {
    "default": {},
    "own steps": {"first_pass": False},
    "joint": {"step": "joint"},
}
"""Changes of the solver by the names of their columns."""


@dataclass(frozen=True, eq=False)
class ScoredData:
    """Rows of a toy or a table, standardised if of a table: arrays of shape (rows, columns)."""

    name: str
    train: Array
    validation: Array
    test: Array
    recipe: Recipe

    @property
    def x(self) -> Tensor:
        """Test rows, as many as are scored in one solve; repeated where there are fewer."""
        rows = torch.from_numpy(self.test).float()
        copies = -(-BENCHMARK_CHUNK_ROWS // len(rows))
        return rows.repeat(copies, 1)[:BENCHMARK_CHUNK_ROWS]


def rate_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield two rows for each flow: log p and sampling, by the solver's settings and by an NSF."""
    parts = scored_data(options)
    yield (
        f"Rows a second, of {BENCHMARK_CHUNK_ROWS} at a time; no gradient; flows by the default "
        f"recipes, of a solver, after {options.budget:g} s; {threads_used(options.repeats)}"
    )
    for data in parts:
        key = key_of({"scored": data.name, **_lengths(options)}, data.recipe, data.train)
        row = options.results.recall(key, partial(_rates, options, data))
        for kind in ("log_prob", "sampling"):
            yield {f"{kind}, rows/s": data.name, **row[kind], "note": row["note"]}
    yield "default: with the first pass at shared times; own steps: without it"
    yield f"NSF: zuko's, {SMALL_NETWORK}, initial weights, which its time does not depend on"


def scored_data(options: BenchmarkOptions) -> list[ScoredData]:
    """Return the rows of the toys and tables that are named; of all toys and two tables if none."""
    toys, tables = options.toys, options.tables
    if not toys and not tables:
        toys, tables = tuple(TOYS), SCORED_TABLES
    found = [_table(options, name) for name in tables]  # first, since a file may be missing
    return [*(_toy(name) for name in toys), *found]


def _toy(name: str) -> ScoredData:
    data, test = open_data(name, 0), fresh_rows(name, BENCHMARK_CHUNK_ROWS, 0)
    _, recipe = choose_recipe(None, *data.train.x.shape)  # by a solver
    return ScoredData(name, data.train.x, data.validation.x, test, recipe)


def _table(options: BenchmarkOptions, name: str) -> ScoredData:
    parts = standardized(prepare(uci_table(options.data_dir, name).values)[0], seed=0)
    return ScoredData(name, *parts, choose_recipe(None, *parts.train.shape)[1])


def flow_of(options: BenchmarkOptions, data: ScoredData) -> Flow:
    """Return the default flow that is solved, trained for the budget unless a folder has it."""
    key = key_of({"flow": data.name, "budget": options.budget}, data.recipe, data.train)

    def train() -> Flow:
        parts = data.train, data.validation
        return trained_flow(data.recipe, *parts, 0, budget=options.budget)[0]

    return kept_flow(options, key, train)


def kept_flow(options: BenchmarkOptions, key: Row, train: Callable[[], Flow]) -> Flow:
    """Return the flow of a key, which is trained and saved unless it has been."""
    folder = options.results.model_folder(key)
    if folder is not None and (folder / "config.json").exists():
        return load_flow(folder)
    flow = train()
    if folder is not None:
        save(flow, folder, {"result": dict(key)})
    return flow


def spline_of(data: ScoredData) -> Any:
    """Return zuko's neural spline flow on the columns of rows, at its initial weights."""
    with seeded(0):
        return peer("zuko").flows.NSF(data.train.shape[1], **SMALL_NETWORK)()


def rates_of(models: Mapping[str, Any], x: Tensor, repeats: int) -> Row:
    """Return rows a second by "log_prob" and "sampling", then by the models' names.

    A model has `log_prob` of rows and `sample` of a shape, as a flow or a distribution has. A
    number of rows whose solve fails does not end the measurement, and stands in "note".
    """
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    failed: dict[tuple[str, str], int] = {}
    for name, model in models.items():
        whole = {
            "log_prob": partial(model.log_prob, x),
            "sampling": partial(model.sample, (len(x),)),
        }
        for kind, run in whole.items():
            runs[kind, name] = partial(_tolerant, run, failed, (kind, name))
    with torch.no_grad(), seeded(0):
        seconds = median_seconds(runs, repeats)
    notes = [f"{name}, {kind}: {rows} rows failed" for (kind, name), rows in failed.items()]
    rates = {
        kind: {name: len(x) / seconds[kind, name] for name in models}
        for kind in ("log_prob", "sampling")
    }
    return {**rates, "note": "; ".join(notes)}


def _tolerant(run: Callable[[], object], failed: dict[Name, int], key: Name) -> None:
    """Call a function, and count the rows of a solve that fails; the most of all calls stay."""
    try:
        run()
    except SolveError as error:
        failed[key] = max(failed.get(key, 0), len(error.solution.rows))


def _rates(options: BenchmarkOptions, data: ScoredData) -> Row:
    flow = flow_of(options, data)
    models: dict[str, Any] = {
        name: flow.with_solver(**changes) for name, changes in SCORING_VIEWS.items()
    }
    return rates_of(models | {"NSF": spline_of(data)}, data.x, options.repeats)


def _lengths(options: BenchmarkOptions) -> dict[str, Any]:
    return {"budget": options.budget, "repeats": options.repeats}
