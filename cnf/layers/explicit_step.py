"""An explicit Runge-Kutta step as a map: its Jacobian by tangents, and its inverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnf.fields import VectorField

Coefficient = float | Tensor  # a tensor, of shape (), where it is learnt
BROYDEN_ITERATIONS = 8
COMPACT_SHARE = 0.6  # of the rows: when no more are left, the others are put aside
NEWTON_ITERATIONS = 30
RESTARTS = 8  # where Newton's method ends in a fold
TOGETHER = 1024  # rows of several restarts, which take hardly longer than those of one
RESTART_DISTANCE = 0.5  # of their starts, in the base's deviations
HALVINGS = 16  # of a step of Newton's method, until the residual falls


class Coefficients(NamedTuple):
    """The coefficients of a step: its signed size h, the rows of a, and the weights b."""

    size: Coefficient
    a: Sequence[Sequence[Coefficient]]
    b: Sequence[Coefficient]


@dataclass(frozen=True, eq=False)
class ExplicitStep:
    """The map F(y) = y + h Σ_i b_i k_i with k_i = f(t_i, Y_i) and Y_i = y + h Σ_j a_ij k_j.

    With the tangents k'_i = ∂f/∂x(t_i, Y_i) Y'_i and Y'_i = 1 + h Σ_j a_ij k'_j its Jacobian is

        ∂F/∂y = 1 + h Σ_i b_i k'_i.

    Jacobians are transposed: ∂F_i/∂y_j stands at [row, j, i].

    Attributes:
        field: The vector field f.
        stages: The field at the stages' times, as `VectorField.prepare` gives it.
        coefficients: The coefficients.
    """

    field: VectorField
    stages: Sequence[Any]
    coefficients: Coefficients

    def __call__(self, y: Tensor) -> Tensor:
        """Return the step's end, (rows, dim)."""
        h, a, b = self.coefficients
        slopes: list[Tensor] = []
        for stage, row in zip(self.stages, a, strict=True):
            slopes.append(self.field.velocity(stage, _moved(y, h, row, slopes)))
        return _moved(y, h, b, slopes)

    def with_jacobian(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step's end, (rows, dim), and its Jacobian, (rows, dim, dim)."""
        h, a, b = self.coefficients
        slopes: list[Tensor] = []
        tangents: list[Tensor] = []
        one = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        for stage, row in zip(self.stages, a, strict=True):
            slope, jacobian = self.field.jacobian(stage, _moved(y, h, row, slopes))
            before = _moved(one, h, row, tangents)
            slopes.append(slope)
            tangents.append(jacobian if before is one else before @ jacobian)
        return _moved(y, h, b, slopes), _moved(one, h, b, tangents)


class Inverse(NamedTuple):
    """The inverse of a step.

    Attributes:
        value: The states at its start, (rows, dim).
        residual: Their largest |F(value) − end| / (1 + max |end|), (rows,).
        evaluations: Evaluations of the field, with its Jacobian or without, (rows,).
    """

    value: Tensor
    residual: Tensor
    evaluations: Tensor


@torch.no_grad()
def inverse(
    step: Callable[[Tensor | None], ExplicitStep], end: Tensor, start: Tensor, tolerance: float
) -> Inverse:
    """Return the states from which a step leads to `end`, from the Jacobian at a start.

    Broyden's method takes a few evaluations more. Rows that have not converged then get Newton's
    method, whose steps are halved until the residual falls; where that ends in a fold they begin
    anew, from `end` and from points near the start.

    Args:
        step: Returns the step of some rows of the batch, of all for None.
        end: The step's end, (rows, dim).
        start: A guess of its start, (rows, dim).
        tolerance: Of the residual.

    Source: Broyden (1965), A class of methods for solving nonlinear simultaneous equations.
    """
    size = 1 + end.abs().amax(1)
    search = _broyden(step, end, start, size, tolerance)
    y, residual, evaluations = search.value, search.residual, search.evaluations
    rows = (~(residual <= tolerance) & end.isfinite().all(1)).nonzero().flatten()
    if len(rows):
        begin = Inverse(y[rows], residual[rows], evaluations[rows])
        own = _damped(step, rows, begin, end, tolerance)
        y[rows], residual[rows], evaluations[rows] = own.value, own.residual, own.evaluations
    restart = 1
    while restart <= RESTARTS and len(rows := rows[~(residual[rows] <= tolerance)]):
        count = max(1, min(TOGETHER // len(rows), 1 + RESTARTS - restart))
        starts = [_other_start(start, end, restart + k)[rows] for k in range(count)]
        own = _best_of(step, rows, starts, end, tolerance)
        lower = ~(own.residual >= residual[rows])
        y[rows[lower]], residual[rows[lower]] = own.value[lower], own.residual[lower]
        evaluations[rows] += own.evaluations
        restart += count
    return Inverse(y, residual, evaluations)


def _best_of(
    step: Callable[[Tensor | None], ExplicitStep],
    rows: Tensor,
    starts: Sequence[Tensor],
    end: Tensor,
    tolerance: float,
) -> Inverse:
    """Return for some rows the best of what Newton's method finds from several starts."""
    many, begin = rows.repeat(len(starts)), torch.cat([*starts])
    size = 1 + end[many].abs().amax(1)
    residual = (step(many)(begin) - end[many]).abs().amax(1) / size
    found = _damped(step, many, Inverse(begin, residual, torch.zeros_like(size)), end, tolerance)
    best = found.residual.nan_to_num(inf).view(len(starts), -1).min(0)
    chosen = best.indices * len(rows) + torch.arange(len(rows), device=rows.device)
    evaluations = found.evaluations.view(len(starts), -1).sum(0)
    return Inverse(found.value[chosen], best.values, evaluations)


def _damped(
    step: Callable[[Tensor | None], ExplicitStep],
    rows: Tensor,
    begin: Inverse,
    end: Tensor,
    tolerance: float,
) -> Inverse:
    """Return what damped steps of Newton's method find for some rows, from where they stand."""
    y, residual, evaluations = (part.clone() for part in begin)
    ends, falling = end[rows], torch.arange(len(rows), device=rows.device)
    sizes = 1 + ends.abs().amax(1)
    for _ in range(NEWTON_ITERATIONS):
        falling = falling[~(residual[falling] <= tolerance)]
        if not len(falling):
            break
        before = residual[falling]
        own = step(rows[falling]), y[falling], ends[falling], before, sizes[falling]
        y[falling], residual[falling], tries = _newton(*own)
        evaluations[falling] += tries * len(step(None).stages)
        falling = falling[residual[falling] < before]  # the others would repeat these trials
    return Inverse(y, residual, evaluations)


def _broyden(
    step: Callable[[Tensor | None], ExplicitStep],
    end: Tensor,
    start: Tensor,
    size: Tensor,
    tolerance: float,
) -> Inverse:
    """Return the states that Broyden's method finds, the starts where it leads away from them.

    With changes s of the states, q of the residuals and B the inverse of the transposed Jacobian,

        B ← B + (s Bᵀ)ᵀ (s − q B) / (s Bᵀ qᵀ).
    """
    own, rows = step(None), torch.arange(len(end), device=end.device)
    reached, jacobian = own.with_jacobian(start)
    y, error, inverses = start, (reached - end).unsqueeze(1), invert(jacobian)
    residual = error.abs().amax((1, 2)) / size
    found, left, first = start.clone(), residual.clone(), residual
    evaluations = torch.full_like(residual, len(own.stages))
    for _ in range(BROYDEN_ITERATIONS):
        change = -error @ inverses
        y = y + change.squeeze(1)
        moved = (own(y) - end).unsqueeze(1)
        evaluations[rows] += len(own.stages)
        difference, error = moved - error, moved
        turned = change @ inverses.transpose(1, 2)
        scale = (turned * difference).sum(2, keepdim=True)
        update = turned.transpose(1, 2) @ (change - difference @ inverses) / scale
        inverses = inverses + update.nan_to_num(0.0, 0.0, 0.0)
        residual = error.abs().amax((1, 2)) / size
        open_ = ~(residual <= tolerance)
        count = int(open_.sum())
        if count <= COMPACT_SHARE * len(rows):
            found[rows], left[rows] = y, residual
            if not count:
                return Inverse(found, left, evaluations)
            parts = (rows, y, end, size, error, inverses, residual)
            rows, y, end, size, error, inverses, residual = (part[open_] for part in parts)
            own = step(rows)
        else:  # rows that have converged stay, whatever the others do
            error = error.masked_fill(~open_.view(-1, 1, 1), 0.0)
    found[rows], left[rows] = y, residual
    away = ~(left < first) & ~(left <= tolerance)
    return Inverse(
        torch.where(away.unsqueeze(1), start, found), torch.where(away, first, left), evaluations
    )


def _other_start(start: Tensor, end: Tensor, restart: int) -> Tensor:
    """Return a start of each row that does not depend on the others."""
    if restart == 1:
        return end
    generator = torch.Generator().manual_seed(restart)
    offset = torch.randn(start.shape[1], generator=generator, dtype=torch.float64)
    return start + RESTART_DISTANCE * offset.to(start)


def _newton(
    step: ExplicitStep, y: Tensor, end: Tensor, residual: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Take a step of Newton's method, halved until it lowers the residual of each row.

    Returns:
        The states, their residuals, and the number of evaluations of the step.
    """
    reached, jacobian = step.with_jacobian(y)
    change = ((reached - end).unsqueeze(1) @ invert(jacobian)).squeeze(1)
    change = change.nan_to_num() / (change.abs().amax(1) / size).clamp(min=1).unsqueeze(1)
    best, least, share, tries = y, residual, torch.ones_like(residual), 1
    for _ in range(HALVINGS):
        tries += 1
        trial = y - share.unsqueeze(1) * change
        found = (step(trial) - end).abs().amax(1) / size
        lower = found < least
        best = torch.where(lower.unsqueeze(1), trial, best)
        least = torch.where(lower, found, least)
        if (least < residual).all():
            break
        share = torch.where(least < residual, share, 0.5 * share)
    return best, least, tries


def determinants(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Return sign and logarithm of the absolute determinants of matrices (rows, dim, dim)."""
    if jacobian.shape[-1] == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in jacobian.unbind(-2))
        found = a * d - b * c
        return found.sign(), found.abs().log()
    sign, log = torch.linalg.slogdet(jacobian)
    return sign, log


def invert(matrices: Tensor) -> Tensor:
    """Return the inverses of matrices (rows, dim, dim); not finite where they are singular."""
    if matrices.shape[-1] == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in matrices.unbind(-2))
        adjugate = torch.stack([d, -b, -c, a], -1).view_as(matrices)
        return adjugate / (a * d - b * c).view(-1, 1, 1)
    found: Tensor = torch.linalg.inv_ex(matrices)[0]
    return found


def _moved(
    start: Tensor, size: Coefficient, weights: Sequence[Coefficient], slopes: Sequence[Tensor]
) -> Tensor:
    """Return start + size Σ weights_j slopes_j; the start itself without a term."""
    for weight, slope in zip(weights, slopes, strict=False):
        if isinstance(weight, Tensor) or isinstance(size, Tensor):
            start = start + (size * weight) * slope
        elif weight:
            start = torch.add(start, slope, alpha=size * weight)
    return start
