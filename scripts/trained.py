"""A trained folder: the flow, and a record of the data that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cnf.datasets import MISSING, Missing
from cnf.fields import as_field
from cnf.fields.divergence import DIVERGENCES, choose_divergence, with_count
from cnf.flow import Flow
from cnf.flow.scores import Scores, concatenate
from cnf.layers import CNF
from cnf.ode import SolveError
from cnf.scripts.data import AnyToy, ColumnChoices, Data, open_data, open_rows
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.program import Parser, positive_integer
from cnf.scripts.rows import ContextRows, context_tensor
from cnf.storage import load, load_config
from cnf.tables.schema import Column, Schema
from cnf.utils.distributed import gather, local_slice, rank
from cnf.utils.random import seeded
from cnf.utils.serialization import json_value, write_atomic

Array = NDArray[np.float64]

SCORE_CHUNK_ROWS = 2000  # rows scored or drawn in one solve
HUTCHINSON_PROBES = 16  # per row, where the trace is estimated
ERROR_SAMPLE_ROWS = 1000  # rows that represent all, since errors cost several solves
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "training.safetensors"
DIVERGENCE_OPTION: dict[str, Any] = {
    "choices": ("auto", "exact", *DIVERGENCES),
    "default": "auto",
    "help": "method for the trace (default: auto, exact where that is cheap)",
}
MISSING_OPTION: dict[str, Any] = {
    "choices": MISSING,
    "default": "refuse",
    "help": "treatment of missing values: refuse the table (the default), or drop their rows",
}
DEFAULT_NOISE_DRAWS = 8
NOISE_DRAWS_OPTION: dict[str, Any] = {
    "metavar": "K",
    "type": positive_integer,
    "default": DEFAULT_NOISE_DRAWS,
    "help": "draws of noise for each row, where there are columns of whole numbers or categories: "
    f"more draws tighten the bound on the log-mass (default {DEFAULT_NOISE_DRAWS})",
}
CONTEXT_DATA_HELP = (
    "the contexts of a conditional model, one for each row (default: columns of --data)"
)


def add_row_options(parser: Parser, doing: str) -> None:
    """Add the arguments that name a trained folder and rows for `TrainedModel.rows_or_held_out`.

    Args:
        parser: The parser of a program.
        doing: The verb for the treatment of the rows, such as "score".
    """
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument(
        "--data", help=f"rows to {doing}: a name or a file (default: the held-out rows)"
    )
    parser.add_argument("--context-data", metavar="FILE", help=CONTEXT_DATA_HELP)
    parser.add_argument("--missing", **MISSING_OPTION)
    parser.add_argument("--divergence", **DIVERGENCE_OPTION)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained flow with a record of its training data.

    Attributes:
        folder: The folder of the model.
        flow: The flow, on the CPU.
        schema: The columns that the flow was fitted on, and their kinds.
        context_columns: Names of the columns to condition on; usually empty.
        source: The DATA argument of the training.
        sha256: Checksum of DATA's values; empty for a toy.
        seed: Seed of DATA's split, or of the toy's rows.
        missing: The treatment of missing values.
        data_dir: The folder with the files of benchmarks, where one was named.
        gaussian: The baseline, fitted on the training rows.
    """

    folder: Path
    flow: Flow
    schema: Schema
    context_columns: tuple[str, ...]
    source: str
    sha256: str
    seed: int
    missing: Missing
    data_dir: str | None
    gaussian: GaussianBaseline

    @staticmethod
    def read(folder: str, divergence: str = "auto") -> TrainedModel:
        """Read the model in a folder.

        Args:
            folder: The folder that `train` wrote.
            divergence: A name for `cnf.fields.divergence.choose_divergence`; not part of the model.

        Raises:
            ValueError: The folder holds no model that `train` wrote.
        """
        metadata = load_config(folder)["metadata"]
        flow = _with_divergence(load(folder), divergence)
        try:
            return TrainedModel(Path(folder), flow, **_checked(metadata, flow))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"Expected a folder written by train; the metadata in {folder}/config.json is not "
                "as train writes it: restore it, or train again"
            ) from None

    def data(self, advice: str = "train again") -> Data:
        """Read the training data, with the same split.

        Args:
            advice: The alternative to restoring a table that has changed.

        Raises:
            ValueError: The data no longer exists, or has changed.
        """
        choices = ColumnChoices(
            self.context_columns,
            missing=self.missing,
            schema=self.schema,
            sha256=self.sha256,
            advice=advice,
        )
        return open_data(self.source, self.seed, choices, self.data_dir)

    def rows(
        self, data: str, context_data: str | None, missing: Missing = "refuse"
    ) -> tuple[ContextRows, AnyToy | None]:
        """Read the rows that --data and --context-data name, by `open_rows`."""
        return open_rows(
            data, self.schema, self.context_columns, self.seed, context_data, missing, self.data_dir
        )

    def rows_or_held_out(
        self,
        data: str | None,
        context_data: str | None,
        missing: Missing = "refuse",
        doing: str = "score",
    ) -> tuple[ContextRows, AnyToy | None]:
        """Read the rows that --data and --context-data name, or the held-out rows without --data.

        Args:
            data: The value of --data.
            context_data: The value of --context-data.
            missing: The treatment of missing values.
            doing: The verb for the treatment of the rows, such as "score".

        Raises:
            ValueError: The rows do not exist, or contexts are given without rows.
        """
        if data is not None:
            return self.rows(data, context_data, missing)
        if context_data is not None:
            raise ValueError(
                "Expected --data with --context-data; got none: give both, or neither for the "
                "held-out rows, which have their own contexts"
            )
        data_of_training = self.data(advice=f"name the rows to {doing} with --data")
        return data_of_training.test, data_of_training.toy

    def score(self, rows: ContextRows, draws: int = 1) -> tuple[Array, float]:
        """Return log p of rows in nats, and the mean number of evaluations of a solve.

        With columns of whole numbers or categories log p is, on average, a lower bound on a row's
        log-mass, which tightens with the number of draws of noise for each row. Several processes
        share the chunks, and all return the same values.

        Raises:
            RuntimeError: The flow cannot be integrated at some rows; the message names them.
        """
        starts = range(0, len(rows), SCORE_CHUNK_ROWS)
        log_prob = []
        evaluations = 0.0
        with torch.no_grad(), torch.random.fork_rng():
            for i in _chunks(starts[local_slice(len(starts))], "scoring"):
                chunk = rows[i : i + SCORE_CHUNK_ROWS]
                # The probes of an estimated trace do not depend on which process scores the chunk.
                torch.manual_seed(self.seed + i)
                try:
                    found, mean = self._score(chunk, draws if self.flow.noisy else 1)
                except SolveError as error:
                    raise RuntimeError(_unscorable(error, i)) from None
                log_prob.append(found)
                evaluations += len(chunk) * mean
        parts = gather((log_prob, evaluations))
        scores = np.concatenate([chunk for chunks, _ in parts for chunk in chunks])
        return scores, sum(total for _, total in parts) / len(scores)

    def _score(self, rows: ContextRows, draws: int) -> tuple[Array, float]:
        """Return log p of the rows of one solve, as the log-mean-exp over draws of noise."""
        scored = [self.flow.score_rows(*rows.tensors(self.flow.like)) for _ in range(draws)]
        log_probs = torch.stack([each.log_prob.double() for each in scored])
        found = log_probs.logsumexp(0) - log(draws)
        solves = draws * max(1, self.flow.solves)
        evaluations = sum(float(np.mean(each.stats.evaluations)) for each in scored) / solves
        return found.cpu().numpy(), evaluations

    def score_with_errors(self, rows: ContextRows, draws: int = 1) -> Scores:
        """Return scores of rows with errors; NaN and a status where the flow cannot be integrated.

        Exact log p equals that of `score`; estimates use other draws, at least two, since a single
        draw has no standard error. This takes about three times as long. Several processes share
        the chunks.
        """
        probes = max(2, draws) if self.flow.noisy else HUTCHINSON_PROBES
        starts = range(0, len(rows), SCORE_CHUNK_ROWS)
        parts = []
        for i in _chunks(starts[local_slice(len(starts))], "scoring"):
            tensors = rows[i : i + SCORE_CHUNK_ROWS].tensors(self.flow.like)
            generator = torch.Generator().manual_seed(self.seed + i)
            parts.append(self.flow.score(*tensors, probes=probes, generator=generator))
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

    def sample(self, context: Array, seed: int) -> Array:
        """Draw one sample of the flow for each context (n, context columns), shape (n, columns).

        Categories are numbers, as in the schema.
        """
        with seeded(seed, self.flow.like.device):
            parts = [
                self._draw(context[i : i + SCORE_CHUNK_ROWS])
                for i in _chunks(range(0, len(context), SCORE_CHUNK_ROWS), "drawing")
            ]
        return np.concatenate(parts)

    def _draw(self, context: Array) -> Array:
        given = context_tensor(context, self.flow.like)
        shape = () if given is not None else len(context)
        return self.flow.sample(shape, given).double().cpu().numpy()


