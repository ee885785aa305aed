"""Ralston's method of order 2, with an error estimate from Euler's."""

from cnf.ode import TABLEAUS, Tableau

TABLEAUS["ralston"] = Tableau(
    "ralston",
    order=2,
    error_order=1,
    c=(0.0, 2 / 3),
    a=((), (2 / 3,)),
    b=(1 / 4, 3 / 4),
    e=(1 / 4 - 1, 3 / 4),
)
