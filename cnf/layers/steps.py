"""A fixed number of explicit steps along a vector field as a layer, with an exact determinant."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import inf
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnf.fields import VectorField, as_field
from cnf.layers.explicit_step import Coefficients, invert
from cnf.layers.field_layer import FieldLayer
from cnf.layers.layer import ScoredTransform, ScoringOptions, TransformResult
from cnf.layers.padding import pad_rows
from cnf.layers.settings import SolverSettings
from cnf.layers.step_sequence import StepDeterminants, StepSequence
from cnf.ode import TABLEAUS, Solution, SolveError, Stats, Status
from cnf.ode.interpolation import interpolate
from cnf.ode.tableau import Tableau

# Beyond it the tangents of an exact determinant cost more than the steps save.
MAX_DIM = 32
MIN_STAGES = 2  # a method of one stage is of first order: its steps would have to be many
CHUNK_TANGENTS = 8192  # one for each column of a row: with fewer Python's time counts
INVERSE_ROWS = 8192  # more, since the last rows to converge take their time whatever their number
MAX_RESIDUAL = 1e-3  # of an inverse, relative to the states
Direction = Literal["base", "data"]


class Steps(FieldLayer):
    """A flow of K explicit Runge-Kutta steps, of which log p has no solver's error.

    Steps from data to base, x = y₀ → y₁ → … → y_K = z, of sizes that sum to one,

        y_{k+1} = F_k(y_k) = y_k − h_k Σ_i b_i f(t_i, Y_i),   log |det ∂z/∂x| = Σ_k log det ∂F_k/∂y,

    are a map, F, whose determinant is exact: its Jacobians are products of those of the
    stages, by `dim` tangents in one batch. `pull` costs K times the method's stages. `push` inverts
    each step by Newton's method from shorter steps back. With `towards="data"` the steps go from
    base to data, and `pull` is the inverse: for posteriors, which are drawn from.

    Where a determinant is not positive the map folds: log p is −∞ there, and the status of a row
    FOLDED. Maximum likelihood folds such a map where there is no data, so that it must not be
    trained by that alone: `cnf.fit` and `cnf.distil` penalise folds.

    Args:
        field: A `TracedField`, or any module as for `cnf.CNF`, of at most 32 columns, no angles.
        count: The number of steps K.
        method: Name of a tableau in `cnf.ode.TABLEAUS` of at least two stages.
        learnt: Whether the coefficients of each step, and their sizes, are parameters.
        towards: `"base"` or `"data"`: the direction of the explicit steps.

    Raises:
        ValueError: A number or name is out of range, or the field is of too many columns or angles.
        SolveError: No inverse was found for a row, or it is not finite, in `push`, or in `pull`
            with steps towards the data.

    Shapes: (rows, dim), context (rows, context_dim) → (rows, dim), (rows,).

    Source: Onken et al. (2021), OT-Flow, for discretise-then-optimise flows with exact traces;
    Shaul et al. (2024), Bespoke solvers, for learnt coefficients. The determinant of the discrete
    map itself, and so log p without error, is in neither.

    Example:
        >>> from cnf.fields import ConcatSquash
        >>> layer = Steps(ConcatSquash(2, hidden=(16, 16)), count=2)
        >>> x = torch.randn(5, 2)
        >>> z, log_det = layer.inverse(x)
        >>> back, minus_log_det = layer(z)
        >>> torch.allclose(x, back, atol=1e-5), torch.allclose(log_det, -minus_log_det, atol=1e-4)
        (True, True)
    """

    def __init__(
        self,
        field: nn.Module | dict[str, Any],
        count: int = 2,
        method: str = "midpoint",
        *,
        learnt: bool = False,
        towards: Direction = "base",
    ) -> None:
        super().__init__(field)
        check_steps(count, method)
        if towards not in ("base", "data"):
            raise ValueError(f"Expected towards to be base or data; got {towards!r}")
        self._check_columns(getattr(self.field, "dim", 0))
        self.count, self.method, self.learnt, self.towards = count, method, learnt, towards
        self.compiles = False
        if learnt:
            like = next(self.field.parameters(), torch.empty(0))
            stages = self.tableau.solution_stages
            a = like.new_zeros(stages, stages)
            for i, row in enumerate(self.tableau.a[:stages]):
                a[i, :i] = a.new_tensor(row)
            b, c = (like.new_tensor(row[:stages]) for row in (self.tableau.b, self.tableau.c))
            self.log_sizes = nn.Parameter(like.new_zeros(count))
            self.a = nn.Parameter(a.repeat(count, 1, 1))
            self.b = nn.Parameter(b.repeat(count, 1))
            self.c = nn.Parameter(c.repeat(count, 1))

    @property
    def vector_field(self) -> VectorField:
        return as_field(self.field, "any" if self.compiles else None)

    @property
    def tableau(self) -> Tableau:
        """The method's tableau."""
        return TABLEAUS[self.method]

    def push(self, z: Tensor, context: Tensor | None = None) -> TransformResult:
        return self._explicit(z, context) if self.towards == "data" else self._implicit(z, context)

    def pull(self, x: Tensor, context: Tensor | None = None) -> TransformResult:
        return self._explicit(x, context) if self.towards == "base" else self._implicit(x, context)

    def transport(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self._moved(z, context, explicit=self.towards == "data")

    def preimage(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._moved(x, context, explicit=self.towards == "base")

    def determinants(self, x: Tensor, context: Tensor | None = None) -> StepDeterminants:
        """Return the end of the explicit steps from x, with the determinant of each."""
        self._check(x, context)
        return self._steps(x, context).determinants(x)

    def pull_scored(
        self, x: Tensor, context: Tensor | None, options: ScoringOptions
    ) -> ScoredTransform:
        explicit = self.towards == "base"
        found = self._explicit(x, context) if explicit else self._inverted(x, context)
        status = _statuses(x, found)
        finished = status == Status.FINISHED
        status[(found.log_det == -inf).cpu().numpy() & finished] = Status.FOLDED
        keep = torch.from_numpy(finished).to(x.device)
        result = TransformResult(
            torch.where(keep.unsqueeze(1), found.value, torch.nan),
            torch.where(keep, found.log_det, torch.nan),
            found.stats,
        )
        return ScoredTransform(result, torch.zeros_like(result.log_det), status)

    def path(
        self, z: Tensor, times: Sequence[float] | Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Return the states at `times` of the trajectories that start at `z` at the first, 0 or 1.

        Between the steps' ends they are interpolated by cubics, of the field's velocity there.

        Shapes: (rows, dim) → (times, rows, dim).
        """
        times = [float(t) for t in times]
        if times[0] not in (0.0, 1.0):
            raise ValueError(f"Expected times from 0 or from 1; got {times[0]:g}")
        knots = self._knots(z, context, begin=times[0])
        places = sorted(knots)
        slopes = {t: self.velocity(z.new_tensor(t), knots[t], context) for t in places}
        states = []
        for time in times:
            last = min(max(int(np.searchsorted(places, time)), 1), len(places) - 1)
            low, high = places[last - 1], places[last]
            theta, h = z.new_tensor((time - low) / (high - low)), z.new_tensor(high - low)
            ends = knots[low], knots[high], slopes[low], slopes[high]
            states.append(interpolate(theta, h, *ends, None))
        return torch.stack(states)

    def with_solver(self, **changes: Any) -> Self:
        """Return a layer that shares the parameters: compiled, by `compile`, or as it is.

        Fixed steps have no use for the other settings.

        Raises:
            ValueError: A setting is unknown or out of range.
        """
        settings = SolverSettings().replaced(changes)
        if "compile" not in changes:
            return self
        view = copy.copy(self)
        view.compiles = settings.compile
        _ = view.vector_field  # which refuses a module that cannot be compiled
        return view

    def config(self) -> dict[str, Any]:
        names = ("count", "method", "learnt", "towards")
        return {"field": self.field_config(), **{name: getattr(self, name) for name in names}}

    def extra_repr(self) -> str:
        return (
            f"count={self.count}, method={self.method!r}, learnt={self.learnt}, "
            f"towards={self.towards!r}"
        )

    def times(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times of the stages of each step, (count, stages), and its size, (count,).

        Times run from the explicit steps' side; sizes are positive. Both have the dtype of `like`.
        """
        nodes: Tensor
        if self.learnt:
            sizes, nodes = self.log_sizes.softmax(0), self.c
        else:
            sizes = like.new_full((self.count,), 1 / self.count)
            nodes = like.new_tensor(self.tableau.c[: self.tableau.solution_stages])
            nodes = nodes.expand(self.count, -1)
        begin = (sizes.cumsum(0) - sizes).unsqueeze(1)
        return begin + nodes * sizes.unsqueeze(1), sizes

    def coefficients(self, sizes: Tensor) -> list[Coefficients]:
        """Return the coefficients of each step of the given sizes; tensors where learnt."""
        sign = -1.0 if self.towards == "base" else 1.0
        if not self.learnt:
            stages = self.tableau.solution_stages
            a, b = self.tableau.a[:stages], self.tableau.b[:stages]
            return [Coefficients(sign / self.count, a, b)] * self.count
        recorded = torch.is_grad_enabled() and self.a.requires_grad
        tensors = (sign * sizes, self.a, self.b)
        found: list[list[Any]] = (
            [list(each.unbind()) for each in tensors]
            if recorded
            else [each.tolist() for each in tensors]
        )
        return [
            Coefficients(size, [[*row][:i] for i, row in enumerate(a)], [*b])
            for size, a, b in zip(*found, strict=True)
        ]

    def _steps(self, x: Tensor, context: Tensor | None) -> StepSequence:
        return StepSequence(self, self.vector_field.constants(context), x)

    def _explicit(self, x: Tensor, context: Tensor | None) -> TransformResult:
        self._check(x, context)
        parts = [self._determined(*part) for part in _explicit_parts(x, context)]
        value, log_det = (torch.cat([each[i] for each in parts])[: len(x)] for i in range(2))
        stats = Stats(self.count * self.tableau.solution_stages, self.count)
        return TransformResult(value, log_det, stats)

    def _determined(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        found = self.determinants(x, context)
        return found.value, found.log_det.masked_fill(found.folded, self._folded)

    @property
    def _folded(self) -> float:
        """The log-determinant of an explicit step that folds, by which log p is −∞."""
        return -inf if self.towards == "base" else inf

    def _implicit(
        self, end: Tensor, context: Tensor | None, *, log_det: bool = True
    ) -> TransformResult:
        """Return the inverse of the explicit steps; raise a SolveError where it is not found."""
        found = self._inverted(end, context, log_det=log_det)
        status = _statuses(end, found)
        if (status != Status.FINISHED).any():
            raise SolveError(Solution.unsolved(end, status, found.stats))
        return found

    def _inverted(
        self, end: Tensor, context: Tensor | None, *, log_det: bool = True
    ) -> TransformResult:
        """Return the inverse of the explicit steps, whether it was found or not."""
        self._check(end, context)
        parts = [
            self._inverse(*part, log_det=log_det) for part in _parts(end, context, INVERSE_ROWS)
        ]
        value, logs, residual, evaluations = (torch.cat(each) for each in zip(*parts, strict=True))
        stats = Stats(evaluations.cpu().numpy().astype(np.int64), self.count)
        return TransformResult(value, logs, stats, residual=residual)

    def _moved(self, x: Tensor, context: Tensor | None, explicit: bool) -> Tensor:
        """Return the value alone of the explicit steps, or of their inverse."""
        if not explicit:
            return self._implicit(x, context, log_det=False).value
        self._check(x, context)
        parts = _explicit_parts(x, context)
        return torch.cat([self._steps(rows, given).end(rows) for rows, given in parts])[: len(x)]

    def _inverse(
        self, end: Tensor, context: Tensor | None, *, log_det: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the inverse with its log-determinant, if wanted, residual and evaluations.

        Where autograd records, the derivatives of the inverse are those of a step of Newton's
        method from the solution.
        """
        steps = self._steps(end, context)
        steps.of()  # with their graph
        found = steps.inverse(end.detach())
        x, total = found.value, end.new_zeros(len(end))
        if torch.is_grad_enabled():
            reached, jacobian = steps.with_jacobian(x)
            x = x - ((reached - end).unsqueeze(1) @ invert(jacobian.detach())).squeeze(1)
        if log_det:
            there = steps.determinants(x)
            total = -there.log_det.masked_fill(there.folded, self._folded)
        return x, total, found.residual, found.evaluations

    def _knots(self, z: Tensor, context: Tensor | None, begin: float) -> dict[float, Tensor]:
        """Return the states at the ends of the steps by their times, from z at 0 or 1."""
        explicit = (begin == 1.0) == (self.towards == "base")
        states = [z if explicit else self._implicit(z, context, log_det=False).value]
        for step in self._steps(z, context).of():
            states.append(step(states[-1]))
        _, sizes = self.times(z)
        shares = [0.0, *sizes.detach().double().cumsum(0).tolist()[:-1], 1.0]
        times = [1 - share for share in shares] if self.towards == "base" else shares
        return dict(zip(times, states, strict=True))

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        super()._check(x, context)
        self._check_columns(x.shape[-1])

    def _check_columns(self, dim: int) -> None:
        if dim > MAX_DIM:
            raise ValueError(
                f"Expected at most {MAX_DIM} columns for steps with exact determinants, which take "
                f"a tangent for each column and beyond that cost more than they save; got {dim}: "
                "use the adaptive flow, at a looser tolerance where it is slow"
            )
        if self.circular:
            raise ValueError(
                "Expected a field without angles for explicit steps, which leave the circle's "
                f"chart; got angles in columns {list(self.circular)}: use the adaptive flow"
            )


def check_steps(count: int, method: str) -> None:
    """Check the number and the method of explicit steps.

    Raises:
        ValueError: The number is below 1, the method unknown or of one stage.
    """
    if not (isinstance(count, int) and not isinstance(count, bool) and count >= 1):
        raise ValueError(f"Expected a whole number of steps of at least 1; got {count!r}")
    known = [name for name, each in TABLEAUS.items() if each.solution_stages >= MIN_STAGES]
    if method not in known:
        why = "a method of one stage is too inaccurate" if method in TABLEAUS else "unknown"
        raise ValueError(
            f"Expected a method of at least {MIN_STAGES} stages among {', '.join(known)}; got "
            f"{method!r}: {why}"
        )


def _explicit_parts(x: Tensor, context: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Split rows into parts that are fast together; few rows are repeated up to `MIN_BATCH`."""
    return _parts(*pad_rows(x, context), max(1, CHUNK_TANGENTS // max(1, x.shape[1])))


def _parts(x: Tensor, context: Tensor | None, most: int) -> list[tuple[Tensor, Tensor | None]]:
    """Split rows, where autograd does not record, into parts of at most a number of rows."""
    if torch.is_grad_enabled() or len(x) <= most:
        return [(x, context)]
    count = -(-len(x) // most)
    contexts = [None] * count if context is None else context.tensor_split(count)
    return [*zip(x.tensor_split(count), contexts, strict=True)]


def _statuses(start: Tensor, found: TransformResult) -> NDArray[np.object_]:
    """Return the status of rows that were mapped, by an inverse where there is a residual."""
    status = np.full(len(start), Status.FINISHED)
    if found.residual is not None:
        status[(~(found.residual <= MAX_RESIDUAL)).cpu().numpy()] = Status.NO_INVERSE
    known = found.value if found.residual is None else start
    status[(~known.isfinite().all(1)).cpu().numpy()] = Status.NOT_FINITE
    return status
