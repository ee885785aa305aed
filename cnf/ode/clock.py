"""Times as fractions of the way from the first output time to the last."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cnf.ode.lanes import CLOSE, Array, Control
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
        stops = jumps = np.ones(1)
        if settings.jumps is not None:
            jumps = self.fractions(settings.jumps)
        if settings.grid is not None:
            stops = np.append(self.fractions(knots)[1:-1], 1.0)
        elif settings.stops is not None or settings.jumps is not None:
            given = np.ones(1) if settings.stops is None else self.fractions(settings.stops)
            stops = np.unique(np.concatenate([given, jumps, [1.0]]))
            stops = stops[(stops > CLOSE) & (stops <= 1)]
        largest = max(abs(self.begin), abs(self.begin + self.span))
        return Control(
            controller=settings.controller,
            order=(settings.tableau.error_order or 0) + 1,
            min_step=settings.min_step / self.length,
            max_step=settings.max_step / self.length,
            resolution=4 * torch.finfo(knots.dtype).eps * largest / self.length,
            stops=stops,
            grid=settings.grid is not None,
            jumps=None if settings.jumps is None else jumps[(jumps > CLOSE) & (jumps < 1 - CLOSE)],
        )
