"""zuko's autoregressive flows, trained as their papers do, in a given time."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import cos, inf, isfinite, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.scripts.benchmarks.density import Clock, Density, Fitted
from cnf.scripts.benchmarks.peers import peer
from cnf.scripts.benchmarks.prepared import Parts

Array = NDArray[np.float64]

CHUNK = 2000  # rows scored at once
MOST_VALIDATING = 0.1  # of the time


@dataclass(frozen=True)
class Network:
    """A flow's size.

    Attributes:
        transforms: How many follow one another, each with the columns in reverse order.
        hidden: Widths of each one's network.
        bins: Of its splines; 0 for affine transforms.
    """

    transforms: int
    hidden: tuple[int, ...]
    bins: int = 0

    def flow(self, dim: int) -> Any:
        """The flow, not trained."""
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
    """How a flow is trained.

    Attributes:
        networks: Sizes to choose among; each gets an equal share of the time that is left.
        batch: Rows for each step.
        learning_rate: AdamW's at its peak; it falls as a cosine to zero at the end of the time.
        warmup: The part of the time in which it first rises from zero.
        weight_decay: Its decoupled weight decay.
        max_grad_norm: Largest norm of the gradient.
        every: The fewest steps between two validations; once in an epoch where that is longer.
        patience: Validations without improvement, after which training goes back to its best
            weights, with a third of the learning rate.
        cuts: How often it does, before it ends.
    """

    networks: tuple[Network, ...]
    batch: int = 256
    learning_rate: float = 1e-2
    warmup: float = 0.03
    weight_decay: float = 1e-4
    max_grad_norm: float = 5.0
    every: int = 20
    patience: int = 10
    cuts: int = 2


class Autoregressive(Density):
    """A flow of zuko's."""

    def __init__(self, flow: Any) -> None:
        self.flow = flow

    def log_prob(self, rows: Array) -> Array:
        """Log p of rows."""
        return log_prob(self.flow, torch.from_numpy(rows).float()).numpy()

    def sample(self, count: int, seed: int) -> Array:
        """Draws."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn: Tensor = self.flow().sample((count,))
        return drawn.double().numpy()


def fit_autoregressive(
    parts: Parts, budget: float, seed: int, settings: AutoregressiveSettings
) -> Fitted:
    """Train the networks one after the other, and keep the one that is best on validation.

    Raises:
        ValueError: zuko is not installed.
        RuntimeError: No network could be validated.
    """
    clock = Clock(budget)
    runs = []
    for i, network in enumerate(settings.networks):
        share = clock.left / (len(settings.networks) - i)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            run = _Run(network, settings, parts, share)
            run.train()
        runs.append(run)
    best = min(runs, key=lambda run: run.best_nll)
    if not isfinite(best.best_nll):
        raise RuntimeError("Expected validation rows with a density; got none at any validation")
    best.flow.load_state_dict(best.best)
    chosen = f"{best.network}; best at step {best.best_step} of {best.steps}, {best.reason}"
    return Fitted(Autoregressive(best.flow), chosen)


def log_prob(flow: Any, rows: Tensor) -> Tensor:
    """Log p of rows in nats, in float64, without a gradient."""
    with torch.no_grad():
        return torch.cat([flow().log_prob(part).double() for part in rows.split(CHUNK)])


class _Run:
    """A network's training."""

    def __init__(
        self, network: Network, settings: AutoregressiveSettings, parts: Parts, seconds: float
    ) -> None:
        self.network, self.settings = network, settings
        self.seconds, self.clock = seconds, Clock(seconds)
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
        """Step and validate until the time is over, or nothing comes of it any more."""
        steps_in_epoch = -(-len(self.train_rows) // self.settings.batch)
        every = max(self.settings.every, steps_in_epoch)
        due = every
        while self.clock.left > self.closing:
            self._step()
            if self.steps >= due and self._is_cheap():
                self._validate()
                due = self.steps + every
                if self.cuts > self.settings.cuts:
                    self.reason = "early stopping"
                    return
        self._validate()

    def _step(self) -> None:
        progress = min(1.0, 1 - self.clock.left / self.seconds)
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
        """The next rows of a random order."""
        size = min(self.settings.batch, len(self.train_rows))
        if len(self.order) < size:
            self.order = torch.randperm(len(self.train_rows))
        chosen, self.order = self.order[:size], self.order[size:]
        return self.train_rows[chosen]

    def _is_cheap(self) -> bool:
        spent = self.seconds - self.clock.left
        return self.validating + self.closing <= MOST_VALIDATING * spent

    def _validate(self) -> None:
        before = self.clock.left
        nll = -log_prob(self.flow, self.validation).mean().item()
        if nll < self.best_nll:
            self.best_nll, self.best_step, self.stale = nll, self.steps, 0
            self.best = deepcopy(self.flow.state_dict())
        else:
            self.stale += 1
        if self.stale >= self.settings.patience:
            self.flow.load_state_dict(self.best)
            self.cuts, self.stale = self.cuts + 1, 0
        self.closing = before - self.clock.left
        self.validating += self.closing
