"""The dynamics of a continuous layer: state, log-density and what else is integrated with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnf.fields import VectorField
from cnf.fields.divergence import Divergence, FieldTrace, random_vectors
from cnf.fields.regularizers import REGULARIZERS, Point
from cnf.ode import Linearization, PerRow, StagedDynamics


@dataclass(frozen=True, eq=False)
class Augmented(StagedDynamics):
    """The joint dynamics of (x, log |det|, what else), columns of one state (rows, width).

    Attributes:
        field: The vector field.
        divergence: How its divergence is found.
        dim: The number of columns of x.
        estimates: The number of probes whose own log-determinants are integrated too.
        regularizers: Names of what is integrated besides.
    """

    field: VectorField
    divergence: Divergence
    dim: int
    estimates: int = 0
    regularizers: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.dim + 1 + self.estimates + len(self.regularizers)

    def arguments(
        self, x: Tensor, times: Sequence[float] | Tensor, context: Tensor | None
    ) -> tuple[Any, ...]:
        """What a solve from states x needs: computed once, each tensor with its gradient."""
        constants = self.field.constants(context)
        own = self.field.trace_constants() if self.divergence == FieldTrace() else None
        probes = probe = None
        if not self.divergence.exact:
            with torch.no_grad():
                stage = self.field.at(x.new_tensor(float(times[0])), context)
                probes = PerRow(self.divergence.probes(self.field, stage, x))
        if "jacobian" in self.regularizers:
            probe = PerRow(random_vectors("rademacher", None, x, 1))
        return constants, own, probes, probe

    def prepare(self, times: Tensor, args: Any) -> Sequence[Any]:
        """The field's stages, with the probes."""
        constants, own, *probes = args
        return [(stage, *probes) for stage in self.field.prepare(times, constants, own)]

    def evaluate(self, stage: Any, y: Tensor) -> Tensor:
        """The slopes of all columns."""
        own, probes, probe = stage
        x = y[:, : self.dim]
        traced = self.divergence(self.field, own, x, probes)
        columns = [traced.velocity, traced.trace.unsqueeze(1)]
        if self.estimates:
            assert traced.estimates is not None
            columns.append(traced.estimates)
        point = Point(self.field, own, x, traced, probe)
        columns += [REGULARIZERS[name](point).unsqueeze(1) for name in self.regularizers]
        return torch.cat(columns, 1)

    def evaluate_inner(self, stage: Any, y: Tensor) -> Tensor:
        """The velocity; all other columns are quadratures, and stand still."""
        velocity = self.field.velocity(stage[0], y[:, : self.dim])
        return pad(velocity, (0, self.width - self.dim))

    def linearize(self, times: Tensor, args: Any) -> Linearization:
        """By hand where the field knows how to and nothing but its trace is asked for."""
        constants, own, *_ = args
        if own is not None and self.width == self.dim + 1:
            by_hand = self.field.linearize(times, constants, own)
            if by_hand is not None:
                return by_hand
        return super().linearize(times, args)


@dataclass(frozen=True, eq=False)
class Velocity(StagedDynamics):
    """The state's dynamics alone; the last column, the log-determinant's place, stays zero.

    Attributes:
        field: The vector field.
        dim: The number of columns of x.
    """

    field: VectorField
    dim: int

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.dim + 1

    def arguments(self, x: Tensor, times: Sequence[float] | Tensor, context: Tensor | None) -> Any:
        """What a solve needs: computed once, each tensor with its gradient."""
        return self.field.constants(context)

    def prepare(self, times: Tensor, args: Any) -> Sequence[Any]:
        """The field's stages."""
        return self.field.prepare(times, args)

    def evaluate(self, stage: Any, y: Tensor) -> Tensor:
        """The velocity, and a column of zeros."""
        velocity = self.field.velocity(stage, y[:, :-1])
        return pad(velocity, (0, 1))
