"""Distillation into explicit steps, and the mass of folds."""

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Cauchy,
    Distribution,
    Independent,
    Normal,
    TransformedDistribution,
    Uniform,
)

import cnf
from cnf.flow.folds import MAX_FOLD_MASS, fold_mass
from cnf.flow.proposals import adaptive
from cnf.layers import Standardize, Steps
from cnf.layers.columns.circular import Circular
from cnf.layers.step_sequence import StepDeterminants
from cnf.ode import SolveError, solve
from cnf.training import TrainingError
from cnf.training.distillation import DISTILLATION, distil
from cnf.training.unfolded_likelihood import UnfoldedLikelihood

DEFAULT = (2, "midpoint", True)
FAST = replace(DISTILLATION, validations=2, batch_size=64)


class Wave(nn.Module):
    """The field −s sin(w x) in each column: one large step of it folds where s w cos(w x) > 1."""

    def __init__(self, strength: float, frequency: float = 3.0) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))
        self.frequency = frequency

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.strength * torch.sin(self.frequency * x)


def normal(dim: int) -> Independent:
    return Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1)


def waved(strength: float, dim: int = 1, count: int = 1) -> cnf.Flow:
    return cnf.Flow(normal(dim), [Steps(Wave(strength), count, "midpoint")])


def quadrature(flow: cnf.Flow) -> tuple[float, float]:
    """Return ∫ |p| and its part where the map of one column folds."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).unsqueeze(1)
    flow = flow.in_double()
    found = flow.layers[0].determinants(x)
    mass = (flow.base.log_prob(found.value) + found.logs.sum(1)).exp() * 24 / 200_000
    return mass.sum().item(), mass[found.folded].sum().item()


@pytest.mark.parametrize(
    "base",
    [
        TransformedDistribution(normal(2), [AffineTransform(1.0, 2 * torch.ones(2), event_dim=1)]),
        Independent(Uniform(-torch.ones(2), torch.ones(2)), 1),
        Independent(Cauchy(torch.zeros(2), torch.ones(2)), 1),
    ],
    ids=lambda base: type(getattr(base, "base_dist", base)).__name__,
)
def test_fold_mass_of_bases_without_a_mean_or_with_bounds(base: Distribution) -> None:
    found = fold_mass(cnf.Flow(base, cnf.ffjord(2).discretized(1).layers))
    assert found.accepted
    assert found.integral == pytest.approx(1, abs=5 * found.integral_stderr)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_fold_mass_is_that_of_quadrature(strength: float) -> None:
    flow = waved(strength)
    whole, folded = quadrature(flow)
    found = fold_mass(flow, draws=20_000)
    assert folded > 20 * MAX_FOLD_MASS
    assert found.known
    assert not found.accepted
    assert found.mass == pytest.approx(folded, abs=5 * found.stderr)
    assert found.integral == pytest.approx(whole, abs=5 * found.integral_stderr)
    assert found.stderr < 0.2 * folded


def test_a_map_without_folds_integrates_to_one() -> None:
    found = fold_mass(waved(0.2, dim=3, count=3), draws=20_000)
    assert found.mass == 0.0
    assert found.accepted
    assert found.integral == pytest.approx(1.0, abs=5 * found.integral_stderr)
    assert 0 < found.integral_stderr < 0.02


def test_fold_mass_is_unknown_where_few_draws_count() -> None:
    found = fold_mass(waved(0.2), draws=200)
    assert found.draws == 800
    assert found.effective < 800
    assert not found.known
    assert not found.accepted
    assert "unknown" in str(found)


def test_fold_mass_by_draws_of_another_flow() -> None:
    """Beyond the plane its draws serve; in the plane those around the flow's own do."""
    torch.manual_seed(0)
    teacher = cnf.Flow(normal(3), [cnf.CNF(Wave(0.2))])
    student = cnf.Flow(normal(3), [Steps(Wave(0.6), 1, "midpoint")])
    own, by_teacher = (
        fold_mass(student, draws=20_000),
        fold_mass(student, draws=20_000, near=teacher),
    )
    assert own.mass > 5 * own.stderr > 0
    assert by_teacher.mass != own.mass
    errors = own.stderr + by_teacher.stderr
    assert by_teacher.mass == pytest.approx(own.mass, abs=5 * errors)
    weights = torch.tensor([0.5, 0.5])
    both = (
        cnf.FlowMixture([student, student], weights),
        cnf.FlowMixture([teacher, teacher], weights),
    )
    mixed = fold_mass(both[0], draws=20_000, near=both[1])
    assert mixed.mass == pytest.approx(own.mass, abs=5 * errors)
    planar = waved(0.6)
    assert fold_mass(planar, near=cnf.ffjord(2)).mass == fold_mass(planar).mass
    with pytest.raises(ValueError, match="near to have 2 flows of some weight, .*; got 1"):
        fold_mass(both[0], near=cnf.FlowMixture(both[1].flows[:1]))


