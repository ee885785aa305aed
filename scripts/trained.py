"""A trained folder as the programs see it: the flow, and what it was trained on."""

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
from cnf.scripts.data import AnyToy, Choices, Data, open_data, open_rows
from cnf.scripts.gaussian import Gaussian
from cnf.scripts.program import Parser, positive_integer
from cnf.scripts.rows import Rows, context_tensor
from cnf.storage import load, load_config
from cnf.tables.schema import Column, Schema
from cnf.utils.distributed import gather, rank, share
from cnf.utils.serialization import json_value, write_whole

Array = NDArray[np.float64]

CHUNK = 2000  # rows scored or drawn in one solve
PROBES = 16  # for each row, where the trace is estimated
SUBSET = 1000  # rows that stand for all where errors are found at several times the cost
METRICS = "metrics.jsonl"
STATE = "training.safetensors"
DIVERGENCE: dict[str, Any] = {
    "choices": ("auto", "exact", *DIVERGENCES),
    "default": "auto",
    "help": "how the trace is found (default: auto, exact where that is cheap)",
}
MISSING_VALUES: dict[str, Any] = {
    "choices": MISSING,
    "default": "refuse",
    "help": "what is done where values are missing: refuse the table (the default), or drop rows",
}
DRAWS = 8
NOISE_DRAWS: dict[str, Any] = {
    "metavar": "K",
    "type": positive_integer,
    "default": DRAWS,
    "help": "of noise for each row, where there are columns of whole numbers or categories: the "
    f"bound of the log-mass tightens with them (default {DRAWS})",
}
CONTEXT_DATA = "the contexts of a conditional model, one for each row; in --data when not given"


def add_row_options(parser: Parser, doing: str) -> None:
    """The arguments that name a trained folder and rows for `Trained.rows_or_held_out`.

    Args:
        parser: Of a program.
        doing: To the rows, in words.
    """
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument(
        "--data", help=f"rows to {doing}: a name or a file; the held-out rows when not given"
    )
    parser.add_argument("--context-data", metavar="FILE", help=CONTEXT_DATA)
    parser.add_argument("--missing", **MISSING_VALUES)
    parser.add_argument("--divergence", **DIVERGENCE)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained flow and what it was trained on.

    Attributes:
        folder: Where it lies.
        flow: The flow, on the CPU.
        schema: The columns that it was fitted on, and of what kinds they are.
        context_columns: Names of the columns that they are modelled given; mostly none.
        source: What DATA was.
        sha256: Of DATA's values, empty for a toy.
        seed: Of DATA's split, or of the toy's rows.
        missing: What was done where values were missing.
        data_dir: The folder with the files of benchmarks, where it was named.
        gaussian: Fitted on the training rows.
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
    gaussian: Gaussian

    @staticmethod
    def read(folder: str, divergence: str = "auto") -> Trained:
        """The model in `folder`.

        Args:
            folder: Where it lies.
            divergence: A name for `cnf.fields.divergence.choose_divergence`; not part of the model.

        Raises:
            ValueError: There is none that `train` wrote.
        """
        metadata = load_config(folder)["metadata"]
        flow = _with_divergence(load(folder), divergence)
        try:
            return Trained(Path(folder), flow, **_checked(metadata, flow))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"Expected a folder written by train; the metadata in {folder}/config.json is not "
                "what train writes down. Restore it, or train again"
            ) from None

    def data(self, advice: str = "train again") -> Data:
        """The data that the flow was trained on, split as it was then.

        Args:
            advice: What a user may do instead of restoring a table that has changed.

        Raises:
            ValueError: The data is not there any more, or has changed.
        """
        choices = Choices(
            self.context_columns,
            missing=self.missing,
            schema=self.schema,
            sha256=self.sha256,
            advice=advice,
        )
        return open_data(self.source, self.seed, choices, self.data_dir)

    def rows(
        self, data: str, context_data: str | None, missing: Missing = "refuse"
    ) -> tuple[Rows, AnyToy | None]:
        """The rows that --data and --context-data name, as `open_rows` reads them."""
        return open_rows(
            data, self.schema, self.context_columns, self.seed, context_data, missing, self.data_dir
        )

    def rows_or_held_out(
        self,
        data: str | None,
        context_data: str | None,
        missing: Missing = "refuse",
        doing: str = "score",
    ) -> tuple[Rows, AnyToy | None]:
        """The rows that --data and --context-data name, or the held-out ones where they do not.

        Args:
            data: What --data says.
            context_data: What --context-data says.
            missing: What is done where values are missing.
            doing: To the rows, in words.

        Raises:
            ValueError: There are none, or the contexts of none.
        """
        if data is not None:
            return self.rows(data, context_data, missing)
        if context_data is not None:
            raise ValueError(
                "Expected --data beside --context-data; got none: the held-out rows are taken with "
                "what they were split off with"
            )
        own = self.data(advice=f"name the rows to {doing} with --data")
        return own.test, own.toy

    def score(self, rows: Rows, draws: int = 1) -> tuple[Array, float]:
        """Log p of rows in nats, and the mean number of evaluations of a solve.

        Where there are columns of whole numbers or categories log p is, in the mean, a lower bound
        of a row's log-mass, which tightens with the number of draws of noise for each row.
        Several processes score their parts of the chunks, and get the same.

        Raises:
            RuntimeError: Rows lie where the flow cannot be integrated; the message names them.
        """
        starts = range(0, len(rows), CHUNK)
        log_prob = []
        evaluations = 0.0
        with torch.no_grad(), torch.random.fork_rng():
            for i in _chunks(starts[share(len(starts))], "scoring"):
                chunk = rows[i : i + CHUNK]
                # Of probes, where the trace is estimated: the same whoever scores the chunk.
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

    def _score(self, rows: Rows, draws: int) -> tuple[Array, float]:
        """Of rows few enough for one solve, the logarithm of the mean over draws of noise."""
        scored = [self.flow.score_rows(*rows.tensors(self.flow.like)) for _ in range(draws)]
        log_probs = torch.stack([each.log_prob.double() for each in scored])
        found = log_probs.logsumexp(0) - log(draws)
        solves = draws * max(1, self.flow.solves)
        evaluations = sum(float(np.mean(each.stats.evaluations)) for each in scored) / solves
        return found.cpu().numpy(), evaluations

    def assess(self, rows: Rows, draws: int = 1) -> Scores:
        """Log p of rows with its errors; NaN and a status where the flow cannot be integrated.

        Of exact log p the numbers are those of `score`; of estimates they are of other draws, at
        least two, since one has no error. It takes about three times as long. Several processes
        share the chunks.
        """
        probes = max(2, draws) if self.flow.noisy else PROBES
        starts = range(0, len(rows), CHUNK)
        parts = []
        for i in _chunks(starts[share(len(starts))], "scoring"):
            tensors = rows[i : i + CHUNK].tensors(self.flow.like)
            generator = torch.Generator().manual_seed(self.seed + i)
            parts.append(self.flow.score(*tensors, probes=probes, generator=generator))
        return concatenate([scores for own in gather(parts) for scores in own])

    def some(self, rows: Rows) -> Rows:
        """Rows that stand for all, at most a thousand at random, by the seed alone."""
        if len(rows) <= SUBSET:
            return rows
        chosen = np.random.default_rng(self.seed).permutation(len(rows))[:SUBSET]
        return Rows(rows.x[chosen], rows.context[chosen])

    def gaussian_log_prob(self, rows: Rows) -> Array:
        """Log p of rows by the Gaussian, in nats.

        Of whole numbers and categories it sees what the flow does, with one draw of noise.
        """
        numbers, log_det = continuous(self.flow, self.schema, rows, self.seed)
        return self.gaussian.log_prob(numbers) + log_det

    def sample(self, context: Array, seed: int) -> Array:
        """A draw of the flow for each context (n, context columns), shape (n, columns).

        Categories are numbers, as in the schema.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            parts = [
                self._draw(context[i : i + CHUNK])
                for i in _chunks(range(0, len(context), CHUNK), "drawing")
            ]
        return np.concatenate(parts)

    def _draw(self, context: Array) -> Array:
        given = context_tensor(context, self.flow.like)
        shape = () if given is not None else len(context)
        return self.flow.sample(shape, given).double().cpu().numpy()


def write_metrics(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a run's records, a line of JSON for each."""
    lines = "".join(json.dumps(json_value(record)) + "\n" for record in records)
    write_whole({path: lines.encode()})


