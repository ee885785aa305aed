"""Joint and per-sample steps: independent rows, statuses, and bounds on the steps."""

import math
from itertools import chain, repeat

import numpy as np
import pytest
import torch

from cnf.ode import IController, PerRow, PIController, SolveError, Status, solve
from cnf.ode.controllers import max_norm, row_max_norm

DOUBLE = torch.float64
NORMS = {"joint": max_norm, "per_sample": row_max_norm}
FINISHED, NOT_FINITE = Status.FINISHED, Status.NOT_FINITE

every_step = pytest.mark.parametrize("step", NORMS)


def decay(t, y, args):
    return -y


def oscillate(t, y, speed):
    """A pendulum for each row, at its own speed."""
    angle, velocity = y.unbind(1)
    return torch.stack([velocity, -torch.sin(angle)], 1) * speed


@pytest.fixture(scope="module")
def uneven():
    """Two hundred rows, some of them with a hundred times the curvature of the rest."""
    torch.manual_seed(0)
    speed = torch.ones(200, 1, dtype=DOUBLE)
    speed[::50] = 10.0
    return torch.randn(200, 2, dtype=DOUBLE), speed


def swung(y0, speed, times=(0.0, 1.0), **options):
    return solve(oscillate, y0, times, PerRow(speed), **{"rtol": 1e-6, "atol": 1e-6} | options)


def test_rows_of_their_own_steps(uneven):
    """None depends on the others, each meets the tolerance, and pays for what it needs."""
    y0, speed = uneven
    joint, own = (swung(y0, speed, step=step) for step in NORMS)
    alone = [swung(y0[i : i + 1], speed[i : i + 1], step="per_sample") for i in range(0, 200, 25)]
    alone = torch.cat([each.ys[-1] for each in alone])
    torch.testing.assert_close(own.ys[-1, ::25], alone, rtol=0, atol=1e-9)
    exact = swung(y0, speed, rtol=1e-12, atol=1e-12).ys[-1]
    assert (own.ys[-1] - exact).abs().amax() < 1e-4
    stats = own.stats
    assert stats.evaluations.shape == (200,)
    assert stats.evaluations[0] > 3 * stats.evaluations[1]
    assert stats.evaluations.sum() < 0.5 * 200 * joint.stats.evaluations
    assert (stats.evaluations == 2 + 6 * (stats.accepted + stats.rejected)).all()


@every_step
@pytest.mark.parametrize("late", [False, True])
def test_one_row_of_nan_among_a_hundred(step, late):
    broken = torch.zeros(100, 1)
    broken[17] = 1.0

    def f(t, y, broken):
        return torch.where((broken > 0) & (t >= 0.5 * late), torch.nan, -y)

    options = {"step": step, "on_failure": "return"}
    y0, times = torch.ones(100, 2), [0.0, 0.25, 1.0]
    clean = solve(f, y0, times, PerRow(0 * broken), **options).ys
    solution = solve(f, y0, times, PerRow(broken), **options)
    others = torch.arange(100) != 17
    assert solution.rows == (17,)
    assert solution.status is solution.row_status[17] is NOT_FINITE
    assert (solution.row_status[others] == FINISHED).all()
    assert solution.ys[-1, 17].isnan().all()
    assert solution.ys[1, 17].isfinite().all() == late
    tolerance = 0 if step == "per_sample" else 1e-5
    torch.testing.assert_close(solution.ys[:, others], clean[:, others], rtol=0, atol=tolerance)
    # Its steps shrink faster and faster, not by five each time, down to the resolution of time.
    assert np.max(solution.stats.rejected) <= 10


