"""Conditioning of a field's layers: features of time, joined with what the context gives."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor


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
        constant: Shape (width,), or (rows, width) where the context has a part in it; None for
            zero. Either the matrix or the constant is given.

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
