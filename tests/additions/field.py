"""A linear field, which takes nothing but its dimension."""

import torch
from torch import nn

from cnf.fields import FIELDS, TracedField


class Linear(TracedField):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def constants(self, context):
        return self.weight

    def prepare(self, times, constants, trace_constants=None):
        return [constants for _ in times]

    def velocity(self, stage, x):
        return x @ stage.T


FIELDS["linear"] = Linear
