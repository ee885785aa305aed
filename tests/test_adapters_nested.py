"""nessai's flows: directions, log-determinants, draws, training, resets, and an evidence."""

import copy
from functools import partial
from math import log

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

import cnf

pytest.importorskip("nessai")
from nessai.flowmodel import FlowModel
from nessai.flowmodel.importance import ImportanceFlowModel
from nessai.flowsampler import FlowSampler

from cnf.adapters import nessai
from cnf.scripts.benchmarks.evidence import (
    EVIDENCE_PROBLEMS,
    BoxModel,
    EvidenceProblem,
    run_sampler,
)

OLD_MODULE = "ignore:The `nessai.gw` module will be deprecated:FutureWarning"  # nessai's own


def bent(dim: int = 2, **options) -> "nessai.NessaiFlow":
    """A flow whose field is not zero, at a tight tolerance in double precision."""
    torch.manual_seed(0)
    options = {"zero_last": False, "rtol": 1e-9, "atol": 1e-9} | options
    return nessai.build_flow(dim, 16, 2, 1, **options).double()


def gaussian(dim: int) -> EvidenceProblem:
    """A standard normal likelihood in a box that holds all of it."""
    half_width = 8.0

    def log_likelihood(x: np.ndarray) -> np.ndarray:
        return -(x**2).sum(-1) / 2 - dim * log(2 * np.pi) / 2

    return EvidenceProblem(dim, half_width, log_likelihood, lambda n, w: -n * log(2 * w))


def model(tmp_path, kind=FlowModel, flow=None, **training) -> FlowModel:
    sizes = {"n_inputs": 2, "n_neurons": 16}
    options = nessai.sampler_options(sizes | (flow or {}), training)
    made = kind(**options, output=str(tmp_path), rng=np.random.default_rng(0))
    made.initialise()
    return made


def test_maps_are_each_others_inverses_with_the_jacobians_of_autograd():
    flow = bent(3)
    x = torch.randn(4, 3, dtype=torch.float64)
    z, log_det = flow.forward(x)
    back, minus_log_det = flow.inverse(z)
    assert torch.allclose(back, x, atol=1e-7)
    assert torch.allclose(minus_log_det, -log_det, atol=1e-7)
    assert log_det.abs().min() > 1e-3  # nothing is compared with the identity
    for row, given in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda y: flow.forward(y[None])[0][0], row)
        assert torch.linalg.slogdet(jacobian).logabsdet == pytest.approx(given.item(), abs=1e-6)


def test_densities_agree_in_every_method():
    flow = bent()
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(50)
        z, scored = flow.forward_and_log_prob(x)
        assert torch.allclose(flow.log_prob(x), log_prob, atol=1e-6)
        assert torch.allclose(scored, log_prob, atol=1e-6)
        normal = Independent(Normal(torch.zeros(2).double(), 1.0), 1)
        assert torch.allclose(flow.base_distribution_log_prob(z), normal.log_prob(z))
        assert flow.sample_latent_distribution(7).shape == (7, 2)
        torch.manual_seed(1)
        drawn = flow.sample(5)
        torch.manual_seed(1)
        assert torch.allclose(flow.sample_and_log_prob(5)[0], drawn, atol=1e-6)


def test_a_context_goes_through():
    flow, context = bent(context_dim=1), torch.linspace(-2, 2, 6).double()[:, None]
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(6, context)
        assert flow.sample(6, context).shape == (6, 2)
        assert torch.allclose(flow.log_prob(x, context), log_prob, atol=1e-6)
        assert not torch.allclose(flow.log_prob(x, context.flip(0)), log_prob, atol=1e-3)


def test_default_tolerance_is_enough_for_proposals():
    flow = bent(rtol=nessai.PROPOSAL_TOLERANCE, atol=nessai.PROPOSAL_TOLERANCE)
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(500)
        exact = flow.flow.with_solver(rtol=1e-9, atol=1e-9).log_prob(x)
    assert (log_prob - exact).abs().max() < 5e-3


def test_freezing_stops_gradients():
    flow = bent()
    flow.freeze_transform()
    assert not any(each.requires_grad for each in flow.parameters())
    flow.unfreeze_transform()
    assert all(each.requires_grad for each in flow.parameters())


