"""Joint and per-sample steps: independent rows, statuses, and bounds on the steps."""

import math

import numpy as np
import pytest
import torch

from cnf.ode import (
    IController,
    PerRow,
    PIController,
    SolveError,
    Status,
    max_norm,
    row_max_norm,
    solve,
)

DOUBLE = torch.float64
STEPS = ["joint", "per_sample"]


def oscillate(t, y, speed):
    """A pendulum for each row, at its own speed."""
    angle, velocity = y.unbind(1)
    return torch.stack([velocity, -torch.sin(angle)], 1) * speed


@pytest.fixture
def uneven():
    """A thousand rows, some of them with a hundred times the curvature of the rest."""
    speed = torch.ones(1000, 1, dtype=DOUBLE)
    speed[::50] = 10.0
    return torch.randn(1000, 2, dtype=DOUBLE), speed


def ends(y0, speed, **options):
    return solve(oscillate, y0, [0.0, 1.0], PerRow(speed), rtol=1e-6, atol=1e-6, **options)


def test_a_row_does_not_depend_on_the_other_rows(uneven):
    y0, speed = uneven
    together = ends(y0, speed, step="per_sample").ys[-1]
    some = range(0, 1000, 25)
    alone = [ends(y0[i : i + 1], speed[i : i + 1], step="per_sample").ys[-1] for i in some]
    torch.testing.assert_close(together[::25], torch.cat(alone), rtol=0, atol=1e-9)


def test_the_work_is_the_sum_of_what_each_row_needs(uneven):
    own, joint = (ends(*uneven, step=step).stats for step in ("per_sample", "joint"))
    assert own.evaluations.shape == (1000,)
    assert own.evaluations[0] > 3 * own.evaluations[1]
    assert own.evaluations.sum() < 0.5 * 1000 * joint.evaluations
    assert (own.evaluations == 2 + 6 * (own.accepted + own.rejected)).all()


def test_every_row_meets_the_tolerance(uneven):
    y0, speed = uneven
    exact = solve(oscillate, y0, [0.0, 1.0], PerRow(speed), rtol=1e-12, atol=1e-12).ys[-1]
    own = (ends(y0, speed, step="per_sample").ys[-1] - exact).abs().amax()
    assert own < 1e-4


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("late", [False, True])
def test_one_row_of_nan_among_a_thousand(step, late):
    broken = torch.zeros(1000, 1)
    broken[17] = 1.0

    def f(t, y, broken):
        return torch.where((broken > 0) & (t >= 0.5 * late), torch.nan, -y)

    clean = solve(f, torch.ones(1000, 2), [0.0, 1.0], PerRow(0 * broken), step=step).ys[-1]
    solution = solve(
        f, torch.ones(1000, 2), [0.0, 1.0], PerRow(broken), step=step, on_failure="return"
    )
    others = torch.arange(1000) != 17
    assert solution.rows == (17,)
    assert solution.row_status[17] is Status.NOT_FINITE
    assert (solution.row_status[others] == Status.FINISHED).all()
    assert solution.ys[-1, 17].isnan().all()
    tolerance = 0 if step == "per_sample" else 1e-5
    torch.testing.assert_close(solution.ys[-1, others], clean[others], rtol=0, atol=tolerance)


@pytest.mark.parametrize("step", STEPS)
def test_last_times_and_states_of_rows_that_fail(step):
    """Rows grow as 1 / (1 − t y₀): the second has no state from t = ½ on."""
    y0 = torch.tensor([[0.5], [2.0], [-1.0]], dtype=DOUBLE, requires_grad=True)
    options = {"rtol": 1e-9, "atol": 1e-9, "step": step, "on_failure": "return"}
    solution = solve(lambda t, y, args: y * y, y0, [0.0, 0.4, 1.0], **options)
    assert solution.rows == (1,)
    assert solution.ys[1].isfinite().all()
    times = torch.from_numpy(solution.last_times).unsqueeze(1)
    assert times[1].item() == pytest.approx(0.5, abs=1e-6)
    assert (times[[0, 2]] == 1).all()
    exact = y0 / (1 - times * y0)
    others = [0, 2]
    torch.testing.assert_close(solution.last_states[others], exact[others].detach())
    assert solution.last_states[1] > 1e5
    assert not solution.last_states.requires_grad


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("factor", [1.0, 2.0, math.nan])
def test_a_controller_that_repeats_a_rejected_step(step, factor):
    class Stubborn:
        def factors(self, error, previous, order):
            return np.full_like(error, factor)

    options = {"step": step, "controller": Stubborn(), "first_step": 1.0, "max_steps": 500}
    with pytest.raises(ValueError, match="controller to return .* below 1 after a rejected step"):
        solve(lambda t, y, _: -100 * y, torch.ones(3, 2), [0.0, 1.0], **options)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("late", [False, True])