def test_fold_mass_of_steps_towards_the_data_and_through_scalings() -> None:
    scaling = Standardize(2)
    scaling.fit(3 + 2 * torch.randn(100, 2))
    flow = cnf.Flow(normal(2), [Steps(Wave(-0.2), 2, "midpoint", towards="data"), scaling])
    found = fold_mass(flow)
    assert found.mass == 0.0
    assert found.integral == pytest.approx(1, abs=5 * found.integral_stderr)


def test_adaptive_flow_shares_the_field() -> None:
    flow = cnf.ffjord(2, hidden=(8,))
    again, x = adaptive(flow.discretized(2)), torch.randn(5, 2)
    assert again.layers[0].field is flow.layers[0].field
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x), atol=1e-3, rtol=0)


def test_wanderers_lie_between_and_beyond_rows_with_the_first_row_s_number() -> None:
    objective, x = (
        UnfoldedLikelihood(share=200.0, noise=0.0),
        torch.tensor([[0.0, 1.0], [1.0, 3.0]]),
    )
    found, first = objective.wanderers(x)
    assert found.shape == (400, 2)
    assert first.shape == (400,)
    torch.testing.assert_close(found[:, 1], 1 + 2 * found[:, 0])  # on the line through both
    assert found[:, 0].amin() < -0.1
    assert found[:, 0].amax() > 1.1
    assert ((found[:, 0] >= -0.2) & (found[:, 0] <= 1.2)).all()
    assert (found[first == 0, 0] == 0).any()  # paired with itself
    noisy, _ = replace(objective, noise=0.3).wanderers(x)
    assert (noisy[:, 1] - 1 - 2 * noisy[:, 0]).std() > 0.1


@pytest.mark.parametrize("dim", [2, 10])
def test_likelihood_is_linear_in_the_determinant_below_its_edge(dim: int) -> None:
    objective = UnfoldedLikelihood()
    edge = objective.extension ** (dim / 2)
    values = edge * torch.tensor([4.0, 1.0, 0.5, -0.5, -2.0], dtype=torch.float64)
    values = values.unsqueeze(1).requires_grad_()
    found = StepDeterminants(values, values.sign().detach(), values.abs().log())
    extended = objective._extended(found, slice(0, 5), dim)
    wanted = log(edge) + torch.tensor([log(4.0), 0.0, -0.5, -1.5, -3.0], dtype=torch.float64)
    torch.testing.assert_close(extended, wanted)
    (slopes,) = torch.autograd.grad(extended.sum(), values)
    torch.testing.assert_close(slopes[1:] * edge, torch.ones_like(slopes[1:]))


def test_penalty_is_of_small_determinants() -> None:
    objective = UnfoldedLikelihood(least=0.1)
    values = torch.tensor([[0.5, 0.2], [0.05, 1.0], [-0.1, 1.0]])
    found = StepDeterminants(values, values.sign(), values.abs().log())
    got = objective._penalties(found, slice(0, 3), 2)
    assert got.item() == pytest.approx((0.5 + 2.0) / 3)


def test_wanderers_are_the_candidates_nearest_to_folds() -> None:
    layer, x = Steps(Wave(-3.0), 1, "midpoint"), torch.randn(50, 2)
    candidates = UnfoldedLikelihood(share=2.0)
    chosen = replace(candidates, share=0.5, candidates=4)

    def least(objective: UnfoldedLikelihood) -> Tensor:
        torch.manual_seed(0)  # the same hundred candidates
        found = objective._determinants(layer, x, None)
        return (found.signs * found.logs.exp())[len(x) :].amin(1)

    torch.testing.assert_close(least(chosen), least(candidates).sort().values[:25])


