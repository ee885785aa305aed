"""Flows of explicit steps are trained from the start: without folds, resumed, by `cnf train`."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch.distributions import MultivariateNormal

import cnf
from cnf.flow.folds import fold_mass
from cnf.flow.proposals import propose
from cnf.layers import Circular, Dequantize, MovingNorm, Standardize, Steps
from cnf.scripts.__main__ import main
from cnf.storage import load_flow
from cnf.training import RECIPES, Recipe, TrainingError
from cnf.training import unfolded_run as module
from cnf.training.checkpoint import TrainingState
from cnf.training.recipes import TOY

SMALL = replace(TOY, hidden=(16, 16), x_features=4, matching_batch=32, validations=4)


def curve(rows: int) -> torch.Tensor:
    """Rows near a parabola."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, rows, generator=generator)
    return torch.stack([x, x.square() + 0.3 * noise], 1)


def steps_of(flow: torch.nn.Module) -> list[int]:
    return [layer.count for layer in flow.layers if isinstance(layer, Steps)]  # type: ignore[attr-defined]


def test_the_trained_map_has_a_density_and_an_inverse() -> None:
    flow, data = SMALL.flow(2), curve(2000)
    history = cnf.fit(flow, data, recipe=SMALL, steps=150, threads=1)
    gaussian = MultivariateNormal(data.mean(0), data.T.cov())
    rows = curve(4000)[2000:]
    assert flow.log_prob(rows).mean() > gaussian.log_prob(rows).mean() + 0.5
    assert {*history.objective.tolist()} == {"flow matching", "likelihood without folds"}
    folds = fold_mass(flow)
    assert folds.accepted
    assert folds.integral == pytest.approx(1.0, abs=4 * folds.integral_stderr)
    x, log_prob = flow.sample_and_log_prob((500,))
    torch.testing.assert_close(flow.log_prob(x), log_prob, atol=1e-3, rtol=1e-3)


def test_a_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(state: Path | None = None, stop: int | None = None) -> cnf.Flow:
        torch.manual_seed(0)
        flow = SMALL.flow(2)

        def interrupt(event: cnf.training.Event) -> None:
            if event.step == stop:
                raise KeyboardInterrupt

        options = {"recipe": SMALL, "steps": 40, "threads": 1, "state_seconds": 0.0}
        cnf.fit(flow, curve(300), callbacks=[interrupt], state=state, **options)
        return flow

    whole, state = fitted(), tmp_path / "state.safetensors"
    fitted(state, stop=25)
    assert "proposal.x" in TrainingState.read(state).tensors  # of a validation before
    monkeypatch.setattr(module, "propose", Mock(side_effect=AssertionError("draws are kept")))
    for name, weight in fitted(state).state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name


def test_an_end_in_flow_matching_keeps_weights_that_are_a_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(event: cnf.training.Event) -> None:
        raise KeyboardInterrupt

    flow = SMALL.flow(2)
    history = cnf.fit(flow, curve(300), recipe=SMALL, steps=100, callbacks=[interrupt])
    assert history.reason == "interrupted"
    assert flow.log_prob(curve(50)).isfinite().all()
    refuse = Mock(return_value=False)
    monkeypatch.setattr(module.UnfoldedRun, "_is_unfolded", refuse)
    with pytest.raises(TrainingError, match="without folds after 1 steps"):
        cnf.fit(SMALL.flow(2), curve(300), recipe=SMALL, steps=1)
    refuse.assert_called_once()


def test_weights_that_fold_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.fold_mass

    def folded(flow: cnf.Flow, **options: object) -> object:
        return replace(real(flow, **options), mass=0.5)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "fold_mass", folded)
    with pytest.raises(TrainingError, match=r"^Expected weights without folds .*mass of 0\.5"):
        cnf.fit(SMALL.flow(2), curve(300), recipe=SMALL, steps=20)


