"""VAEs of images: likelihoods, networks, posteriors, training, bounds, what is saved."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from cnf.storage import with_checksum
from cnf.training.checkpoint import TrainingState
from cnf.training.loop import TrainingError
from cnf.vae import (
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    VAE,
    Architecture,
    Plan,
    fit,
    grey,
    load,
    score,
)
from cnf.vae.likelihoods import Levels
from cnf.vae.networks import GatedConvolution
from cnf.vae.planar import PlanarPosterior
from cnf.vae.posteriors import GaussianPosterior
from cnf.vae.training import _VAERun

SMALL = Architecture((8, 8), 16, hidden=(16,), latent_dim=2, features=8, field=(8,), flows=3)
POSTERIOR_CHANGES = [
    *({"posterior": name} for name in ("gaussian", "planar")),
    *({"posterior": "cnf", "amortize": name} for name in ("none", "bias", "rank", "hyper")),
]


def small(**changes):
    torch.manual_seed(0)
    return VAE(replace(SMALL, **changes))


def stripes(rows, seed=0):
    """Images of one bright row or column out of eight, on dark ground."""
    order = np.random.default_rng(seed).integers(16, size=rows)
    images = np.full((rows, 8, 8), 1, np.uint8)
    for image, place in zip(images, order, strict=True):
        image[(place, slice(None)) if place < 8 else (slice(None), place - 8)] = 15
    return grey(images, 16)


# Likelihoods


@pytest.mark.parametrize("white", [1, 16, 255])
@pytest.mark.parametrize("outputs", [(0.0, 0.0), (9.0, -3.0), (-3.0, -20.0), (1.0, 5.0)])
def test_the_levels_probabilities_sum_to_one(white, outputs):
    x = torch.linspace(0, 1, white + 1, dtype=torch.float64).unsqueeze(1)
    parameters = torch.tensor(outputs, dtype=torch.float64).view(2, 1)
    p = Levels(white).log_prob(parameters, x).exp()
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64))


def test_a_level_has_the_logistic_distributions_mass_about_it():
    from scipy.stats import logistic

    x = torch.tensor([[3 / 16]], dtype=torch.float64)
    outputs = torch.tensor([[-0.7], [0.4]], dtype=torch.float64)
    mean, scale = 0.5 - 0.25 * 0.7, math.exp(0.4 - 2)
    edges = np.array([3.5, 2.5]) / 16
    above, below = logistic.cdf(edges, mean, scale)
    found = Levels(16).log_prob(outputs, x)
    assert found.item() == pytest.approx(math.log(above - below), rel=1e-10)


def test_levels_far_from_the_mean_have_finite_log_probabilities_and_gradients():
    outputs = torch.tensor([[400.0], [-30.0]], requires_grad=True)
    log_p = Levels(255).log_prob(outputs, torch.tensor([[0.0], [0.5], [1.0]]))
    assert log_p.isfinite().all()
    log_p.sum().backward()
    assert outputs.grad.isfinite().all()


def test_grey_is_a_probability_of_white_to_bernoulli():
    likelihood = LIKELIHOODS["bernoulli"](255)
    torch.manual_seed(0)
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


# Networks


@pytest.mark.parametrize("size", [(28, 28), (28, 20)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_fit_the_images(size, name):
    networks = NETWORKS[name](size, 2, 6, (12, 10))
    x = torch.rand(3, size[0] * size[1])
    assert networks.encoder(x).shape == (3, networks.features)
    assert networks.decoder(torch.randn(3, 6)).shape == (3, 2, size[0] * size[1])


def test_perceptrons_mirror_each_other():
    networks = NETWORKS["mlp"]((4, 4), 1, 3, (12, 10))
    shapes = [
        [tuple(p.shape) for p in network.parameters() if p.ndim == 2]
        for network in (networks.encoder, networks.decoder)
    ]
    assert shapes == [[(12, 16), (10, 12)], [(10, 3), (12, 10), (16, 12)]]


def test_a_gate_multiplies():
    gated = GatedConvolution(lambda channels: torch.nn.Conv2d(1, channels, 3), 2)
    x = torch.randn(5, 1, 6, 6)
    y, gate = gated.both(x).split(2, 1)
    torch.testing.assert_close(gated(x), y * torch.sigmoid(gate))


def test_convolutions_ask_for_sides_that_can_be_halved_twice():
    with pytest.raises(ValueError, match=r"multiples of 4 for network conv; got 8 x 6\. Crop"):
        VAE(Architecture((8, 6), 255, network="conv"))


# The VAE


@pytest.mark.parametrize("changes", POSTERIOR_CHANGES, ids=lambda each: "-".join(each.values()))
def test_every_posterior_learns(changes):
    vae, x = small(**changes), stripes(600)
    before = vae.bound(x[:100]).value.mean().item()
    records = fit(vae, x, stripes(100, seed=1), Plan(4, batch_size=50, learning_rate=1e-2))
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert records[-1].validation_elbo > before + 5
    assert all(p.isfinite().all() for p in vae.parameters())


def test_the_gaussian_posteriors_bound_is_the_one_with_a_closed_form():
    vae, x = small(posterior="gaussian"), stripes(4)
    torch.manual_seed(0)
    bound = vae.bound(x, samples=20_000)
    exact = kl_divergence(vae.posterior_of(x).base_dist, vae.prior.base_dist).sum(-1)
    torch.testing.assert_close(bound.kl, exact, atol=0.03, rtol=0.03)


def test_planar_flows_log_density_is_the_change_of_variables():
    torch.manual_seed(0)
    posterior = PlanarPosterior(3, 5, flows=4).double()
    for parameter in posterior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    h, loc = torch.randn(1, 5).double(), torch.randn(1, 3).double()
    scale = torch.rand(1, 3).double() + 0.5
    q = posterior(h, loc, scale)
    torch.manual_seed(1)
    z, log_q = q.rsample_and_log_prob()
    torch.manual_seed(1)
    before = q.base.rsample()

    def carried(z):
        for transform in q.transforms:
            z = transform(z)
        return z

    torch.testing.assert_close(carried(before), z)
    jacobian = torch.autograd.functional.jacobian(carried, before)[0, :, 0]
    exact = q.base.log_prob(before) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_q, exact)
    assert q.rsample((6,)).shape == (6, 1, 3)


def test_an_unknown_name_is_reported_with_the_known_ones():
    with pytest.raises(ValueError, match="posterior to be one of gaussian, planar, cnf; got 'iaf'"):
        small(posterior="iaf")


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_an_encoder_that_breaks_is_reported(posterior):
    vae = small(posterior=posterior)
    torch.nn.init.constant_(vae.head.bias, math.nan)
    with pytest.raises(ValueError, match="Expected loc to be finite; got nan"):
        vae.bound(stripes(3))


def test_a_scale_of_zero_is_reported():
    with pytest.raises(ValueError, match=r"scale to be finite and above zero; got 0.0 at \(1, 0\)"):
        GaussianPosterior()(None, torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))


def test_an_architecture_has_sizes_of_at_least_one():
    for name, value in (("latent_dim", 0), ("hidden", ()), ("hidden", (4, 0)), ("flows", -1)):
        with pytest.raises(ValueError, match=f"Expected {name} of at least 1; got"):
            replace(SMALL, **{name: value})


# Bounds


def test_the_score_is_below_and_near_log_p():
    vae = small(posterior="cnf", amortize="bias")
    fit(vae, stripes(600), stripes(50, seed=1), Plan(2, batch_size=50, learning_rate=1e-2))
    torch.manual_seed(0)
    x = vae.likelihood.observe(stripes(40, seed=2))
    torch.manual_seed(0)
    bounds = score(vae, x, samples=500)
    assert bounds.elbo.shape == bounds.nll.shape == (40,)
    assert (-bounds.nll).mean() > bounds.elbo.mean()
    # On a grid of the two latents log p(x) is known.
    side = torch.linspace(-5, 5, 201)
    z = torch.cartesian_prod(side, side).unsqueeze(1)
    with torch.no_grad():
        joint = vae.prior.log_prob(z) + vae.log_likelihood(x)(z.expand(-1, 40, -1))
    exact = joint.logsumexp(0) + 2 * math.log(side[1] - side[0])
    assert (exact + bounds.nll).mean().item() == pytest.approx(0, abs=0.02)
    assert (bounds.elbo < exact + 0.3).all()
    few = score(vae, x, samples=1)
    assert bounds.nll.mean() < few.nll.mean()


def test_the_score_solves_with_care(monkeypatch):
    vae, seen = small(posterior="cnf", amortize="bias"), []
    accurate = vae.posterior.accurate()
    solved = type(accurate).forward

    def spied(posterior, *encoded):
        seen.append(posterior.flow.settings)
        return solved(posterior, *encoded)

    monkeypatch.setattr(type(accurate), "forward", spied)
    score(vae, torch.zeros(3, 64), samples=2)
    assert all(settings == accurate.flow.settings for settings in seen)
    assert seen
    assert accurate.flow.settings != vae.posterior.flow.settings


# Training


def test_the_plan_is_held_to_its_range():
    for name, value in (
        ("epochs", 0),
        ("max_grad_norm", -1.0),
        ("warmup", 1.0),
        ("weight_decay", -1.0),
    ):
        with pytest.raises(ValueError, match=f"Expected {name} "):
            Plan(**{name: value})


def test_the_same_seed_trains_the_same_vae():
    x, held_out = stripes(100), stripes(20, seed=1)
    one, other, third = small(), small(), small()
    for vae, seed in ((one, 3), (other, 3), (third, 4)):
        torch.rand(seed)  # what was drawn before makes no difference
        fit(vae, x, held_out, Plan(2, batch_size=50), seed)
    weights = [torch.cat([p.flatten() for p in vae.parameters()]) for vae in (one, other, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_is_interrupted_goes_on_as_if_it_had_not_been(tmp_path):
    x, held_out, plan = stripes(100), stripes(20, seed=1), Plan(4, batch_size=50)
    whole, parted = small(), small()
    expected = fit(whole, x, held_out, plan)

    def stop(step):
        if step.progress > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(parted, x, held_out, plan, callbacks=[stop], state=tmp_path / "state")
    parted = VAE(SMALL)  # other first weights
    found = fit(parted, x, held_out, plan, state=str(tmp_path / "state"))
    for one, other in zip(found, expected, strict=True):
        assert replace(one, seconds=0) == replace(other, seconds=0)
    for one, other in zip(parted.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="its images was "):
        fit(parted, x.flip(0), held_out, plan, state=tmp_path / "state")
    with pytest.raises(ValueError, match="learning_rate was 0.001, and now is 0.01"):
        fit(parted, x, held_out, replace(plan, learning_rate=1e-2), state=tmp_path / "state")


def test_a_state_with_the_old_name_of_the_gradients_norm_resumes(tmp_path):
    images, state = (stripes(40), stripes(20, seed=1)), tmp_path / "state"
    fit(small(), *images, Plan(1), state=state)
    saved = TrainingState.read(state)
    run = dict(saved.run)
    run["clip"] = run.pop("max_grad_norm")
    replace(saved, run=run).write(state)
    assert len(fit(small(), *images, Plan(1), state=state)) == 1
    with pytest.raises(ValueError, match="its max_grad_norm was 100.0, and now is 5.0"):
        fit(small(), *images, Plan(1, max_grad_norm=5.0), state=state)


def test_the_epoch_that_validates_best_is_kept():
    vae, x, held_out = small(), stripes(100), stripes(50, seed=1)
    weights = {}

    def keep(step):
        if step.record is not None:
            weights[step.record.epoch] = step.vae.head.weight.detach().clone()

    plan = Plan(6, batch_size=20, learning_rate=0.05, annealing=0.5)
    records = fit(vae, x, held_out, plan, callbacks=[keep])
    # Before the KL term has its full weight no epoch counts.
    best = max(records[2:], key=lambda record: record.validation_elbo).epoch
    assert torch.equal(vae.head.weight, weights[best])


@pytest.mark.parametrize("changes", POSTERIOR_CHANGES, ids=lambda each: "-".join(each.values()))
def test_a_posterior_starts_as_the_encoders_gaussian(changes):
    vae, x = small(**changes), stripes(5)
    torch.manual_seed(0)
    gaussian = vae.bound(x, samples=3, settling=True)
    torch.manual_seed(0)
    found = vae.bound(x, samples=3)
    torch.testing.assert_close(found.value, gaussian.value)


def test_what_carries_the_gaussian_on_learns_when_it_has_settled():
    vae = small(posterior="cnf", amortize="bias")
    before = [p.detach().clone() for p in vae.posterior.parameters()]
    changed = []

    def watch(step):
        pairs = zip(before, vae.posterior.parameters(), strict=True)
        changed.append(any(not torch.equal(one, other) for one, other in pairs))

    plan = Plan(2, batch_size=25, settling=0.5)
    fit(vae, stripes(100), stripes(20), plan, callbacks=[watch])
    assert changed == [False] * 4 + [True] * 4


def test_the_best_epoch_is_kept_though_the_run_was_interrupted_after_it(tmp_path, monkeypatch):
    """Its bounds are made up: the second of five is the best, and the run stops in the fourth."""
    bounds = iter([1.0, 9.0, 5.0, 4.0, 6.0])
    monkeypatch.setattr(_VAERun, "_validate", lambda run, settling: (next(bounds), 0.0))
    weights = []

    def watch(step):
        if step.record is not None:
            weights.append(step.vae.head.weight.detach().clone())
        elif len(weights) == 3:
            raise KeyboardInterrupt

    arguments = stripes(100), stripes(20), Plan(5, batch_size=50, annealing=0, settling=0)
    with pytest.raises(KeyboardInterrupt):
        fit(small(), *arguments, callbacks=[watch], state=tmp_path / "state")
    vae = VAE(SMALL)
    fit(vae, *arguments, state=tmp_path / "state")
    assert torch.equal(vae.head.weight, weights[1])


def test_weights_that_no_validation_could_be_scored_with_are_not_kept(monkeypatch):
    monkeypatch.setattr(_VAERun, "_validate", lambda run, settling: (-math.inf, math.nan))
    with pytest.raises(TrainingError, match="bound of the validation images was never finite"):
        fit(small(), stripes(40), stripes(20), Plan(2))


def test_the_plan_is_what_is_done(monkeypatch):
    """The KL term's weight, the learning rate, the largest gradient and the weights' decay."""
    vae, seen = small(posterior="gaussian"), []
    bound, clip, optimizer = vae.bound, nn.utils.clip_grad_norm_, torch.optim.AdamW
    made = {}

    def spied(x, beta=1.0, samples=1, settling=False):
        if samples == 1:
            seen.append((beta, made["optimizer"].param_groups[0]["lr"], settling))
        return bound(x, beta, samples, settling)

    def make(*arguments, **options):
        made.update(options, optimizer=optimizer(*arguments, **options))
        return made["optimizer"]

    monkeypatch.setattr(torch.optim, "AdamW", make)
    norms = []
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda p, most: norms.append(most) or clip(p, most)
    )
    vae.bound = spied
    plan = Plan(4, 50, 1e-2, annealing=0.5, settling=0.25, weight_decay=0.1, max_grad_norm=7.0)
    fit(vae, stripes(100), stripes(20), plan)
    progress = [i / 8 for i in range(8)]
    assert seen == [(plan.beta(p), plan.rate(p), plan.is_settling(p)) for p in progress]
    assert made["weight_decay"] == 0.1
    assert norms == [7.0] * 8


def test_what_was_drawn_before_goes_on_after():
    vae = small()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(vae, stripes(40), stripes(20), Plan(1))
    assert torch.equal(torch.rand(3), expected)


def test_a_callback_sees_all_steps():
    seen = []
    fit(small(), stripes(100), stripes(20), Plan(2, batch_size=30), callbacks=[seen.append])
    assert len(seen) == 8
    assert [step.progress for step in seen] == pytest.approx([i / 8 for i in range(1, 9)])
    assert [step.record is not None for step in seen] == [False] * 3 + [True] + [False] * 3 + [True]


def test_training_that_cannot_come_right_ends():
    vae = small(posterior="gaussian")
    vae.likelihood.log_prob = lambda outputs, x: outputs.sum((-2, -1)) * math.nan
    with pytest.raises(
        TrainingError, match="20 steps in a row failed, the last one because the loss"
    ):
        fit(vae, stripes(100), stripes(20), Plan(10, batch_size=10))


def test_there_have_to_be_images():
    with pytest.raises(ValueError, match=r"n at least 1; got shape \(0, 64\)"):
        fit(small(), stripes(3), stripes(0), Plan(1))
    with pytest.raises(ValueError, match=r"shape \(n, 64\), n at least 1; got shape \(5, 60\)"):
        fit(small(), torch.zeros(5, 60), stripes(3), Plan(1))
    with pytest.raises(ValueError, match=r"grey images from 0 to 1.*got 0\.0 to 255\.0\. Divide"):
        fit(small(), 255 * torch.eye(64), stripes(3), Plan(1))


@pytest.mark.parametrize(("name", "pixel"), [("bernoulli", 0.5), ("levels", 255.0)])
def test_what_is_no_image_is_not_scored(name, pixel):
    with pytest.raises(ValueError, match=f"Expected pixels .*; got {pixel}"):
        score(small(likelihood=name), torch.full((3, 64), pixel), 5)


# Saving


@pytest.mark.parametrize("changes", POSTERIOR_CHANGES, ids=lambda each: "-".join(each.values()))
def test_what_is_saved_comes_back(tmp_path, changes):
    vae = small(**changes)
    vae.save(tmp_path, {"seed": 3})
    loaded = load(tmp_path)
    assert loaded.architecture == vae.architecture
    for one, other in zip(loaded.parameters(), vae.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_no_vae_is_not_loaded(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        load(tmp_path)
    small().save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="the SHA-256 of"):
        load(tmp_path)
    small().save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text().replace('"flows"', '"flaws"'))
    path.write_text(json.dumps(with_checksum(config)))
    with pytest.raises(ValueError, match="Expected a VAE of cnf-flows in .*'flaws'"):
        load(tmp_path)


def test_tied_weights_of_a_vae_are_tied_again(tmp_path):
    vae = small(hidden=(16, 16))
    vae.decoder[2].weight = vae.encoder[2].weight
    vae.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.decoder[2].weight is loaded.encoder[2].weight
    assert torch.equal(loaded.decoder[2].weight, vae.encoder[2].weight)
