"""Layers that draw noise on the way to the base."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from cnf.layers.layer import Layer, ScoredTransform, ScoringOptions, TransformResult
from cnf.ode import Status
from cnf.utils.row_noise import RowNoise


class Noisy(Layer):
    """A layer from points to cells: x is what many z come to, and one of them is drawn for it.

    Its log-determinant on the way to the base is −log q(z | x): what a flow makes of it is one
    estimate, without a bias, of the mass of x, whose logarithm is a lower bound in the mean.
    """

    @property
    def noisy(self) -> bool:
        """It is."""
        return True

    def assess(self, x: Tensor, context: Tensor | None, care: ScoringOptions) -> ScoredTransform:
        """`pull` with the noise of `care`."""
        finished = np.full(len(x), Status.FINISHED)
        return ScoredTransform(self._pull(x, care.noise), x.new_zeros(len(x)), finished)

    @abstractmethod
    def _pull(self, x: Tensor, noise: RowNoise | None) -> TransformResult:
        """`pull` with noise that belongs to the rows, or PyTorch's own where the data lies."""


def uniform(like: Tensor, noise: RowNoise | None) -> Tensor:
    """Noise from U[0, 1) of a tensor's shape and dtype, on its device."""
    return torch.rand_like(like) if noise is None else noise.uniform(like.shape).to(like)
