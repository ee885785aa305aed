"""Gradients of a solve: how its output times' states are differentiated.

Each mode takes the problem and gives the run, whose outputs have a gradient to the initial state,
the output times and the tensors in `args`. A new mode is a new entry of `GRADIENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from cnf.ode.arguments import take_rows
from cnf.ode.controllers import Tolerance, rms_norm
from cnf.ode.integrate import Dynamics, Run, integrate, stand_in
from cnf.ode.record import Kept, Step
from cnf.ode.settings import Settings
from cnf.ode.solution import SolveError, Tally
from cnf.ode.step import BoundDynamics, Stages, advance, within
from cnf.ode.tableaus import find_tableau

Gradient = Callable[[Dynamics, Tensor, Tensor, Any, Settings], Run]


def backprop(f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
    """Autograd straight through the loop: exact for the discrete solve, differentiable again.

    The memory is that of every evaluation's graph, those of rejected steps let go at once.
    """
    return integrate(f, y0, ts, args, settings)


@dataclass(frozen=True)
class Checkpoint:
    """Keep the accepted steps' first states; on the way back replay one step at a time.

    Exact for the discrete solve, with the memory of one state for each step and one step's graph.
    Gradients reach the tensors in `args` and no others: a tensor caught in a closure gets none.

    Attributes:
        keep: Bytes for the activations of accepted steps, from the first on: a step whose
            activations are kept is not replayed. 0 keeps none.

    With joint or fixed steps a row that failed gets no gradient, and leaves the others theirs.

    Raises:
        ValueError: `keep` is negative.

    Source: Griewank & Walther (2000), Algorithm 799: revolve; here with a checkpoint at every step.

    Example:
        >>> from cnf.ode import solve
        >>> rate, y0 = torch.tensor(-1.0, requires_grad=True), torch.ones(2)
        >>> kept = Checkpoint(keep=2**20)
        >>> solution = solve(lambda t, y, a: a * y, y0, [0.0, 1.0], rate, gradient=kept)
        >>> solution.ys.sum().backward()
        >>> solution.stats.backward
        0
    """

    keep: int = 0

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ValueError(f"Expected keep of at least 0 bytes; got {self.keep}")

    def __call__(self, f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
        """Solve, with this way back."""
        return _apply(_Checkpoint, _Problem(f, args, settings, self), y0, ts)


@dataclass(frozen=True)
class Backsolve:
    """The continuous adjoint: on the way back solve for state, adjoint and gradient together.

        da/dt = −aᵀ ∂f/∂y,   dg/dt = −aᵀ ∂f/∂args

    from the last output time to the first, in joint steps (the gradient of the arguments is a sum
    over rows). The memory is constant in the number of steps; the gradient is that of the exact
    solution, up to the tolerance, not that of the discrete one. It reaches the tensors in `args`
    and no others.

    Attributes:
        rtol: Relative tolerance of the way back; that of the forward solve when None.
        atol: Absolute tolerance, alike.
        method: Its method, alike.
        norm: `"state"`: the error norm leaves the gradient of the arguments out, which steers no
            trajectory (the seminorm of Kidger et al. 2021); `"full"`: it does not.

    Where the forward solve has fixed steps, the way back goes through the same times, unless it has
    a method of its own that estimates its error. A row that failed gets no gradient.

    Raises:
        ValueError: The method or the norm is unknown; when called, the method has no error estimate
            and the forward solve chose its steps.
        SolveError: On the way back, which fails as any solve may.

    Source: Chen et al. (2018), Neural ordinary differential equations, appendix B; Kidger, Chen &
    Lyons (2021), "Hey, that's not an ODE": faster ODE adjoints via seminorms.

    Example:
        >>> from cnf.ode import solve
        >>> rate, back = torch.tensor(-1.0, requires_grad=True), Backsolve(rtol=1e-6, atol=1e-6)
        >>> ys = solve(lambda t, y, a: a * y, torch.ones(1), [0.0, 1.0], rate, gradient=back).ys
        >>> ys[-1].sum().backward()
        >>> print(f"{rate.grad:.4f}")  # d exp(rate) / d rate
        0.3679
    """

    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    method: str | None = None
    norm: Literal["state", "full"] = "state"

    def __post_init__(self) -> None:
        if self.method is not None:
            find_tableau(self.method)
        if self.norm not in ("state", "full"):
            raise ValueError(f"Expected norm to be state or full; got {self.norm!r}")

    def __call__(self, f: Dynamics, y0: Tensor, ts: Tensor, args: Any, settings: Settings) -> Run:
        """Solve, with this way back."""
        if self.method and not find_tableau(self.method).adaptive and settings.grid is None:
            raise ValueError(
                f"Expected a method with an error estimate for the way back of an adaptive solve; "
                f"got {self.method!r}"
            )
        return _apply(_Backsolve, _Problem(f, args, settings, self), y0, ts)


GRADIENTS: dict[str, Gradient] = {
    "backprop": backprop,
    "checkpoint": Checkpoint(),
    "backsolve": Backsolve(),
}


@dataclass
class _Problem:
    """What goes into the autograd functions that is not a tensor, and the run that comes out."""

    f: Dynamics
    args: Any
    settings: Settings
    mode: Any
    run: Run | None = None


def _apply(
    function: type[torch.autograd.Function], problem: _Problem, y0: Tensor, ts: Tensor
) -> Run:
    """Run an autograd function over the arguments' leaves; a plain solve where none wants it."""
    leaves, _ = tree_flatten(problem.args)
    tensors = [leaf for leaf in (y0, ts, *leaves) if isinstance(leaf, Tensor)]
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        with torch.no_grad():
            return integrate(problem.f, y0, ts, problem.args, problem.settings)
    ys = function.apply(problem, y0, ts, *leaves)
    assert problem.run is not None
    return replace(problem.run, ys=ys)


