"""A trained folder: the flow, and a record of the data that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cnf.datasets import MISSING, ColumnType, Missing, ReadOptions
from cnf.fields import as_field
from cnf.fields.divergence import choose_divergence, with_count
from cnf.flow import Flow
from cnf.flow.scores import Scores, concatenate
from cnf.layers import CNF, FieldLayer
from cnf.ode import SolveError
from cnf.scripts.data import (
    FOUND_OUT,
    AnyToy,
    ColumnChoices,
    Data,
    open_context,
    open_data,
    open_rows,
)
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.rows import Array, ContextRows, context_tensor, no_context
from cnf.storage import load_config, load_flow
from cnf.tables.schema import Column, Schema
from cnf.utils.distributed import gather, local_slice, rank
from cnf.utils.random import seeded

SCORE_CHUNK_ROWS = 8000  # rows scored or drawn in one solve, many of which share steps
HUTCHINSON_PROBES = 16  # per row, where the trace is estimated
ERROR_SAMPLE_ROWS = 1000  # rows that represent all, since errors cost several solves
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "training.safetensors"


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained flow, on the CPU, with a record of its training data."""

    folder: Path
    flow: Flow
    schema: Schema  # the columns that the flow was fitted on, and their kinds
    context_columns: tuple[str, ...]  # columns to condition on; usually empty
    source: str  # the DATA argument of the training
    sha256: str  # of DATA's values; empty for a toy
    seed: int  # of DATA's split, or of the toy's rows
    missing: Missing  # the treatment of missing values
    data_dir: str | None  # the folder with the files of benchmarks, where one was named
    reading: ReadOptions  # how the training's file was read
    context_types: Mapping[str, ColumnType]  # the types of the context's columns
    grouped: bool  # whether equal rows stay in one part of the split
    gaussian: GaussianBaseline  # fitted on the training rows

    @staticmethod
    def read(folder: str, divergence: str = "auto") -> TrainedModel:
        """Read the model in a folder, to be scored with a divergence by its name.

        An estimated divergence gets enough probes.

        Raises:
            ValueError: The folder holds no model that `train` wrote.
        """
        metadata, flow = load_config(folder)["metadata"], load_flow(folder)
        layer = next((layer for layer in flow.layers if isinstance(layer, CNF)), None)
        if layer is not None:
            chosen = choose_divergence(divergence, as_field(layer.field), flow.base.event_shape[0])
            flow = flow.with_solver(divergence=with_count(chosen, HUTCHINSON_PROBES))
        elif divergence != "auto":
            raise ValueError(
                "Expected no --divergence with a model of explicit steps, whose determinants are "
                f"exact; got {divergence}: leave it out"
            )
        try:
            return TrainedModel(Path(folder), flow, *_checked(metadata, flow))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"Expected a folder written by train; the metadata in {folder}/config.json is not "
                "as train writes it: restore it, or train again"
            ) from None

    def in_double(self) -> TrainedModel:
        """Return the model in double precision, where log p is free of the order of rounding."""
        return replace(self, flow=self.flow.in_double())

    @property
    def _types(self) -> dict[str, ColumnType]:
        """The types of all columns in training."""
        return {**self.schema.types, **self.context_types}

    def data(self, advice: str = "train again") -> Data:
        """Read the training data, with the same split, or advise where it has changed."""
        choices = ColumnChoices(
            self.context_columns,
            self.missing,
            replace(self.reading, types=self._types),
            schema=self.schema,
            sha256=self.sha256,
            advice=advice,
            grouped=self.grouped,
        )
        return open_data(self.source, self.seed, choices, self.data_dir)

    def rows(
        self,
        data: str | None,
        context_data: str | None,
        missing: Missing = "refuse",
        doing: str = "score",
        reading: ReadOptions = FOUND_OUT,
    ) -> tuple[ContextRows, AnyToy | None]:
        """Read the rows that --data and --context-data name, or the held-out rows without --data.

        Where these have changed, the advice is to name the rows "to score", or what is `doing`.
        """
        if data is not None:
            known = (self.schema, self.context_columns, self.seed)
            files = (context_data, missing, self.data_dir)
            reading = replace(reading, types=self._types)
            return open_rows(data, *known, *files, reading)
        if context_data is not None:
            raise ValueError(
                "Expected --data with --context-data; got none: give both, or neither for the "
                "held-out rows, which have their own contexts"
            )
        check_unused(reading, "--data")
        trained_on = self.data(advice=f"name the rows to {doing} with --data")
        return trained_on.test, trained_on.toy

    def score(self, rows: ContextRows, draws: int = 1) -> tuple[Array, float]:
        """Return log p of rows in nats, and the mean number of evaluations of a solve.

        With columns of whole numbers or categories log p is, on average, a lower bound on a row's
        log-mass, which tightens with the draws of noise for each row. Noise and probes are
        functions of the model's seed and of the row itself. Processes share the chunks.

        Raises:
            RuntimeError: The flow cannot be integrated at some rows; the message names them.
        """
        log_prob, evaluations = [], 0.0
        with torch.no_grad():
            for i, chunk in _shared_chunks(rows):
                try:
                    found, mean = self._score(chunk, draws)
                except SolveError as error:
                    failed = ", ".join(str(i + row) for row in error.solution.rows[:5])
                    raise RuntimeError(
                        f"Rows {failed} (counted from 0) lie where the flow cannot be integrated, "
                        f"perhaps far from its training data: leave them out. {error}"
                    ) from None
                log_prob.append(found)
                evaluations += len(chunk) * mean
        parts = gather((log_prob, evaluations))
        scores = np.concatenate([chunk for chunks, _ in parts for chunk in chunks])
        return scores, sum(total for _, total in parts) / len(scores)

    def _score(self, rows: ContextRows, draws: int) -> tuple[Array, float]:
        """Return log p of the rows of one solve, and the mean number of evaluations of a solve."""
        scored = self.flow.score_draws(*rows.tensors(self.flow.like), self.seed, draws)
        solves = sum(isinstance(layer, FieldLayer) for layer in self.flow.layers)
        solves = max(1, solves) * (draws if self.flow.noisy else 1)
        evaluations = float(np.mean(scored.stats.evaluations)) / solves
        return scored.log_prob.double().cpu().numpy(), evaluations

    def score_with_errors(self, rows: ContextRows, draws: int = 1) -> Scores:
        """Return scores of rows with errors; NaN and a status where the flow cannot be integrated.

        Log p equals that of `score` with as many draws; there are at least two, for a standard
        error, and more probes of an estimated trace. A row with NaN is NaN, one with an unknown
        category, −1, or a value out of a column's bounds −∞. This takes about three times as long.
        Processes share the chunks.
        """
        probes = max(2, draws) if self.flow.noisy else HUTCHINSON_PROBES
        parts = []
        for _, chunk in _shared_chunks(rows):
            tensors = chunk.tensors(self.flow.like)
            parts.append(self.flow.score(*tensors, probes=probes, seed=self.seed))
        return concatenate([scores for part in gather(parts) for scores in part])

    def error_sample(self, rows: ContextRows) -> ContextRows:
        """Return a random sample of rows, at most a thousand, fixed by the model's seed."""
        if len(rows) <= ERROR_SAMPLE_ROWS:
            return rows
        chosen = np.random.default_rng(self.seed).permutation(len(rows))[:ERROR_SAMPLE_ROWS]
        return ContextRows(rows.x[chosen], rows.context[chosen])

    def gaussian_log_prob(self, rows: ContextRows) -> Array:
        """Return log p of rows by the Gaussian baseline, in nats.

        Whole numbers and categories are dequantized as the flow does, with one draw of noise.
        """
        numbers, log_det = continuous_columns(self.flow, self.schema, rows, self.seed)
        return self.gaussian.log_prob(numbers) + log_det

    def sample_contexts(
        self, n: int, context_data: str | None, reading: ReadOptions = FOUND_OUT
    ) -> tuple[Array, Mapping[str, ColumnType]]:
        """Return the contexts of `n` samples, or of `n` for each row of --context-data.

        Their columns' types are those of the file, but for dates, which count as in training.
        """
        if context_data is not None:
            dates = {name: kind for name, kind in self._types.items() if kind.family == "date"}
            reading = replace(reading, types=dates)
            contexts, types = open_context(context_data, self.context_columns, reading)
            return np.repeat(contexts, n, axis=0), types
        if self.context_columns:
            raise ValueError(
                "Expected --context-data, a file of the contexts to sample at, with columns "
                f"{', '.join(self.context_columns)}; got none for a conditional model"
            )
        check_unused(reading, "--context-data")
        return no_context(n), {}

    def sample(self, context: Array, seed: int) -> Array:
        """Draw one sample of the flow for each context (n, context columns), shape (n, columns).

        Categories are numbers, as in the schema.
        """
        with seeded(seed, self.flow.like.device):
            parts = []
            for i in _chunks(range(0, len(context), SCORE_CHUNK_ROWS), "drawing"):
                chunk = context[i : i + SCORE_CHUNK_ROWS]
                given = context_tensor(chunk, self.flow.like)
                drawn = self.flow.sample(len(chunk) if given is None else (), given)
                parts.append(drawn.double().cpu().numpy())
        return np.concatenate(parts)