def test_nessai_trains_saves_copies_and_resets(tmp_path):
    made = model(tmp_path, max_epochs=30, lr=1e-2)
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, 400)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * 1.5 + rng.normal(0, 0.1, (400, 2))
    x -= x.mean(0)
    before = made.log_prob(x)
    made.train(x, plot=False)
    after = made.log_prob(x)
    assert after.mean() > before.mean() + 0.2
    assert made.model.device == torch.device("cpu")
    z, scored = made.forward_and_log_prob(x)
    assert np.allclose(scored, after, atol=1e-3)
    drawn, log_q = made.sample_and_log_prob(z=z)
    assert np.allclose(drawn, x, atol=1e-2)
    assert np.allclose(log_q, after, atol=1e-2)
    copied = copy.deepcopy(made.model)
    path = str(tmp_path / "weights.pt")
    made.save_weights(path)
    made.reset_model()
    assert np.allclose(made.log_prob(x), before, atol=1e-6)
    made.load_weights(path)
    assert np.allclose(made.log_prob(x), after, atol=1e-6)
    with torch.no_grad():
        theirs = copied.log_prob(torch.from_numpy(x).float())
    assert np.allclose(theirs, after, atol=1e-6)


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        ({}, "tanh"),
        ({"activation": "tanh"}, "tanh"),
        ({"activation": "silu"}, "silu"),
        ({"activation": "swish"}, "silu"),
        ({"flow": partial(nessai.build_flow, activation="softplus")}, "softplus"),
    ],
)
def test_nessai_makes_flows_of_every_activation(flow, expected, tmp_path):
    """nessai puts a function in the place of a name."""
    made = model(tmp_path, flow={"rtol": 1e-4, **flow}).model.flow
    assert {layer.field.config()["activation"] for layer in made.layers[:1]} == {expected}
    assert made.layers[0].settings.rtol == 1e-4


def test_activations_that_one_of_the_two_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of tanh, softplus, silu, gelu; got 'relu'"):
        model(tmp_path, flow={"activation": "relu"})
    with pytest.raises(ValueError, match="Unknown activation: gelu"):
        model(tmp_path, flow={"activation": "gelu"})
    with pytest.raises(ValueError, match="n_layers of at least 1; got 0"):
        model(tmp_path, flow={"n_layers": 0})


def test_the_importance_sampler_stacks_flows(tmp_path):
    made = model(tmp_path, ImportanceFlowModel, max_epochs=2)
    x = np.random.default_rng(0).normal(size=(50, 2))
    for _ in range(2):
        made.add_new_flow()
        made.train(x, plot=False)
    assert made.log_prob_all(x).shape == (50, 2)
    assert not np.allclose(*made.log_prob_all(x).T)
    assert made.sample_ith(0, 9).shape == (9, 2)


@pytest.mark.slow  # the site's page has another one
@pytest.mark.filterwarnings(OLD_MODULE)
def test_an_evidence_is_right(tmp_path):
    problem = gaussian(2)
    options = nessai.sampler_options({"n_neurons": 16}, {"max_epochs": 20, "lr": 1e-2})
    quiet = {"plot": False, "resume": False, "signal_handling": False, "seed": 1}
    sampler = FlowSampler(
        BoxModel(problem), output=str(tmp_path), nlive=100, stopping=0.5, **options, **quiet
    )
    sampler.run(plot=False, save=False)
    assert isinstance(sampler.ns.proposal.flow.model, nessai.NessaiFlow)
    off = sampler.log_evidence - problem.truth
    assert abs(off) < 4 * sampler.log_evidence_error < 1.5


class UnitBoxModel(BoxModel):
    """A problem with the maps to the unit cube that the importance sampler needs."""

    def to_unit_hypercube(self, x: np.ndarray) -> np.ndarray:
        return self._mapped(x, lambda column: (column / self.problem.half_width + 1) / 2)

    def from_unit_hypercube(self, x: np.ndarray) -> np.ndarray:
        return self._mapped(x, lambda column: self.problem.half_width * (2 * column - 1))

    def _mapped(self, x: np.ndarray, change) -> np.ndarray:
        mapped = x.copy()
        for name in self.names:
            mapped[name] = change(x[name])
        return mapped


@pytest.mark.slow
@pytest.mark.filterwarnings(OLD_MODULE)
@pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning")  # in nessai's own sums
def test_the_importance_sampler_finds_an_evidence(tmp_path):
    problem = gaussian(2)
    options = nessai.sampler_options({"n_neurons": 16}, {"max_epochs": 30})
    quiet = {"plot": False, "resume": False, "signal_handling": False, "seed": 1}
    sampler = FlowSampler(
        UnitBoxModel(problem),
        output=str(tmp_path),
        importance_nested_sampler=True,
        nlive=800,
        min_samples=100,
        max_iteration=4,
        **options,
        **quiet,
    )
    sampler.run(plot=False, save=False)
    assert sampler.log_evidence == pytest.approx(problem.truth, abs=0.1)
    assert sampler.log_evidence_error < 0.1


@pytest.mark.slow
def test_rosenbrocks_evidence_takes_about_the_calls_of_nessais_own_flow():
    problem = EVIDENCE_PROBLEMS["rosenbrock"]
    ours, theirs = (run_sampler(problem, name, 0, 500) for name in ("ours", "nessai's"))
    assert abs(ours["log Z"] - problem.truth) < 3 * ours["± log Z"]
    assert ours["calls"] < 1.5 * theirs["calls"]


@pytest.mark.parametrize(
    ("flow", "problem"),
    [
        (cnf.ffjord(2, circular=(0,)), "angles"),
        (cnf.Flow(Independent(Normal(torch.zeros(2), 2 * torch.ones(2)), 1), []), "Normal"),
        (cnf.Flow(Independent(Normal(torch.ones(2), torch.ones(2)), 1), []), "Normal"),
    ],
)
def test_a_flow_of_another_base_is_refused(flow, problem):
    with pytest.raises(ValueError, match=f"for nessai; got .*{problem}"):
        nessai.NessaiFlow(flow)