class _Leaves:
    """The output times and the arguments once more, as leaves that gather gradients.

    Attributes:
        ts: The output times.
        args: The arguments.
        wanted: The arguments' tensors that want a gradient.
    """

    def __init__(self, problem: _Problem, ts: Tensor, needs: tuple[bool, ...]) -> None:
        leaves, spec = tree_flatten(problem.args)
        self.ts = _leaf(ts, needs[0])
        self.all = [
            _leaf(leaf, needed) if isinstance(leaf, Tensor) else leaf
            for leaf, needed in zip(leaves, needs[1:], strict=True)
        ]
        self.wanted = [leaf for leaf in self.all if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.args = tree_unflatten(self.all, spec)

    def grads(self) -> tuple[Tensor | None, ...]:
        """What they gathered: of the times, and of every argument."""
        return tuple(
            leaf.grad if isinstance(leaf, Tensor) else None for leaf in (self.ts, *self.all)
        )


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, y0: Tensor, ts: Tensor, *tensors: Any) -> Tensor:
        tape = _Tape(problem, ts, ctx.needs_input_grad[2:])
        problem.run = tape.record(y0)
        ctx.tape = tape
        ctx.missing = problem.run.missing
        # That none of them is changed before the way back is what autograd sees to.
        ctx.save_for_backward(y0, ts, *(leaf for leaf in tensors if isinstance(leaf, Tensor)))
        return problem.run.ys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        if ctx.missing is not None:
            grad_ys = grad_ys.masked_fill(ctx.missing, 0.0)
        return None, ctx.tape.sweep(grad_ys), *ctx.tape.leaves.grads()


