"""Layers whose inverse is stochastic."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from cnf.layers.layer import Layer, ScoredTransform, ScoringOptions, TransformResult
from cnf.ode import Status
from cnf.utils.row_noise import RowNoise


class StochasticLayer(Layer):
    """A generative surjection: many z have one x, and `pull` draws one of them from q(z | x).

    The log-determinant of `pull` is −log q(z | x), so that a flow's p(x) is an unbiased estimate of
    the mass of x, and the mean of its logarithm a lower bound.

    Source: Nielsen et al. (2020), SurVAE flows: Surjections to bridge the gap between VAEs and
    flows.
    """

    @property
    def stochastic(self) -> bool:
        """Whether `pull` draws noise: always."""
        return True

    def pull_scored(
        self, x: Tensor, context: Tensor | None, options: ScoringOptions
    ) -> ScoredTransform:
        """Pull x with the noise of `options`."""
        finished = np.full(len(x), Status.FINISHED)
        return ScoredTransform(self._pull(x, options.noise), x.new_zeros(len(x)), finished)

    @abstractmethod
    def _pull(self, x: Tensor, noise: RowNoise | None) -> TransformResult:
        """Pull x with the rows' noise, or with that of PyTorch's generator when None."""


def uniform(like: Tensor, noise: RowNoise | None) -> Tensor:
    """Draw from U[0, 1) with the shape, dtype and device of `like`."""
    return torch.rand_like(like) if noise is None else noise.uniform(like.shape).to(like)