def test_a_norm_that_is_not_finite_is_distinguished_from_stiffness(step, late):
    """It gives NaN from the first call or from the eleventh."""
    calls = []

    def norm(ratio):
        calls.append(ratio)
        size = max_norm(ratio) if step == "joint" else row_max_norm(ratio)
        return size * torch.nan if len(calls) > 10 or not late else size

    options = {"step": step, "norm": norm, "max_steps": 500, "on_failure": "return"}
    solution = solve(lambda t, y, _: -y, torch.ones(3, 2), [0.0, 9.0], **options)
    assert list(solution.row_status) == [Status.NORM_NOT_FINITE] * 3
    assert (solution.last_times > 0).all() == late
    assert solution.ys[-1].isnan().all()


@pytest.mark.parametrize("step", STEPS)
def test_a_tolerance_of_zero_is_distinguished_from_a_state_of_nan(step):
    """Row 1 has an error and no tolerance, row 2 is NaN; the others finish."""
    tolerance = torch.tensor([1e-5, 0.0, 1e-5, 1e-5]).unsqueeze(1)

    def f(t, y, kind):
        return torch.where((kind == 2) & (t > 0.5), torch.nan, -y)

    solution = solve(
        f,
        torch.ones(4, 1),
        [0.0, 1.0],
        PerRow(torch.arange(4).unsqueeze(1)),
        rtol=tolerance,
        atol=tolerance,
        step=step,
        on_failure="return",
    )
    ends = [Status.FINISHED, Status.NORM_NOT_FINITE, Status.NOT_FINITE, Status.FINISHED]
    assert list(solution.row_status) == ends
    found = solution.ys[-1, ::3]
    torch.testing.assert_close(found, torch.full((2, 1), math.exp(-1)), rtol=1e-4, atol=0)


def test_every_row_has_its_own_status():
    kind = torch.tensor([[0.0], [1.0], [2.0], [0.0]], dtype=DOUBLE)

    def f(t, y, kind):
        stiff = -1e6 * (y - torch.cos(t))
        return torch.where(kind == 1, stiff, torch.where(kind == 2, torch.nan, -y))

    y0 = torch.ones(4, 1, dtype=DOUBLE)
    options = {"step": "per_sample", "max_steps": 200}
    solution = solve(f, y0, [0.0, 0.5, 1.0], PerRow(kind), on_failure="return", **options)
    statuses = [Status.FINISHED, Status.STEP_LIMIT, Status.NOT_FINITE, Status.FINISHED]
    assert list(solution.row_status) == statuses
    assert solution.ys.isfinite().all(2).tolist() == [
        [True, True, True, True],
        [True, False, False, True],
        [True, False, False, True],
    ]
    with pytest.raises(SolveError, match=r"rows 2, 1") as caught:
        solve(f, y0, [0.0, 0.5, 1.0], PerRow(kind), **options)
    np.testing.assert_array_equal(caught.value.solution.row_status, solution.row_status)


def test_per_sample_times_have_the_rows_shape():
    seen = set()

    def f(t, y, args):
        seen.add((tuple(t.shape), tuple(y.shape)))
        return -y * torch.arange(1.0, 3.0).view(-1, 1, 1)[: len(y)]

    solve(f, torch.ones(1, 3, 4), [0.0, 1.0], step="per_sample")
    assert seen == {((1, 1, 1), (1, 3, 4))}


@pytest.mark.parametrize("step", STEPS)
def test_outputs_between_steps(step, uneven):
    y0, speed = uneven
    times = torch.linspace(0, 1, 12, dtype=DOUBLE)
    options = {"rtol": 1e-8, "atol": 1e-8, "step": step}
    dense = solve(oscillate, y0, times, PerRow(speed), **options)
    ends = solve(oscillate, y0, times[[0, -1]], PerRow(speed), **options)
    exact = solve(oscillate, y0, times, PerRow(speed), rtol=1e-12, atol=1e-12).ys
    torch.testing.assert_close(dense.ys[-1], ends.ys[-1], rtol=0, atol=1e-12)
    assert (dense.ys - exact).abs().max() < 2e-5
    # Output times between steps cost no step.
    assert np.max(dense.stats.accepted) == np.max(ends.stats.accepted)


