"""Jumps of the state: impulse responses in closed form, and updates of rows at their own times."""

import math

import pytest
import torch
from torch import nn

from cnf.ode import GRADIENTS, PerRow, Status, solve

DOUBLE = torch.float64
NAN = math.nan
TIGHT = {"rtol": 1e-11, "atol": 1e-11}
A = torch.tensor([[-0.4, 1.1], [-1.3, 0.2]], dtype=DOUBLE)
# Rows that begin, end and turn in their own ways, with jumps at the start, at the end, and none.
TIMES = torch.tensor(
    [[0.0, 0.5, 1.0, 2.0], [1.0, 1.1, 1.2, 1.2], [1.5, 0.4, 0.2, -0.5], [0.7, 0.7, 0.7, 0.7]]
).double()
JUMPS = torch.tensor(
    [[0.0, 0.5, 1.3], [1.05, 1.2, NAN], [0.4, 0.3, 0.3], [NAN, NAN, NAN]], dtype=DOUBLE
)
steps = pytest.mark.parametrize("step", ["joint", "per_sample"])


def linear(t, z, args):
    return z @ args[0].T


def kick(index, t, z, args):
    """Add the impulse of the jump's number."""
    return z + args[1][index]


def response(z0, start, t, matrix, impulses, times, ahead):
    """The closed form for one row: each impulse goes on by the matrix exponential."""
    z = torch.linalg.matrix_exp(matrix * (t - start)) @ z0
    seen = set()
    for impulse, time in zip(impulses, times, strict=True):
        if not time.isnan() and time.item() not in seen and ahead * (time - t) <= 0:
            seen.add(time.item())
            z = z + torch.linalg.matrix_exp(matrix * (t - time)) @ impulse
    return z


@steps
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_impulse_responses_and_their_gradients(gradient, step):
    z0 = torch.randn(4, 2, dtype=DOUBLE)
    impulses = torch.randn(3, 2, dtype=DOUBLE)
    inputs = [each.clone().requires_grad_() for each in (z0, A, impulses, TIMES, JUMPS)]
    z0, matrix, impulses, times, jumps = inputs
    solution = solve(
        linear,
        z0,
        times,
        (matrix, impulses),
        jumps=(jumps, kick),
        gradient=gradient,
        step=step,
        **TIGHT,
    )
    rows = zip(z0, times, jumps, [1, 1, -1, 1], strict=True)
    exact = torch.stack(
        [
            torch.stack([response(z, ts[0], t, matrix, impulses, own, ahead) for t in ts])
            for z, ts, own, ahead in rows
        ],
        1,
    )
    torch.testing.assert_close(solution.ys, exact, rtol=0, atol=1e-8)
    assert solution.last_times.tolist() == TIMES[:, -1].tolist()
    torch.testing.assert_close(solution.last_states, solution.ys[-1])
    weights = torch.randn(solution.ys.shape, dtype=DOUBLE)
    # An output at a jump stays after it, and one at the end of a row moves with its padding.
    inside = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).double()
    weights = weights * inside.T[:, :, None]
    found, expected = (
        torch.autograd.grad((weights * ys).sum(), inputs) for ys in (solution.ys, exact)
    )
    torch.testing.assert_close(found[:3], expected[:3], rtol=0, atol=1e-8)
    torch.testing.assert_close(found[3][:, 1:], expected[3][:, 1:], rtol=0, atol=1e-8)
    torch.testing.assert_close(found[4].nan_to_num(), expected[4].nan_to_num(), rtol=0, atol=1e-8)


class Update(nn.Module):
    """An ODE-RNN's: the state moves by a network, and a cell takes what is observed."""

    def __init__(self):
        super().__init__()
        self.net, self.cell = nn.Linear(3, 3, dtype=DOUBLE), nn.GRUCell(2, 3, dtype=DOUBLE)

    def slope(self, t, y, args):
        return torch.tanh(self.net(y) + t)

    def update(self, index, t, y, args):
        observed, _ = args
        return self.cell(observed[:, index], y)