@every_step
def test_last_times_and_states_of_rows_that_fail(step):
    """Rows grow as 1 / (1 − t y₀): the second has no state from t = ½ on."""
    y0 = torch.tensor([[0.5], [2.0], [-1.0]], dtype=DOUBLE, requires_grad=True)
    # With joint steps it has to overflow before the step is too small for all.
    tolerance = 1e-8 if step == "joint" else 1e-6
    options = {"rtol": tolerance, "atol": tolerance, "step": step, "on_failure": "return"}
    solution = solve(lambda t, y, args: y * y, y0, [0.0, 0.4, 1.0], **options)
    assert solution.rows == (1,)
    assert solution.ys[1].isfinite().all()
    times = torch.from_numpy(solution.last_times).unsqueeze(1)
    assert times[1].item() == pytest.approx(0.5, abs=1e-4)
    assert (times[[0, 2]] == 1).all()
    exact = (y0 / (1 - times * y0))[[0, 2]].detach()
    torch.testing.assert_close(solution.last_states[[0, 2]], exact, rtol=1e-4, atol=0)
    assert solution.last_states[1] > 1e4
    assert not solution.last_states.requires_grad


@every_step
@pytest.mark.parametrize("factor", [1.0, 2.0, math.nan])
def test_a_controller_that_repeats_a_rejected_step(step, factor):
    class Stubborn:
        def factors(self, error, previous, order):
            return np.full_like(error, factor)

    options = {"step": step, "controller": Stubborn(), "first_step": 1.0, "max_steps": 500}
    with pytest.raises(ValueError, match="controller to return .* below 1 after a rejected step"):
        solve(lambda t, y, _: -100 * y, torch.ones(3, 2), [0.0, 1.0], **options)


@every_step
@pytest.mark.parametrize("late", [False, True])
def test_a_norm_that_is_not_finite_is_distinguished_from_stiffness(step, late):
    """It is infinite from the first call or NaN from the eleventh."""
    factors = chain([1.0] * 10, repeat(math.nan)) if late else repeat(math.inf)

    def norm(ratio):
        return NORMS[step](ratio) * next(factors)

    options = {"step": step, "norm": norm, "max_steps": 500, "on_failure": "return"}
    solution = solve(decay, torch.ones(3, 2), [0.0, 9.0], **options)
    assert list(solution.row_status) == [Status.NORM_NOT_FINITE] * 3
    assert (solution.last_times > 0).all() == late
    assert solution.ys[-1].isnan().all()


@every_step
def test_every_row_has_its_own_status(step):
    """Row 1 has an error and no tolerance, row 2 is NaN, row 4 stiff; the others finish."""
    rows = 5 if step == "per_sample" else 4  # a stiff row ends them all where they step together
    kind = torch.arange(5)[:rows, None]
    tolerance = torch.where(kind == 1, 0.0, 1e-5)

    def f(t, y, kind):
        slope = torch.where((kind == 2) & (t > 0.3), torch.nan, -y)
        return torch.where(kind == 4, -1e6 * (y - torch.cos(t)), slope)

    arguments = f, torch.ones(rows, 1, dtype=DOUBLE), [0.0, 0.5, 1.0], PerRow(kind)
    options = {"rtol": tolerance, "atol": tolerance, "step": step, "max_steps": 200}
    solution = solve(*arguments, on_failure="return", **options)
    expected = [FINISHED, Status.NORM_NOT_FINITE, NOT_FINITE, FINISHED, Status.STEP_LIMIT][:rows]
    assert list(solution.row_status) == expected
    finished = [status is FINISHED for status in expected]
    assert solution.ys.isfinite().all(2).tolist() == [[True] * rows, finished, finished]
    found = solution.ys[-1, [0, 3]]
    torch.testing.assert_close(found, torch.full_like(found, math.exp(-1)), rtol=1e-4, atol=0)
    with pytest.raises(SolveError, match=r"rows .*2") as caught:
        solve(*arguments, **options)
    np.testing.assert_array_equal(caught.value.solution.row_status, solution.row_status)


