"""Columns between two bounds by the arctangent: a kind of column, and its layer."""

from math import inf, log, pi

import torch

from cnf.layers import LAYERS
from cnf.layers.layer import ColumnRange, Layer, TransformResult
from cnf.tables.kinds import KINDS, ColumnKind


class Arctan(Layer):
    """The map x = low + (high − low) (½ + arctan(z) / π)."""

    surjective = False

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    @property
    def ranges(self):
        return (ColumnRange(self.low, self.high),)

    def push(self, z, context=None):
        x = self.low + (self.high - self.low) * (0.5 + z.atan() / pi)
        return TransformResult(x, self._log_slope(z))

    def pull(self, x, context=None):
        z = (pi * ((x - self.low) / (self.high - self.low) - 0.5)).tan()
        return TransformResult(z, torch.where(self.in_range(x), -self._log_slope(z), -inf))

    def in_range(self, x):
        return ((self.low < x) & (x < self.high)).all(1)

    def _log_slope(self, z):
        return (log((self.high - self.low) / pi) - z.square().log1p()).sum(1)


class ArctanColumn(ColumnKind):
    bounds = (2, 2)

    def continuous_layer(self):
        return Arctan(self.low, self.high)


LAYERS["arctan"] = Arctan
KINDS["arctan"] = ArctanColumn
