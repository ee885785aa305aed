"""The non-stiff DETEST problems: 25 initial value problems to compare solvers on.

Every right-hand side is written once, over a namespace that is NumPy or PyTorch.

Source: Hull, Enright, Fellen & Sedgwick (1972), Comparing numerical methods for ordinary
differential equations, SIAM Journal on Numerical Analysis 9(4), 603-637; see also Hairer, Nørsett &
Wanner (1993), Solving ordinary differential equations I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
# Namespace (the module numpy or torch), time and state in, the state's derivative out.
RightHandSide = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class InitialValueProblem:
    """One initial value problem dy/dt = f(t, y), y(0) = y0, to be solved up to t_end.

    Attributes:
        name: The class and number in DETEST.
        about: A description.
        rhs: The right-hand side, a function of the namespace, the time and the state.
        y0: The initial state.
        t_end: The final time.

    Example:
        >>> problem = DETEST["B1"]
        >>> problem.numpy(0.0, np.array([1.0, 3.0])).tolist()
        [-4.0, 0.0]
        >>> problem.torch(torch.zeros(()), torch.tensor([1.0, 3.0])).tolist()
        [-4.0, 0.0]
    """

    name: str
    about: str
    rhs: RightHandSide
    y0: tuple[float, ...]
    t_end: float = 20.0

    def numpy(self, t: float, y: Array) -> Array:
        """Return the derivative, with the arguments that SciPy passes."""
        derivative: Array = self.rhs(np, t, y)
        return derivative

    def torch(self, t: Tensor, y: Tensor, args: Any = ()) -> Tensor:
        """Return the derivative, with the arguments of `cnf.ode.solve` and torchdiffeq."""
        derivative: Tensor = self.rhs(torch, t, y)
        return derivative


# --- A: single equations --------------------------------------------------------------------------


def _a1(xp: Any, t: Any, y: Any) -> Any:
    return -y


def _a2(xp: Any, t: Any, y: Any) -> Any:
    return -(y**3) / 2


def _a3(xp: Any, t: Any, y: Any) -> Any:
    return y * xp.cos(t)


def _a4(xp: Any, t: Any, y: Any) -> Any:
    return y / 4 * (1 - y / 20)


def _a5(xp: Any, t: Any, y: Any) -> Any:
    return (y - t) / (y + t)


# --- B: small systems -----------------------------------------------------------------------------


def _b1(xp: Any, t: Any, y: Any) -> Any:
    prey, predator = y
    return xp.stack([2 * (prey - prey * predator), prey * predator - predator])


def _b2(xp: Any, t: Any, y: Any) -> Any:
    a, b, c = y
    return xp.stack([b - a, a - 2 * b + c, b - c])


def _b3(xp: Any, t: Any, y: Any) -> Any:
    a, b, _ = y
    return xp.stack([-a, a - b**2, b**2])


def _b4(xp: Any, t: Any, y: Any) -> Any:
    a, b, c = y
    radius = (a**2 + b**2) ** 0.5
    return xp.stack([-b - a * c / radius, a - b * c / radius, a / radius])


def _b5(xp: Any, t: Any, y: Any) -> Any:
    a, b, c = y
    return xp.stack([b * c, -a * c, -0.51 * a * b])


# --- C: moderate systems --------------------------------------------------------------------------


def _chain(rates: Any, y: Any, xp: Any) -> Any:
    """Return the derivative of a decay chain, each member of which decays into the next."""
    flow = rates * y[:-1]
    return xp.concatenate([-flow[:1], flow[:-1] - flow[1:], flow[-1:]])


def _c1(xp: Any, t: Any, y: Any) -> Any:
    return _chain(1.0, y, xp)


def _c2(xp: Any, t: Any, y: Any) -> Any:
    return _chain(xp.arange(1.0, 10.0), y, xp)


def _diffusion(xp: Any, t: Any, y: Any) -> Any:
    """Return second differences, with zero beyond both ends: C3 and C4."""
    return xp.concatenate([y[1:], 0 * y[:1]]) - 2 * y + xp.concatenate([0 * y[:1], y[:-1]])


_GRAVITY = 2.95912208286
_SUN = 1.00000597682  # with the inner planets
_MASSES = np.array(  # Jupiter, Saturn, Uranus, Neptune, Pluto
    [
        0.000954786104043,
        0.000285583733151,
        0.0000437273164546,
        0.0000517759138449,
        0.00000277777777778,
    ]
)


def _c5(xp: Any, t: Any, y: Any) -> Any:
    places, speeds = y.reshape(2, 3, 5)
    masses = xp.asarray(_MASSES)
    cubes = (places**2).sum(0) ** 1.5
    gaps = places[:, None, :] - places[:, :, None]  # from planet j, second axis, to k, the third
    # The distance of a planet from itself is set to 1, so that its zero gap stays zero.
    distances = ((gaps**2).sum(0) + xp.eye(5)) ** 1.5
    between = (masses * gaps / distances).sum(-1)
    # The sun is pulled by all the planets; by planet j itself in the first term below.
    sun = (masses * places / cubes).sum(-1)[:, None] - masses * places / cubes
    forces = _GRAVITY * (-(_SUN + masses) * places / cubes + between - sun)
    return xp.concatenate([speeds.reshape(-1), forces.reshape(-1)])


_C5_START = (
    *(3.42947415189, 6.64145542550, 11.2630437207, -30.1552268759, -21.1238353380),
    *(3.35386959711, 5.97156957878, 14.6952576794, 1.65699966404, 28.4465098142),
    *(1.35494901715, 2.18231499728, 6.27960525067, 1.43785752721, 15.3882659679),
    *(-0.557160570446, -0.415570776342, -0.325325669158, -0.0240476254170, -0.176860753121),
    *(0.505696783289, 0.365682722812, 0.189706021964, -0.287659532608, -0.216393453025),
    *(0.230578543901, 0.169143213293, 0.0877265322780, -0.117219543175, -0.0148647893090),
)


# --- D: orbits ------------------------------------------------------------------------------------


def _orbit(xp: Any, t: Any, y: Any) -> Any:
    cube = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return xp.concatenate([y[2:], -y[:2] / cube])


def _orbit_start(eccentricity: float) -> tuple[float, ...]:
    return 1 - eccentricity, 0.0, 0.0, sqrt((1 + eccentricity) / (1 - eccentricity))


# --- E: equations of second order, as systems of (y, y') -----------------------------------------


def _e1(xp: Any, t: Any, y: Any) -> Any:
    return xp.stack([y[1], -(y[1] / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y[0])])


def _e2(xp: Any, t: Any, y: Any) -> Any:
    return xp.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]])


def _e3(xp: Any, t: Any, y: Any) -> Any:
    return xp.stack([y[1], y[0] ** 3 / 6 - y[0] + 2 * xp.sin(2.78535 * t)])


def _e4(xp: Any, t: Any, y: Any) -> Any:
    return xp.stack([y[1], 0.032 - 0.4 * y[1] ** 2])


def _e5(xp: Any, t: Any, y: Any) -> Any:
    return xp.stack([y[1], (1 + y[1] ** 2) ** 0.5 / (25 - t)])


def _unit(size: int) -> tuple[float, ...]:
    return 1.0, *[0.0] * (size - 1)


_PROBLEMS = (
    InitialValueProblem("A1", "the negative exponential", _a1, (1.0,)),
    InitialValueProblem("A2", "a special case of the Riccati equation", _a2, (1.0,)),
    InitialValueProblem("A3", "an oscillatory problem", _a3, (1.0,)),
    InitialValueProblem("A4", "a logistic curve", _a4, (1.0,)),
    InitialValueProblem("A5", "a spiral curve", _a5, (4.0,)),
    InitialValueProblem("B1", "the growth of two conflicting populations", _b1, (1.0, 3.0)),
    InitialValueProblem("B2", "a linear chemical reaction", _b2, (2.0, 0.0, 1.0)),
    InitialValueProblem("B3", "a nonlinear chemical reaction", _b3, (1.0, 0.0, 0.0)),
    InitialValueProblem("B4", "the integral surface of a torus", _b4, (3.0, 0.0, 0.0)),
    InitialValueProblem(
        "B5", "Euler's equations of a rigid body without forces", _b5, (0.0, 1.0, 1.0)
    ),
    InitialValueProblem("C1", "a radioactive decay chain, all rates equal", _c1, _unit(10)),
    InitialValueProblem("C2", "a radioactive decay chain, rates 1 to 9", _c2, _unit(10)),
    InitialValueProblem("C3", "diffusion on 10 points", _diffusion, _unit(10)),
    InitialValueProblem("C4", "diffusion on 51 points", _diffusion, _unit(51)),
    InitialValueProblem("C5", "the motion of the five outer planets about the sun", _c5, _C5_START),
    InitialValueProblem("D1", "an orbit of eccentricity 0.1", _orbit, _orbit_start(0.1)),
    InitialValueProblem("D2", "an orbit of eccentricity 0.3", _orbit, _orbit_start(0.3)),
    InitialValueProblem("D3", "an orbit of eccentricity 0.5", _orbit, _orbit_start(0.5)),
    InitialValueProblem("D4", "an orbit of eccentricity 0.7", _orbit, _orbit_start(0.7)),
    InitialValueProblem("D5", "an orbit of eccentricity 0.9", _orbit, _orbit_start(0.9)),
    InitialValueProblem(
        "E1", "Bessel's equation of order 1/2", _e1, (0.6713967071418030, 0.09540051444747446)
    ),
    InitialValueProblem("E2", "van der Pol's equation", _e2, (2.0, 0.0)),
    InitialValueProblem("E3", "Duffing's equation", _e3, (0.0, 0.0)),
    InitialValueProblem("E4", "a falling body", _e4, (30.0, 0.0)),
    InitialValueProblem("E5", "a linear pursuit", _e5, (0.0, 0.0)),
)

DETEST: dict[str, InitialValueProblem] = {problem.name: problem for problem in _PROBLEMS}
