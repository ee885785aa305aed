"""The Butcher tableau of an explicit Runge-Kutta method, which checks itself when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from cnf.ode.order_conditions import order_residual


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method, with an embedded error estimate where it is adaptive.

    A step of size h from (t, y) computes the stages and the solution

        k_i = f(t + c_i h, y + h Σ_j a_ij k_j),    y₁ = y + h Σ_i b_i k_i,

    and estimates its error as h Σ_i e_i k_i, with e the difference between b and the weights of a
    method of lower order. A method without e can only take steps of given sizes.

    Args:
        name: The method's name in the registry.
        order: Order of the solution, that of b.
        error_order: Order of the embedded solution, that of b − e; None without an estimate.
        c: Stage times, one for each stage.
        a: Rows of the strictly lower triangular stage matrix; row i has i entries.
        b: Weights of the solution.
        e: Weights of the error estimate; None without one.
        mid: Weights m with y(t + h/2) ≈ y + h Σ_i m_i k_i to order 4, for dense output of that
            order; see `dense` for methods without them.

    Raises:
        ValueError: The lengths do not fit, one of e and error_order is given without the other, a
            row of a does not sum to its c, or b, b − e or mid misses an order condition (Hairer,
            Nørsett & Wanner 1993, section II.2).

    Example:
        >>> from cnf.ode import TABLEAUS
        >>> TABLEAUS["dopri5"].order, TABLEAUS["dopri5"].first_same_as_last
        (5, True)
        >>> TABLEAUS["rk4"].adaptive, TABLEAUS["rk4"].dense
        (False, 'bootstrap')
    """

    name: str
    order: int
    error_order: int | None
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    e: tuple[float, ...] | None = None
    mid: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_nodes()
        self._check_order("b", self.b, self.order, 1.0)
        if self.e is not None and self.error_order is not None:
            embedded = tuple(b - e for b, e in zip(self.b, self.e, strict=True))
            self._check_order("b - e", embedded, self.error_order, 1.0)
        if self.mid is not None:
            self._check_order("mid", self.mid, 4, 0.5)

    @cached_property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.c)

    @cached_property
    def adaptive(self) -> bool:
        """Whether the method estimates its error, so that its steps can be controlled."""
        return self.e is not None

    @cached_property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the next step's first, and so costs nothing."""
        return self.c[-1] == 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @cached_property
    def solution_stages(self) -> int:
        """The number of leading stages that the solution depends on."""
        return max(i for i, weight in enumerate(self.b, start=1) if weight != 0)

    @cached_property
    def error_stages(self) -> int:
        """The number of leading stages that the error estimate depends on."""
        return max((i for i, weight in enumerate(self.e or (), start=1) if weight != 0), default=0)

    @cached_property
    def unweighted(self) -> tuple[bool, ...]:
        """Whether only later stages use a slope: that of each stage, and last of the step's end.

        Neither the solution nor its error nor a state inside the step has a weight for it.
        """
        nothing = (0.0,) * self.stages
        rows = zip(self.b, self.e or nothing, self.mid or nothing, strict=True)
        _, *unweighted = (not any(weights) for weights in rows)
        if self.first_same_as_last:
            unweighted[-1] = False
        return False, *unweighted, False

    @cached_property
    def dense(self) -> Literal["cubic", "quartic", "bootstrap", "septic"]:
        """The kind of dense output, of the order of the error estimate or the method.

        `"cubic"` and `"quartic"`: `interpolate` without the middle state, or with that of `mid`,
        without an evaluation. `"bootstrap"`: with that of `bootstrap_middle`, by one evaluation.
        `"septic"`: with the slopes of `bootstrap_slopes`, by 7, in steps with outputs inside.
        """
        if self.mid is not None:
            return "quartic" if self.order <= 5 else "septic"
        return "cubic" if self.order <= 3 else "bootstrap"

    @cached_property
    def middle_has_adjoint(self) -> bool:
        """Whether what dense output needs inside a step has an adjoint made of its stages.

        It depends on no stage after those of the solution, but for the slope at the step's end.
        """
        between = self.solution_stages, self.stages - self.first_same_as_last
        return self.dense != "septic" and not any((self.mid or ())[slice(*between)])

    def _check_lengths(self) -> None:
        stages, rows = len(self.c), [len(row) for row in self.a]
        weights = {
            part: len(values)
            for part, values in (("b", self.b), ("e", self.e), ("mid", self.mid))
            if values is not None
        }
        if rows != list(range(stages)) or {*weights.values()} != {stages}:
            counts = ", ".join(f"{count} weights {part}" for part, count in weights.items())
            raise ValueError(
                f"Expected {stages} stages throughout the tableau {self.name!r}; got rows of a of "
                f"lengths {rows}, {counts}"
            )
        if (self.e is None) != (self.error_order is None):
            raise ValueError(
                f"Expected both or neither of e and error_order in the tableau {self.name!r}; "
                f"got e = {self.e}, error_order = {self.error_order}"
            )

    def _check_nodes(self) -> None:
        for node, row in zip(self.c, self.a, strict=True):
            if not abs(sum(row) - node) <= 1e-12:  # NaN is wrong too
                raise ValueError(
                    f"Expected the rows of a to sum to c in the tableau {self.name!r}; "
                    f"got {sum(row)} for c = {node}"
                )

    def _check_order(self, part: str, weights: tuple[float, ...], order: int, theta: float) -> None:
        """Check Σ_i w_i Φ_i(τ) = θ^|τ| / γ(τ) for all trees τ of up to `order` nodes."""
        residual = order_residual(self.a, weights, order, theta)
        if not residual <= 1e-12:
            raise ValueError(
                f"Expected {part} to be of order {order} at {theta:g} of a step in the tableau "
                f"{self.name!r}; an order condition is missed by {residual:.1e}"
            )