class _Tape:
    """A solve's accepted steps, and the way back through them."""

    def __init__(self, problem: _Problem, ts: Tensor, needs: tuple[bool, ...]) -> None:
        self.f, self.settings, self.keep = problem.f, problem.settings, problem.mode.keep
        self.leaves = _Leaves(problem, ts, needs)
        with torch.enable_grad():
            self.own_knots = self.settings.knots(self.leaves.ts)
        self.knots = _leaf(self.own_knots, self.leaves.ts.requires_grad)
        self.inputs = [leaf for leaf in (self.leaves.ts, self.knots) if leaf.requires_grad]
        self.inputs += self.leaves.wanted
        self.steps: list[Step] = []
        self.tally = Tally()
        self.failed: Tensor | None = None
        self.stand_in: Tensor | None = None

    def record(self, y0: Tensor) -> Run:
        """Solve."""
        ts, args = self.leaves.ts, self.leaves.args
        run = integrate(
            self.f,
            y0.detach(),
            ts,
            args,
            self.settings,
            record=True,
            keep=self.keep,
            knots=self.knots,
        )
        self.steps, self.tally = run.steps, run.stats.tallies[0]
        if run.rows and not (self.settings.per_sample and self.settings.grid is None):
            # The rows that failed are in everyone's steps.
            self.failed = run.fates.failed
            self.stand_in = stand_in(self.failed)
            self.steps = [replace(step, kept=None) for step in run.steps]
        return run

    def sweep(self, grad_ys: Tensor) -> Tensor:
        """Carry the adjoint from the last output time to the first; the leaves gather theirs."""
        for leaf in self.inputs:
            leaf.grad = None
        adjoint, first = torch.zeros_like(grad_ys[0]), grad_ys[0]
        if self.failed is not None:
            if self.stand_in is None:
                return first
            grad_ys = grad_ys.masked_fill(self.failed.view(-1, *(1,) * (adjoint.ndim - 1)), 0.0)
        for step in reversed(self.steps):
            kept = step.kept or self.replay(step)
            cotangents = [_take(adjoint, step.rows)]
            cotangents += [
                _take(_take(grad_ys[output.index], step.rows), output.rows)
                for output in step.outputs
            ]
            y = kept.y
            y.grad = None
            torch.autograd.backward(
                kept.ends, cotangents, inputs=[y, *self.inputs], retain_graph=kept is step.kept
            )
            assert y.grad is not None
            before = _take(y.grad, kept.rows)
            adjoint = before if step.rows is None else adjoint.index_copy(0, step.rows, before)
        if self.knots.grad is not None:
            torch.autograd.backward(self.own_knots, self.knots.grad, retain_graph=True)
        return adjoint + first

    @torch.enable_grad()
    def replay(self, step: Step) -> Kept:
        """Repeat an accepted step under autograd."""
        y = _leaf(_take(step.y, self.stand_in), True)
        args = take_rows(self.leaves.args, self.stand_in if step.rows is None else step.rows)
        calls = 0

        def bound(t: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return self.f(t, y, args)

        begin, end = step.interval(self.knots)
        t, h = step.times(begin, end - begin)
        f = bound if self.settings.jumps is None else within(bound, begin, end)
        stages = Stages(self.settings.tableau, y, buffered=False)
        stages.restart(y, f(t, y))
        taken = advance(f, stages, t, h)
        ends = [taken.y1, *(output.values(taken, self.leaves.ts) for output in step.outputs)]
        self.tally.add(calls, step.rows)
        return Kept(y, ends)


class _Backsolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, y0: Tensor, ts: Tensor, *tensors: Any) -> Tensor:
        problem.run = integrate(problem.f, y0, ts, problem.args, problem.settings)
        ctx.back = _Back(problem, _Leaves(problem, ts, ctx.needs_input_grad[2:]), y0)
        saved = (leaf for leaf in tensors if isinstance(leaf, Tensor))
        ctx.save_for_backward(problem.run.ys, ts, *saved)
        return problem.run.ys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        first, ys = grad_ys[0], ctx.saved_tensors[0]
        failed = ctx.back.failed
        if failed is not None:
            chosen = stand_in(failed)
            if chosen is None:
                return None, first, *ctx.back.leaves.grads()
            ys = ys.index_select(1, chosen)
            grad_ys = grad_ys.masked_fill(failed.view(-1, *(1,) * (ys.ndim - 2)), 0.0)
        return None, ctx.back.sweep(ys, grad_ys) + first, *ctx.back.leaves.grads()