def starts(**options):
    """The start times of all steps tried on y' = −y over [0, 1]."""
    seen = []

    def observer(kind, t, y, h):
        if kind == "step":
            seen.append((t.item(), h.item()))

    y0 = torch.ones(2, dtype=DOUBLE)
    solution = solve(lambda t, y, args: -y, y0, [0.0, 1.0], observer=observer, **options)
    assert abs(solution.ys[-1, 0].item() - math.exp(-1)) < 1e-3
    return np.array(seen)


def test_max_step_bounds_every_step():
    seen = starts(max_step=0.07)
    assert len(seen) >= 15
    assert seen[:, 1].max() <= 0.07 + 1e-12


def test_min_step_is_accepted_whatever_its_error():
    seen = starts(rtol=1e-14, atol=1e-14, min_step=0.1)
    assert len(seen) <= 12


def test_stops_are_hit():
    ends = starts(stops=torch.tensor([0.123, 0.77], dtype=DOUBLE)).sum(1)
    assert np.abs(ends - 0.123).min() < 1e-12
    assert np.abs(ends - 0.77).min() < 1e-12


@pytest.mark.parametrize(
    ("step_size", "expected"),
    [
        (0.25, [0.0, 0.25, 0.5, 0.75]),
        (0.3, [0.0, 0.3, 0.6, 0.9]),
        (torch.tensor([0.0, 0.1, 0.7, 1.0]), [0.0, 0.1, 0.7]),
    ],
)
def test_fixed_steps(step_size, expected):
    seen = starts(step_size=step_size)
    np.testing.assert_allclose(seen[:, 0], expected, atol=1e-6)
    assert seen.sum(1)[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "dopri8"])
def test_fixed_steps_are_the_same_for_each_row_and_for_all(method, uneven):
    y0, speed = uneven
    times = torch.linspace(0, 1, 12, dtype=DOUBLE)
    options = {"method": method, "step_size": 0.01}
    own, joint = (solve(oscillate, y0, times, PerRow(speed), step=s, **options) for s in STEPS)
    torch.testing.assert_close(own.ys, joint.ys, rtol=1e-12, atol=1e-12)
    assert np.all(own.stats.accepted == 100)


def test_fixed_steps_that_blow_up_are_marked():
    y0 = torch.tensor([[1.0], [0.0]], dtype=DOUBLE)
    options = {"method": "euler", "step_size": 0.1, "on_failure": "return"}
    for step in STEPS:
        solution = solve(lambda t, y, args: 1e300 * y, y0, [0.0, 1.0], step=step, **options)
        assert list(solution.row_status) == [Status.NOT_FINITE, Status.FINISHED]
        assert solution.ys[-1, 1].item() == 0.0


@pytest.mark.parametrize("step", STEPS)
def test_a_declared_jump_costs_nothing(step):
    def f(t, y, args):
        return torch.where(t < 0.4, -y, 5 + y)

    y0 = torch.ones(3, 1, dtype=DOUBLE)
    options = {"step": step, "rtol": 1e-8, "atol": 1e-8}
    declared = solve(f, y0, [0.0, 0.7, 1.0], jumps=[0.4], **options)
    undeclared = solve(f, y0, [0.0, 0.7, 1.0], **options)
    expected = [(math.exp(-0.4) + 5) * math.exp(t - 0.4) - 5 for t in (0.7, 1.0)]
    np.testing.assert_allclose(declared.ys[1:, 0, 0].numpy(), expected, rtol=1e-7)
    assert np.max(declared.stats.evaluations) < 0.7 * np.max(undeclared.stats.evaluations)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reverse", [False, True])
def test_no_step_looks_beyond_a_jump(dtype, reverse):
    """Whatever rounding does to the times: on either side f is constant, and exact at once."""
    generator = torch.Generator().manual_seed(0)
    for begin, end, place in torch.rand(40, 3, generator=generator, dtype=DOUBLE).tolist():
        first, last = sorted((begin - 1, end + 1), reverse=reverse)
        jump = torch.tensor(place, dtype=dtype)

        def f(t, y, args, jump=jump):
            return torch.where(t < jump, 1.0, -100.0).to(y).expand_as(y)

        y0 = torch.zeros(2, 1, dtype=dtype)
        options = {"jumps": jump[None], "rtol": 1e-6, "atol": 1e-6}
        for step in STEPS:
            solution = solve(f, y0, [first, last], step=step, **options)
            assert np.all(solution.stats.rejected == 0)
            exact = abs(place - min(first, last)) - 100 * abs(max(first, last) - place)
            expected = -exact if reverse else exact
            assert solution.ys[-1, 0].item() == pytest.approx(expected, rel=1e-5)


