"""Layers whose inverse is stochastic."""

from abc import abstractmethod

import torch
from torch import Tensor

from cnf.layers.layer import Layer, TransformResult
from cnf.utils.random import RowNoise


class StochasticLayer(Layer):
    """A generative surjection: many z have one x, and `pull` draws one of them from q(z | x).

    The log-determinant of `pull` is −log q(z | x), so that a flow's p(x) is an unbiased estimate of
    the mass of x, and the mean of its logarithm a lower bound.

    Source: Nielsen et al. (2020), SurVAE flows: Surjections to bridge the gap between VAEs and
    flows.
    """

    stochastic = True

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        return self._pull(x, None)

    def pull_with_noise(
        self, x: Tensor, context: Tensor | None, noise: RowNoise
    ) -> TransformResult:
        return self._pull(x, noise)

    @abstractmethod
    def _pull(self, x: Tensor, noise: RowNoise | None) -> TransformResult:
        """Pull x with the rows' noise, or with that of PyTorch's generator when None."""


def uniform(like: Tensor, noise: RowNoise | None) -> Tensor:
    """Draw from U[0, 1) with the shape, dtype and device of `like`."""
    return torch.rand_like(like) if noise is None else noise.uniform(like.shape).to(like)
