"""Flows in sbi: its interfaces, its posteriors and diagnostics, and posteriors known exactly."""

import copy
import pickle

import pytest
import torch
from sbi.diagnostics import check_sbc, run_sbc, run_tarp
from sbi.diagnostics.sbc import check_uniformity_frequentist
from sbi.inference import FMPE, NLE, NPE, DirectPosterior
from sbi.inference.posteriors.posterior_parameters import (
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
)
from sbi.neural_nets.estimators.base import (
    ConditionalDensityEstimator,
    ConditionalVectorFieldEstimator,
)
from sbi.samplers.mcmc.slice_numpy import SliceSamplerVectorized
from sbi.utils import BoxUniform, MultipleIndependent
from torch import nn
from torch.distributions import (
    Dirichlet,
    Exponential,
    Independent,
    MultivariateNormal,
    Normal,
    Uniform,
    constraints,
)

import cnf
from cnf.adapters.sbi import (
    FieldEstimator,
    FlowEstimator,
    fit,
    likelihood_cnf,
    posterior_cnf,
    posterior_field,
)
from cnf.training import Recipe

SMALL = Recipe(hidden=(16,))
BOX = BoxUniform(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 1.0]))
NOISE = 0.2
MCMC = MCMCPosteriorParameters(
    num_chains=10, warmup_steps=1, thin=1, init_strategy="proposal", num_workers=1
)
REJECTION = RejectionPosteriorParameters(num_samples_to_find_max=50, num_iter_to_find_max=2)

# sbi warns of short training, and of few rows in its diagnostics, which these tests intend; and of
# its own default batches in calibration.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs:UserWarning"),
    pytest.mark.filterwarnings("ignore:Capping max_sampling_batch_size:UserWarning"),
    pytest.mark.filterwarnings("ignore:Number of .* should be on the order of:UserWarning"),
]


class Silent:
    """A tracker for sbi, which writes logs to the working directory without one."""

    log_dir = None

    def log_metric(self, *given, **named): ...

    def log_metrics(self, *given, **named): ...

    def flush(self): ...


def pairs(count: int = 300, prior: BoxUniform = BOX) -> tuple[torch.Tensor, torch.Tensor]:
    theta = prior.sample((count,))
    return theta, theta + NOISE * torch.randn_like(theta)


@pytest.fixture(scope="module")
def estimator() -> FlowEstimator:
    """A posterior of bounded parameters, fitted in few steps."""
    torch.manual_seed(0)
    return posterior_cnf(BOX, recipe=SMALL, matching=100)(*pairs())


@pytest.fixture
def untuned(monkeypatch) -> None:
    """Slice samplers whose brackets are wide at once: sbi's widen them in fifty steps."""
    quick = {"tuning": 1, "init_width": 1.0}
    monkeypatch.setattr(
        "sbi.inference.posteriors.mcmc_posterior.SliceSamplerVectorized",
        lambda **named: SliceSamplerVectorized(**named | quick),
    )


@pytest.fixture(scope="module")
def posterior(estimator) -> DirectPosterior:
    return DirectPosterior(estimator, BOX).set_default_x(torch.tensor([[0.5, 0.9]]))


def test_the_estimator_has_the_shapes_of_sbi(estimator):
    assert isinstance(estimator, ConditionalDensityEstimator)
    assert (estimator.input_shape, estimator.condition_shape) == ((2,), (2,))
    theta, x = pairs(4)
    assert estimator.loss(theta, x).shape == (4,)
    assert estimator.log_prob(theta, x).shape == (1, 4)
    for inputs, batch in (((3, 4), 4), ((3, 1), 4), ((3, 4), 1), ((1, 4), 4)):
        input = 0.5 * torch.ones(*inputs, 2)
        assert estimator.log_prob(input, x[:batch]).shape == (inputs[0], max(inputs[1], batch))
    assert estimator.log_prob(theta.expand(3, 4, 2), x.expand(3, 4, 2)).shape == (3, 4)
    assert estimator.sample((3, 2), x).shape == (3, 2, 4, 2)
    drawn, log_prob = estimator.sample_and_log_prob((3,), x)
    assert (drawn.shape, log_prob.shape) == ((3, 4, 2), (3, 4))
    for wrong in (theta[:, :1], theta[:, :1].expand(4, 3)):
        with pytest.raises(ValueError, match="dimensionality"):
            estimator.log_prob(wrong, x)
        with pytest.raises(ValueError, match="condition"):
            estimator.sample((3,), wrong)