def test_an_ode_rnn_is_a_loop_over_rows_and_observations():
    """And a row's result does not change with its neighbours and their padding."""
    model, lengths = Update(), [4, 1, 0, 2]
    times = torch.rand(4, 4, dtype=DOUBLE).sort(1).values
    for row, length in enumerate(lengths):
        times[row, length:] = times[row, length - 1] if length else NAN
    observed, y0 = torch.randn(4, 4, 2, dtype=DOUBLE), torch.randn(4, 3, dtype=DOUBLE)

    def encoded(rows):
        return solve(
            model.slope,
            y0[rows],
            [0.0, 0.3, 1.0],
            (PerRow(observed[rows]), None),
            jumps=(times[rows], model.update),
            step="per_sample",
            gradient="backprop",
            **TIGHT,
        ).ys

    with torch.no_grad():
        together = encoded(torch.arange(4))
        for row, length in enumerate(lengths):
            y, t = y0[row : row + 1], 0.0
            for j in range(length + 1):
                end = times[row, j].item() if j < length else 1.0
                y = solve(model.slope, y, [t, end], **TIGHT).ys[-1]
                y, t = (model.cell(observed[row : row + 1, j], y) if j < length else y), end
            torch.testing.assert_close(together[-1, row], y[0], rtol=0, atol=1e-8)
        for rows in ([2, 0], [3], [1, 3, 2]):
            torch.testing.assert_close(
                encoded(torch.tensor(rows)), together[:, rows], rtol=0, atol=1e-14
            )