def test_a_row_that_waits_at_a_jump_is_independent_of_the_others():
    """One row's step beyond the jump is rejected while another's is accepted."""
    speed = torch.tensor([[30.0], [1.0], [9.0]], dtype=DOUBLE)

    def f(t, y, speed):
        return torch.cos(speed * t) * speed

    options = {"step": "per_sample", "jumps": [0.3, 0.6], "rtol": 1e-4, "atol": 1e-4}
    together = solve(f, torch.zeros(3, 1, dtype=DOUBLE), [0.0, 1.0], PerRow(speed), **options)
    for i in range(3):
        y0, own = torch.zeros(1, 1, dtype=DOUBLE), speed[i : i + 1]
        alone = solve(f, y0, [0.0, 1.0], PerRow(own), **options)
        torch.testing.assert_close(together.ys[-1, i], alone.ys[-1, 0], rtol=0, atol=1e-14)
        assert together.stats.evaluations[i] == alone.stats.evaluations[0]


def test_states_and_slopes_of_any_layout():
    """Not contiguous, expanded, a slope that is the state itself, one written where it was."""
    y0 = torch.arange(6.0, dtype=DOUBLE).reshape(2, 3).T
    own = torch.empty(3, 2, dtype=DOUBLE)
    exact = math.e * y0
    for step in STEPS:
        for f in (
            lambda t, y, args: y,
            lambda t, y, args: y.T.contiguous().T,
            lambda t, y, args: torch.mul(y, 1, out=own[: len(y)]),
        ):
            found = solve(f, y0, [0.0, 1.0], step=step, rtol=1e-9, atol=1e-9).ys[-1]
            torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-7)
        one = torch.ones(1, 1, dtype=DOUBLE).expand(3, 2)
        found = solve(lambda t, y, args: y, one, [0.0, 1.0], step=step).ys[-1]
        torch.testing.assert_close(found, math.e * one, rtol=1e-4, atol=1e-4)


def test_a_row_that_cannot_be_solved_fails_soon():
    """Its steps shrink faster and faster, not by five each time, down to what float64 resolves."""

    def f(t, y, args):
        return torch.where(t > 0.5, torch.nan, -y)

    for step in STEPS:
        solution = solve(
            f, torch.ones(1, 1, dtype=DOUBLE), [0.0, 1.0], step=step, on_failure="return"
        )
        assert solution.status is Status.NOT_FINITE
        assert np.max(solution.stats.rejected) <= 10


