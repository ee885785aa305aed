"""Features of x: angles enter as sines and cosines, so that the field is one on the circle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnf.fields.activations import Activation, fourier_activation
from cnf.utils.angles import other_columns


def feature_matrix(circular: Sequence[int], harmonics: int, drawn: Tensor) -> Tensor:
    """Return the matrix x → (x without its angles, ωx, ωx), the input of `fourier_activation`.

    The frequencies ω are k = 1 … harmonics of each angle, and those drawn. For angles they are
    whole numbers, since only such sines and cosines are periodic in a turn.

    Args:
        circular: The columns that are angles.
        harmonics: The number of frequencies of each of them.
        drawn: Other frequencies, shape (count, dim), which are rounded for the angles.

    Example:
        >>> feature_matrix((1,), 2, torch.tensor([[0.3, 1.4]]))
        tensor([[1.0000, 0.0000],
                [0.0000, 1.0000],
                [0.0000, 2.0000],
                [0.3000, 1.0000],
                [0.0000, 1.0000],
                [0.0000, 2.0000],
                [0.3000, 1.0000]])
    """
    unit = torch.eye(drawn.shape[1])
    angles = list(circular)
    drawn = drawn.index_copy(1, torch.tensor(angles, dtype=torch.long), drawn[:, angles].round())
    multiples = torch.arange(1.0, harmonics + 1).unsqueeze(1)
    frequencies = torch.cat([*(multiples * unit[column] for column in angles), drawn])
    return torch.cat([unit[other_columns(angles, len(unit))], frequencies, frequencies])


class Features(nn.Module):
    """The first layer of a field over angles: y = (x without its angles, sin kθ, cos kθ).

    Without angles y is x.

    Args:
        dim: Size of x.
        circular: The columns that are angles θ, in radians.
        harmonics: k = 1 … harmonics.

    Attributes:
        width: Size of y.

    Shapes: (rows, dim) → (rows, width).

    Example:
        >>> Features(2, (0,), harmonics=1)(torch.tensor([[0.0, 5.0]]))
        tensor([[5., 0., 1.]])
    """

    matrix: Tensor

    def __init__(self, dim: int, circular: Sequence[int], harmonics: int) -> None:
        super().__init__()
        self.width = dim
        self.sines: Activation | None = None
        if circular:
            count = harmonics * len(circular)
            others = dim - len(circular)
            self.width, self.sines = others + 2 * count, fourier_activation(others, count)
            matrix = feature_matrix(circular, harmonics, torch.empty(0, dim))
            self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return x if self.sines is None else self.sines.function(x @ self.matrix.T)[0]

    def tangents(self, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features, and their Jacobian's products with vectors (K, rows or 1, dim)."""
        if self.sines is None:
            return x, vectors
        value, slope = self.sines(x @ self.matrix.T)
        return value, slope * (vectors @ self.matrix.T)
