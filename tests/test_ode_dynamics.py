"""Dynamics that prepare a step's stages at once, and their vector-Jacobian products."""

import pytest
import torch

from cnf.ode import TABLEAUS, Checkpoint, StagedDynamics, solve

DOUBLE = torch.float64
FIXED = {name: {"step_size": 0.25} for name, own in TABLEAUS.items() if not own.adaptive}


class Turning(StagedDynamics):
    """dy/dt = tanh(W(t) y) with W(t) = cos(ωt) W, prepared for all stages."""

    def __init__(self):
        self.prepared, self.evaluated = [], 0

    def prepare(self, times, args):
        self.prepared.append(tuple(times.shape))
        omega, weight = args
        return [(wave, weight) for wave in torch.cos(omega * times).unbind()]

    def evaluate(self, stage, y):
        self.evaluated += 1
        wave, weight = stage
        return torch.tanh(wave * (y @ weight.T))


def plain(t, y, args):
    return torch.tanh(torch.cos(args[0] * t) * (y @ args[1].T))


@pytest.fixture
def problem():
    y0 = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    omega = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True)
    return y0, (omega, torch.randn(3, 3, dtype=DOUBLE, requires_grad=True))


def solved(f, problem, times=(0.0, 1.0), **options):
    """The solution, and the gradients of a scalar of it, to state and arguments."""
    y0, args = problem
    options = {"rtol": 1e-4, "atol": 1e-4} | FIXED.get(options.get("method"), {}) | options
    solution = solve(f, y0, times, args, **options)
    return solution, torch.autograd.grad((solution.ys[1:] ** 2).sum(), (y0, *args))


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("activation_bytes", [0, 20_000, 2**28])
def test_gradients_are_those_of_backprop(method, activation_bytes, problem):
    _, expected = solved(plain, problem, gradient="backprop", method=method)
    for f in (plain, Turning()):
        _, found = solved(f, problem, gradient=Checkpoint(activation_bytes), method=method)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gradient", ["backprop", "backsolve", "checkpoint"])
@pytest.mark.parametrize("step", ["joint", "per_sample"])
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.4, 1.0)])
def test_staged_dynamics_run_in_every_mode(gradient, step, times, problem):
    (one, found), (other, expected) = (
        solved(f, problem, times, gradient=gradient, step=step) for f in (Turning(), plain)
    )
    torch.testing.assert_close(one.ys, other.ys, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_stages_are_prepared_once_for_each_step_and_kept_steps_not_evaluated_again(problem):
    """Neither in the backward pass, nor for the first slope of a step: the last one had it."""
    f, other = Turning(), Turning()
    kept, _ = solved(f, problem, gradient=Checkpoint(2**28))
    steps = kept.stats.accepted + kept.stats.rejected
    # The first slope, the one that the first step's size is found by, and then all of a step's.
    assert f.prepared == [(1,), (1,)] + [(6,)] * steps
    without, _ = solved(other, problem)
    assert f.evaluated == kept.stats.evaluations == without.stats.evaluations < other.evaluated
    assert kept.stats.backward == 0


def test_a_tensor_caught_in_a_closure_gets_no_gradient(problem):
    y0, (omega, weight) = problem
    options = {"gradient": Checkpoint(2**28)}
    solve(lambda t, y, a: a * (y @ weight.T), y0, [0.0, 1.0], omega, **options).ys.sum().backward()
    assert weight.grad is None
    assert omega.grad is not None


class Quadrature(Turning):
    """The same with the time integral of |y|² as a last column, any number at unweighted stages."""

    def __init__(self, rubbish):
        super().__init__()
        self.rubbish, self.unweighted = rubbish, 0

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
    y0 = torch.cat([problem[0], torch.zeros(5, 1, dtype=DOUBLE)], 1).detach().requires_grad_()
    found = []
    for rubbish in (0.0, 1e6):
        f = Quadrature(rubbish)
        # The output inside a step is dense output's.
        options = {"method": method, "step": step, "gradient": gradient}
        solution, gradients = solved(f, (y0, problem[1]), (0.0, 0.437, 1.0), **options)
        found.append((solution.ys, *gradients))
        assert f.unweighted > 0
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-9)


def test_unweighted_stages_are_those_that_only_later_stages_use():
    expected = {"dopri5": [1], "dopri8": [1, 2, 3, 4], "heun3": [1], "radau3": [1]}
    for name, tableau in TABLEAUS.items():
        # An entry for the step's end too; what starts a step and what ends it is never unweighted.
        assert len(tableau.unweighted) == tableau.stages + 1
        assert [i for i, flag in enumerate(tableau.unweighted) if flag] == expected.get(name, [])
