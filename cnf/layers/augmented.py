"""Dynamics of a continuous layer: the state augmented by log-determinants and regularizers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnf.fields import VectorField
from cnf.fields.divergence import Divergence, FieldTrace, random_vectors
from cnf.fields.regularizers import REGULARIZERS, PathPoint
from cnf.layers.padding import pad_rows, take_per_row
from cnf.ode import Linearization, PerRow, StagedDynamics


@dataclass(frozen=True, eq=False)
class DensityDynamics(StagedDynamics):
    """The joint dynamics of x, log |det|, its estimates and regularizers.

    Their columns, in this order, form one state of shape (rows, width).

    Attributes:
        field: The vector field.
        divergence: The method for its divergence.
        dim: Number of columns of x.
        estimates: Number of probes whose separate log-determinants are integrated too.
        regularizers: Names of the integrated regularizers.
    """

    rest_share: ClassVar[float] = 1.0  # fields are smooth in time

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
        """Compute the arguments of a solve from states x, each tensor with its gradient."""
        constants = _constants(self.field, context)
        trace_constants = self.field.trace_constants() if self.divergence == FieldTrace() else None
        probes = probe = None
        if not self.divergence.exact:
            with torch.no_grad():
                stage = self.field.at(x.new_tensor(float(times[0])), context)
                probes = PerRow(self.divergence.probes(self.field, stage, x))
        if any(REGULARIZERS[name].needs_probe for name in self.regularizers):
            probe = PerRow(random_vectors("rademacher", None, x, 1))
        return constants, trace_constants, probes, probe

    def prepare(self, times: Tensor, args: Any) -> Sequence[Any]:
        constants, trace_constants, *probes = args
        return [(stage, *probes) for stage in self.field.prepare(times, constants, trace_constants)]

    def evaluate(self, stage: Any, y: Tensor) -> Tensor:
        field_stage, probes, probe = stage
        x = y[:, : self.dim]
        traced = self.divergence(self.field, field_stage, x, probes)
        columns = [traced.velocity, traced.trace.unsqueeze(1)]
        if self.estimates:
            assert traced.estimates is not None
            columns.append(traced.estimates)
        point = PathPoint(self.field, field_stage, x, traced, probe)
        columns += [REGULARIZERS[name](point).unsqueeze(1) for name in self.regularizers]
        return torch.cat(columns, 1)

    def evaluate_unweighted(self, stage: Any, y: Tensor) -> Tensor:
        """Evaluate the velocity alone; the other columns are quadratures, with slope zero here."""
        velocity = self.field.velocity(stage[0], y[:, : self.dim])
        return pad(velocity, (0, self.width - self.dim))

    def linearize(self, times: Tensor, args: Any) -> Linearization:
        """Linearize by the field's closed form where only its trace is integrated."""
        constants, trace_constants, *_ = args
        if trace_constants is not None and self.width == self.dim + 1:
            closed_form = self.field.linearize(times, constants, trace_constants)
            if closed_form is not None:
                return closed_form
        return super().linearize(times, args)


@dataclass(frozen=True, eq=False)
class VelocityDynamics(StagedDynamics):
    """The dynamics of x alone, with a last column of zeros in place of the log-determinant."""

    rest_share: ClassVar[float] = 1.0

    field: VectorField
    dim: int

    @property
    def width(self) -> int:
        return self.dim + 1

    def arguments(self, x: Tensor, times: Sequence[float] | Tensor, context: Tensor | None) -> Any:
        return _constants(self.field, context)

    def prepare(self, times: Tensor, args: Any) -> Sequence[Any]:
        return self.field.prepare(times, args)

    def evaluate(self, stage: Any, y: Tensor) -> Tensor:
        return pad(self.field.velocity(stage, y[:, :-1]), (0, 1))


def _constants(field: VectorField, context: Tensor | None) -> Any:
    """Return the constants of a field, rounded for few contexts as for many."""
    if context is None:
        return field.constants(None)
    given, _ = pad_rows(context, None)
    found = field.constants(given)
    return found if len(given) == len(context) else take_per_row(found, slice(len(context)))
