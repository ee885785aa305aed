"""A field of the asked coordinates given others, conditioned on which ones these are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnf.fields.analytic import (
    GROUPED,
    NetworkConstants,
    RowSubsets,
    trace_matrices_of_groups,
    velocity_and_trace_over,
)
from cnf.fields.concat_squash import ConcatSquash
from cnf.fields.field import Traced
from cnf.ode import Linearization, PerRow

SUBSET_COLUMNS = 6  # columns at most, all of whose subsets have a matrix


class Conditional(ConcatSquash):
    """A field of the asked coordinates given others, v = u ∘ f(t, x, (g, u)).

    The masks g and u ∈ {0, 1}^dim are of the given and the asked coordinates, u the last `dim`
    entries of the context. Only asked coordinates move and have a part in the trace,

        tr = Σ_j u_j ∂f_j/∂x_j.

    The caller sets coordinates that are neither given nor asked to 0. Here the masks differ
    between rows; `OneQuestion` and `GroupedQuestions` are views for masks that rows share.

    Args:
        dim: Size of x.
        hidden: Widths of the two hidden layers.
        activation: A name in `ACTIVATIONS`.
        time_features: The number of sines and of cosines of 2πkt among the features of time.

    Raises:
        ValueError: There are not two hidden layers, or another argument is out of range.

    Shapes: `forward(t, x, context)`: scalar, (rows, dim), (rows, 2 dim) → (rows, dim).

    Example:
        >>> field = Conditional(3, hidden=(8, 8))
        >>> masks = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
        >>> field(torch.tensor(0.5), torch.ones(1, 3), masks).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        time_features: int = 0,
    ) -> None:
        super().__init__(dim, hidden, 2 * dim, activation, True, time_features)
        if len(self.hidden) != 2:
            raise ValueError(f"Expected two hidden widths; got hidden = {self.hidden}")
        self.trace = "tangents"

    def constants(self, context: Tensor | None) -> Any:
        assert context is not None
        return super().constants(context), PerRow(context[:, -self.dim :])

    def trace_constants(self) -> Any:
        """Return parts of the columns, and the matrices of the trace over each subset of a part.

        These are slices, and (subsets, H₁, H₂) for each.
        """
        first, middle, last = self.network.weights(self._weights())
        found = []
        for part in torch.arange(self.dim).tensor_split(-(-self.dim // SUBSET_COLUMNS)):
            columns = slice(int(part[0]), int(part[-1]) + 1)
            subsets = torch.arange(2 ** len(part))[:, None] >> torch.arange(len(part)) & 1
            weights = [first[:, columns], middle, last[columns]]
            matrices = trace_matrices_of_groups(weights, subsets.to(first))
            found.append((columns, matrices.transpose(1, 2).contiguous()))
        return found

    def prepare(self, times: Tensor, constants: Any, trace_constants: Any = None) -> list[Any]:
        inner, asked = constants
        trace = None
        if trace_constants is not None:
            trace = [RowSubsets.of(asked[:, part] > 0, each) for part, each in trace_constants]
        return [(net, asked, trace) for net in super().prepare(times, inner)]

    def velocity(self, stage: Any, x: Tensor) -> Tensor:
        net, asked, _ = stage
        velocity: Tensor = asked * super().velocity(net, x)
        return velocity

    def products(self, stage: Any, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        net, asked, _ = stage
        velocity, products = super().products(net, x, asked * vectors)
        return asked * velocity, asked * products

    def jacobian(self, stage: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        net, asked, _ = stage
        velocity, columns = super().jacobian(net, x)
        return asked * velocity, asked.unsqueeze(2) * columns * asked.unsqueeze(1)

    def traced(self, stage: Any, x: Tensor) -> Traced:
        net, asked, subsets = stage
        activations = self.network.activations
        velocity, trace = velocity_and_trace_over(subsets, net, activations, x)
        return Traced(asked * velocity, trace)

    def linearize(
        self, times: Tensor, constants: Any, trace_constants: Any
    ) -> Linearization | None:
        return None


class OneQuestion(ConcatSquash):
    """A view of a `Conditional` field for masks that all rows share: an ordinary field.

    It has no context, and the parameters of the other: u is folded into the last layer, the masks
    into gates and shifts, so that it costs what a concat-squash field without a context costs.

    Args:
        field: The field.
        given: The mask of given coordinates, shape (dim,), of the field's dtype.
        asked: That of asked coordinates.
    """

    def __init__(self, field: Conditional, given: Tensor, asked: Tensor) -> None:
        vars(self).update(vars(field))
        self.given, self.asked = given, asked
        self.context_dim, self.trace = 0, "closed form"

    def constants(self, context: Tensor | None) -> NetworkConstants:
        found = super().constants(torch.cat([self.given, self.asked]).unsqueeze(0))
        gates, shifts = (part.tensor[0] for part in (found.gate_biases, found.shift_rows))
        return found._replace(
            biases=self._asked_alone(found.biases),
            gate_biases=gates,
            shift_times=self._asked_alone(found.shift_times),
            shift_rows=self._asked_alone(shifts),
        )

    def _weights(self) -> list[Tensor]:
        *hidden, last = super()._weights()
        return [*hidden, last * self.asked.unsqueeze(1)]

    def _asked_alone(self, part: Any) -> Any:
        """Return a part of the layers, (..., width), with zeros where nothing is asked."""
        return torch.cat([part[..., : -self.dim], part[..., -self.dim :] * self.asked], -1)


class GroupedQuestions(ConcatSquash):
    """A view of a `Conditional` field for groups of rows that share masks.

    The rows of a solve come in groups of equal size, one after the other, and take joint steps. It
    has no context, and the parameters of the other.

    Args:
        field: The field.
        given: The masks of given coordinates, shape (groups, dim), of the field's dtype.
        asked: Those of asked coordinates.
    """

    def __init__(self, field: Conditional, given: Tensor, asked: Tensor) -> None:
        vars(self).update(vars(field))
        self.functions = GROUPED
        self.given, self.asked = given, asked
        self.context_dim, self.trace = 0, "closed form"

    def constants(self, context: Tensor | None) -> NetworkConstants:
        found = super().constants(torch.cat([self.given, self.asked], 1))
        gates, shifts = (part.tensor for part in (found.gate_biases, found.shift_rows))
        return found._replace(gate_biases=gates, shift_rows=shifts)

    def trace_constants(self) -> tuple[Tensor, ...]:
        weights = self.network.weights(self._weights())
        return trace_matrices_of_groups(weights, self.asked), self.asked.unsqueeze(1)