def test_observer_sees_accepted_and_rejected_steps():
    kinds = []
    y0 = torch.ones(1, dtype=DOUBLE)
    solution = solve(
        lambda t, y, args: -50 * y,
        y0,
        [0.0, 1.0],
        first_step=0.5,
        observer=lambda kind, t, y, h: kinds.append(kind),
    )
    assert kinds.count("accept") == solution.stats.accepted
    assert kinds.count("reject") == solution.stats.rejected > 0
    assert kinds[::2] == ["step"] * (len(kinds) // 2)


def test_each_component_may_have_its_own_tolerance():
    """A loose tolerance for the fast component leaves it uncontrolled."""

    def f(t, y, args):
        return torch.stack([torch.cos(40 * t), -y[1]])

    y0 = torch.ones(2, dtype=DOUBLE)
    tight = solve(f, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8)
    atol = torch.tensor([10.0, 1e-8], dtype=DOUBLE)
    loose = solve(f, y0, [0.0, 1.0], rtol=0.0, atol=atol)
    assert loose.stats.accepted < tight.stats.accepted / 2
    assert abs(loose.ys[-1, 1].item() - math.exp(-1)) < 1e-6


@pytest.mark.parametrize(("step", "norm"), [("joint", max_norm), ("per_sample", row_max_norm)])
def test_the_norm_is_the_callers(step, norm):
    """A thousand components, one of which moves: the mean hides it, the maximum does not."""
    moves = torch.zeros(1000, dtype=DOUBLE)
    moves[0] = 1.0

    def f(t, y, args):
        return (moves * torch.cos(10 * t)).expand_as(y)

    y0 = torch.zeros(2, 1000, dtype=DOUBLE)
    largest = solve(f, y0, [0.0, 1.0], step=step, norm=norm)
    mean = solve(f, y0, [0.0, 1.0], step=step)
    exact = math.sin(10) / 10
    assert np.max(largest.stats.accepted) > np.max(mean.stats.accepted)
    assert abs(largest.ys[-1, 0, 0].item() - exact) < abs(mean.ys[-1, 0, 0].item() - exact)


@pytest.mark.parametrize("controller", [IController(), PIController(), PIController(safety=0.5)])
def test_any_controller_meets_the_tolerance(controller):
    y0 = torch.randn(5, 2, dtype=DOUBLE)
    speed = torch.full((5, 1), 3.0, dtype=DOUBLE)
    options = {"rtol": 1e-7, "atol": 1e-7, "controller": controller}
    found = solve(oscillate, y0, [0.0, 2.0], PerRow(speed), **options)
    exact = solve(oscillate, y0, [0.0, 2.0], PerRow(speed), rtol=1e-12, atol=1e-12)
    assert (found.ys - exact.ys).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": "each"}, "step to be one of joint, per_sample"),
        ({"method": "rk4"}, "step_size with method 'rk4'"),
        ({"stops": [0.5, 1.5]}, "stops to be times between 0 and 1"),
        ({"step_size": 1e-5}, "at most max_steps = 10000 steps; got 100000"),
        ({"min_step": -1.0}, "min_step to be at least 0"),
        ({"min_step": math.nan}, "min_step to be at least 0"),
        ({"on_failure": "rise"}, "on_failure to be one of raise; got 'rise'"),
        ({"rtol": torch.ones(3, 2)}, r"rtol to broadcast against y0 of shape \(2, 2\)"),
        ({"norm": row_max_norm}, "norm to return a scalar with joint steps"),
        ({"norm": max_norm, "step": "per_sample"}, "one number for each row"),
        ({"step_size": -0.1}, "step_size to be above 0"),
        ({"step_size": torch.tensor([0.0, 0.5])}, "times from 0 to 1"),
        ({"max_step": 0.0}, "max_step to be above 0"),
        ({"atol": torch.tensor([1.0, -1.0])}, "atol to be a number of at least 0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y, args: -y, torch.ones(2, 2), [0.0, 1.0], **options)


@pytest.mark.parametrize("step", STEPS)
def test_a_state_without_rows(step):
    y0 = torch.zeros(0, 2, requires_grad=True)
    solution = solve(lambda t, y, args: -y, y0, [0.0, 0.5, 1.0], step=step)
    assert solution.ys.shape == (3, 0, 2)
    assert solution.status is Status.FINISHED
    solution.ys.sum().backward()


def test_rows_keep_their_tolerances():
    """Rows that finish first do not change the tolerances of the others."""
    y0, speed = torch.ones(3, 2, dtype=DOUBLE), torch.tensor([[9.0], [1.0], [9.0]], dtype=DOUBLE)
    atol = torch.tensor([[1e-3], [1e-9], [1e-9]], dtype=DOUBLE)
    options = {"step": "per_sample", "rtol": 0.0}
    together = solve(oscillate, y0, [0.0, 2.0], PerRow(speed), atol=atol, **options)
    for i in range(3):
        alone = solve(
            oscillate, y0[i : i + 1], [0.0, 2.0], PerRow(speed[i : i + 1]), atol=atol[i], **options
        )
        torch.testing.assert_close(together.ys[:, i : i + 1], alone.ys, rtol=0, atol=1e-13)
        assert together.stats.evaluations[i] == alone.stats.evaluations[0]


@pytest.mark.parametrize("step", STEPS)
def test_arguments_of_rows_need_as_many(step):
    with pytest.raises(ValueError, match=r"PerRow tensors with 3 rows.*got shape \(2, 1\)"):
        solve(lambda t, y, a: -y, torch.ones(3, 1), [0.0, 1.0], PerRow(torch.ones(2, 1)), step=step)


def test_per_sample_steps_need_rows():
    with pytest.raises(ValueError, match="rows for per-sample steps"):
        solve(lambda t, y, args: -y, torch.tensor(1.0), [0.0, 1.0], step="per_sample")
