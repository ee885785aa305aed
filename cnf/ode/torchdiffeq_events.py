"""Events: solves that end where a function of time and state becomes zero."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, isnan
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from cnf.ode.options import Gradient
from cnf.ode.state_layout import InputError, StateLayout
from cnf.ode.torchdiffeq_call import OdeintCall

EventFunction = Callable[[Any, Any], Any]

# The most steps in search of an event, where `max_num_steps` does not say.
SEARCH_LIMIT = 100_000
NO_LIMIT = 2**31 - 1


class EventNotFoundError(RuntimeError):
    """A solve that found no event."""


class EventDistance:
    """The least of an event function's values, with signs that make all positive at the start."""

    def __init__(self, event_fn: EventFunction, layout: StateLayout, t: Tensor, y: Tensor) -> None:
        self.event_fn, self.layout = event_fn, layout
        self.signs: Tensor | float = 1.0
        signs = self.values(t, y).detach().sign()
        self.signs = torch.where(signs == 0, 1, signs)

    def values(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the event function's values for a state in the solver's layout."""
        return torch.as_tensor(self.event_fn(t, self.layout.unpack(y)), device=y.device)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the distance: above zero before the event, and zero at it."""
        return (self.values(t, y) * self.signs).min()


def solve_until_event(
    call: OdeintCall,
    event_fn: EventFunction,
    gradient: str | Gradient,
    params: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Any]:
    """Return the time of the first event, and the states at the start and at the event.

    A step after which the event function has another sign is found first, then the time inside it.
    The steps up to there are repeated with gradients, for a time that is held fixed, and then both
    the time and the state move along the path with whatever moves the event:

        t* = t − c(t, y(t)) / (∂c/∂t + ∂c/∂y · f),   y* = y + f (t* − t),

    the quotient without a gradient in its denominator (its numerator is zero).

    Source: Chen, Amos & Nickel (2021), Learning neural event functions for ordinary differential
    equations, section 3.1.

    Raises:
        InputError: `t` has not two times, or fixed steps have no `step_size`.
        EventNotFoundError: There is no event.
    """
    if len(call.t) != 2:
        raise InputError(f"Expected t to be two times with event_fn; got {len(call.t)}")
    if not call.tableau.adaptive and call.options.get("step_size") is None:
        raise InputError(
            f"Expected the option step_size with event_fn and method {call.tableau.name!r}; "
            "got none: pass it, or choose an adaptive method"
        )
    with torch.no_grad():
        distance = EventDistance(event_fn, call.layout, call.t[0], call.y0)
        search = _Search(call, distance)
        time = search.time()
    end = call.y0
    if time == call.t[0]:
        time = call.t[0].to(time.dtype)
    else:
        ts = torch.cat([call.t[:1], time[None]])
        steps = call.steps(ts.detach()) | {"step_size": torch.stack([*search.starts, time])}
        if "jumps" in steps and not call.tableau.adaptive:
            steps["jumps"] = steps["step_size"]
        steps["max_steps"] = max(steps["max_steps"], len(search.starts))
        end = call.solution(call.y0, ts, gradient, params, **steps).ys[-1]
    time, end = _through_event(call, distance, time, end)
    return time.to(call.t.dtype), call.layout.unpack(torch.stack([call.y0, end]), 2)


def _through_event(
    call: OdeintCall, distance: EventDistance, time: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the event's time and state, differentiable in whatever moves the event."""
    if not torch.is_grad_enabled():
        return time, end
    with torch.no_grad():
        slope = call.slope(time, end)
    t, y = time.detach().requires_grad_(), end.detach().requires_grad_()
    connected = distance(t, y) + 0 * (t + y.sum())  # should it depend on one of them alone
    along_time, along_state = torch.autograd.grad(connected, (t, y))
    rate = along_time + (along_state * slope).sum()
    rate = torch.where(rate == 0, torch.finfo(rate.dtype).tiny, rate)
    missed = distance(time, end)
    moved = time - (missed - missed.detach()) / rate
    return moved, end + slope * (moved - time)


class _Search:
    """The steps from the first time on, until the distance to the event is no longer positive."""

    def __init__(self, call: OdeintCall, distance: EventDistance) -> None:
        self.call, self.distance = call, distance
        self.limit = int(call.options.get("max_num_steps", SEARCH_LIMIT))
        self.y = call.y0.detach()
        self.starts = [call.t[0].detach().to(self.y.dtype)]  # of the steps, the last from y
        self.size: float | None = None  # of the longest step in a window

    def time(self) -> Tensor:
        """Return the time of the event; the steps before it are in `starts`."""
        begin, y = self.starts[0], self.y
        if self.distance(begin, y) == 0:
            return begin
        window = (self.call.t[1] - self.call.t[0]).item()
        if not self.call.tableau.adaptive:  # a whole number of steps
            size = float(self.call.options["step_size"])
            window = 16 * (size if window > 0 else -size)
        try:
            while True:
                begin, y = self._march(begin, y, window)
                window *= 2
        except _Passed as passed:
            return self._inside(passed.time)

    def _march(self, begin: Tensor, y: Tensor, window: float) -> tuple[Tensor, Tensor]:
        """Take steps over a window of time, each compared with the event."""
        end = self._beyond_jump(begin, window)
        if not isfinite(end.item()) or end == begin:
            raise EventNotFoundError(
                f"Expected event_fn to change its sign; got none up to t = {begin.item():g}: "
                "check event_fn, or the direction of time"
            )
        ts = torch.stack([begin, end])
        steps = self.call.steps(ts)
        steps["max_steps"] = NO_LIMIT  # but that of all windows
        if self.size is not None and self.call.tableau.adaptive:
            steps["first_step"] = self.size
        self.size = None
        solution = self.call.solution(y, ts, "backprop", observer=self._observe, **steps)
        self._reach(ts[-1], solution.ys[-1])
        return ts[-1], solution.ys[-1]

    def _beyond_jump(self, begin: Tensor, window: float) -> Tensor:
        """Return the end of a window; one at a jump of the dynamics would be a step across it."""
        end, jumps = begin + window, self.call.options.get("jump_t")
        while jumps is not None and (torch.as_tensor(jumps).to(end) == end).any():
            window *= 1.5
            end = begin + window
        return end

    def _observe(self, kind: str, t: Tensor, y: Tensor, h: Tensor) -> None:
        if kind == "step" and t != self.starts[-1]:
            self._reach(t, y)
        elif kind == "accept":
            self.size = max(h.abs().item(), self.size or 0.0)
        if self.call.observer is not None:
            self.call.observer(kind, t, y, h)

    def _reach(self, t: Tensor, y: Tensor) -> None:
        """Begin the next step from here, or stop where the event has passed."""
        distance = self.distance(t, y).item()
        if isnan(distance):
            raise EventNotFoundError(
                f"Expected event_fn to return numbers; got NaN at t = {t.item():g}: check the state"
            )
        if distance <= 0:
            raise _Passed(t)
        if len(self.starts) >= self.limit:
            raise EventNotFoundError(
                f"Expected event_fn to change its sign within {self.limit} steps; got none up to "
                f"t = {t.item():g}: check event_fn, or raise the option max_num_steps"
            )
        self.starts.append(t)
        self.y = y

    def _inside(self, passed: Tensor) -> Tensor:
        """Return the time inside the last step at which the distance is zero."""
        begin = self.starts[-1]

        def missed(time: float) -> float:
            ts = torch.stack([begin, begin.new_tensor(time)])
            if ts[0] == ts[1]:
                return float(self.distance(begin, self.y))
            steps = self.call.steps(ts) | {"step_size": ts, "max_steps": 1}
            y = self.call.solution(self.y, ts, "backprop", **steps).ys[-1]
            return float(self.distance(ts[1], y))

        if missed(passed.item()) >= 0:
            return passed
        eps = torch.finfo(begin.dtype).eps
        found = brentq(missed, begin.item(), passed.item(), xtol=eps, rtol=4 * eps)
        return begin.new_tensor(found)


class _Passed(Exception):  # noqa: N818
    """Raised where the event has passed, to end the solve."""

    def __init__(self, time: Tensor) -> None:
        super().__init__()
        self.time = time
