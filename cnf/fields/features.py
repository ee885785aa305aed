"""Features of time and of x, in which angles are sines and cosines: a field on the circle."""

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor, nn

from cnf.fields.activations import Activation, fourier_activation, fourier_phases
from cnf.utils.angles import other_columns


def time_features(times: Tensor, harmonics: int) -> Tensor:
    """Return the times, and sin 2πkt and cos 2πkt for k = 1 … harmonics, along the last axis.

    Shapes: (times,) → (times, 1 + 2 harmonics); (times, rows, 1) → (times, rows, 1 + 2 harmonics).

    Example:
        >>> time_features(torch.tensor([0.0, 0.25]), harmonics=1)
        tensor([[ 0.0000e+00,  0.0000e+00,  1.0000e+00],
                [ 2.5000e-01,  1.0000e+00, -4.3711e-08]])
    """
    times = times.unsqueeze(-1) if times.ndim == 1 else times
    if not harmonics:
        return times
    multiples = torch.arange(1, harmonics + 1, dtype=times.dtype, device=times.device)
    angles = times * (2 * pi * multiples)
    return torch.cat([times, torch.sin(angles), torch.cos(angles)], -1)


def affine_in_time(features: Tensor, matrix: Tensor | None, constant: Tensor | None) -> Tensor:
    """Return features · matrix + constant, the argument of gates or the value of shifts.

    Args:
        features: Features of the times, shape (times, features) or (times, rows, features).
        matrix: Shape (features, width); None where time has no influence.
        constant: Shape (width,), or (rows, width) with a context; None for zero with a matrix.

    Returns:
        Shape (times, width), or (times, rows, width) where rows differ.
    """
    if matrix is None:
        assert constant is not None
        return constant.expand(len(features), *constant.shape)
    value = features @ matrix
    if constant is None:
        return value
    value = value.unsqueeze(1) if constant.ndim > 1 and value.ndim == 2 else value
    return value + constant


def feature_matrix(circular: Sequence[int], harmonics: int, drawn: Tensor) -> Tensor:
    """Return the matrix x → (x without its angles, ωx, ωx), to which phases are added.

    The frequencies ω are k = 1 … harmonics of each angle, and those drawn, shape (count, dim).
    For angles these are rounded, since only whole ones are periodic in a turn.

    Example:
        >>> feature_matrix((1,), 1, torch.tensor([[0.3, 1.4]]))
        tensor([[1.0000, 0.0000],
                [0.0000, 1.0000],
                [0.3000, 1.0000],
                [0.0000, 1.0000],
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
            self.count, self.others = harmonics * len(circular), dim - len(circular)
            self.width = self.others + 2 * self.count
            self.sines = fourier_activation(self.others, self.count)
            self.register_buffer("matrix", feature_matrix(circular, harmonics, torch.empty(0, dim)))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.sines is None else self.sines.function(self._arguments(x))[0]

    def tangents(self, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features, and their Jacobian's products with vectors (K, rows or 1, dim)."""
        if self.sines is None:
            return x, vectors
        value, slope = self.sines(self._arguments(x))
        return value, slope * (vectors @ self.matrix.T)

    def _arguments(self, x: Tensor) -> Tensor:
        return torch.addmm(fourier_phases(self.others, self.count, x), x, self.matrix.T)
