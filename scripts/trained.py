"""A trained folder: the flow, and a record of the data that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Independent, Normal
from tqdm import tqdm

from cnf.datasets import MISSING, ColumnType, Missing, ReadOptions, Table, closest
from cnf.fields import as_field
from cnf.fields.divergence import choose_divergence, with_count
from cnf.flow import Flow, FlowMixture
from cnf.flow.scores import Scores, concatenate
from cnf.layers import CNF, Concatenate, FieldLayer, Layer
from cnf.ode import SolveError, Status
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
from cnf.scripts.given_cells import GivenCells, open_given
from cnf.scripts.rows import Array, ContextRows, context_tensor, joined_table, no_context
from cnf.scripts.series.kind import is_series
from cnf.storage import build_layer, load, load_config, load_flow
from cnf.tables.kinds import Unknown
from cnf.tables.row_model import RowModel
from cnf.tables.row_training import CODES_STATE, VALUES_STATE
from cnf.tables.schema import Column, Schema
from cnf.utils.distributed import gather, local_slice, rank
from cnf.utils.random import seeded

SCORE_CHUNK_ROWS = 8000  # rows scored or drawn in one solve, many of which share steps
HUTCHINSON_PROBES = 16  # per row, where the trace is estimated
ERROR_SAMPLE_ROWS = 1000  # rows that represent all, since errors cost several solves
AS_TRAINED = ("date", "text", "category")  # families of types of contexts, in files too
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "training.safetensors"


def state_file(folder: Path) -> Path | None:
    """Return the file in a folder with the state of a run; None without one."""
    files = (folder / name for name in (STATE_FILE, CODES_STATE, VALUES_STATE))
    return next((file for file in files if file.exists()), None)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained model, on the CPU, with a record of its training data."""

    folder: Path
    model: Flow | FlowMixture | RowModel
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
    given: Schema | None  # the context's columns for a model of codes; None for numbers
    dequantizing: Flow  # a flow whose last layer maps the columns to those of the Gaussian

    @staticmethod
    def read(folder: str, divergence: str = "auto") -> TrainedModel:
        """Read the model in a folder, to be scored with a divergence by its name.

        An estimated divergence gets enough probes.

        Raises:
            ValueError: The folder holds no model that `train` wrote.
        """
        config = load_config(folder, ("metadata",))
        if is_series(folder):
            raise ValueError(
                f"Expected a model of rows; got {folder}, one of series: use it with cnf evaluate, "
                "predict, sample, log-prob or plot"
            )
        kinds = (FlowMixture.kind, RowModel.kind)
        model: Flow | FlowMixture | RowModel
        model = load(folder) if config.get("kind") in kinds else load_flow(folder)  # type: ignore[assignment]
        layers = () if isinstance(model, RowModel) else flows_of(model)[0].layers
        layer = next((layer for layer in layers if isinstance(layer, CNF)), None)
        if not isinstance(model, RowModel) and layer is not None:
            width = flows_of(model)[0].base.event_shape[0]
            chosen = choose_divergence(divergence, as_field(layer.field), width)
            model = model.with_solver(divergence=with_count(chosen, HUTCHINSON_PROBES))
        elif divergence != "auto":
            kind = "explicit steps, whose determinants are exact"
            if isinstance(model, RowModel):
                kind = "rows, whose log p is exact"
            raise ValueError(
                f"Expected no --divergence with a model of {kind}; got {divergence}: leave it out"
            )
        try:
            return TrainedModel(Path(folder), model, *_checked(config["metadata"], model))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"Expected a folder written by train; the metadata in {folder}/config.json is not "
                "as train writes it: restore it, or train again"
            ) from None

    def in_double(self) -> TrainedModel:
        """Return the model in double precision, where log p is free of the order of rounding."""
        return replace(self, model=self.model.in_double())

    @property
    def flow(self) -> Flow | FlowMixture:
        """The model where it is a flow, or a mixture of flows.

        Raises:
            ValueError: It is one of codes, or of answers.
        """
        if isinstance(self.model, RowModel):
            raise ValueError(
                f"Expected a flow, which steps can replace; the model in {self.folder} is "
                f"{self.kind}: use it as it is"
            )
        return self.model

    @property
    def gappy(self) -> bool:
        """Whether the model was trained on rows with gaps, and so scores what is there of a row."""
        return self.missing == "model"

    @property
    def kind(self) -> str:
        """The kind of the model in words."""
        if isinstance(self.model, Flow):
            return "a flow"
        if isinstance(self.model, FlowMixture):
            return f"a mixture of {len(self.model.flows)} flows"
        return f"a model of {'codes' if self.model.values is None else 'answers'}"

    @property
    def row_model(self) -> RowModel:
        """The model where it answers questions about parts of a row.

        Raises:
            ValueError: It is a flow, or a mixture of flows.
        """
        if not isinstance(self.model, RowModel):
            raise ValueError(
                f"Expected a model that answers questions about parts of a row; got {self.kind}: "
                "train with --missing model"
            )
        return self.model

    def gaps(self, rows: ContextRows) -> NDArray[np.bool_]:
        """Return which cells of x are unknown, (rows, columns): gaps that are no value."""
        values = np.array([column.gaps == "value" for column in self.schema.columns])
        return np.asarray(np.isnan(rows.x) & ~values)

    def scored(self, rows: ContextRows) -> NDArray[np.bool_]:
        """Return whether rows have no gap that the model does not know."""
        gaps = np.isnan(rows.context).any(axis=1)
        return np.asarray(~gaps if self.gappy else ~(gaps | np.isnan(rows.x).any(axis=1)))

    @property
    def types(self) -> dict[str, ColumnType]:
        """The types of all columns in training."""
        return {**self.schema.types, **self.context_types}

    def data(self, advice: str = "train again") -> Data:
        """Read the training data, with the same split, or advise where it has changed."""
        choices = ColumnChoices(
            self.context_columns,
            self.missing,
            replace(self.reading, types=self.types),
            schema=self.schema,
            coded=isinstance(self.model, RowModel),
            given=self.given,
            sha256=self.sha256,
            advice=advice,
            grouped=self.grouped,
        )
        return open_data(self.source, self.seed, choices, self.data_dir)

    def rows(
        self,
        data: str | None,
        context_data: str | None,
        missing: Missing | None = None,
        doing: str = "score",
        reading: ReadOptions = FOUND_OUT,
        unknown: Unknown = "raise",
    ) -> tuple[ContextRows, AnyToy | None]:
        """Read the rows that --data and --context-data name, or the held-out rows without --data.

        Where these have changed, the advice is to name the rows "to score", or what is `doing`.
        Without `missing`, gaps are refused, unless the model was trained on gaps.
        Categories that are `unknown` are −1 where they are kept.
        """
        missing = missing or ("model" if self.gappy else "refuse")
        if data is not None:
            known = (self.schema, self.context_columns, self.seed)
            files = (context_data, missing, self.data_dir)
            reading = replace(reading, types=self.types)
            return open_rows(data, *known, *files, reading, self.given, unknown)
        if context_data is not None:
            raise ValueError(
                "Expected --data with --context-data; got none: give both, or neither for the "
                "held-out rows, which have their own contexts"
            )
        check_unused(reading, "--data")
        trained_on = self.data(advice=f"name the rows to {doing} with --data")
        return trained_on.test, trained_on.toy

    def given_columns(self, names: Sequence[str]) -> Tensor:
        """Return which columns have some names, as a mask (columns,) of what is given.

        Raises:
            ValueError: The model has no such column, or it answers no questions.
        """
        model = self.row_model
        for name in names:
            if name not in self.schema.names:
                near = ", ".join(closest(name, self.schema.names))
                raise ValueError(
                    f"Expected --given to name columns that are modelled; got {name!r}: the "
                    f"closest names are {near}"
                )
        found = [name in names for name in self.schema.names]
        return torch.tensor(found, device=model.like.device)

    def score(
        self, rows: ContextRows, draws: int = 1, given: Tensor | None = None
    ) -> tuple[Array, float]:
        """Return log p of rows in nats, and the mean number of evaluations of a solve.

        With a mask of columns that are `given` it is that of the others given these. Of a model of
        gaps it is that of the cells that are there; of others a row with a gap (NaN) has NaN. One
        that is impossible has −∞. Where the model is noisy, log p is, on average, a lower bound on
        a row's log-mass, which tightens with the draws of noise for each row. Noise and probes are
        functions of the model's seed and of the row itself. Processes share the chunks.

        Raises:
            RuntimeError: The flow cannot be integrated at some rows; the message names them.
        """
        whole = self.scored(rows)
        log_prob = np.full(len(rows), np.nan)
        places = np.flatnonzero(whole)
        log_prob[whole], evaluations = self._score_places(rows, places, draws, given)
        return log_prob, evaluations

    def _score_places(
        self, rows: ContextRows, places: NDArray[np.intp], draws: int, given: Tensor | None
    ) -> tuple[Array, float]:
        """Return the scores of the rows at some places."""
        chosen, log_prob, evaluations = rows.at(places), [np.empty(0)], 0.0
        with torch.no_grad():
            for i, chunk in _shared_chunks(chosen):
                try:
                    found, mean = self._score(chunk, draws, given)
                except SolveError as error:
                    failed = ", ".join(str(places[i + row]) for row in error.solution.rows[:5])
                    raise RuntimeError(
                        f"Rows {failed} (counted from 0) lie where the flow cannot be integrated, "
                        f"perhaps far from its training data: leave them out. {error}"
                    ) from None
                log_prob.append(found)
                evaluations += len(chunk) * mean
        parts = gather((log_prob, evaluations))
        scores = np.concatenate([chunk for chunks, _ in parts for chunk in chunks])
        return scores, sum(total for _, total in parts) / max(1, len(scores))

    def _score(self, rows: ContextRows, draws: int, given: Tensor | None) -> tuple[Array, float]:
        """Return log p of the rows of one solve, and the mean number of evaluations of a solve."""
        model = self.model
        x, context = rows.tensors(model.like)
        if isinstance(model, RowModel):
            found = model.score_draws(x, context, self.seed, draws, given)
            return found.log_prob.double().cpu().numpy(), 0.0
        scored = model.score_draws(x, context, self.seed, draws)
        log_prob = scored.log_prob.double().cpu().numpy()
        flows = model.weighted if isinstance(model, FlowMixture) else [model]
        layers = [layer for flow in flows for layer in flow.layers]
        solves = max(1, sum(isinstance(layer, FieldLayer) for layer in layers)) * (
            draws if model.noisy else 1
        )
        return log_prob, float(np.mean(scored.stats.evaluations)) / solves

    def score_with_errors(
        self, rows: ContextRows, draws: int = 1, given: Tensor | None = None
    ) -> Scores:
        """Return scores of rows with errors; NaN and a status where the flow cannot be integrated.

        Log p equals that of `score` with as many draws; there are at least two, for a standard
        error, and more probes of an estimated trace. A row with an unknown category, −1, or a value
        out of a column's bounds has −∞. This takes about three times as long. Processes share the
        chunks.
        """
        probes = max(2, draws) if self.model.noisy else HUTCHINSON_PROBES
        options: dict[str, Any] = {"probes": probes, "seed": self.seed}
        if given is not None:
            options["given"] = given
        parts = []
        for _, chunk in _shared_chunks(rows):
            parts.append(self.model.score(*chunk.tensors(self.model.like), **options))
        found = concatenate([scores for part in gather(parts) for scores in part])
        lost = ~self.scored(rows)  # where a model of rows would score what is there
        if not lost.any():
            return found
        unknown, status = torch.from_numpy(lost).to(found.log_prob.device), found.status.copy()
        status[lost] = Status.NOT_FINITE
        names = ("log_prob", "solver_error", "tighter")
        numbers = {name: getattr(found, name).masked_fill(unknown, nan) for name in names}
        return replace(found, **numbers, status=status)

    def error_sample(self, rows: ContextRows) -> ContextRows:
        """Return a random sample of rows, at most a thousand, fixed by the model's seed."""
        if len(rows) <= ERROR_SAMPLE_ROWS:
            return rows
        chosen = np.random.default_rng(self.seed).permutation(len(rows))[:ERROR_SAMPLE_ROWS]
        return rows.at(chosen)

    def gaussian_log_prob(self, rows: ContextRows) -> Array:
        """Return log p of rows by the Gaussian baseline, in nats.

        Whole numbers and categories are dequantized, as a flow does, with one draw of noise. Rows
        with impossible values have −∞.
        """
        possible = self.possible(rows)
        chosen, found = rows.at(np.flatnonzero(possible)), np.full(len(rows), -np.inf)
        chosen = ContextRows(self._counted(chosen.x), chosen.context)
        numbers, log_det = continuous_columns(
            self.dequantizing, self.schema, chosen, self.seed, given=self.given
        )
        found[possible] = self.gaussian.log_prob(numbers) + log_det
        return found

    def possible(self, rows: ContextRows) -> NDArray[np.bool_]:
        """Return whether rows have values that their columns, and the context's, can have."""
        outside = self.schema.outside(self._counted(rows.x)).any(axis=1)
        if self.given:
            outside |= self.given.outside(rows.context).any(axis=1)
        return np.asarray(~outside)

    def between(self, rows: ContextRows) -> NDArray[np.bool_]:
        """Return whether rows have numbers between those of a grid, of which the nearest count."""
        moved = self._counted(rows.x) != rows.x
        return np.asarray((moved & ~np.isnan(rows.x)).any(axis=1))

    def _counted(self, x: Array) -> Array:
        """Return rows as the model takes them: one of codes rounds the numbers of grids."""
        return self.schema.nearest(x) if isinstance(self.model, RowModel) else x

    def remarks(self, x: Array) -> list[str]:
        """Return a line on each column of rows (rows, columns) that is better left out."""
        model = self.model
        coded = isinstance(model, RowModel) and model.values is None
        return self.schema.remarks(x, masses=coded)

    def sample_contexts(
        self, n: int, context_data: str | None, reading: ReadOptions = FOUND_OUT
    ) -> tuple[Array, Table]:
        """Return the contexts of `n` samples, or of `n` for each row of --context-data.

        They are numbers as the model reads them, and the table that they were read from.
        """
        if context_data is not None:
            # Others are those of the file.
            types = {name: each for name, each in self.types.items() if each.family in AS_TRAINED}
            known = (self.context_columns, replace(reading, types=types))
            contexts, table = open_context(context_data, *known, given=self.given)
            table = replace(table, values=np.repeat(table.values, n, axis=0))
            return np.repeat(contexts, n, axis=0), table
        if self.context_columns:
            raise ValueError(
                "Expected --context-data, a file of the contexts to sample at, with columns "
                f"{', '.join(self.context_columns)}; got none for a conditional model"
            )
        check_unused(reading, "--context-data")
        return no_context(n), Table("context", no_context(n), ())

    def given_cells(
        self, name: str, n: int, context_data: str | None, reading: ReadOptions = FOUND_OUT
    ) -> tuple[GivenCells, Array, Table]:
        """Return the cells that a file gives, `n` times each row, and their contexts.

        Contexts are those of --context-data, or of the file itself; see `sample_contexts`.

        Raises:
            ValueError: The model answers no questions, or the file does not fit.
        """
        _ = self.row_model  # or an error
        reading_x = replace(reading, types=self.types)
        cells = open_given(name, self.schema, self.context_columns, reading_x).repeat(n)
        if not self.context_columns and context_data is None:
            return cells, no_context(len(cells.x)), Table("context", no_context(len(cells.x)), ())
        context, table = self.sample_contexts(n, context_data or name, reading)
        if len(context) != len(cells.x):
            raise ValueError(
                f"Expected a context for each of the {len(cells.x) // n} rows of {name}; got "
                f"{len(context) // n} in {context_data}"
            )
        return cells, context, table

    def table(self, rows: ContextRows) -> Table:
        """Return rows as a table like the training's, the context's columns first."""
        context = Table("context", rows.context, self.context_columns)
        if self.given:
            context = self.given.table(rows.context)
        return joined_table(context, self.schema.table(rows.x))

    def sample(self, context: Array, seed: int) -> Array:
        """Draw one sample for each context (n, context columns), shape (n, columns).

        Categories are numbers, as in the schema.
        """
        with seeded(seed, self.model.like.device):
            parts = []
            for i in _chunks(range(0, len(context), SCORE_CHUNK_ROWS), "drawing"):
                chunk = context[i : i + SCORE_CHUNK_ROWS]
                given = context_tensor(chunk, self.model.like)
                drawn = self.model.sample(len(chunk) if given is None else (), given)
                parts.append(drawn.double().cpu().numpy())
        return np.concatenate(parts)

    def with_gaps(self, drawn: Array, rows: ContextRows) -> ContextRows:
        """Return draws at the contexts of rows, with the gaps of these that are no value."""
        return ContextRows(np.where(self.gaps(rows), np.nan, drawn), rows.context)

    def impute(self, rows: ContextRows, seed: int, given: NDArray[np.bool_] | None = None) -> Array:
        """Return x with each gap that is no value replaced by a joint draw given the others.

        Where cells are `given`, a mask (rows, columns), all others are drawn.

        Raises:
            ValueError: The model answers no questions.
        """
        model, parts = self.row_model, []
        mask = None if given is None else torch.from_numpy(given).to(model.like.device)
        with seeded(seed, model.like.device):
            for i in _chunks(range(0, len(rows), SCORE_CHUNK_ROWS), "drawing"):
                part = slice(i, i + SCORE_CHUNK_ROWS)
                fixed = None if mask is None else mask[part]
                drawn = model.impute(*rows[part].tensors(model.like), given=fixed)
                parts.append(drawn.double().cpu().numpy())
        return np.concatenate(parts)