def test_draws_and_densities_agree(estimator):
    """And the loss is −log p at the tolerance of training, with gradients to all weights."""
    _, x = pairs(4)
    theta, log_prob = estimator.sample_and_log_prob((50,), x)
    torch.testing.assert_close(estimator.log_prob(theta, x), log_prob, atol=1e-3, rtol=1e-3)
    one = estimator.log_prob(theta[:, :1], x[:1])
    torch.testing.assert_close(one, log_prob[:, :1], atol=1e-3, rtol=1e-3)
    loss = estimator.loss(theta[0], x)
    torch.testing.assert_close(loss, -log_prob[0], atol=0.05, rtol=0.05)
    loss.mean().backward()
    assert all(weight.grad is not None for weight in estimator.parameters())
    estimator.zero_grad()


def test_explicit_steps_are_the_same_density(estimator):
    estimator = copy.deepcopy(estimator)
    theta, x = pairs(10)
    found, exact = (each.log_prob(theta, x) for each in (estimator.discretized(8), estimator))
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=1e-3)
    for weight in estimator.flow.layers[0].parameters():
        nn.init.normal_(weight, std=0.5)  # so that one step is too few
    exact, coarse = (e.log_prob(theta, x) for e in (estimator, estimator.discretized(1)))
    assert (coarse - exact).abs().max() > 1e-3


def test_estimators_are_copied_pickled_and_moved(estimator, posterior):
    x, theta = torch.tensor([[0.5, 0.9]]), torch.tensor([[[0.5, 0.5]]])
    log_prob = estimator.log_prob(theta, x)
    for again in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert torch.equal(again.log_prob(theta, x), log_prob)
    again = pickle.loads(pickle.dumps(posterior))
    found = again.log_prob(theta[0], norm_posterior=False)
    torch.testing.assert_close(found, log_prob[0].detach())
    doubled = copy.deepcopy(estimator).double()
    exact = doubled.log_prob(theta.double(), x.double())
    torch.testing.assert_close(exact.float(), log_prob, atol=1e-3, rtol=1e-3)
    build = pickle.loads(pickle.dumps(posterior_cnf(BOX, recipe=SMALL, matching=1)))
    assert build(*pairs(20)).input_shape == (2,)


def test_no_mass_lies_outside_a_bounded_prior(estimator, posterior):
    samples = estimator.sample((2000,), torch.tensor([[1.2, 1.3]]))
    assert BOX.support.check(samples).all()
    leaked = posterior.leakage_correction(posterior.default_x, num_rejection_samples=500)
    assert leaked == 1
    assert estimator.log_prob(torch.tensor([[1.1, 0.0]]), torch.zeros(1, 2)) == -torch.inf


def test_a_bounded_density_integrates_to_one():
    torch.manual_seed(0)
    prior = BoxUniform(torch.zeros(1), 3 * torch.ones(1))
    estimator = posterior_cnf(prior, recipe=SMALL, matching=30)(*pairs(200, prior))
    grid = torch.linspace(0, 3, 3001).view(-1, 1, 1)
    x = torch.tensor([[0.1], [1.5], [3.2]])
    mass = torch.trapezoid(estimator.log_prob(grid, x).detach().exp(), grid[:, 0], dim=0)
    torch.testing.assert_close(mass, torch.ones(3), atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    "prior",
    [
        MultipleIndependent([Exponential(torch.ones(1)), Uniform(-torch.ones(1), torch.ones(1))]),
        MultipleIndependent([Normal(torch.zeros(1), torch.ones(1)), Exponential(torch.ones(1))]),
        Independent(Exponential(torch.ones(2)), 1),
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
    ],
)
def test_supports_of_priors_become_those_of_flows(prior):
    theta = prior.sample((50,))
    estimator = posterior_cnf(prior, recipe=SMALL, matching=1)(theta, theta)
    samples = estimator.sample((200,), torch.zeros(1, 2))[:, 0]
    assert prior.support.check(samples).all()


