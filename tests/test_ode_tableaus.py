"""Tableaus check themselves, have the order that they claim, and are the methods of their names."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torchdiffeq
from torchdiffeq._impl.odeint import SOLVERS

from cnf.ode import TABLEAUS, solve
from cnf.ode.order_conditions import elementary_weights, trees
from cnf.ode.step import tableau_tensors
from cnf.ode.tableau import Tableau

ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.adaptive]

# The fewest steps of each order's regression: few enough to stay clear of round-off, and enough
# for the leading term of the error to prevail.
COUNTS = {1: 200, 2: 100, 3: 100, 4: 100, 5: 80, 8: 16}
SPAN = 4.0


def turn(t, y, args=()):
    """A rotation at the speed r² (1 + cos(t) / 2): non-linear, and solved by `turned`."""
    x, z = y[..., 0], y[..., 1]
    speed = (1 + torch.cos(t) / 2) * (x * x + z * z)
    return torch.stack([-speed * z, speed * x], -1)


def turned(t):
    """The solution of `turn` from (1, 0) at t = 0."""
    angle = t + torch.sin(t) / 2
    return torch.stack([torch.cos(angle), torch.sin(angle)], -1)


def largest_error(name, h, places, begin=0.0, end=SPAN):
    """The largest error of a solve by steps of a size, over evenly spaced times."""
    times = torch.linspace(begin, end, places, dtype=torch.float64)
    solution = solve(turn, turned(times[0]), times, method=name, step_size=h)
    assert solution.stats.accepted == round((end - begin) / h)
    return (solution.ys - turned(times)).abs().max().item()


def order_of(counts, errors):
    """The slope of log error on log step."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def wrong(tableau):
    """Parts of a tableau with one coefficient wrong or the last no number, every one in turn."""
    for part in ("b", "e", "c", "mid"):
        values = getattr(tableau, part) or ()
        for i in range(len(values)):
            yield {part: tuple(value + 1e-6 * (i == j) for j, value in enumerate(values))}
        if values:
            yield {part: (*values[:-1], math.nan)}
    for i, row in enumerate(tableau.a):
        for j in range(len(row)):
            changed = tuple(value + 1e-6 * (j == k) for k, value in enumerate(row))
            rows = (*tableau.a[:i], changed, *tableau.a[i + 1 :])
            yield {"a": rows}
        if i:
            yield {"a": (*tableau.a[:i], (*row[:-1], math.nan), *tableau.a[i + 1 :])}
            # with the node that belongs to it: only the order conditions can tell
            node = tableau.c[i] + 1e-6
            yield {"a": rows, "c": (*tableau.c[:i], node, *tableau.c[i + 1 :])}


def test_rooted_trees_are_counted_as_in_the_literature():
    # Sloane's A000081; Hairer, Nørsett & Wanner (1993), table II.2.1.
    assert [len(trees(size)) for size in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("name", TABLEAUS)
def test_every_wrong_coefficient_and_an_order_claimed_too_high_are_found(name):
    tableau = TABLEAUS[name]
    for change in wrong(tableau):
        with pytest.raises(ValueError, match=f"in the tableau '{name}'"):
            dataclasses.replace(tableau, **change)
    with pytest.raises(ValueError, match=f"b to be of order {tableau.order + 1}"):
        dataclasses.replace(tableau, order=tableau.order + 1)
    if tableau.adaptive:
        order = tableau.error_order + 1
        with pytest.raises(ValueError, match=f"b - e to be of order {order}"):
            dataclasses.replace(tableau, error_order=order)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": (1.0, 0.0), "e": (0.0,), "error_order": 1}, "stages throughout"),
        ({"mid": (0.5, 0.0)}, r"1 weights b, 2 weights mid"),
        ({"e": (0.0,)}, "both or neither of e and error_order"),
        ({"error_order": 0}, "both or neither of e and error_order"),
    ],
)
def test_parts_that_do_not_fit_are_found(change, message):
    whole = {"error_order": None, "c": (0.0,), "a": ((),), "b": (1.0,)}
    with pytest.raises(ValueError, match=message):
        Tableau("misfit", 1, **whole | change)