def flows_of(model: Flow | FlowMixture) -> Sequence[Flow]:
    """Return the flows of a mixture, or a flow alone."""
    return model.flows if isinstance(model, FlowMixture) else [model]


def continuous_columns(
    flow: Flow,
    schema: Schema,
    rows: ContextRows,
    seed: int,
    to_fit: bool = False,
    given: Schema | None = None,
) -> tuple[ContextRows, Array]:
    """Return rows with whole numbers and categories dequantized, and the log |det| of that map.

    Constant columns are left out. The noise depends on the seed and on each row itself; `to_fit`
    gives equal rows different noise, without which a few distinct ones would have no covariance.
    Categories of the context that is `given` become columns of 0 and 1. Gaps are gaps in all
    columns that stand for a cell, and have no part in the determinant.
    """
    features = rows.context if given is None else _features(given, rows.context)
    if not schema.noisy and not schema.constant:
        return ContextRows(rows.x, features), np.zeros(len(rows))
    x, context = rows.tensors(flow.like)
    joined = cast("Concatenate", flow.layers[-1])
    numbers, log_det = [], np.zeros(len(rows))
    with torch.no_grad(), seeded(seed, flow.like.device):
        noise = None if to_fit else flow.row_noise(seed, x, context)
        for layer, columns in zip(joined.layers, joined.columns, strict=True):
            part, gaps = x[:, columns], x[:, columns].isnan().any(1)
            mapped = layer.pull(part) if noise is None else layer.pull_with_noise(part, None, noise)
            values = mapped.value.masked_fill(gaps.unsqueeze(1), nan)
            numbers.append(values.double().cpu().numpy())
            log_det += mapped.log_det.masked_fill(gaps, 0.0).double().cpu().numpy()
    return ContextRows(np.column_stack(numbers), features), log_det


