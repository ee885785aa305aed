"""Paths between base and data points, whose velocities flow matching regresses."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor


def straight(z: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return points (1 − t) z + t x and their velocities x − z: the path of Lipman et al. (2022).

    Shapes: (rows, dim), (rows, dim), (rows, 1) → (rows, dim), (rows, dim).

    Example:
        >>> z, x = torch.zeros(1, 1), torch.ones(1, 1)
        >>> [each.item() for each in straight(z, x, torch.tensor([[0.25]]))]
        [0.25, 1.0]
    """
    return torch.lerp(z, x, t), x - z


def trigonometric(z: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return points cos(πt/2) z + sin(πt/2) x and their velocities.

    Where data are standard normal, as the base is, the mean velocity at a point is zero: the less
    data differ from the base, the less a field has to learn. Shapes are those of `straight`.

    Source: Albergo & Vanden-Eijnden (2023), Building normalizing flows with stochastic
    interpolants.

    Example:
        >>> z, x = torch.zeros(1, 1), torch.ones(1, 1)
        >>> [round(each.item(), 3) for each in trigonometric(z, x, torch.tensor([[0.5]]))]
        [0.707, 1.111]
    """
    angle = (pi / 2) * t
    cosine, sine = angle.cos(), angle.sin()
    return cosine * z + sine * x, (pi / 2) * (cosine * x - sine * z)
