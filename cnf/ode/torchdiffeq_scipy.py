"""SciPy's solvers behind torchdiffeq's interface, for stiff dynamics, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.autograd.function import once_differentiable

from cnf.ode.controllers import Array, rms_norm
from cnf.ode.solution import Solution, SolveError, Stats, Status
from cnf.ode.solver import as_tolerance
from cnf.ode.state_layout import State
from cnf.ode.tableaus import known_name
from cnf.ode.torchdiffeq_call import Func, OdeintInputs
from cnf.ode.torchdiffeq_options import Options

SCIPY = "scipy_solver"
SOLVERS = ("LSODA", "BDF", "Radau", "RK45", "RK23", "DOP853")
NO_RETRY = ("LSODA", "BDF")  # that do not try a shorter step where a slope is not finite

# Gauss-Legendre nodes of the gradients of parameters in each step, exact for degree 7.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)

Path = Callable[[float], Array]  # the state at a time


class ScipyCall(OdeintInputs):
    """The checked arguments of a call with `method="scipy_solver"`."""

    def __init__(
        self, func: Func, y0: State, t: Tensor, rtol: Any, atol: Any, options: Options | None
    ) -> None:
        super().__init__(func, y0, t, rtol, atol, options)
        self.steps = scipy_options(self.options)
        tolerances = (self.rtol, self.atol)
        as_tolerance(*tolerances, rms_norm, self.y0)
        smallest, self.absolute = (
            np.broadcast_to(np.asarray(each, dtype=np.float64), tuple(self.y0.shape)).ravel()
            for each in tolerances
        )
        # Implicit solvers derive one tolerance of their iterations from it.
        self.relative = float(smallest.min()) if smallest.size else 1.0

    def solve(self) -> Any:
        """Return the states at the times, without gradients."""
        with torch.no_grad():
            return self.layout.unpack(self._outputs(self.path()), len(self.t))

    def solve_adjoint(
        self,
        params: tuple[Tensor, ...],
        rtol: float | None,
        atol: float | None,
        options: Options | None,
    ) -> Any:
        """Return the states at the times, with gradients by the adjoint equation."""
        adjoint = _Adjoint(
            self,
            params,
            self.relative if rtol is None else rtol,
            float(self.absolute.min(initial=1.0)) if atol is None else atol,
            self.steps if options is None else scipy_options(options),
        )
        ys = _ScipySolve.apply(adjoint, self.y0, self.t, *params)  # type: ignore[no-untyped-call]
        return self.layout.unpack(ys, len(self.t))

    def path(self) -> Path:
        """Return the states over time."""
        begin, end = self.t[0].item(), self.t[-1].item()
        y0 = self.y0.detach().double().cpu().numpy().ravel()
        if begin == end:
            return lambda time: y0
        steps = {"rtol": self.relative, "atol": self.absolute, **self.steps}
        return _solve(self._slope, (begin, end), y0, self.t, **steps).sol  # type: ignore[no-any-return]

    def tensors(self, time: float, y: Array) -> tuple[Tensor, Tensor]:
        """Return a time and a state in the solver's layout."""
        return self.y0.new_tensor(time), torch.from_numpy(y).to(self.y0).view_as(self.y0)

    def _slope(self, time: float, y: Array) -> Array:
        with torch.no_grad():
            return _flat(self.slope(*self.tensors(time, y)))

    def _outputs(self, path: Path) -> Tensor:
        times = self.t.detach().tolist()
        later = [torch.from_numpy(path(time)).to(self.y0).view_as(self.y0) for time in times[1:]]
        return torch.stack([self.y0, *later])