@pytest.mark.usefixtures("untuned")
def test_npe_trains_and_its_posteriors_sample_and_are_diagnosed():
    """By each of sbi's samplers."""
    theta, x = pairs(100)
    trainer = NPE(
        BOX, posterior_cnf(BOX, recipe=SMALL, matching=20), tracker=Silent()
    ).append_simulations(theta, x)
    trained = trainer.train(max_num_epochs=1, training_batch_size=45)
    assert isinstance(trained, FlowEstimator)
    assert len(trainer.summary["validation_loss"]) == 2
    posterior = trainer.build_posterior().set_default_x(x[:1])
    assert posterior.sample((7,), show_progress_bars=False).shape == (7, 2)
    assert posterior.log_prob(theta[:3], norm_posterior=False).shape == (3,)
    for sample_with, parameters in (("mcmc", MCMC), ("rejection", REJECTION)):
        other = trainer.build_posterior(
            trained.discretized(2), sample_with=sample_with, posterior_parameters=parameters
        )
        samples = other.sample((10,), x=x[:1], show_progress_bars=False)
        assert samples.shape == (10, 2)
        assert BOX.support.check(samples).all()
    fresh = pairs(20)
    ranks, averaged = run_sbc(*fresh, posterior, num_posterior_samples=20, show_progress_bar=False)
    assert ranks.shape == (20, 2)
    assert check_uniformity_frequentist(ranks, 20).shape == (2,)
    assert averaged.shape == (20, 2)
    coverage, levels = run_tarp(
        *fresh, posterior, num_posterior_samples=20, num_bins=5, show_progress_bar=False
    )
    assert coverage.shape == levels.shape == (6,)


@pytest.mark.usefixtures("untuned")
def test_nle_trains_and_samples():
    theta, x = pairs(100)
    trainer = NLE(
        BOX, likelihood_cnf(recipe=SMALL, matching=20), tracker=Silent()
    ).append_simulations(theta, x)
    trained = trainer.train(max_num_epochs=1, training_batch_size=45)
    assert (trained.input_shape, trained.condition_shape) == ((2,), (2,))
    posterior = trainer.build_posterior(posterior_parameters=MCMC)
    observed = x[:1].expand(3, 2)  # independent observations of one θ
    assert posterior.set_default_x(observed).sample((10,), show_progress_bars=False).shape == (
        10,
        2,
    )
    likelihood = fit(x, theta, recipe=SMALL, steps=2)
    built = NLE(BOX, tracker=Silent()).build_posterior(likelihood, posterior_parameters=MCMC)
    assert built.potential(theta[:4], x=x[:1]).shape == (4,)


def test_npe_trains_in_rounds(estimator, capsys):
    """The second round's loss has gradients through `log_prob`, not `loss`."""
    theta, x = pairs(60)
    trainer = NPE(BOX, lambda theta, x: copy.deepcopy(estimator), tracker=Silent())
    trainer.append_simulations(theta, x).train(max_num_epochs=1, training_batch_size=54)
    proposal = trainer.build_posterior().set_default_x(x[:1])
    drawn = proposal.sample((40,), show_progress_bars=False)
    before = proposal.log_prob(drawn, norm_posterior=False)
    trainer.append_simulations(drawn, drawn + NOISE * torch.randn(40, 2), proposal=proposal)
    trainer.train(max_num_epochs=1, training_batch_size=90, learning_rate=1e-2)
    assert "atomic loss" in capsys.readouterr().out
    again = trainer.build_posterior().set_default_x(x[:1])
    assert not torch.allclose(again.log_prob(drawn, norm_posterior=False), before, atol=1e-3)


def test_simulations_of_a_bounded_kind_have_a_likelihood_of_their_support():
    theta, x = pairs(50)
    build = likelihood_cnf(constraints.positive, recipe=SMALL, matching=1)
    assert (build(theta, x.exp()).sample((100,), theta[:2]) > 0).all()


def test_fmpe_trains_the_field_and_integrates_it():
    theta, x = pairs(100)
    trainer = FMPE(BOX, posterior_field(recipe=SMALL), tracker=Silent())
    field = trainer.append_simulations(theta, x).train(max_num_epochs=5, training_batch_size=90)
    assert isinstance(field, ConditionalVectorFieldEstimator)
    posterior = trainer.build_posterior().set_default_x(x[:1])
    samples = posterior.sample((20,), show_progress_bars=False)
    assert samples.shape == (20, 2)
    found = posterior.log_prob(samples)
    density = FlowEstimator(field.flow, field.condition_shape)
    torch.testing.assert_close(
        density.log_prob(samples.unsqueeze(1), x[:1])[:, 0].detach(), found, atol=2e-3, rtol=1e-3
    )
    batched = posterior.sample_batched((5,), x[:3], show_progress_bars=False)
    assert batched.shape == (5, 3, 2)


def test_fields_need_a_gaussian_base_in_the_units_of_parameters():
    with pytest.raises(ValueError, match=r"a CNF layer and a standardisation, .* got CNF, CNF, St"):
        FieldEstimator(cnf.ffjord(2, context_dim=2, blocks=2), (2,))
    with pytest.raises(ValueError, match=r"context of 6 columns, .* \(2, 3\); got 2: build"):
        FlowEstimator(cnf.ffjord(2, context_dim=2), (2, 3))


