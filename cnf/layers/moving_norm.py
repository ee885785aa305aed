"""Batch normalisation by moving statistics, as a layer."""

import torch
from torch import Tensor, nn

from cnf.layers.layer import Layer, TransformResult


class MovingNorm(Layer):
    """z = b + e^w (x − m) / √(v + ε) in each column; log |det ∂z/∂x| = Σ (w − ½ ln(v + ε)).

    The mean m and the variance v are running statistics of rows from the data's side: buffers,
    first 0 and 1, that only `update` changes, as a training loop does after each of its steps. So
    no row depends on its batch. With δ the batch's mean minus m and s² its variance,

        m ← m + a δ,    v ← (1 − a) (v + a δ²) + a s²,

    the statistics of a mixture of the past and, with weight a, of the batch. The weight is the
    larger of `decay` and 1/k in the k-th update: m and v are the statistics of all rows until 1/k
    falls below `decay`.

    Args:
        dim: Number of columns.
        decay: Weight of a batch, above 0 and at most 1.
        eps: Number added to the variance, above 0.
        affine: Whether w and b are learned, from 0; else they are 0.

    Raises:
        ValueError: A number is out of range.

    Shapes: (rows, dim) → (rows, dim), (rows,).

    Source: Ioffe and Szegedy (2015), Batch normalization; Dinh et al. (2017), Density estimation
    using Real NVP, appendix E. FFJORD's MovingBatchNorm1d (https://github.com/rtqichen/ffjord)
    starts from statistics 0 and 1, and its v leaves out the variance of the batches' means.

    Example:
        >>> layer, x = MovingNorm(1, eps=1e-6), torch.tensor([[0.0], [20.0]])
        >>> layer.update(layer.sums(x))
        >>> [round(value, 3) for value in layer.inverse(x)[0].flatten().tolist()]
        [-1.0, 1.0]
    """

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
        if self.bias is not None:
            z = z - self.bias
        log_scale = self._log_scale()
        return TransformResult(self.mean + z * log_scale.exp(), log_scale.sum().expand(len(z)))

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        log_scale = self._log_scale()
        z = (x - self.mean) * (-log_scale).exp()
        if self.bias is not None:
            z = z + self.bias
        return TransformResult(z, -log_scale.sum().expand(len(x)))

    @torch.no_grad()
    def sums(self, x: Tensor) -> Tensor:
        """Return the sums that `update` takes, which are additive over the parts of a batch.

        They are the number of rows, and the columns' sums and sums of squares about the running
        mean, in double precision, shape (1 + 2 dim,).
        """
        distance = x.double() - self.mean
        count = distance.new_full((1,), len(x))
        return torch.cat([count, distance.sum(0), distance.square().sum(0)])

    @torch.no_grad()
    def update(self, sums: Tensor) -> None:
        """Move the statistics towards those of a batch, given by its `sums`."""
        self.updates += 1
        weight = self.updates.double().reciprocal().clamp(min=self.decay)
        count, first, second = sums.split([1, self.dim, self.dim])
        shift = first / count
        within = second / count - shift.square()
        variance = (1 - weight) * (self.variance + weight * shift.square()) + weight * within
        self.variance.copy_(variance.clamp(min=0))  # rounding may make it negative
        self.mean.add_(weight * shift)

    def _log_scale(self) -> Tensor:
        log_scale = 0.5 * (self.variance + self.eps).log()
        return log_scale if self.log_weight is None else log_scale - self.log_weight

    def extra_repr(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.config().items())
        return f"{arguments}, updates={int(self.updates)}"