def test_per_sample_times_have_the_rows_shape():
    seen = set()

    def f(t, y, args):
        seen.add((tuple(t.shape), tuple(y.shape)))
        return -y * torch.arange(1.0, 3.0).view(-1, 1, 1)[: len(y)]

    solve(f, torch.ones(1, 3, 4), [0.0, 1.0], step="per_sample")
    assert seen == {((1, 1, 1), (1, 3, 4))}


@every_step
def test_outputs_between_steps(step, uneven):
    times = torch.linspace(0, 1, 12, dtype=DOUBLE)
    dense, ends = (swung(*uneven, t, rtol=1e-8, atol=1e-8, step=step) for t in (times, [0.0, 1.0]))
    exact = swung(*uneven, times, rtol=1e-12, atol=1e-12).ys
    torch.testing.assert_close(dense.ys[-1], ends.ys[-1], rtol=0, atol=1e-12)
    assert (dense.ys - exact).abs().max() < 2e-5
    # Output times between steps cost no step.
    assert np.max(dense.stats.accepted) == np.max(ends.stats.accepted)


@pytest.mark.parametrize(
    ("step_size", "expected"),
    [
        (0.25, [0.0, 0.25, 0.5, 0.75]),
        (0.3, [0.0, 0.3, 0.6, 0.9]),
        (torch.tensor([0.0, 0.1, 0.7, 1.0]), [0.0, 0.1, 0.7]),
    ],
)
def test_fixed_steps(step_size, expected):
    tried = []

    def observer(kind, t, y, h):
        if kind == "step":
            tried.append((t.item(), h.item()))

    y0 = torch.ones(2, dtype=DOUBLE)
    ys = solve(decay, y0, [0.0, 1.0], observer=observer, step_size=step_size).ys
    assert abs(ys[-1, 0].item() - math.exp(-1)) < 1e-3
    np.testing.assert_allclose([t for t, _ in tried], expected, atol=1e-6)
    assert sum(tried[-1]) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "dopri8"])
def test_fixed_steps_are_the_same_for_each_row_and_for_all(method, uneven):
    times = torch.linspace(0, 1, 12, dtype=DOUBLE)
    options = {"method": method, "step_size": 0.05}
    own, joint = (swung(*uneven, times, step=step, **options) for step in NORMS)
    torch.testing.assert_close(own.ys, joint.ys, rtol=1e-11, atol=1e-11)
    assert np.all(own.stats.accepted == 20)


@every_step
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reverse", [False, True])
def test_no_step_looks_beyond_a_jump(dtype, reverse, step):
    """Whatever rounding does to the times: on either side f is constant, and exact at once."""
    generator = torch.Generator().manual_seed(0)
    for begin, end, place in torch.rand(20, 3, generator=generator, dtype=DOUBLE).tolist():
        first, last = sorted((begin - 1, end + 1), reverse=reverse)
        jump = torch.tensor(place, dtype=dtype)

        def f(t, y, args, jump=jump):
            return torch.where(t < jump, 1.0, -100.0).to(y).expand_as(y)

        options = {"jumps": jump[None], "rtol": 1e-6, "atol": 1e-6, "step": step}
        solution = solve(f, torch.zeros(2, 1, dtype=dtype), [first, last], **options)
        assert np.all(solution.stats.rejected == 0)
        exact = abs(place - min(first, last)) - 100 * abs(max(first, last) - place)
        expected = -exact if reverse else exact
        assert solution.ys[-1, 0].item() == pytest.approx(expected, rel=1e-5)


def wave(t, y, speed):
    return (torch.cos(speed * t) * speed).expand_as(y)


