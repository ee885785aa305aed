"""zuko's autoregressive flows, trained as in their papers, in a given time."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import cos, inf, isfinite, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.scripts.benchmarks.density import Deadline, DensityEstimator, FittedDensity
from cnf.scripts.benchmarks.peers import peer
from cnf.scripts.benchmarks.prepared import StandardizedSplit
from cnf.scripts.benchmarks.truth import BENCHMARK_CHUNK_ROWS
from cnf.utils.random import seeded

Array = NDArray[np.float64]

MAX_VALIDATION_SHARE = 0.1  # of the training time


@dataclass(frozen=True)
class AutoregressiveNetwork:
    """The architecture of an autoregressive flow.

    Attributes:
        transforms: Number of transforms, each with the columns in reverse order.
        hidden: Widths of the hidden layers of each transform's network.
        bins: Bins of the splines; 0 for affine transforms.
    """

    transforms: int
    hidden: tuple[int, ...]
    bins: int = 0

    def flow(self, dim: int) -> Any:
        """Return the untrained flow."""
        flows = peer("zuko.flows")
        sizes = {"transforms": self.transforms, "hidden_features": self.hidden}
        if self.bins:
            return flows.NSF(dim, bins=self.bins, **sizes)
        return flows.MAF(dim, **sizes)

    def __str__(self) -> str:
        bins = f", {self.bins} bins" if self.bins else ""
        return f"{self.transforms} x {'-'.join(map(str, self.hidden))}{bins}"


@dataclass(frozen=True)
class AutoregressiveSettings:
    """Training settings of an autoregressive flow.

    Attributes:
        networks: Architectures to choose among, each with an equal share of the remaining time.
        batch: Rows for each step.
        learning_rate: Peak learning rate of AdamW; it decays as a cosine to zero.
        warmup: Fraction of the time in which the learning rate rises from zero.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Norm above which the gradient is clipped.
        every: The fewest steps between two validations; an epoch where that is longer.
        patience: Validations without improvement after which training returns to its best weights,
            with a third of the learning rate.
        cuts: Number of such reductions before training ends.
    """

    networks: tuple[AutoregressiveNetwork, ...]
    batch: int = 256
    learning_rate: float = 1e-2
    warmup: float = 0.03
    weight_decay: float = 1e-4
    max_grad_norm: float = 5.0
    every: int = 20
    patience: int = 10
    cuts: int = 2


class AutoregressiveEstimator(DensityEstimator):
    """A fitted autoregressive flow of zuko."""

    def __init__(self, flow: Any) -> None:
        self.flow = flow

    def log_prob(self, rows: Array) -> Array:
        """Return log p of rows."""
        return log_prob(self.flow, torch.from_numpy(rows).float()).numpy()

    def sample(self, count: int, seed: int) -> Array:
        """Draw samples."""
        with torch.no_grad(), seeded(seed):
            drawn: Tensor = self.flow().sample((count,))
        return drawn.double().numpy()


def fit_autoregressive(
    parts: StandardizedSplit, budget: float, seed: int, settings: AutoregressiveSettings
) -> FittedDensity:
    """Train the networks in turn, and keep the one with the best validation NLL.

    Raises:
        ValueError: zuko is not installed.
        RuntimeError: No network could be validated.
    """
    deadline = Deadline(budget)
    runs = []
    for i, network in enumerate(settings.networks):
        share = deadline.left / (len(settings.networks) - i)
        with seeded(seed):
            run = _NetworkTraining(network, settings, parts, share)
            run.train()
        runs.append(run)
    best = min(runs, key=lambda run: run.best_nll)
    if not isfinite(best.best_nll):
        raise RuntimeError(
            "Expected validation rows with a finite density; got none: give a longer budget"
        )
    best.flow.load_state_dict(best.best)
    chosen = f"{best.network}; best at step {best.best_step} of {best.steps}, {best.reason}"
    return FittedDensity(AutoregressiveEstimator(best.flow), chosen)


def log_prob(flow: Any, rows: Tensor) -> Tensor:
    """Return log p of rows in nats, in float64, without a gradient."""
    with torch.no_grad():
        return torch.cat(
            [flow().log_prob(part).double() for part in rows.split(BENCHMARK_CHUNK_ROWS)]
        )


class _NetworkTraining:
    """The training of one network."""

    def __init__(
        self,
        network: AutoregressiveNetwork,
        settings: AutoregressiveSettings,
        parts: StandardizedSplit,
        seconds: float,
    ) -> None:
        self.network, self.settings = network, settings
        self.seconds, self.deadline = seconds, Deadline(seconds)
        self.train_rows, self.validation = (
            torch.from_numpy(rows).float() for rows in (parts.train, parts.validation)
        )
        self.flow = network.flow(parts.dim)
        self.optimizer = torch.optim.AdamW(
            self.flow.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.order = torch.empty(0, dtype=torch.long)
        self.steps = self.stale = self.cuts = 0
        self.best_nll, self.best_step, self.best = inf, 0, deepcopy(self.flow.state_dict())
        self.validating = self.closing = 0.0
        self.reason = "budget"

    def train(self) -> None:
        """Train and validate until the time is over or validation stops improving."""
        steps_in_epoch = -(-len(self.train_rows) // self.settings.batch)
        every = max(self.settings.every, steps_in_epoch)
        due = every
        while self.deadline.left > self.closing:
            self._step()
            if self.steps >= due and self._is_cheap():
                self._validate()
                due = self.steps + every
                if self.cuts > self.settings.cuts:
                    self.reason = "early stopping"
                    return
        self._validate()

    def _step(self) -> None:
        progress = min(1.0, 1 - self.deadline.left / self.seconds)
        risen = min(1.0, progress / self.settings.warmup)
        rate = self.settings.learning_rate * risen * 0.5 * (1 + cos(pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate / 3**self.cuts
        self.optimizer.zero_grad()
        loss = -self.flow().log_prob(self._batch()).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.settings.max_grad_norm)
        if norm.isfinite():
            self.optimizer.step()
        self.steps += 1

    def _batch(self) -> Tensor:
        """Return the next rows of a random order."""
        size = min(self.settings.batch, len(self.train_rows))
        if len(self.order) < size:
            self.order = torch.randperm(len(self.train_rows))
        chosen, self.order = self.order[:size], self.order[size:]
        return self.train_rows[chosen]

    def _is_cheap(self) -> bool:
        spent = self.seconds - self.deadline.left
        return self.validating + self.closing <= MAX_VALIDATION_SHARE * spent

    def _validate(self) -> None:
        before = self.deadline.left
        nll = -log_prob(self.flow, self.validation).mean().item()
        if nll < self.best_nll:
            self.best_nll, self.best_step, self.stale = nll, self.steps, 0
            self.best = deepcopy(self.flow.state_dict())
        else:
            self.stale += 1
        if self.stale >= self.settings.patience:
            self.flow.load_state_dict(self.best)
            self.cuts, self.stale = self.cuts + 1, 0
        self.closing = before - self.deadline.left
        self.validating += self.closing