def test_what_each_method_has():
    fixed = {"euler", "midpoint", "heun2", "heun3", "rk4"}
    assert set(TABLEAUS) - set(ADAPTIVE) == fixed
    last = {name for name, tableau in TABLEAUS.items() if tableau.first_same_as_last}
    assert last == {"bosh3", "radau3", "dopri5", "tsit5", "dopri8"}
    assert all(TABLEAUS[name].solution_stages == TABLEAUS[name].stages - 1 for name in last)
    dense = {name: tableau.dense for name, tableau in TABLEAUS.items() if tableau.order >= 4}
    expected = {"dopri5": "quartic", "tsit5": "quartic", "dopri8": "septic", "rk4": "bootstrap"}
    assert dense == expected
    assert {tableau.dense for tableau in TABLEAUS.values() if tableau.order < 4} == {"cubic"}


@pytest.mark.parametrize("name", TABLEAUS)
def test_tensors_hold_the_coefficients(name):
    tableau = TABLEAUS[name]
    tensors = tableau_tensors(tableau, torch.float64, torch.device("cpu"))
    assert [row.tolist() for row in tensors.a] == [
        [*row, *[0.0] * (tableau.stages - len(row))] for row in tableau.a
    ]
    end = [] if tableau.first_same_as_last else [1.0]
    assert tensors.times.tolist() == [*tableau.c, *end]
    for part in ("b", "e", "mid"):
        values, tensor = getattr(tableau, part), getattr(tensors, part)
        assert values is tensor is None or tensor.tolist() == list(values)


def test_the_middle_weights_of_dopri8_are_the_smallest_of_order_5():
    tableau = TABLEAUS["dopri8"]
    conditions = np.array([weights for _, weights in elementary_weights(tableau.a, 5)])
    sizes = np.array([size for size in range(1, 6) for _ in trees(size)])
    # The weights b, of order 8, meet the conditions of a whole step.
    wanted = 0.5**sizes * (conditions @ tableau.b)
    smallest = np.linalg.lstsq(conditions, wanted, rcond=1e-11)[0]
    np.testing.assert_allclose(tableau.mid, smallest, atol=1e-9)


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_by_regression(name):
    """The slope of log error on log step, the error the largest over the steps."""
    order = TABLEAUS[name].order
    counts = [round(COUNTS[order] * factor) for factor in (1, 1.25, 1.5, 2)]
    errors = [largest_error(name, SPAN / count, count + 1) for count in counts]
    assert errors[-1] > 1e-13
    assert order_of(counts, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", TABLEAUS)
def test_one_step_agrees_with_the_definition_and_with_torchdiffeq(name):
    tableau = TABLEAUS[name]
    y, times, h = *torch.tensor([[0.6, -0.9], [0.5, 0.8]], dtype=torch.float64), 0.3
    ys, slopes = solve(turn, y, times, method=name, step_size=h).ys, []
    for node, row in zip((*tableau.c, 1.0), (*tableau.a, tableau.b), strict=True):
        inner = y + h * sum(weight * slope for weight, slope in zip(row, slopes, strict=True))
        slopes.append(turn(times[0] + node * h, inner))
    torch.testing.assert_close(ys[-1], inner, rtol=1e-13, atol=0)
    if name in SOLVERS:
        options = {"options": {"first_step": h} if tableau.adaptive else {}}
        options |= {"rtol": 1e9, "atol": 1e9}  # whatever the error of the step, it is accepted
        theirs = torchdiffeq.odeint(turn, y, times, method=name, **options)
        torch.testing.assert_close(ys, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name in SOLVERS])
def test_coefficients_are_those_of_torchdiffeq(name):
    """Up to the sign of the error, and its scale: dopri5's is the paper's, half as large again."""
    tableau = TABLEAUS[name]
    c, rows, b, error = SOLVERS[name].tableau
    np.testing.assert_allclose(tableau.c[1:], c.numpy(), rtol=1e-15)
    for ours, theirs in zip(tableau.a[1:], rows, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-15)
    np.testing.assert_allclose(tableau.b, b.numpy(), rtol=1e-15)
    scale = {"dopri5": 1.5, "adaptive_heun": -1.0}.get(name, 1.0)
    np.testing.assert_allclose(tableau.e, scale * error.numpy(), rtol=1e-12)
