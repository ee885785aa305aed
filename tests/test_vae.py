"""VAEs of images: likelihoods, networks, posteriors, training, bounds, saved models."""

import json
import math
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import ComposeTransform, kl_divergence
from torch.nn.utils import parameters_to_vector

from cnf.storage import with_checksum
from cnf.training import TrainingError
from cnf.training.checkpoint import TrainingState
from cnf.vae import VAE, Plan, fit, grey, load, score
from cnf.vae.architecture import LIKELIHOODS, NETWORKS, POSTERIORS, Architecture
from cnf.vae.likelihoods import Levels
from cnf.vae.networks import GatedConvolution
from cnf.vae.posteriors import GaussianPosterior, PlanarPosterior
from cnf.vae.training import _VAERun
from cnf.variational import AMORTIZATIONS

SMALL = Architecture((8, 8), 16, hidden=(16,), latent_dim=2, features=8, field=(8,), flows=3)


def small(**changes):
    torch.manual_seed(0)
    return VAE(replace(SMALL, **changes))


def weights_of(module):
    return parameters_to_vector(module.parameters()).detach().clone()


def stripes(rows, seed=0):
    """Images of one bright row or column out of eight, on dark ground."""
    order = np.random.default_rng(seed).integers(16, size=rows)
    images = np.full((rows, 8, 8), 1, np.uint8)
    for image, place in zip(images, order, strict=True):
        image[(place, slice(None)) if place < 8 else (slice(None), place - 8)] = 15
    return grey(images, 16)


def test_levels_have_the_logistic_distributions_mass_and_finite_gradients():
    for white, *outputs in ((1, 0.0, 0.0), (16, 9.0, -3.0), (255, -3.0, -20.0), (16, 1.0, 5.0)):
        x = torch.linspace(0, 1, white + 1, dtype=torch.float64).unsqueeze(1)
        parameters = torch.tensor(outputs, dtype=torch.float64).view(2, 1)
        assert Levels(white).log_prob(parameters, x).exp().sum().item() == pytest.approx(1)
    x = torch.tensor([[3 / 16]], dtype=torch.float64)
    outputs = torch.tensor([[-0.7], [0.4]], dtype=torch.float64)
    mean, scale = 0.5 - 0.25 * 0.7, math.exp(0.4 - 2)
    edges = np.array([3.5, 2.5]) / 16
    above, below = 1 / (1 + np.exp((mean - edges) / scale))  # the logistic distribution function
    found = Levels(16).log_prob(outputs, x)
    assert found.item() == pytest.approx(math.log(above - below), rel=1e-10)
    outputs = torch.tensor([[400.0], [-30.0]], requires_grad=True)
    log_p = Levels(255).log_prob(outputs, torch.tensor([[0.0], [0.5], [1.0]]))
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert outputs.grad.isfinite().all()


def test_bernoullis_grey_is_a_probability_of_white():
    likelihood = LIKELIHOODS["bernoulli"](255)
    x = likelihood.observe(torch.tensor([[0.0, 0.25, 1.0]]).expand(20_000, 3))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert x.mean(0).tolist() == pytest.approx([0, 0.25, 1], abs=0.02)
    outputs = torch.tensor([[[0.3, -1.0, 2.0]]])
    exact = torch.distributions.Bernoulli(logits=outputs[:, 0]).log_prob(x).sum(1)
    torch.testing.assert_close(likelihood.log_prob(outputs, x), exact)
    torch.testing.assert_close(likelihood.mean(outputs), outputs[:, 0].sigmoid())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_takes_several_draws_at_once(name):
    likelihood = LIKELIHOODS[name](16)
    outputs = torch.randn(7, 3, likelihood.channels, 5)
    x = likelihood.observe(torch.rand(3, 5).mul(16).round() / 16)
    together = likelihood.log_prob(outputs, x)
    assert together.shape == (7, 3)
    torch.testing.assert_close(together[2], likelihood.log_prob(outputs[2], x))
    assert likelihood.mean(outputs).shape == (7, 3, 5)


