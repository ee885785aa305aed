"""FFJORD's training of toys as published.

The settings are the defaults of train_toy.py. The end time of the flow is 0.5; the script declares
it trainable, but builds the solver's times with `torch.tensor`, which stops the gradient, so that
the end time stays fixed.

Source: https://github.com/rtqichen/ffjord, train_toy.py and lib/layers/cnf.py; Grathwohl et al.
(2019), FFJORD: Free-form continuous dynamics for scalable reversible generative models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnf.datasets import TOYS
from cnf.scripts.benchmarks.contenders import FFJORD
from cnf.scripts.benchmarks.ffjord import ConcatSquashNetwork
from cnf.scripts.benchmarks.truth import BATCH_STREAM, BENCHMARK_CHUNK_ROWS, Distance
from cnf.utils.random import seeded

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FFJORDSettings:
    """The settings of train_toy.py.

    Attributes:
        hidden: Widths of the hidden layers, with tanh between them.
        end: End time of the flow.
        tolerance: Relative and absolute tolerance of dopri5 and of its adjoint.
        batch: Rows of a step, drawn anew for each.
        learning_rate: Constant learning rate of Adam.
        weight_decay: Weight decay of Adam, added to the gradient.
    """

    hidden: tuple[int, ...] = (64, 64, 64)
    end: float = 0.5
    tolerance: float = 1e-5
    batch: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5


PUBLISHED_SETTINGS = FFJORDSettings()


class FFJORDReference:
    """A flow of FFJORD's method with its training: exact log p, no schedule, no averaging.

    The base is the standard normal, and rows are not standardised.

    Args:
        toy: Name of the toy.
        seed: Seed of the weights and of the rows.
        settings: The settings of training.

    Attributes:
        flow: The flow.
        steps: Training steps so far.

    Example:
        >>> reference = FFJORDReference("moons", settings=FFJORDSettings(hidden=(8,)))
        >>> reference.log_prob(np.zeros((3, 2))).shape
        (3,)
    """

    def __init__(
        self, toy: str, seed: int = 0, settings: FFJORDSettings = PUBLISHED_SETTINGS
    ) -> None:
        with seeded(seed):
            network = ConcatSquashNetwork((2, *settings.hidden, 2), nn.Tanh())
        tolerance, end = settings.tolerance, settings.end
        self.flow = FFJORD("FFJORD's method", network, tolerance, tolerance, exact=True, end=end)
        self.optimizer = torch.optim.Adam(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.toy, self.batch = TOYS[toy], settings.batch
        self.random = np.random.default_rng([seed, BATCH_STREAM])
        self.steps = 0

    def step(self) -> float:
        """Take a step of Adam on fresh rows, and return the loss before it, in nats.

        Raises:
            AssertionError: The solve fails: torchdiffeq's step size underflows.
        """
        x = torch.from_numpy(self.toy.sample(self.batch, self.random)).float()
        self.optimizer.zero_grad()
        loss = -self.flow.score(x).log_prob.mean()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.item()

    def distance(self, rows: Array) -> Distance:
        """Return the KL divergence from the toy to the flow, over rows (n, 2) of the toy."""
        return Distance.of(self.toy.log_prob(rows), self.log_prob(rows))

    def log_prob(self, rows: Array) -> Array:
        """Return log p of rows (n, 2), with the solver of training."""
        with torch.no_grad():
            parts = torch.from_numpy(rows).float().split(BENCHMARK_CHUNK_ROWS)
            return torch.cat([self.flow.score(part).log_prob for part in parts]).double().numpy()