def continuous_columns(
    flow: Flow, schema: Schema, rows: ContextRows, seed: int, to_fit: bool = False
) -> tuple[ContextRows, Array]:
    """Return rows with whole numbers and categories dequantized, and the log |det| of that map.

    Constant columns are left out. The noise depends on the seed and on each row itself; `to_fit`
    gives equal rows different noise, without which a few distinct ones would have no covariance.
    """
    if not schema.noisy and not schema.constant:
        return rows, np.zeros(len(rows))
    x, context = rows.tensors(flow.like)
    with torch.no_grad(), seeded(seed, flow.like.device):
        if to_fit:
            mapped = flow.layers[-1].pull(x)
        else:
            mapped = flow.layers[-1].pull_with_noise(x, None, flow.row_noise(seed, x, context))
    numbers = mapped.value.double().cpu().numpy()
    return ContextRows(numbers, rows.context), mapped.log_det.double().cpu().numpy()


def _shared_chunks(rows: ContextRows) -> Iterator[tuple[int, ContextRows]]:
    """Iterate over this process's chunks of rows, each with the number of its first row."""
    starts = range(0, len(rows), SCORE_CHUNK_ROWS)
    for i in _chunks(starts[local_slice(len(starts))], "scoring"):
        yield i, rows[i : i + SCORE_CHUNK_ROWS]