@pytest.mark.parametrize("pixels", [28 * 28, 28 * 20])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_fit_the_images(pixels, name):
    networks = NETWORKS[name]((28, pixels // 28), 2, 6, (12, 10))
    assert networks.encoder(torch.rand(3, pixels)).shape == (3, networks.features)
    assert networks.decoder(torch.randn(3, 6)).shape == (3, 2, pixels)
    if name == "mlp":  # mirrored
        parts = ((networks.encoder, [12, 10]), (networks.decoder, [10, 12, 2 * pixels]))
        for part, widths in parts:
            assert [p.shape[0] for p in part.parameters() if p.ndim == 2] == widths


def test_gated_convolutions():
    gated = GatedConvolution(lambda channels: nn.Conv2d(1, channels, 3), 2)
    x = torch.randn(5, 1, 6, 6)
    y, gate = gated.both(x).split(2, 1)
    torch.testing.assert_close(gated(x), y * torch.sigmoid(gate))
    with pytest.raises(ValueError, match=r"multiples of 4 for network conv; got 8 x 6\. Crop"):
        VAE(Architecture((8, 6), 255, network="conv"))


@pytest.mark.parametrize("posterior", ["gaussian", "planar", *AMORTIZATIONS])
def test_every_posterior_starts_as_the_gaussian_learns_and_is_saved(posterior, tmp_path):
    amortize = {"posterior": "cnf", "amortize": posterior} if posterior in AMORTIZATIONS else {}
    vae, x = small(**{"posterior": posterior, **amortize}), stripes(300)
    torch.manual_seed(0)
    gaussian = vae.bound(x[:50], settling=True)
    torch.manual_seed(0)
    before = vae.bound(x[:50]).value
    torch.testing.assert_close(before, gaussian.value)
    plan = Plan(3, batch_size=50, learning_rate=2e-2, settling=0.4)
    records = fit(vae, x, stripes(50, seed=1), plan)
    assert [record.epoch for record in records] == [1, 2, 3]
    assert records[-1].validation_elbo > before.mean().item() + 5
    vae.save(tmp_path, {"seed": 3})
    loaded = load(tmp_path)
    assert loaded.architecture == vae.architecture
    for name, tensor in vae.state_dict().items():
        assert tensor.isfinite().all()
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_the_gaussian_posteriors_bound_is_the_one_with_a_closed_form():
    vae, x = small(posterior="gaussian"), stripes(4)
    bound = vae.bound(x, samples=20_000)
    exact = kl_divergence(vae.posterior_of(x).base_dist, vae.prior.base_dist).sum(-1)
    torch.testing.assert_close(bound.kl, exact, atol=0.03, rtol=0.03)


def test_planar_flows_log_density_is_the_change_of_variables():
    posterior = PlanarPosterior(3, 5, flows=4).double()
    for parameter in posterior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    h, loc, scale = torch.randn(1, 5), torch.randn(1, 3), torch.rand(1, 3) + 0.5
    q = posterior(h.double(), loc.double(), scale.double())
    torch.manual_seed(1)
    z, log_q = q.rsample_and_log_prob()
    torch.manual_seed(1)
    before = q.base_dist.rsample()
    composed = ComposeTransform(q.transforms)
    torch.testing.assert_close(composed(before), z)
    jacobian = torch.autograd.functional.jacobian(composed, before)[0, :, 0]
    exact = q.base_dist.log_prob(before) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_q, exact)
    assert q.rsample((6,)).shape == (6, 1, 3)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_broken_encoders_are_reported(posterior):
    vae = small(posterior=posterior)
    torch.nn.init.constant_(vae.head.bias, math.nan)
    with pytest.raises(ValueError, match="Expected loc to be finite; got nan"):
        vae.bound(stripes(3))
    with pytest.raises(ValueError, match=r"scale to be finite and above zero; got 0.0 at \(1, 0\)"):
        GaussianPosterior()(None, torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))


def test_configurations_are_checked():
    of_image = {"size": (8, 8), "white": 16}
    for kind, name, value, message in (
        (Architecture, "posterior", "iaf", "one of gaussian, planar, cnf; got 'iaf'"),
        (Architecture, "amortize", "all", "one of none, bias, rank, hyper; got 'all'"),
        (Architecture, "latent_dim", 0, "finite and at least 1; got 0"),
        (Architecture, "hidden", (), "finite and at least 1"),
        (Architecture, "field", (4, 0), "finite and at least 1"),
        (Plan, "epochs", 0, "finite and above 0; got 0"),
        (Plan, "max_grad_norm", -1.0, "finite and above 0"),
        (Plan, "warmup", 1.0, "finite and at least 0 and below 1"),
        (Plan, "weight_decay", -1.0, "finite and at least 0"),
    ):
        with pytest.raises(ValueError, match=f"{kind.__name__.lower()}'s {name} to be {message}"):
            kind(**{**(of_image if kind is Architecture else {}), name: value})
    with pytest.raises(ValueError, match="sides and a value of white of at least 1"):
        Architecture((8, 0), 16)