class _Adjoint:
    """The adjoint equation along the path of the forward solve.

        da/dt = −aᵀ ∂f/∂y,   g = ∫ aᵀ ∂f/∂θ dt

    The path is that of the forward solve's dense output: solved backwards, stiff dynamics would
    leave it at once. The gradient of the parameters is an integral over the adjoint's path, whose
    number does not slow the implicit solvers.
    """

    def __init__(
        self,
        call: ScipyCall,
        params: tuple[Tensor, ...],
        rtol: float,
        atol: float,
        steps: dict[str, Any],
    ) -> None:
        self.call, self.params = call, params
        self.steps = {"rtol": rtol, "atol": atol, **steps}
        self.path: Path = call.path()
        self.outputs = call._outputs(self.path).detach()

    def sweep(self, grad_ys: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the gradients of y0, of the times, and of the parameters."""
        times = self.call.t.tolist()
        grads = [torch.zeros_like(param) for param in self.params]
        grad_ts, adjoint = torch.zeros_like(self.call.t), _flat(grad_ys[-1])
        slopes = [self.call._slope(time, self.path(time)) for time in times]
        for i in range(len(times) - 1, 0, -1):
            grad_ts[i] = float(_flat(grad_ys[i]) @ slopes[i])
            span, ts = (times[i], times[i - 1]), self.call.t
            backward = {"preface": "In the backward pass: ", **self.steps}
            solved = _solve(self._adjoint_slope, span, adjoint, ts, **backward)
            self._integrate(solved.t, solved.sol, grads)
            adjoint = solved.y[:, -1]
            if i == 1:
                grad_ts[0] = -float(adjoint @ slopes[0])
            adjoint = adjoint + _flat(grad_ys[i - 1])
        return self.call.tensors(0.0, adjoint)[1], grad_ts, grads

    def _adjoint_slope(self, time: float, adjoint: Array) -> Array:
        pulled, *_ = self._pull(time, adjoint, ())
        return -_flat(pulled)

    def _integrate(self, steps: Array, path: Path, grads: list[Tensor]) -> None:
        """Add the integral of the parameters' gradients over the adjoint's steps."""
        if not self.params:
            return
        for begin, end in pairwise(steps):
            for node, weight in zip(NODES, WEIGHTS, strict=True):
                time = (begin + end) / 2 + node * (end - begin) / 2
                _, *parts = self._pull(time, path(time), self.params)
                for grad, part in zip(grads, parts, strict=True):
                    grad.add_(part, alpha=weight * (begin - end) / 2)

    def _pull(self, time: float, adjoint: Array, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the vector-Jacobian products of the state and the parameters."""
        t, y = self.call.tensors(time, self.path(time))
        with torch.enable_grad():
            y.requires_grad_()
            slope = self.call.slope(t, y)
            if not slope.requires_grad:
                return tuple(torch.zeros_like(each) for each in (y, *params))
            return torch.autograd.grad(
                slope,
                (y, *params),
                self.call.tensors(time, adjoint)[1],
                allow_unused=True,
                materialize_grads=True,
            )


class _ScipySolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, adjoint: _Adjoint, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        ctx.adjoint = adjoint
        ctx.save_for_backward(y0, t, *params)
        return adjoint.outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # autograd sees to it that none has been changed
        grad_y0, grad_t, grads = ctx.adjoint.sweep(grad_ys)
        return None, grad_y0, grad_t, *grads


def scipy_options(options: Options) -> dict[str, Any]:
    """Return the arguments of `solve_ivp` for options; warn of others.

    Raises:
        ValueError: SciPy has no such solver.
    """
    known = {"solver", "min_step", "max_step", "first_step"}
    unused = {name: value for name, value in options.items() if name not in known}
    if unused:
        warn(f"{SCIPY}: Unexpected arguments {unused}", stacklevel=4)
    solver = known_name("the option solver", options.get("solver", "LSODA"), SOLVERS)
    taken = {name: float(options[name]) for name in ("max_step", "first_step") if name in options}
    if solver == "LSODA" and "min_step" in options:
        taken["min_step"] = float(options["min_step"])
    return {"method": solver, **taken}


def _solve(
    slope: Callable[[float, Array], Array],
    span: tuple[float, float],
    y0: Array,
    ts: Tensor,
    *,
    preface: str = "",
    **steps: Any,
) -> Any:
    """Return SciPy's solution with dense output.

    Raises:
        SolveError: It failed, or a slope is not finite where the solver tries no shorter step.
    """

    def failure(status: Status, time: float, y: Array, evaluations: int, count: int) -> SolveError:
        end = torch.from_numpy(y.copy())
        rows: NDArray[np.object_] = np.array([status], dtype=object)
        stats, last = Stats(evaluations, count, 0), np.array([time])
        return SolveError(Solution(ts, end[None], rows, stats, (0,), last, end), preface)

    def checked(time: float, y: Array) -> Array:
        found = slope(time, y)
        final = time == span[0] or steps["method"] in NO_RETRY
        if final and not np.isfinite(found).all():
            raise failure(Status.NOT_FINITE, time, y, 0, 0)
        return found

    if "first_step" in steps:  # SciPy refuses one that is longer than the way
        steps["first_step"] = min(steps["first_step"], abs(span[1] - span[0]))
    solved = solve_ivp(checked, span, y0, dense_output=True, **steps)
    if solved.success:
        return solved
    end = solved.y[:, -1]
    status = Status.STEP_TOO_SMALL if np.isfinite(end).all() else Status.NOT_FINITE
    raise failure(status, solved.t[-1], end, solved.nfev, len(solved.t) - 1)


def _flat(tensor: Tensor) -> Array:
    """Return a state in the solver's layout as a vector of float64."""
    numbers: Array = tensor.detach().double().cpu().numpy().ravel()
    return numbers
