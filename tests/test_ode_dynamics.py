"""Dynamics that prepare a step's stages at once, and their vector-Jacobian products."""

import pytest
import torch

from cnf.ode import TABLEAUS, Checkpoint, StagedDynamics, solve

DOUBLE = torch.float64


class Turning(StagedDynamics):
    """dy/dt = tanh(W(t) y) with W(t) = cos(ωt) W, prepared for all stages."""

    def __init__(self):
        self.prepared = []
        self.evaluated = 0

    def prepare(self, times, args):
        self.prepared.append(tuple(times.shape))
        omega, weight = args
        return [(wave, weight) for wave in torch.cos(omega * times).unbind()]

    def evaluate(self, stage, y):
        self.evaluated += 1
        wave, weight = stage
        return torch.tanh(wave * (y @ weight.T))


def plain(t, y, args):
    omega, weight = args
    return torch.tanh(torch.cos(omega * t) * (y @ weight.T))


@pytest.fixture
def problem():
    y0 = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    args = (
        torch.tensor(3.0, dtype=DOUBLE, requires_grad=True),
        torch.randn(3, 3, dtype=DOUBLE, requires_grad=True),
    )
    return y0, args


def gradients(f, problem, **options):
    y0, args = problem
    solution = solve(f, y0, [0.0, 1.0], args, rtol=1e-6, atol=1e-6, **options)
    loss = (solution.ys[-1] ** 2).sum()
    return solution, torch.autograd.grad(loss, (y0, *args))


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("activation_bytes", [0, 20_000, 2**28])
def test_gradients_are_those_of_backprop(method, activation_bytes, problem):
    options = {"method": method}
    if not TABLEAUS[method].adaptive:
        options["step_size"] = 0.1
    _, expected = gradients(plain, problem, gradient="backprop", **options)
    for f in (plain, Turning()):
        _, own = gradients(f, problem, gradient=Checkpoint(activation_bytes), **options)
        for found, other in zip(own, expected, strict=True):
            torch.testing.assert_close(found, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gradient", ["backprop", "backsolve", "checkpoint"])
@pytest.mark.parametrize("step", ["joint", "per_sample"])
def test_staged_dynamics_run_in_every_mode(gradient, step, problem):
    solution, own = gradients(Turning(), problem, gradient=gradient, step=step)
    other, expected = gradients(plain, problem, gradient=gradient, step=step)
    torch.testing.assert_close(solution.ys, other.ys, rtol=0, atol=1e-12)
    for found, wanted in zip(own, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_stages_are_prepared_once_for_each_step(problem):
    y0, args = problem
    f = Turning()
    with torch.no_grad():
        solution = solve(f, y0, [0.0, 1.0], args)
    steps = solution.stats.accepted + solution.stats.rejected
    # The first slope, the one that the first step's size is found by, and then all of a step's.
    assert f.prepared == [(1,), (1,)] + [(6,)] * steps
    assert f.evaluated == solution.stats.evaluations


def test_kept_steps_evaluate_nothing_twice(problem):
    """Neither in the backward pass, nor for the first slope of a step: the last one had it."""
    f = Turning()
    without, _ = gradients(f, problem)
    evaluated = f.evaluated
    assert evaluated > without.stats.evaluations
    f = Turning()
    kept, _ = gradients(f, problem, gradient=Checkpoint(2**28))
    assert f.evaluated == kept.stats.evaluations == without.stats.evaluations
    assert kept.stats.backward == 0


def test_a_gradient_can_be_taken_twice(problem):
    y0, args = problem
    for activation_bytes in (0, 2**28):
        solution = solve(Turning(), y0, [0.0, 1.0], args, gradient=Checkpoint(activation_bytes))
        loss = solution.ys[-1].sum()
        one = torch.autograd.grad(loss, args, retain_graph=True)
        two = torch.autograd.grad(loss, args)
        for first, second in zip(one, two, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_tensor_caught_in_a_closure_gets_no_gradient(problem):
    y0, (omega, weight) = problem
    solution = solve(
        lambda t, y, a: torch.tanh(a * (y @ weight.T)),
        y0,
        [0.0, 1.0],
        omega,
        gradient=Checkpoint(2**28),
    )
    solution.ys[-1].sum().backward()
    assert weight.grad is None
    assert omega.grad is not None


class Quadrature(Turning):
    """The same with the time integral of |y|² as a last column, any number at unweighted stages."""

    def __init__(self, rubbish):
        super().__init__()
        self.rubbish = rubbish
        self.unweighted = 0

    def evaluate(self, stage, y):
        y = y[:, :-1]
        return torch.cat([super().evaluate(stage, y), (y * y).sum(1, keepdim=True)], 1)

    def evaluate_unweighted(self, stage, y):
        self.unweighted += 1
        slope = super().evaluate(stage, y[:, :-1])
        return torch.nn.functional.pad(slope, (0, 1), value=self.rubbish)


@pytest.mark.parametrize("method", [name for name, own in TABLEAUS.items() if any(own.unweighted)])
@pytest.mark.parametrize("step", ["joint", "per_sample"])
@pytest.mark.parametrize(
    "gradient", ["backprop", "backsolve", "checkpoint", Checkpoint(20_000), Checkpoint(2**28)]
)
def test_quadratures_at_unweighted_stages_do_not_matter(method, step, gradient, problem):
    y0, args = problem
    y0 = torch.cat([y0, torch.zeros(5, 1, dtype=DOUBLE)], 1).detach().requires_grad_()
    options = {"method": method, "step": step, "gradient": gradient}
    if not TABLEAUS[method].adaptive:
        options["step_size"] = 0.1
    found = []
    for rubbish in (0.0, 1e6):
        f = Quadrature(rubbish)
        # The output inside a step is dense output's.
        solution = solve(f, y0, [0.0, 0.437, 1.0], args, rtol=1e-6, atol=1e-6, **options)
        loss = (solution.ys[1:] ** 2).sum()
        found.append((solution.ys, *torch.autograd.grad(loss, (y0, *args))))
        assert f.unweighted > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-9)


def test_unweighted_stages_are_those_that_only_later_stages_use():
    unweighted = {name: tableau.unweighted for name, tableau in TABLEAUS.items()}
    places = {
        name: [i for i, flag in enumerate(flags) if flag] for name, flags in unweighted.items()
    }
    assert places.pop("dopri5") == [1]
    assert places.pop("dopri8") == [1, 2, 3, 4]
    assert places.pop("heun3") == [1]
    assert not any(places.values())
    # An entry for the step's end too; what starts a step and what ends it is never unweighted.
    for name, flags in unweighted.items():
        assert len(flags) == TABLEAUS[name].stages + 1
        assert not flags[0]
        assert not flags[-1]