def test_the_score_is_below_and_near_log_p_by_accurate_solves(monkeypatch):
    vae = small(posterior="cnf")
    fit(vae, stripes(600), stripes(50, seed=1), Plan(2, batch_size=50, learning_rate=1e-2))
    torch.manual_seed(0)
    x = vae.likelihood.observe(stripes(40, seed=2))
    torch.manual_seed(0)
    bounds = score(vae, x, samples=500)
    assert bounds.elbo.shape == bounds.nll.shape == (40,)
    assert (-bounds.nll).mean() > bounds.elbo.mean()
    # On a grid of the two latents log p(x) is known.
    side = torch.linspace(-5, 5, 101)
    z = torch.cartesian_prod(side, side).unsqueeze(1)
    with torch.no_grad():
        joint = vae.prior.log_prob(z) + vae.log_likelihood(x)(z.expand(-1, 40, -1))
    exact = joint.logsumexp(0) + 2 * math.log(side[1] - side[0])
    assert (exact + bounds.nll).mean().item() == pytest.approx(0, abs=0.02)
    assert (bounds.elbo < exact + 0.3).all()
    assert bounds.nll.mean() < score(vae, x, samples=1).nll.mean()
    accurate = vae.posterior.accurate()
    spied = Mock(side_effect=type(accurate).forward)
    monkeypatch.setattr(type(accurate), "forward", lambda *encoded: spied(*encoded))
    score(vae, x[:3], samples=2)
    spied.assert_called()
    for call in spied.call_args_list:
        assert call.args[0].flow.settings == accurate.flow.settings
    assert accurate.flow.settings != vae.posterior.flow.settings


def test_the_same_seed_trains_the_same_vae():
    trained = []
    for seed in (3, 3, 4):
        vae = small()
        torch.rand(1 + len(trained))  # draws before make no difference
        before = torch.get_rng_state()
        fit(vae, stripes(100), stripes(20, seed=1), Plan(2, batch_size=50), seed)
        assert torch.equal(torch.get_rng_state(), before)
        trained.append(weights_of(vae))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_an_interrupted_run_is_resumed_exactly(tmp_path):
    x, held_out, plan = stripes(100), stripes(20, seed=1), Plan(4, batch_size=50)
    whole, parted, state = small(), small(), tmp_path / "state"
    expected = fit(whole, x, held_out, plan)

    def stop(step):
        if step.progress > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(parted, x, held_out, plan, callbacks=[stop], state=state)
    parted = VAE(SMALL)  # other first weights
    found = fit(parted, x, held_out, plan, state=str(state))
    for one, other in zip(found, expected, strict=True):
        assert replace(one, seconds=0) == replace(other, seconds=0)
    assert torch.equal(weights_of(parted), weights_of(whole))
    saved = TrainingState.read(state)
    run = {{"max_grad_norm": "clip"}.get(name, name): value for name, value in saved.run.items()}
    progress = {"best_elbo": -saved.progress["best_nll"], "failures": 0}
    progress["records"] = saved.progress["records"]
    tensors = {name.replace("random.", "generators."): each for name, each in saved.tensors.items()}
    TrainingState(run, progress, tensors).write(state)  # as version 0.1.0 wrote it
    assert fit(parted, x, held_out, plan, state=state) == found
    for images, other, message in (
        (x, replace(plan, max_grad_norm=5.0), "its max_grad_norm was 100.0, and now is 5.0"),
        (x, replace(plan, learning_rate=1e-2), "learning_rate was 0.001, and now is 0.01"),
        (x.flip(0), plan, "its images was "),
    ):
        with pytest.raises(ValueError, match=message):
            fit(parted, images, held_out, other, state=state)


def test_the_posteriors_flow_learns_once_the_gaussian_has_settled():
    vae, seen = small(posterior="cnf"), []
    before = weights_of(vae.posterior)
    plan = Plan(2, batch_size=25, settling=0.5)
    watch = [lambda step: seen.append(weights_of(vae.posterior))]
    fit(vae, stripes(100), stripes(20), plan, callbacks=watch)
    assert [torch.equal(before, weights) for weights in seen] == [True] * 4 + [False] * 4


