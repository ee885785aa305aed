"""Times as fractions of the way from the first output time to the last."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cnf.ode.lanes import Array, Control
from cnf.ode.settings import Settings


class Clock:
    """Times as fractions of the way from the first output time to the last."""

    def __init__(self, ts: Tensor) -> None:
        self.begin, end = ts[0].item(), ts[-1].item()
        self.span = end - self.begin
        self.length = abs(self.span)

    def fractions(self, times: Tensor) -> Array:
        """Times as fractions."""
        numbers: Array = times.detach().double().cpu().numpy()
        return (numbers - self.begin) / self.span

    def control(self, settings: Settings, knots: Tensor) -> Control:
        """The settings of the control, in fractions."""
        jumps = None
        if settings.jumps is not None:
            jumps = torch.isin(knots[1:], settings.jumps).cpu().numpy()
            jumps[-1] = False
        largest = max(abs(self.begin), abs(self.begin + self.span))
        return Control(
            controller=settings.controller,
            order=(settings.tableau.error_order or 0) + 1,
            min_step=settings.min_step / self.length,
            max_step=settings.max_step / self.length,
            resolution=4 * torch.finfo(knots.dtype).eps * largest / self.length,
            knots=np.array([0.0, *self.fractions(knots)[1:-1], 1.0]),
            grid=settings.grid is not None,
            jumps=jumps,
        )