def continuous(flow: Flow, schema: Schema, rows: Rows, seed: int) -> tuple[Rows, Array]:
    """Rows whose whole numbers and categories are numbers with a density, and its log |det|.

    Constant columns are left out of them. What is drawn for it depends on the seed alone.
    """
    if not schema.noisy and not schema.constant:
        return rows, np.zeros(len(rows))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        mapped = flow.layers[-1].pull(rows.tensors(flow.like)[0])
    numbers = mapped.value.double().cpu().numpy()
    return Rows(numbers, rows.context), mapped.log_det.double().cpu().numpy()


def _chunks(starts: range, doing: str) -> Iterable[int]:
    """Where chunks of rows begin, with a progress bar on the first process's terminal."""
    quiet = True if rank() > 0 else None  # None: quiet where there is no terminal
    return tqdm(starts, desc=doing, disable=quiet, leave=False)


def _with_divergence(flow: Flow, name: str) -> Flow:
    """A flow whose trace is found in a way, with probes enough where that is an estimate."""
    layer = next(layer for layer in flow.layers if isinstance(layer, CNF))
    chosen = choose_divergence(name, as_field(layer.field), flow.base.event_shape[0])
    return flow.with_solver(divergence=with_count(chosen, PROBES))


def _checked(metadata: Mapping[str, Any], flow: Flow) -> dict[str, Any]:
    """The attributes that `train` wrote down, or a KeyError, TypeError or ValueError."""
    gaussian = Gaussian(
        np.array(metadata["gaussian"]["mean"], dtype=np.float64),
        np.array(metadata["gaussian"]["covariance"], dtype=np.float64),
    )
    columns, seed = metadata["columns"], metadata["seed"]
    context = metadata.get("context", [])  # folders from before there was one have no such entry
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
    np.linalg.cholesky(gaussian.covariance)  # a ValueError where it is no covariance
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
        f"integrated, far from what it was trained on perhaps: leave them out. {error}"
    )
