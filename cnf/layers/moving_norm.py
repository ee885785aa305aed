"""Batch normalisation by moving statistics, as a layer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cnf.layers.layer import Layer, TransformResult


class MovingNorm(Layer):
    """z = b + e^w (x − m) / √(v + ε) in each column; log |det ∂z/∂x| = Σ (w − ½ ln(v + ε)).

    The mean m and the variance v are running statistics of what comes from the data's side. They
    are those of every log p and every sample, so that no row depends on its batch, and they move
    only where `update` is told of a batch, as a training loop does after each of its steps. With
    δ the batch's mean less m and s² its variance,

        m ← m + a δ,    v ← (1 − a) (v + a δ²) + a s²,

    which are the statistics of a mixture of what was and, by the share a, of the batch. The share
    is `decay`, and 1/k in the k-th update while that is more: the first batch is taken as it is,
    and m and v are those of all rows until 1/k has come down to it.

    Before the first update m = 0 and v = 1. The statistics are buffers: gradients leave them alone.

    Args:
        dim: Number of columns.
        decay: The share of a batch, above 0 and at most 1.
        eps: What is added to the variance, above 0.
        affine: Whether w and b are learned, from 0; else they are 0.

    Raises:
        ValueError: A number is out of range.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Source: Ioffe and Szegedy (2015), Batch normalization; Dinh et al. (2017), Density estimation
    using Real NVP, appendix E; FFJORD's MovingBatchNorm1d (https://github.com/rtqichen/ffjord),
    whose first statistics are 0 and 1, of no batch, and whose v leaves out how means differ.

    Example:
        >>> layer, x = MovingNorm(1, eps=1e-6), torch.tensor([[0.0], [20.0]])
        >>> layer.update(layer.sums(x))
        >>> [round(value, 3) for value in layer.inverse(x)[0].flatten().tolist()]
        [-1.0, 1.0]
    """

    name: ClassVar[str] = "moving_norm"

    mean: Tensor
    variance: Tensor
    updates: Tensor

    def __init__(
        self, dim: int, decay: float = 0.1, eps: float = 1e-4, affine: bool = True
    ) -> None:
        super().__init__()
        if not 0 < decay <= 1:
            raise ValueError(f"Expected decay to be above 0 and at most 1; got {decay}")
        if not 0 < eps < float("inf"):
            raise ValueError(f"Expected eps to be finite and above 0; got {eps}")
        self.dim, self.decay, self.eps, self.affine = dim, decay, eps, affine
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("updates", torch.tensor(0))
        self.log_weight = nn.Parameter(torch.zeros(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        """From the normalised side."""
        if self.bias is not None:
            z = z - self.bias
        log_scale = self._log_scale()
        return TransformResult(self.mean + z * log_scale.exp(), log_scale.sum().expand(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        """To the normalised side."""
        log_scale = self._log_scale()
        z = (x - self.mean) * (-log_scale).exp()
        if self.bias is not None:
            z = z + self.bias
        return TransformResult(z, -log_scale.sum().expand(len(x)))

    @torch.no_grad()
    def sums(self, x: Tensor) -> Tensor:
        """What `update` needs to know of rows, which adds up over the parts of a batch.

        Their number, and their columns' sums and sums of squares, about the running mean: in double
        precision.

        Shapes: (rows, dim) → (1 + 2 dim,).
        """
        distance = x.double() - self.mean
        count = distance.new_full((1,), len(x))
        return torch.cat([count, distance.sum(0), distance.square().sum(0)])

    @torch.no_grad()
    def update(self, sums: Tensor) -> None:
        """Move the statistics towards those of a batch, told of by its `sums`."""
        self.updates += 1
        share = self.updates.double().reciprocal().clamp(min=self.decay)
        count, first, second = sums.split([1, self.dim, self.dim])
        shift = first / count
        within = second / count - shift.square()
        moved = (1 - share) * (self.variance + share * shift.square()) + share * within
        self.variance.copy_(moved.clamp(min=0))  # which rounding may go below
        self.mean.add_(share * shift)

    def _log_scale(self) -> Tensor:
        """Of each column, towards the data."""
        log_scale = 0.5 * (self.variance + self.eps).log()
        return log_scale if self.log_weight is None else log_scale - self.log_weight

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dim": self.dim, "decay": self.decay, "eps": self.eps, "affine": self.affine}

    def extra_repr(self) -> str:
        """The arguments and the number of updates, for the module's repr."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.config().items())
        return f"{arguments}, updates={int(self.updates)}"