class Pooled(nn.Module):
    """The mean and deviation of pictures, by a network that counts what it encodes."""

    def __init__(self):
        super().__init__()
        self.encoded = 0
        self.last = nn.Linear(2, 3)

    def forward(self, x):
        self.encoded = len(x)
        return self.last(torch.stack([x.mean((1, 2)), x.std((1, 2))], 1))


def test_embedding_nets_encode_simulations_of_any_shape():
    """They are copied, have gradients, and encode an observation once for all of its draws."""
    theta = BOX.sample((60,))
    x = theta[:, :1, None] + theta[:, 1:, None] * torch.randn(60, 4, 5)
    given = Pooled()
    before = copy.deepcopy(given.state_dict())
    estimator = posterior_cnf(BOX, embedding_net=given, recipe=SMALL, matching=3)(theta, x)
    assert estimator.condition_shape == (4, 5)
    assert all(torch.equal(each, before[name]) for name, each in given.state_dict().items())
    (inside,) = [each for each in estimator.modules() if isinstance(each, Pooled)]
    assert inside is not given
    assert estimator.embedding_net(x).shape == (60, 3)  # as sbi's tests of them call it
    field = posterior_field(embedding_net=given, recipe=SMALL)(theta, x)
    assert field.embedding_net(x).shape == (60, 3)
    samples = estimator.sample((30,), x[:2])
    assert (samples.shape, inside.encoded) == ((30, 2, 2), 2)
    estimator.loss(theta, x).mean().backward()
    assert inside.last.weight.grad is not None
    trainer = NPE(
        BOX, posterior_cnf(BOX, embedding_net=given, recipe=SMALL, matching=1), tracker=Silent()
    ).append_simulations(theta, x)
    trainer.train(max_num_epochs=1, training_batch_size=54)
    drawn = trainer.build_posterior().sample((5,), x=x[:1], show_progress_bars=False)
    assert drawn.shape == (5, 2)


def test_simulations_of_any_shape_need_no_embedding_net():
    theta = BOX.sample((30,))
    estimator = fit(theta, theta.unsqueeze(2).expand(30, 2, 3) + torch.randn(30, 2, 3), steps=1)
    assert (estimator.condition_shape, estimator.flow.context_dim) == ((2, 3), 6)


THETA, X = torch.rand(20, 2), torch.rand(20, 3)
NAN = X.clone()
NAN[3, 1] = torch.nan
FLAT = torch.stack([THETA[:, 0], torch.ones(20)], 1)


@pytest.mark.parametrize(
    ("theta", "x", "message"),
    [
        (THETA, NAN, "finite observations; got nan in 1 of 20 rows: drop these rows"),
        (NAN, X, "finite parameters; got nan in 1 of 20 rows: drop these rows"),
        (THETA[:1], X[:1], "at least 3 pairs; got 1: simulate more"),
        (FLAT, X, r"parameters that vary; got constant: 1 \(columns, counted from 0"),
        (THETA[:5], X, r"as many of both; got \(5, 2\) and \(20, 3\)"),
        (THETA[:, 0], X, r"got \(20,\) and \(20, 3\): single numbers take unsqueeze"),
        (THETA + 1, X, "within the support; got 20 of 20 outside, .*: give the prior"),
    ],
)
def test_bad_pairs_are_refused(theta, x, message):
    prior = BoxUniform(torch.zeros(2), torch.ones(2)) if theta.shape[-1] == 2 else None
    for call in (fit, posterior_cnf(prior)):
        named = {"prior": prior} if call is fit else {}
        with pytest.raises(ValueError, match=f"^Expected .*{message}") as caught:
            call(theta, x, **named)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="Expected target to be a tensor; got list"):
        fit([[1.0]], x)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_observations_that_are_not_finite_are_refused(estimator, posterior, value):
    """By every method: draws would be NaN, and sbi would reject them forever."""
    x = torch.tensor([[0.5, 0.5], [0.5, value]])
    calls = (
        lambda: estimator.sample((3,), x),
        lambda: estimator.sample_and_log_prob((3,), x),
        lambda: estimator.log_prob(THETA[:2], x),
        lambda: posterior.sample_batched((3,), x, show_progress_bars=False),
    )
    for call in calls:
        with pytest.raises(ValueError, match="to condition on; got (nan|inf) in 1 of 2 rows"):
            call()