def write_metrics(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write the records of a run, one line of JSON each."""
    lines = "".join(json.dumps(json_value(record)) + "\n" for record in records)
    write_atomic({path: lines.encode()})


def continuous_columns(
    flow: Flow, schema: Schema, rows: ContextRows, seed: int
) -> tuple[ContextRows, Array]:
    """Return rows with whole numbers and categories dequantized, and the log |det| of that map.

    Constant columns are left out. The noise depends on the seed alone.
    """
    if not schema.noisy and not schema.constant:
        return rows, np.zeros(len(rows))
    with torch.no_grad(), seeded(seed, flow.like.device):
        mapped = flow.layers[-1].pull(rows.tensors(flow.like)[0])
    numbers = mapped.value.double().cpu().numpy()
    return ContextRows(numbers, rows.context), mapped.log_det.double().cpu().numpy()


def _chunks(starts: range, doing: str) -> Iterable[int]:
    """Iterate over the first rows of chunks, with a progress bar on the first process."""
    quiet = True if rank() > 0 else None  # None: quiet where there is no terminal
    return tqdm(starts, desc=doing, disable=quiet, leave=False)


def _with_divergence(flow: Flow, name: str) -> Flow:
    """Return the flow with a divergence of this name, with enough probes for an estimate."""
    layer = next(layer for layer in flow.layers if isinstance(layer, CNF))
    chosen = choose_divergence(name, as_field(layer.field), flow.base.event_shape[0])
    return flow.with_solver(divergence=with_count(chosen, HUTCHINSON_PROBES))


def _checked(metadata: Mapping[str, Any], flow: Flow) -> dict[str, Any]:
    """Return the attributes that `train` wrote, or raise a KeyError, TypeError or ValueError."""
    gaussian = GaussianBaseline(
        np.array(metadata["gaussian"]["mean"], dtype=np.float64),
        np.array(metadata["gaussian"]["covariance"], dtype=np.float64),
    )
    columns, seed = metadata["columns"], metadata["seed"]
    context = metadata.get("context", [])  # absent from older folders
    missing, data_dir = metadata.get("missing", "refuse"), metadata.get("data_dir")
    fits = (
        isinstance(columns, list)
        and isinstance(context, list)
        and all(isinstance(name, str) and name.strip() for name in (*columns, *context))
        and len({*columns, *context}) == len(context) + flow.dim
        and isinstance(metadata["data"], str)
        and isinstance(metadata["data_sha256"], str)
        and isinstance(seed, int)
        and seed >= 0
        and missing in MISSING
        and isinstance(data_dir, str | None)
    )
    if not fits:
        raise ValueError
    kinds = Schema.of(metadata.get("schema", {}), columns)
    schema = Schema(tuple(kinds.get(name, Column(name)) for name in columns))
    size = len(context) + schema.width
    fits = (
        len(columns) == flow.dim
        and schema.width == flow.base.event_shape[0]
        and gaussian.mean.shape == (size,)
        and gaussian.covariance.shape == (size, size)
        and bool(np.isfinite(gaussian.mean).all())
    )
    if not fits:
        raise ValueError
    np.linalg.cholesky(gaussian.covariance)  # a ValueError for a matrix that is no covariance
    return {
        "schema": schema,
        "context_columns": tuple(context),
        "source": metadata["data"],
        "sha256": metadata["data_sha256"],
        "seed": seed,
        "missing": missing,
        "data_dir": data_dir,
        "gaussian": gaussian,
    }


def _unscorable(error: SolveError, first: int) -> str:
    rows = [first + row for row in error.solution.rows[:5]]
    return (
        f"Rows {', '.join(map(str, rows))} (counted from 0) lie where the flow cannot be "
        f"integrated, perhaps far from its training data: leave them out. {error}"
    )