@pytest.fixture(scope="module")
def teacher() -> cnf.Flow:
    """A flow of two columns that is fitted on two clusters."""
    torch.manual_seed(0)
    flow = cnf.ffjord(2, hidden=(16, 16))
    cnf.fit(flow, clusters(2000), steps=60)
    return flow


def clusters(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sides = 2.0 * torch.randint(2, (rows, 1), generator=generator) - 1
    return 3 + torch.cat([2 * sides, sides], 1) + 0.5 * torch.randn(rows, 2, generator=generator)


def test_distilled_flow_is_near_the_given_one_which_is_not_changed(teacher: cnf.Flow) -> None:
    before = [tensor.clone() for tensor in teacher.state_dict().values()]
    data, records = clusters(3000), []
    fast = distil(
        teacher,
        data[:2000],
        validation=data[2000:],
        updates=60,
        recipe=FAST,
        callbacks=[lambda event: records.append(event.record)],
    )
    assert all(map(torch.equal, before, teacher.state_dict().values()))
    assert [i for i, record in enumerate(records) if record] == [29, 59]
    steps = fast.layers[0]
    assert isinstance(steps, Steps)
    assert (steps.count, steps.method, steps.learnt) == DEFAULT
    rows = data[2000:]
    assert -fast.log_prob(rows).mean() < 0.05 - teacher.log_prob(rows).mean()
    assert records[-1].validation_nll == pytest.approx(-fast.log_prob(rows).mean().item(), abs=0.1)
    found = fold_mass(fast)
    assert found.accepted
    assert found.integral == pytest.approx(1, abs=5 * found.integral_stderr)
    z = fast.base.sample((500,))
    torch.testing.assert_close(fast.pull(fast.transport(z)).value, z, atol=1e-3, rtol=0)


def test_seeds_repeat_to_the_bit_and_leave_the_generator(teacher: cnf.Flow) -> None:
    state = torch.get_rng_state()
    one, two, other = (
        distil(teacher, clusters(500), updates=4, seed=seed, recipe=FAST) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_flow_is_distilled_on_its_own_draws(
    teacher: cnf.Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnf.training.distillation.POOL_ROWS", 500)
    fast = distil(teacher, updates=10, recipe=FAST)
    rows = clusters(500)
    assert -fast.log_prob(rows).mean() < 0.1 - teacher.log_prob(rows).mean()


def test_conditional_flow_is_distilled_over_its_contexts() -> None:
    torch.manual_seed(0)
    context = torch.rand(600, 1)
    data, flow = context + 0.3 * torch.randn(600, 2), cnf.ffjord(2, hidden=(8,), context_dim=1)
    cnf.fit(flow, data, context=context, steps=20)
    fast = distil(flow, data, context=context, updates=10, recipe=FAST)
    assert fold_mass(fast, context=context).accepted
    assert fast.log_prob(data, context).isfinite().all()
    with pytest.raises(ValueError, match="^Expected data and context.*no context: pass both"):
        distil(flow, data, updates=1)
    with pytest.raises(ValueError, match="^Expected data and context.*no data: pass both"):
        distil(flow, updates=1)
    with pytest.raises(ValueError, match="^Expected validation with its context.*rows alone"):
        distil(flow, data, context=context, validation=data, updates=1)
    for none in (None, context[:0]):
        with pytest.raises(ValueError, match="^Expected a context for the fold mass"):
            fold_mass(fast, context=none)


def test_wanderers_have_candidates_beyond_the_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    nearest = UnfoldedLikelihood._nearest_to_folds

    def counted(self: UnfoldedLikelihood, layer: Steps, x: Tensor, context: Tensor) -> Tensor:
        sizes.append((len(x), len(context)))
        return nearest(self, layer, x, context)

    monkeypatch.setattr(UnfoldedLikelihood, "_nearest_to_folds", counted)
    for dim in (2, 3):
        flow = cnf.ffjord(dim, context_dim=1, hidden=(4,))
        fast = distil(flow, torch.randn(300, dim), context=torch.randn(300, 1), updates=2)
        assert fast.log_prob(torch.zeros(3, dim), torch.zeros(3, 1)).isfinite().all()
        assert len(sizes) == (0 if dim == 2 else 2)
    assert sizes == [(16 * 64, 16 * 64)] * 2


def test_steps_towards_the_data_are_distilled(teacher: cnf.Flow) -> None:
    fast = distil(teacher, clusters(500), towards="data", updates=6, recipe=FAST)
    rows = clusters(500)
    assert -fast.log_prob(rows).mean() < 0.2 - teacher.log_prob(rows).mean()


class Square(nn.Module):
    """f = −c x² towards the base, of which a midpoint step has a largest value."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.factor * x**2


def test_base_draws_without_a_preimage_are_drawn_anew() -> None:
    """One step y − c (y − c y²/2)² is 2.72 at most for c = 0.8, for c = 2 it is 1.09."""
    torch.manual_seed(0)
    flow = cnf.Flow(normal(1), [Steps(Square(0.8), 1)])
    x = flow.sample((3000,))
    reached = flow.pull(x).value.detach()
    assert 2 < reached.max() < 2.73
    assert reached.std() == pytest.approx(0.99, abs=0.05)
    with pytest.raises(SolveError, match="No state was found"):
        cnf.Flow(normal(1), [Steps(Square(2.0), 1)]).sample((3000,))


def test_weights_that_fold_are_refused() -> None:
    flow, data = cnf.Flow(normal(1), [cnf.CNF(Wave(0.6))]), torch.randn(300, 1)
    message = "^Expected weights without folds after 2 steps; got [^\n]* by a solver [^\n]*0\\)$"
    with pytest.raises(TrainingError, match=message):
        distil(flow, data, steps=1, method="midpoint", updates=2, recipe=FAST)
    clear = data[~flow.discretized(1).layers[0].determinants(data).folded]
    with pytest.raises(TrainingError, match="a fold mass of"):  # though no held-out row folds
        distil(flow, clear, steps=1, method="midpoint", updates=2, recipe=FAST)


def test_weights_that_a_solver_cannot_follow_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import cnf.training.unfolded_run as module

    real, nan = module.propose, torch.full((1, 1), torch.nan)
    failed = solve(lambda t, y, args: nan, torch.ones(1, 1), [0.0, 1.0], on_failure="return")

    def few_then_none(flow: cnf.Flow, draws: int, *given: object) -> module.Proposal:
        if draws > module.DRAWS:
            raise SolveError(failed)
        return real(flow, 200, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "propose", few_then_none)
    with pytest.raises(TrainingError, match="an unknown fold mass"):
        distil(cnf.ffjord(2, hidden=(4,)), clusters(300), updates=2, recipe=FAST)


def test_likelihood_alone_folds_and_the_penalty_prevents_it() -> None:
    torch.manual_seed(0)
    flow = cnf.ffjord(2, hidden=(32,))
    recipe = replace(FAST, learning_rate=3e-2)
    alone = UnfoldedLikelihood(penalty=0.0)
    options = {"steps": 1, "method": "midpoint", "updates": 100, "recipe": recipe}
    with pytest.raises(TrainingError, match="folds"):
        distil(flow, clusters(2000), objective=alone, **options)
    assert fold_mass(distil(flow, clusters(2000), **options)).accepted


BAD: dict[str, tuple[dict[str, object], str]] = {
    "no steps": ({"steps": 0}, "steps of at least 1"),
    "an unknown method": ({"method": "magic"}, "unknown"),
    "a short method": ({"method": "euler"}, "at least 2 stages"),
    "no time": ({"budget": 0.0}, "budget to be above 0"),
    "no updates": ({"updates": 0}, "updates to be above 0"),
    "rows of another width": ({"data": torch.zeros(5, 3)}, r"shape \(rows, 2\)"),
    "a context alone": ({"context": torch.zeros(5, 1)}, "data with a context"),
    "another direction": ({"towards": "noise"}, "base or data"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        distil(cnf.ffjord(2, hidden=(4,)), **{"updates": 1, **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_flows_that_cannot_be_distilled_are_refused() -> None:
    angles = cnf.ffjord(2, hidden=(4,), columns=[Circular(2)])
    with pytest.raises(ValueError, match="without angles"):
        distil(angles, updates=1)
    with pytest.raises(ValueError, match="at most 32 columns"):
        distil(cnf.ffjord(100, hidden=(4,)), updates=1)
    with pytest.raises(ValueError, match="with CNF layers"):
        distil(cnf.Flow(normal(2), []), updates=1)