def dequantizing_flow(width: int, layers: Sequence[Layer]) -> Flow:
    """Return a flow without a field, of the layer that dequantizes a table's columns, if any."""
    if layers and layers[-1].circular:  # of angles: there is nothing to dequantize
        layers = ()
    return Flow(Independent(Normal(torch.zeros(width), torch.ones(width)), 1), layers)


def _features(given: Schema, context: Array) -> Array:
    """Return a context with a column of 0 and 1 for each category but the first."""
    return np.column_stack(
        [
            each[:, None] == np.arange(1, column.width + 1) if column.categories else each
            for column, each in zip(given.columns, context.T, strict=True)
        ]
    ).astype(np.float64)


def _shared_chunks(rows: ContextRows) -> Iterator[tuple[int, ContextRows]]:
    """Iterate over this process's chunks of rows, each with the number of its first row."""
    starts = range(0, len(rows), SCORE_CHUNK_ROWS)
    for i in _chunks(starts[local_slice(len(starts))], "scoring"):
        yield i, rows[i : i + SCORE_CHUNK_ROWS]


def _chunks(starts: range, doing: str) -> Iterable[int]:
    """Iterate over the first rows of chunks, with a progress bar on the first process."""
    quiet = True if rank() > 0 else None  # None: quiet where there is no terminal
    return tqdm(starts, desc=doing, disable=quiet, leave=False)


