"""Butcher tableaus of explicit Runge-Kutta methods, and the registry of them.

A new method is a new entry of `TABLEAUS`: pure data that checks itself when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from math import prod

import torch
from torch import Tensor

# A rooted tree is the sorted tuple of its branches; the single node is ().
Tree = tuple["Tree", ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method with an embedded error estimate.

    A step of size h from (t, y) computes the stages and the solution

        k_i = f(t + c_i h, y + h Σ_j a_ij k_j),    y₁ = y + h Σ_i b_i k_i,

    and estimates its error as h Σ_i e_i k_i, with e the difference between b and the weights of a
    method of lower order.

    Args:
        name: The method's name in the registry.
        order: Order of the solution, that of b.
        error_order: Order of the embedded solution, that of b − e.
        c: Stage times, one for each stage.
        a: Rows of the strictly lower triangular stage matrix; row i has i entries.
        b: Weights of the solution.
        e: Weights of the error estimate.
        mid: Weights m with y(t + h/2) ≈ y + h Σ_i m_i k_i to order 4, for dense output of that
            order; without them it is the cubic Hermite polynomial, of order 3.

    Raises:
        ValueError: The lengths do not fit, a row of a does not sum to its c, or b, b − e or mid
            misses an order condition (Hairer, Nørsett & Wanner 1993, section II.2).

    Example:
        >>> TABLEAUS["dopri5"].order, TABLEAUS["dopri5"].first_same_as_last
        (5, True)
    """

    name: str
    order: int
    error_order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    e: tuple[float, ...]
    mid: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.a]
        stages = len(self.c)
        if lengths != list(range(stages)) or {len(self.b), len(self.e)} != {stages}:
            raise ValueError(
                f"Expected {stages} stages throughout the tableau {self.name!r}; got rows of a of "
                f"lengths {lengths}, {len(self.b)} weights b and {len(self.e)} weights e"
            )
        for node, row in zip(self.c, self.a, strict=True):
            if abs(sum(row) - node) > 1e-12:
                raise ValueError(
                    f"Expected the rows of a to sum to c in the tableau {self.name!r}; "
                    f"got {sum(row)} for c = {node}"
                )
        embedded = tuple(b - e for b, e in zip(self.b, self.e, strict=True))
        self._check_order(self.b, self.order, 1.0)
        self._check_order(embedded, self.error_order, 1.0)
        if self.mid is not None:
            self._check_order(self.mid, 4, 0.5)

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.c)

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the next step's first (so that it costs nothing)."""
        return self.c[-1] == 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @property
    def solution_stages(self) -> int:
        """Number of leading stages that the solution depends on."""
        return max(i for i, weight in enumerate(self.b, start=1) if weight != 0)

    def _check_order(self, weights: tuple[float, ...], order: int, theta: float) -> None:
        """Hold Σ_i w_i Φ_i(τ) = θ^|τ| / γ(τ) for all trees τ of up to `order` nodes."""
        trees = [tree for size in range(1, order + 1) for tree in _trees(size)]
        wanted = ((tree, theta ** _nodes(tree) / _density(tree)) for tree in trees)
        residual = max(
            abs(_dot(weights, self._elementary_weights(tree)) - value) for tree, value in wanted
        )
        if residual > 1e-12:
            raise ValueError(
                f"Expected weights of order {order} at {theta:g} of a step in the tableau "
                f"{self.name!r}; an order condition is missed by {residual:.1e}"
            )

    def _elementary_weights(self, tree: Tree) -> tuple[float, ...]:
        branches = [self._elementary_weights(branch) for branch in tree]
        return tuple(prod(_dot(row, branch) for branch in branches) for row in self.a)


def _dot(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=False))


@lru_cache
def _trees(size: int) -> frozenset[Tree]:
    """All rooted trees of `size` nodes."""
    return frozenset(tuple(sorted(forest)) for forest in _forests(size - 1))


def _forests(size: int, largest: int | None = None) -> list[tuple[Tree, ...]]:
    """All multisets of rooted trees of `size` nodes in total, none of more than `largest`."""
    if size == 0:
        return [()]
    found = []
    for first in range(min(size, largest or size), 0, -1):
        for count in range(1, size // first + 1):
            rest = size - first * count
            smaller = _forests(rest, first - 1) if first > 1 or rest == 0 else []
            for group in combinations_with_replacement(sorted(_trees(first)), count):
                found += [group + forest for forest in smaller]
    return found


def _nodes(tree: Tree) -> int:
    return 1 + sum(_nodes(branch) for branch in tree)


def _density(tree: Tree) -> int:
    return _nodes(tree) * prod(_density(branch) for branch in tree)


@dataclass(frozen=True)
class TableauTensors:
    """The coefficients of a tableau as tensors of one dtype on one device.

    Weights of stages that do not count are zero: each has as many entries as there are stages.
    """

    c: Tensor
    a: tuple[Tensor, ...]
    b: Tensor
    e: Tensor
    mid: Tensor | None


@lru_cache
def tableau_tensors(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> TableauTensors:
    """The coefficients of `tableau` as tensors, made once for each dtype and device."""

    def tensor(values: tuple[float, ...]) -> Tensor:
        padded = [*values, *[0.0] * (tableau.stages - len(values))]
        return torch.tensor(padded, dtype=dtype, device=device)

    return TableauTensors(
        c=tensor(tableau.c),
        a=tuple(tensor(row) for row in tableau.a),
        b=tensor(tableau.b),
        e=tensor(tableau.e),
        mid=None if tableau.mid is None else tensor(tableau.mid),
    )


# Dormand & Prince (1980), table 2; e is b minus the embedded fourth-order weights; mid is the
# continuous extension of Shampine (1986), Some practical Runge-Kutta formulas, at half a step.
_DOPRI5 = Tableau(
    name="dopri5",
    order=5,
    error_order=4,
    c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    e=(
        35 / 384 - 5179 / 57600,
        0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
    mid=(
        6025192743 / 60171106304,
        0,
        51252292925 / 130801643196,
        -2691868925 / 90256659456,
        187940372067 / 3189068634112,
        -1776094331 / 39487288512,
        11237099 / 470086768,
    ),
)

TABLEAUS: dict[str, Tableau] = {tableau.name: tableau for tableau in (_DOPRI5,)}