def test_the_best_epoch_before_an_interruption_is_kept(tmp_path, monkeypatch):
    """The run stops in the fourth epoch; in the first the KL term lacks its full weight."""
    bounds = iter([10.0, 9.0, 5.0, 4.0, 6.0])
    monkeypatch.setattr(_VAERun, "validate", lambda run: (next(bounds), 0.0))
    weights = []

    def watch(step):
        if step.record is not None:
            weights.append(weights_of(step.vae))
        elif len(weights) == 3:
            raise KeyboardInterrupt

    arguments = stripes(100), stripes(20), Plan(5, batch_size=50, annealing=0.3)
    with pytest.raises(KeyboardInterrupt):
        fit(small(), *arguments, callbacks=[watch], state=tmp_path / "state")
    vae = VAE(SMALL)
    fit(vae, *arguments, state=tmp_path / "state")
    assert torch.equal(weights_of(vae), weights[1])


def test_the_plan_is_followed_and_callbacks_see_each_step(monkeypatch):
    vae, seen, steps, made = small(posterior="gaussian"), [], [], []
    bound, optimizer, clip = vae.bound, torch.optim.AdamW, Mock(wraps=nn.utils.clip_grad_norm_)

    def spied(x, beta=1.0, samples=1, settling=False):
        if samples == 1:
            seen.append((beta, made[0].param_groups[0]["lr"], settling))
        return bound(x, beta, samples, settling)

    def make(*arguments, **options):
        made.append(optimizer(*arguments, **options))
        return made[0]

    monkeypatch.setattr(torch.optim, "AdamW", make)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    vae.bound = spied
    plan = Plan(4, 50, 1e-2, annealing=0.5, settling=0.25, weight_decay=0.1, max_grad_norm=7.0)
    fit(vae, stripes(100), stripes(20), plan, callbacks=[steps.append])
    progress = [i / 8 for i in range(9)]
    assert seen == [(plan.beta(p), plan.rate(p), plan.is_settling(p)) for p in progress[:8]]
    assert made[0].param_groups[0]["weight_decay"] == 0.1
    assert [call.args[1] for call in clip.call_args_list] == [7.0] * 8
    assert [step.progress for step in steps] == pytest.approx(progress[1:])
    assert [step.record is not None for step in steps] == [False, True] * 4


def failing_after(most):
    """A VAE whose likelihood is nan after a number of calls."""
    vae, calls = small(posterior="gaussian"), []
    log_prob = vae.likelihood.log_prob

    def failing(outputs, x):
        calls.append(x)
        return log_prob(outputs, x) * (math.nan if len(calls) > most else 1)

    vae.likelihood.log_prob = failing
    return vae


def test_training_that_fails_keeps_the_best_weights_and_warns(monkeypatch):
    images, plan = (stripes(100), stripes(20)), Plan(10, batch_size=10)
    with pytest.raises(TrainingError, match="20 steps in a row failed.*The loss is nan"):
        fit(failing_after(0), *images, plan)
    with pytest.warns(UserWarning, match="Training ended early: diverged: The loss is nan"):
        records = fit(failing_after(11), *images, replace(plan, annealing=0, settling=0))
    assert math.isfinite(records[0].validation_elbo)
    assert [record.skipped for record in records] == [0, 10, 10]
    monkeypatch.setattr(_VAERun, "validate", lambda run: (-math.inf, math.nan))
    with pytest.raises(TrainingError, match="none of 2 validations could be scored"):
        fit(small(), *images, Plan(2))


def test_images_are_checked():
    for train, rows, message in (
        (torch.ones(3, 64), 0, r"n at least 1; got shape \(0, 64\)"),
        (torch.zeros(5, 60), 3, r"\(n, 64\), n at least 1; got shape \(5, 60\)"),
        (255 * torch.eye(64), 3, r"from 0 to 1.*got 0\.0 to 255\.0\. Divide"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(small(), train, torch.ones(rows, 64), Plan(1))
    for name, pixel in (("bernoulli", 0.5), ("levels", 255.0)):
        with pytest.raises(ValueError, match=f"Expected pixels .*; got {pixel}"):
            score(small(likelihood=name), torch.full((3, 64), pixel), 5)


def test_saved_vaes_keep_tied_weights_and_are_of_known_architectures(tmp_path):
    vae = small(hidden=(16, 16))
    vae.decoder[2].weight = vae.encoder[2].weight
    vae.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.decoder[2].weight is loaded.encoder[2].weight
    assert torch.equal(loaded.decoder[2].weight, vae.encoder[2].weight)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text().replace('"flows"', '"flaws"'))
    path.write_text(json.dumps(with_checksum(config)))
    with pytest.raises(ValueError, match="Expected a VAE of cnf-flows in .*'flaws'"):
        load(tmp_path)