@steps
@pytest.mark.parametrize("ts", [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
def test_jumps_of_all_rows_at_shared_times(step, ts):
    """The dynamics get the time that they get without jumps; doubled at the start, middle, end."""
    shapes, calls = set(), []

    def slope(t, y, args):
        shapes.add(t.shape)
        return 0 * y + 1.0

    def double(index, t, y, args):
        calls.append((index, t.tolist()))
        return 2 * y

    y0 = torch.ones(2, 1, dtype=DOUBLE)
    for jumps in (ts, torch.tensor([ts[0], NAN, ts[1], ts[1], ts[2]])):
        ys = solve(slope, y0, ts, jumps=(jumps, double), stops=[0.2], step=step).ys[:, 0, 0]
        ahead = ts[-1] - ts[0]
        middle = 2 * (2 + ahead * 0.5)
        expected = torch.tensor([2.0, middle, 2 * (middle + ahead * 0.5)], dtype=DOUBLE)
        torch.testing.assert_close(ys, expected)
    assert shapes == {() if step == "joint" else (2, 1)}
    assert calls[:3] == [*enumerate(ts)]
    assert calls[3:] == [(0, ts[0]), (2, ts[1]), (4, ts[2])]


def test_fixed_steps_scalars_and_sequences_of_f_jumps_as_before():
    slopes = []

    def slope(t, y, args):
        slopes.append(t.item())
        return torch.ones_like(y)

    add = ([0.5], lambda index, t, y, args: y + 10)
    for step_size in (0.25, torch.tensor([0.0, 0.25, 0.75, 1.0])):
        ys = solve(
            slope, torch.zeros(()), [0, 0.5, 1], jumps=add, method="euler", step_size=step_size
        )
        assert ys.ys.tolist() == [0.0, 10.5, 11.0]
    assert slopes == [0.0, 0.25, 0.5, 0.75] * 2
    assert solve(slope, torch.zeros(1), [0, 1.0], jumps=[*add]).ys[-1].item() == pytest.approx(11.0)
    assert solve(slope, torch.zeros(1), [0.0, 1.0], jumps=(0.5, 0.7)).ys[-1].item() == 1.0


def test_rows_with_their_own_times_may_share_the_jumps():
    add = ([0.5, 0.8], lambda index, t, y, args: y + t)
    t = torch.tensor([[0.0, 0.6, 1.0]])
    ys = solve(lambda t, y, args: 0 * y, torch.zeros(1, 2), t, jumps=add).ys
    torch.testing.assert_close(ys[:, 0, 0], torch.tensor([0.0, 0.5, 1.3]))


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_jumps_at_all(shape):
    y0, t, none = torch.ones(2, 1, dtype=DOUBLE), [0.0, 0.5, 1.0], torch.zeros(shape)
    ys = solve(linear, y0, t, (A[:1, :1],), jumps=(none, kick), **TIGHT).ys
    torch.testing.assert_close(ys, solve(linear, y0, t, (A[:1, :1],), **TIGHT).ys)


@steps
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("late", [0.5, 1.0])
def test_an_output_at_a_jump_moves_as_after_it(step, gradient, own, late):
    """y' = a y, doubled at τ: y(t) = 2 exp(a t) for t at and after τ, whatever τ is."""
    rate, t = torch.tensor([-0.7, 0.0, 0.5, 1.0], dtype=DOUBLE).requires_grad_().split([1, 3])
    jump = torch.tensor([late], dtype=DOUBLE, requires_grad=True)
    times = t.expand(2, -1) if own else t
    jumps = (jump, lambda index, t, y, args: y * 2)
    y0, options = torch.ones(2, 1, dtype=DOUBLE), {"step": step, "gradient": gradient, **TIGHT}
    ys = solve(lambda t, y, a: a * y, y0, times, rate, jumps=jumps, **options).ys
    k = 1 if late == 0.5 else 2
    found = torch.autograd.grad(ys[k, 0, 0], (t, jump))
    slope = -0.7 * ys[k, 0, 0].item()
    expected = torch.zeros(3, dtype=DOUBLE)
    expected[0], expected[k] = -slope, slope
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(found[1], torch.zeros_like(jump), rtol=0, atol=1e-7)


def test_steps_are_carried_over_the_jumps():
    evaluations = []
    for jumps in (None, (torch.linspace(0.05, 0.95, 19), lambda index, t, y, args: y)):
        options = {"jumps": jumps, "rtol": 1e-5, "atol": 1e-5}
        solved = solve(lambda t, y, a: -y, torch.ones(3, 1), [0.0, 1.0], **options)
        evaluations.append(solved.stats.evaluations)
        assert solved.stats.rejected == 0
    assert evaluations[1] <= 20 * 7 + 20  # a step a stretch


@steps
def test_a_row_that_fails_leaves_the_others_and_their_gradients_alone(step):
    """The second blows up at t = 2/3, after the first of two jumps."""
    y0 = torch.tensor([[0.1], [1.0]], dtype=DOUBLE, requires_grad=True)
    options = {"jumps": ([0.5, 0.9], lambda index, t, y, args: 2 * y), "step": step}
    cube = (lambda t, y, a: y**2, y0, [0.0, 0.5, 0.8, 1.0])
    with pytest.raises(RuntimeError, match=r"Stopped at t = 0\.75.* \(rows 1"):
        solve(*cube, **options)
    if step == "joint":  # where all rows share the steps that become too small
        return
    solution = solve(*cube, **options, on_failure="return")
    assert [status is Status.FINISHED for status in solution.row_status] == [True, False]
    assert solution.rows == (1,)
    assert solution.last_times[1] == pytest.approx(0.75, abs=0.01)
    assert solution.ys[:, 1, 0].isnan().tolist() == [False, False, True, True]
    solution.ys[:, 0].sum().backward()
    assert y0.grad.isfinite().all()
    middle = 0.2 / (1 - 0.1 * 0.5)
    late = 2 * middle / (1 - 0.4 * middle)
    torch.testing.assert_close(
        solution.ys[-1, 0, 0].item(), late / (1 - 0.1 * late), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    ("jumps", "match"),
    [
        ([0.7, 0.5], r"direction of time, .*; got 0.5: sort them"),
        ([0.7, 1.5], r"first to the last time; got 1.5: sort"),
        ([[0.1, -0.5], [0.0, 1.0]], r"got -0.5 in row 0: sort them, and pad rows with NaN"),
        ([[0.1, 0.5]], r"for the rows of a state of shape \(2, 1\); got \(1, 2\)"),
    ],
)
def test_mistakes_are_explained(jumps, match):
    with pytest.raises(ValueError, match=match):
        solve(lambda t, y, a: -y, torch.ones(2, 1), [0.0, 1.0], jumps=(jumps, lambda *a: a[2]))


def test_stops_are_checked_as_without_jumps():
    with pytest.raises(ValueError, match="Expected stops to be times between 0 and 1; got .3"):
        solve(linear, torch.ones(2, 1), [0.0, 1.0], stops=[3.0], jumps=([0.5], kick))


def test_a_function_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"like the one it gets, \(2, 1\) .*; got \(1,\)"):
        solve(lambda t, y, a: -y, torch.ones(2, 1), [0.0, 1.0], jumps=([0.5], lambda *a: a[2][0]))