def _chunks(starts: range, doing: str) -> Iterable[int]:
    """Iterate over the first rows of chunks, with a progress bar on the first process."""
    quiet = True if rank() > 0 else None  # None: quiet where there is no terminal
    return tqdm(starts, desc=doing, disable=quiet, leave=False)


def _checked(metadata: Mapping[str, Any], flow: Flow) -> Iterator[Any]:
    """Yield the attributes that `train` wrote, or raise a KeyError, TypeError or ValueError."""
    moments = (np.array(metadata["gaussian"][name], float) for name in ("mean", "covariance"))
    gaussian = GaussianBaseline(*moments)
    columns, seed = metadata["columns"], metadata["seed"]
    context = metadata.get("context", [])  # absent from older folders
    missing, data_dir = metadata.get("missing", "refuse"), metadata.get("data_dir")
    reading = ReadOptions(**metadata.get("reading", {}))
    types = {name: ColumnType(**each) for name, each in metadata.get("context_types", {}).items()}
    _require(
        isinstance(columns, list) and isinstance(context, list),
        all(isinstance(name, str) and name.strip() for name in (*columns, *context)),
        len({*columns, *context}) == len(context) + flow.dim,
        isinstance(metadata["data"], str) and isinstance(metadata["data_sha256"], str),
        isinstance(seed, int) and seed >= 0,
        missing in MISSING,
        isinstance(data_dir, str | None),
    )
    kinds = Schema.of(metadata.get("schema", {}), columns)
    schema = Schema(tuple(kinds.get(name, Column(name)) for name in columns))
    size = len(context) + schema.width
    _require(
        len(columns) == flow.dim,
        schema.width == flow.base.event_shape[0],
        gaussian.mean.shape == (size,) and gaussian.covariance.shape == (size, size),
        bool(np.isfinite(gaussian.mean).all()),
    )
    np.linalg.cholesky(gaussian.covariance)  # a ValueError for a matrix that is no covariance
    yield from (schema, tuple(context), metadata["data"], metadata["data_sha256"])
    yield from (seed, missing, data_dir, reading, types, "reading" in metadata, gaussian)


def check_unused(reading: ReadOptions, option: str) -> None:
    """Raise a ValueError for choices about a file that is not given."""
    if reading != FOUND_OUT:
        raise ValueError(
            f"Expected {option} FILE with options on how a file is read; got none: leave them out"
        )


def _require(*conditions: bool) -> None:
    if not all(conditions):
        raise ValueError
