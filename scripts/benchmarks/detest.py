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
from torch import Tensor

from cnf.scripts.benchmarks.measure import Array

DETEST_END = 20.0  # the final time of every problem


@dataclass(frozen=True)
class InitialValueProblem:
    """One initial value problem dy/dt = f(t, y), y(0) = y0, to be solved up to `DETEST_END`."""

    y0: tuple[float, ...]
    rhs: Callable[[Any, Any, Any], Any]  # of the module numpy or torch, the time and the state

    def numpy(self, t: float, y: Array) -> Array:
        return np.asarray(self.rhs(np, t, y))

    def torch(self, t: Tensor, y: Tensor, args: Any = ()) -> Tensor:
        derivative: Tensor = self.rhs(torch, t, y)
        return derivative


def _scalars(y0: tuple[float, ...], f: Callable[..., list[Any]]) -> InitialValueProblem:
    return InitialValueProblem(y0, lambda xp, t, y: xp.stack(f(xp, t, *y)))


def _torus(xp: Any, t: Any, a: Any, b: Any, c: Any) -> list[Any]:
    radius = (a**2 + b**2) ** 0.5
    return [-b - a * c / radius, a - b * c / radius, a / radius]


def _bessel(xp: Any, t: Any, y: Any, v: Any) -> list[Any]:
    return [v, -(v / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y)]


def _chain(xp: Any, flow: Any) -> Any:
    return xp.concatenate([-flow[:1], flow[:-1] - flow[1:], flow[-1:]])


def _diffusion(xp: Any, t: Any, y: Any) -> Any:
    return xp.concatenate([y[1:], 0 * y[:1]]) - 2 * y + xp.concatenate([0 * y[:1], y[:-1]])


_GRAVITY = 2.95912208286
_SUN = 1.00000597682  # with the inner planets
# Jupiter, Saturn, Uranus, Neptune, Pluto
_MASSES = 1e-4 * np.array(
    [9.54786104043, 2.85583733151, 0.437273164546, 0.517759138449, 0.0277777777778]
)


def _planets(xp: Any, t: Any, y: Any) -> Any:
    places, speeds = y.reshape(2, 3, 5)
    masses = xp.asarray(_MASSES)
    cubes = (places**2).sum(0) ** 1.5
    gaps = places[:, None, :] - places[:, :, None]  # from planet j, second axis, to k, the third
    # A planet's distance from itself is set to 1, so that its zero gap stays zero.
    distances = ((gaps**2).sum(0) + xp.eye(5)) ** 1.5
    between = (masses * gaps / distances).sum(-1)
    # The sun is pulled by all the planets; by planet j itself in the first term below.
    sun = (masses * places / cubes).sum(-1)[:, None] - masses * places / cubes
    forces = _GRAVITY * (-(_SUN + masses) * places / cubes + between - sun)
    return xp.concatenate([speeds.reshape(-1), forces.reshape(-1)])


_PLANETS_START = (
    *(3.42947415189, 6.64145542550, 11.2630437207, -30.1552268759, -21.1238353380),
    *(3.35386959711, 5.97156957878, 14.6952576794, 1.65699966404, 28.4465098142),
    *(1.35494901715, 2.18231499728, 6.27960525067, 1.43785752721, 15.3882659679),
    *(-0.557160570446, -0.415570776342, -0.325325669158, -0.0240476254170, -0.176860753121),
    *(0.505696783289, 0.365682722812, 0.189706021964, -0.287659532608, -0.216393453025),
    *(0.230578543901, 0.169143213293, 0.0877265322780, -0.117219543175, -0.0148647893090),
)


def _orbit(eccentricity: float) -> InitialValueProblem:
    def slope(xp: Any, t: Any, x: Any, y: Any, u: Any, v: Any) -> list[Any]:
        cube = (x**2 + y**2) ** 1.5
        return [u, v, -x / cube, -y / cube]

    speed = sqrt((1 + eccentricity) / (1 - eccentricity))
    return _scalars((1 - eccentricity, 0.0, 0.0, speed), slope)


_UNIT = (1.0, *[0.0] * 9)

DETEST: dict[str, InitialValueProblem] = {
    # Single equations: negative exponential, Riccati, oscillation, logistic and spiral curve.
    "A1": _scalars((1.0,), lambda xp, t, y: [-y]),
    "A2": _scalars((1.0,), lambda xp, t, y: [-(y**3) / 2]),
    "A3": _scalars((1.0,), lambda xp, t, y: [y * xp.cos(t)]),
    "A4": _scalars((1.0,), lambda xp, t, y: [y / 4 * (1 - y / 20)]),
    "A5": _scalars((4.0,), lambda xp, t, y: [(y - t) / (y + t)]),
    # Small systems: two populations, a linear and a nonlinear reaction, a torus, a rigid body.
    "B1": _scalars((1.0, 3.0), lambda xp, t, a, b: [2 * (a - a * b), a * b - b]),
    "B2": _scalars((2.0, 0.0, 1.0), lambda xp, t, a, b, c: [b - a, a - 2 * b + c, b - c]),
    "B3": _scalars((1.0, 0.0, 0.0), lambda xp, t, a, b, c: [-a, a - b**2, b**2]),
    "B4": _scalars((3.0, 0.0, 0.0), _torus),
    "B5": _scalars((0.0, 1.0, 1.0), lambda xp, t, a, b, c: [b * c, -a * c, -0.51 * a * b]),
    # Moderate systems: two decay chains, diffusion on 10 and on 51 points, the outer planets.
    "C1": InitialValueProblem(_UNIT, lambda xp, t, y: _chain(xp, y[:-1])),
    "C2": InitialValueProblem(_UNIT, lambda xp, t, y: _chain(xp, xp.arange(1.0, 10) * y[:-1])),
    "C3": InitialValueProblem(_UNIT, _diffusion),
    "C4": InitialValueProblem((*_UNIT, *[0.0] * 41), _diffusion),
    "C5": InitialValueProblem(_PLANETS_START, _planets),
    # Orbits of growing eccentricity.
    **{f"D{i}": _orbit(e) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)},
    # Equations of second order, as systems of (y, v = y'): Bessel's of order 1/2, van der Pol's,
    # Duffing's, a falling body, a linear pursuit.
    "E1": _scalars((0.6713967071418030, 0.09540051444747446), _bessel),
    "E2": _scalars((2.0, 0.0), lambda xp, t, y, v: [v, (1 - y**2) * v - y]),
    "E3": _scalars((0.0, 0.0), lambda xp, t, y, v: [v, y**3 / 6 - y + 2 * xp.sin(2.78535 * t)]),
    "E4": _scalars((30.0, 0.0), lambda xp, t, y, v: [v, 0.032 - 0.4 * v**2]),
    "E5": _scalars((0.0, 0.0), lambda xp, t, y, v: [v, (1 + v**2) ** 0.5 / (25 - t)]),
}
