"""Tableaus check themselves, and have the order that they claim."""

import dataclasses

import numpy as np
import pytest
import torch

from cnf.ode import TABLEAUS, solve
from cnf.ode.tableaus import Tableau, _trees


def test_rooted_trees_are_counted_as_in_the_literature():
    # Sloane's A000081; Hairer, Nørsett & Wanner (1993), table II.2.1.
    assert [len(_trees(size)) for size in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("part", ["b", "e", "c", "a", "mid"])
def test_a_wrong_coefficient_is_found(part):
    tableau = TABLEAUS["dopri5"]
    values = list(getattr(tableau, part))
    values[3] = (*values[3][:2], values[3][2] + 1e-6) if part == "a" else values[3] + 1e-6
    with pytest.raises(ValueError, match="dopri5"):
        dataclasses.replace(tableau, **{part: tuple(values)})


def test_an_order_claimed_too_high_is_found():
    with pytest.raises(ValueError, match="order 6"):
        dataclasses.replace(TABLEAUS["dopri5"], order=6)


def test_lengths_that_do_not_fit_are_found():
    with pytest.raises(ValueError, match="stages throughout"):
        Tableau("short", 1, 1, c=(0.0,), a=((),), b=(1.0, 0.0), e=(0.0,))


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_by_regression(name):
    """The slope of log error on log step, on y' = y cos t with y = exp(sin t)."""
    y0 = torch.ones(1, dtype=torch.float64)
    counts = np.array([40, 80, 160, 320])
    errors = []
    for count in counts:
        times = torch.linspace(0, 4, count + 1, dtype=torch.float64)
        solution = solve(
            lambda t, y, args: y * torch.cos(t), y0, times, method=name, step_size=times
        )
        exact = torch.exp(torch.sin(times))
        errors.append((solution.ys[:, 0] - exact).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(TABLEAUS[name].order, abs=0.15)
