"""Open bounds of columns, which rounding must not reach."""

from __future__ import annotations

import torch
from torch import Tensor, inf


def above(x: Tensor, low: Tensor) -> Tensor:
    """Raise values that are not above a bound to the next number above it.

    Example:
        >>> above(torch.tensor([999.0, 1001.0]), torch.tensor(1000.0)) > 1000
        tensor([True, True])
    """
    return torch.maximum(x, torch.nextafter(low, torch.full_like(low, inf)))


def below(x: Tensor, high: Tensor) -> Tensor:
    """Lower values that are not below a bound to the next number below it.

    Example:
        >>> below(torch.tensor([999.0, 1001.0]), torch.tensor(1000.0)) < 1000
        tensor([True, True])
    """
    return torch.minimum(x, torch.nextafter(high, torch.full_like(high, -inf)))