def test_constant_simulations_have_no_likelihood():
    with pytest.raises(ValueError, match=r"observations that vary; got constant: 1 "):
        likelihood_cnf(matching=1)(THETA, FLAT)
    constant = likelihood_cnf(recipe=SMALL, matching=1)(FLAT, X)
    assert constant.log_prob(X, FLAT).isfinite().all()


def test_supports_and_nets_of_another_kind_are_refused():
    shares = Dirichlet(torch.ones(2))
    with pytest.raises(ValueError, match="Expected a support of intervals, half-lines .* Simplex"):
        posterior_cnf(shares)(shares.sample((9,)), X[:9])
    with pytest.raises(ValueError, match=r"to \(2, features\); got \(2, 3, 1\)"):
        fit(THETA, X, embedding_net=nn.Unflatten(1, (3, 1)))
    with pytest.raises(ValueError, match="matching of at least 1 step, .* got 0"):
        posterior_cnf(matching=0)
    with pytest.raises(ValueError, match="objective mle with batch_norm"):
        posterior_cnf(recipe=Recipe(objective="mle", batch_norm=True))(THETA, X)


def test_the_adapter_is_found_by_its_name():
    assert cnf.adapters.sbi.fit is fit
    assert "sbi" in dir(cnf.adapters)


def gaussian_pairs(count: int) -> tuple[MultivariateNormal, torch.Tensor, torch.Tensor]:
    """A linear Gaussian simulator x = A θ + ε: its prior, parameters and simulations."""
    prior = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
    theta = prior.sample((count,))
    return prior, theta, theta @ MAP.T + 0.5 * torch.randn(count, 3)


MAP = torch.tensor([[1.0, 0.0], [0.5, -1.0], [1.0, 1.0]])


def exact_posterior(prior: MultivariateNormal, x: torch.Tensor) -> MultivariateNormal:
    precision = prior.precision_matrix + MAP.T @ MAP / 0.25
    return MultivariateNormal(
        torch.linalg.solve(precision, MAP.T @ x / 0.25), precision_matrix=precision
    )


def deviation(samples: torch.Tensor, exact: MultivariateNormal) -> float:
    """Return the KL divergence of the samples' Gaussian from the exact one, in nats."""
    fitted = MultivariateNormal(samples.mean(0), samples.T.cov())
    return torch.distributions.kl_divergence(fitted, exact).item()


def test_a_linear_gaussian_posterior_is_found():
    torch.manual_seed(0)
    prior, theta, x = gaussian_pairs(2000)
    estimator = fit(theta, x, recipe=SMALL, steps=150)
    for observed in (torch.tensor([0.5, 1.0, -0.5]), torch.tensor([-1.0, 0.0, 1.0])):
        samples = estimator.sample((4000,), observed.unsqueeze(0))[:, 0]
        assert deviation(samples, exact_posterior(prior, observed)) < 0.05


@pytest.mark.slow
def test_trained_posteriors_are_exact_and_calibrated():
    """By each of sbi's trainers: NPE, NLE with MCMC, FMPE."""
    torch.manual_seed(0)
    prior, theta, x = gaussian_pairs(3000)
    observed = torch.tensor([0.5, 1.0, -0.5])
    exact = exact_posterior(prior, observed)
    mcmc = MCMCPosteriorParameters(
        num_chains=50,
        warmup_steps=20,
        thin=1,
        init_strategy_parameters={"num_candidate_samples": 100},
    )
    trainers = (
        NPE(prior, posterior_cnf(prior), tracker=Silent()),
        NLE(prior, likelihood_cnf(), tracker=Silent()),
        FMPE(prior, posterior_field(), tracker=Silent()),
    )
    for trainer in trainers:
        name = type(trainer).__name__
        rate = {"learning_rate": 3e-3} if name == "FMPE" else {}
        trained = trainer.append_simulations(theta, x).train(max_num_epochs=30, **rate)
        if isinstance(trainer, NLE):
            posterior = trainer.build_posterior(trained.discretized(), posterior_parameters=mcmc)
        else:
            posterior = trainer.build_posterior()
            _, fresh, simulated = gaussian_pairs(300)
            ranks, averaged = run_sbc(
                fresh, simulated, posterior, num_posterior_samples=300, show_progress_bar=False
            )
            checked = check_sbc(ranks, fresh, averaged, 300)
            assert (checked["ks_pvals"] > 1e-3).all(), name
            assert (checked["c2st_dap"] < 0.6).all(), name
        samples = posterior.sample((2000,), x=observed, show_progress_bars=False)
        assert deviation(samples, exact) < 0.05, name
