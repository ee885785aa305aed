"""A trained folder as the programs see it: the flow, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import Covariance, multivariate_normal
from tqdm import trange

from cnf.flow import Flow
from cnf.scripts.data import Data, open_data
from cnf.storage import load, load_config

Array = NDArray[np.float64]

CHUNK = 2000  # rows scored or drawn in one solve
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Trained:
    """A trained flow and its history.

    Attributes:
        folder: Where it lies.
        flow: The flow, on the CPU.
        metadata: What `train` wrote down: data, seed, columns, recipe, the Gaussian beside it.
    """

    folder: Path
    flow: Flow
    metadata: Mapping[str, Any]

    @staticmethod
    def read(folder: str) -> Trained:
        """The model in `folder`.

        Raises:
            ValueError: There is none that `train` wrote.
        """
        metadata = load_config(folder)["metadata"]
        wanted = {"data", "data_sha256", "seed", "columns", "gaussian"}
        if not isinstance(metadata, dict) or not wanted <= set(metadata):
            raise ValueError(
                f"Expected a folder written by train; config.json in {folder} does not say what "
                "the model was trained on"
            )
        return Trained(Path(folder), load(folder), metadata)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the flow was fitted on."""
        return tuple(self.metadata["columns"])

    def data(self) -> Data:
        """The data that the flow was trained on, split as it was then.

        Raises:
            ValueError: The data is not there any more, or has changed.
        """
        data = open_data(self.metadata["data"], self.metadata["seed"])
        if data.sha256 != self.metadata["data_sha256"]:
            raise ValueError(
                f"Expected the table that the model was trained on; {data.name} has changed since, "
                "so its held-out rows are not known any more. Name the rows to score with --data"
            )
        return data

    def score(self, rows: Array) -> tuple[Array, float]:
        """Log p of rows in nats, and the mean number of evaluations of a solve."""
        log_prob = np.empty(len(rows))
        evaluations = []
        with torch.no_grad():
            for i in trange(0, len(rows), CHUNK, desc="scoring", disable=None, leave=False):
                chunk = torch.from_numpy(rows[i : i + CHUNK]).to(self.flow.like)
                scored = self.flow.score_rows(chunk)
                log_prob[i : i + CHUNK] = scored.log_prob.double().cpu().numpy()
                evaluations.append(scored.stats.evaluations / self.flow.solves)
        return log_prob, float(np.mean(evaluations))

    def sample(self, n: int, seed: int) -> Array:
        """Draws of the flow, shape (n, columns)."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            parts = [
                self.flow.sample(min(CHUNK, n - i)).double().cpu().numpy()
                for i in trange(0, n, CHUNK, desc="drawing", disable=None, leave=False)
            ]
        return np.concatenate(parts)

    def gaussian_log_prob(self, rows: Array) -> Array:
        """Log-density of the full-covariance Gaussian fitted on the training rows."""
        gaussian = self.metadata["gaussian"]
        cholesky = np.linalg.cholesky(gaussian["covariance"])
        normal = multivariate_normal(gaussian["mean"], Covariance.from_cholesky(cholesky))
        return np.atleast_1d(normal.logpdf(rows))


def fit_gaussian(rows: Array) -> dict[str, Any]:
    """Mean and covariance of `rows`, as JSON.

    A billionth of each variance is added to it, so that exactly collinear columns, whose Gaussian
    has no density, still give a finite number.
    """
    covariance = np.cov(rows.T, bias=True).reshape(rows.shape[1], rows.shape[1])
    covariance = covariance + 1e-9 * np.diag(np.diag(covariance))
    return {"mean": rows.mean(0).tolist(), "covariance": covariance.tolist()}