class _Back:
    """The adjoint system of a problem, packed in one row: state, adjoint, gradient."""

    def __init__(self, problem: _Problem, leaves: _Leaves, y: Tensor) -> None:
        assert problem.run is not None
        self.f, self.leaves, self.shape = problem.f, leaves, y.shape
        self.failed = problem.run.fates.failed if problem.run.rows else None
        chosen = None if self.failed is None else stand_in(self.failed)
        self.args = take_rows(leaves.args, chosen)
        self.sizes = [y.numel(), y.numel(), sum(leaf.numel() for leaf in leaves.wanted)]
        self.forward, self.tally = problem.settings, problem.run.stats.tallies[0]
        mode: Backsolve = problem.mode
        kept = sum(self.sizes[:2])
        tolerance = self.forward.tolerance
        self.settings = replace(
            self.forward,
            tableau=find_tableau(mode.method) if mode.method else self.forward.tableau,
            tolerance=Tolerance(
                _plain(tolerance.rtol if mode.rtol is None else mode.rtol),
                _plain(tolerance.atol if mode.atol is None else mode.atol),
                rms_norm if mode.norm == "full" else lambda ratio: rms_norm(ratio[:, :kept]),
            ),
            per_sample=False,
            grid=None,
            stops=None,
            jumps=None,
            observer=None,
        )
        self.fixed = self.forward.grid is not None and not (
            mode.method and self.settings.tableau.adaptive
        )

    def sweep(self, ys: Tensor, grad_ys: Tensor) -> Tensor:
        """Carry the adjoint from the last output time to the first; the leaves gather theirs."""
        ts = self.leaves.ts.detach()
        knots = self.forward.knots(ts) if self.fixed else None
        grad_ts = torch.zeros_like(ts)
        adjoint, gradient = grad_ys[-1], ys.new_zeros(self.sizes[2])
        for i in range(len(ts) - 1, 0, -1):
            before = self.inside(ts[i - 1], ts[i])
            grad_ts[i] = (grad_ys[i] * before(ts[i], ys[i])).sum()
            settings = self.settings_between(ts[i], ts[i - 1], knots)
            packed = torch.cat([ys[i].flatten(), adjoint.flatten(), gradient])[None]
            run = integrate(self.dynamics, packed, ts[[i, i - 1]], None, settings)
            self.tally.add(int(run.stats.evaluations))
            if run.rows and settings.grid is None:
                raise SolveError(run.solution(ts[[i, i - 1]]), "On the way back: ")
            _, adjoint, gradient = run.ys[-1, 0].split(self.sizes)
            adjoint = adjoint.view(self.shape)
            if i == 1:
                grad_ts[0] = -(adjoint * before(ts[0], ys[0])).sum()
            else:
                adjoint = adjoint + grad_ys[i - 1]
        self.leaves.ts.grad = grad_ts
        parts = gradient.split([leaf.numel() for leaf in self.leaves.wanted])
        for leaf, part in zip(self.leaves.wanted, parts, strict=True):
            leaf.grad = part.view_as(leaf).to(leaf.dtype)
        return adjoint

    def settings_between(self, begin: Tensor, end: Tensor, knots: Tensor | None) -> Settings:
        """The settings of a way from one time back to another."""
        jumps = _inner(self.forward.jumps, begin, end)
        inner = _inner(knots, begin, end)
        grid = None if inner is None else lambda ts: torch.cat([ts[:1], inner, ts[-1:]])
        return replace(self.settings, grid=grid, stops=jumps, jumps=jumps)

    def inside(self, begin: Tensor, end: Tensor) -> BoundDynamics:
        """The forward dynamics between two output times."""
        return self.slope if self.forward.jumps is None else within(self.slope, begin, end)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """The forward dynamics, with a time of the shape that these have."""
        if self.forward.per_sample:
            t = t.expand(len(y), *(1,) * (y.ndim - 1))
        return self.f(t, y, self.args)

    def dynamics(self, t: Tensor, packed: Tensor, _: Any) -> Tensor:
        """The slope of state, adjoint and gradient."""
        y, adjoint, _gradient = packed[0].split(self.sizes)
        wanted = self.leaves.wanted
        with torch.enable_grad():
            leaf = _leaf(y.view(self.shape), True)
            slope = self.slope(t, leaf)
            pulled: tuple[Tensor | None, ...] = (None,) * (1 + len(wanted))
            if slope.requires_grad:
                pulled = torch.autograd.grad(
                    slope, [leaf, *wanted], adjoint.view(self.shape), allow_unused=True
                )
        parts = [
            torch.zeros_like(leaf) if part is None else part
            for part, leaf in zip(pulled, [leaf, *wanted], strict=True)
        ]
        back = (-part.flatten().to(packed.dtype) for part in parts)
        return torch.cat([slope.detach().flatten(), *back])[None]


def _inner(times: Tensor | None, begin: Tensor, end: Tensor) -> Tensor | None:
    """Those of the times that lie between two others, backwards."""
    if times is None:
        return None
    low, high = torch.minimum(begin, end), torch.maximum(begin, end)
    return times[(times > low) & (times < high)].flip(0)


def _plain(tolerance: float | Tensor) -> float:
    """A tolerance for all of the packed row: the least of the components' own above zero."""
    if not isinstance(tolerance, Tensor):
        return tolerance
    above = tolerance[tolerance > 0]
    return float(above.min()) if above.numel() else 0.0


def _take(whole: Tensor, rows: Tensor | None) -> Tensor:
    return whole if rows is None else whole.index_select(0, rows)


def _leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_(needs_grad)