def _checked(metadata: Mapping[str, Any], model: Flow | FlowMixture | RowModel) -> Iterator[Any]:
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
        len({*columns, *context}) == len(context) + model.dim,
        isinstance(metadata["data"], str) and isinstance(metadata["data_sha256"], str),
        isinstance(seed, int) and seed >= 0,
        missing in MISSING,
        isinstance(data_dir, str | None),
    )
    schema = _schema_of(metadata.get("schema", {}), columns)
    given, size = None, len(context) + schema.width
    if isinstance(model, RowModel):
        layers = [build_layer(entry) for entry in metadata["dequantizing"]]
        dequantizing = dequantizing_flow(schema.width, layers)
        if context:
            given = _schema_of(metadata["context_schema"], context)
            size = schema.width + _features(given, np.empty((0, len(context)))).shape[1]
        _require(model.context_dim == len(context))
    else:
        dequantizing = flows_of(model)[0]
        _require(schema.width == dequantizing.base.event_shape[0])
    _require(
        len(columns) == model.dim,
        gaussian.mean.shape == (size,) and gaussian.covariance.shape == (size, size),
        bool(np.isfinite(gaussian.mean).all()),
    )
    np.linalg.cholesky(gaussian.covariance)  # a ValueError for a matrix that is no covariance
    yield from (schema, tuple(context), metadata["data"], metadata["data_sha256"])
    yield from (seed, missing, data_dir, reading, types, "reading" in metadata, gaussian)
    yield from (given, dequantizing)


def _schema_of(entries: Mapping[str, Any], names: Sequence[str]) -> Schema:
    """Return the schema of columns, which are real numbers where it has no entry."""
    kinds = Schema.of(entries, names)
    return Schema(tuple(kinds.get(name, Column(name)) for name in names))


def check_unused(reading: ReadOptions, option: str) -> None:
    """Raise a ValueError for choices about a file that is not given."""
    if reading != FOUND_OUT:
        raise ValueError(
            f"Expected {option} FILE with options on how a file is read; got none: leave them out"
        )


def _require(*conditions: bool) -> None:
    if not all(conditions):
        raise ValueError