@pytest.mark.parametrize(
    ("f", "speed", "options"),
    [
        (wave, [30.0, 1.0, 9.0], {"jumps": [0.3, 0.6], "rtol": 1e-4, "atol": 1e-4}),
        (oscillate, [9.0, 1.0, 9.0], {"rtol": 0.0, "atol": torch.tensor([1e-3, 1e-9, 1e-9])}),
    ],
)
def test_rows_are_independent(f, speed, options):
    """Where one waits at a jump, and where one of its own tolerance finishes before the others."""

    def solved(rows):
        own = {
            name: value[rows, None].double() if isinstance(value, torch.Tensor) else value
            for name, value in options.items()
        }
        args = PerRow(torch.tensor(speed, dtype=DOUBLE)[rows, None])
        y0 = torch.ones(len(rows), 2, dtype=DOUBLE)
        return solve(f, y0, [0.0, 1.0], args, step="per_sample", **own)

    together = solved([0, 1, 2])
    for i in range(3):
        alone = solved([i])
        torch.testing.assert_close(together.ys[:, i : i + 1], alone.ys, rtol=0, atol=1e-13)
        assert together.stats.evaluations[i] == alone.stats.evaluations[0]


@every_step
def test_states_and_slopes_of_any_layout(step):
    """Not contiguous, expanded, a slope that is the state itself, one written where it was."""
    y0 = torch.arange(6.0, dtype=DOUBLE).reshape(2, 3).T
    own = torch.empty(3, 2, dtype=DOUBLE)
    for f in (
        lambda t, y, args: y,
        lambda t, y, args: y.T.contiguous().T,
        lambda t, y, args: torch.mul(y, 1, out=own[: len(y)]),
    ):
        for start in (y0, torch.ones(1, 1, dtype=DOUBLE).expand(3, 2)):
            found = solve(f, start, [0.0, 1.0], step=step, rtol=1e-7, atol=1e-7).ys[-1]
            torch.testing.assert_close(found, math.e * start, rtol=1e-5, atol=1e-5)


def test_each_component_may_have_its_own_tolerance():
    """A loose tolerance for the fast component leaves it uncontrolled."""

    def f(t, y, args):
        return torch.stack([torch.cos(40 * t), -y[1]])

    y0 = torch.ones(2, dtype=DOUBLE)
    tight = solve(f, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8)
    loose = solve(f, y0, [0.0, 1.0], rtol=0.0, atol=torch.tensor([10.0, 1e-8], dtype=DOUBLE))
    assert loose.stats.accepted < tight.stats.accepted / 2
    assert abs(loose.ys[-1, 1].item() - math.exp(-1)) < 1e-6


@every_step
def test_the_norm_is_the_callers(step):
    """A thousand components, one of which moves: the mean hides it, the maximum does not."""
    moves = torch.zeros(1000, dtype=DOUBLE)
    moves[0] = 1.0

    def f(t, y, args):
        return (moves * torch.cos(10 * t)).expand_as(y)

    y0, exact = torch.zeros(2, 1000, dtype=DOUBLE), math.sin(10) / 10
    largest, mean = (solve(f, y0, [0.0, 1.0], step=step, norm=each) for each in (NORMS[step], None))
    assert np.max(largest.stats.accepted) > np.max(mean.stats.accepted)
    assert abs(largest.ys[-1, 0, 0].item() - exact) < abs(mean.ys[-1, 0, 0].item() - exact)


@pytest.mark.parametrize("controller", [IController(), PIController(), PIController(safety=0.5)])
def test_any_controller_meets_the_tolerance(controller):
    y0, speed = torch.randn(5, 2, dtype=DOUBLE), torch.full((5, 1), 3.0, dtype=DOUBLE)
    found = swung(y0, speed, (0.0, 2.0), rtol=1e-7, atol=1e-7, controller=controller)
    exact = swung(y0, speed, (0.0, 2.0), rtol=1e-12, atol=1e-12)
    assert (found.ys - exact.ys).abs().max() < 1e-5


@every_step
def test_a_state_without_rows(step):
    y0 = torch.zeros(0, 2, requires_grad=True)
    solution = solve(decay, y0, [0.0, 0.5, 1.0], step=step)
    assert solution.ys.shape == (3, 0, 2)
    assert solution.status is FINISHED
    solution.ys.sum().backward()
