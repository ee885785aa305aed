"""What moves a field's layers beside its state: features of time, and the context."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor


def time_features(times: Tensor, waves: int) -> Tensor:
    """The times, and sin 2πkt and cos 2πkt for k = 1 … `waves`, along a new or the last axis.

    Shapes: (times,) → (times, 1 + 2 waves); (times, rows, 1) → (times, rows, 1 + 2 waves).

    Example:
        >>> time_features(torch.tensor([0.0, 0.25]), waves=1)
        tensor([[ 0.0000e+00,  0.0000e+00,  1.0000e+00],
                [ 2.5000e-01,  1.0000e+00, -4.3711e-08]])
    """
    times = times.unsqueeze(-1) if times.ndim == 1 else times
    if not waves:
        return times
    angles = times * (2 * pi * torch.arange(1, waves + 1, dtype=times.dtype, device=times.device))
    return torch.cat([times, torch.sin(angles), torch.cos(angles)], -1)


def combined(moved: Tensor, rest: Tensor | None) -> Tensor:
    """What time comes to, (times, width) or (times, rows, width), and what the context does.

    The rest has shape (width,), or (rows, width) and its result (times, rows, width).
    """
    if rest is None:
        return moved
    return moved.unsqueeze(1) + rest if rest.ndim > 1 and moved.ndim == 2 else moved + rest