def test_regularizers_are_refused() -> None:
    recipe = replace(SMALL, kinetic=0.1)
    with pytest.raises(ValueError, match=r"^Expected no regularizers .*got kinetic: leave them"):
        cnf.fit(recipe.flow(2), curve(100), recipe=recipe, steps=2)
    flow = Recipe(explicit_steps=2, hidden=(8,)).flow(3)
    assert cnf.fit(flow, torch.randn(100, 3), steps=2).steps == 2  # of the recipe for its size


def test_what_explicit_steps_cannot_have_is_refused() -> None:
    flow, data = SMALL.flow(2), curve(50)
    with pytest.raises(ValueError, match="got matching alone"):
        cnf.fit(flow, data, objective="matching", steps=2)
    moving = cnf.Flow(flow.base, [MovingNorm(2), *flow.layers])
    with pytest.raises(ValueError, match="no batch normalisation with explicit steps"):
        cnf.fit(moving, data, objective="mle", steps=2)


def test_recipes_take_explicit_steps_where_they_can() -> None:
    assert steps_of(RECIPES["toy"].flow(2)) == [RECIPES["toy"].explicit_steps]
    solved = {
        "matching alone": replace(TOY, objective="matching").flow(2),
        "a context": TOY.flow(2, 1),
        "angles": TOY.flow(2, columns=[Circular(2)]),
        "noise": TOY.flow(2, columns=[Dequantize(2)]),
        "batch normalisation": replace(TOY, objective="mle", batch_norm=True).flow(2),
        "none": replace(TOY, explicit_steps=0).flow(2),
    }
    assert {why: steps_of(flow) for why, flow in solved.items()} == {why: [] for why in solved}
    assert steps_of(Recipe(explicit_steps=3).flow(5)) == [3]


@pytest.mark.parametrize("dim", [1, 2])
def test_draws_around_a_flow_cover_its_density(dim: int) -> None:
    flow = cnf.ffjord(dim, hidden=(4,)).discretized(2)  # the identity
    found = propose(flow, 4000)
    weights = (flow.log_prob(found.x).detach().double() - found.log_q).exp()
    assert weights.mean() == pytest.approx(1.0, abs=4 * weights.std().item() / 4000**0.5)
    assert weights.max() < 10
    # A uniform density over the box of the draws: what is far from all rows is weighed too.
    low, high = found.x.double().aminmax(dim=0)
    area = found.log_q.neg().exp().mean()
    assert area == pytest.approx((high - low).prod().item(), rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folds_are_weighed_in_any_units(dtype: torch.dtype) -> None:
    x = torch.randn(500, 2, dtype=dtype)
    data = torch.stack([0.01 * x[:, 0], 1e5 * (x[:, 0] + 1e-3 * x[:, 1])], 1)
    scaling = Standardize(2).to(dtype)
    scaling.fit(data)
    flow = cnf.ffjord(2, hidden=(4,)).to(dtype).discretized(2)
    found = fold_mass(cnf.Flow(flow.base, [flow.layers[0], scaling]).to(dtype))
    assert found.draws == 4000
    assert found.accepted
    assert found.covered


def test_programs_train_explicit_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("train", "moons", "--steps", "4", "--hidden", "8,8", "--threads", "1")
    cases = {
        "default": ((), [TOY.explicit_steps]),
        "fewer": (("--explicit-steps", "2"), [2]),
        "none": (("--explicit-steps", "0"), []),
        "regularized": (("--kinetic", "0.1"), []),
        "distilled": (("--discretize", "3"), [3]),
    }
    for name, (options, expected) in cases.items():
        assert main([*common, *options, "--out", name]) in (0, None), name
        assert steps_of(load_flow(tmp_path / name)) == expected, name
    assert steps_of(load_flow(tmp_path / "distilled" / "adaptive")) == []
    capsys.readouterr()
    assert main([*common, "--explicit-steps", "2", "--discretize", "2", "--out", "bad"]) == 2
    error = capsys.readouterr().err
    assert "Expected no --explicit-steps with --discretize" in error
    assert error.count("\n") == 1
