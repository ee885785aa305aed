"""On a GPU: the same numbers as on the CPU, and one wait for it in each step of a solve."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from helpers import standard
from torch.nn.utils import parameters_to_vector

import cnf
from cnf import vae
from cnf.layers import Argmax, Bounded, Concatenate, Dequantize, Identity, Positive, Whiten
from cnf.training.recipes import RECIPES
from cnf.vae.figures import posterior_figure, traversal_figure

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

QUICK = dataclasses.replace(
    RECIPES["table-small"], hidden=(16, 16), batch_size=64, matching_batch=64, validation_rows=100
)


def flow_of(context_dim=0, **options):
    """A flow in float64 whose field is far from zero."""
    flow = cnf.ffjord(3, hidden=(16, 16), context_dim=context_dim, **options).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return flow


def gradients(flow, x):
    found = torch.autograd.grad(flow.log_prob(x).sum(), list(flow.parameters()))
    return torch.cat([each.flatten() for each in found]).cpu()


@pytest.mark.parametrize("gradient", ["checkpoint", "backprop", "backsolve"])
@pytest.mark.parametrize("step", ["joint", "per_sample"])
def test_log_prob_and_its_gradient_are_the_cpus(gradient, step):
    flow = flow_of().with_solver(gradient=gradient, step=step, rtol=1e-8, atol=1e-8)
    x = torch.randn(50, 3, dtype=torch.float64)
    expected, expected_gradients = flow.log_prob(x).detach(), gradients(flow, x)
    flow, x = flow.cuda(), x.cuda()
    found = flow.log_prob(x)
    assert found.is_cuda
    torch.testing.assert_close(found.detach().cpu(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradients(flow, x), expected_gradients, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("field", ["concat_squash", "residual", "hyper"])
@pytest.mark.parametrize("divergence", ["auto", "exact", "hutchinson"])
def test_every_divergence_scores_and_draws_there(field, divergence):
    flow = flow_of(2, field=field).with_solver(divergence=divergence).cuda()
    context = torch.randn(20, 2, dtype=torch.float64, device="cuda")
    x, log_prob = flow.sample_and_log_prob((), context)
    scores = flow.score(x, context)
    assert x.is_cuda
    assert log_prob.isfinite().all()
    assert scores.log_prob.isfinite().all()
    if divergence != "hutchinson":
        torch.testing.assert_close(scores.log_prob, log_prob, rtol=0, atol=1e-3)


def test_columns_of_every_kind_are_modelled_there():
    kinds = [Positive([0.0]), Bounded([0.0], [1.0]), Dequantize(1), Argmax([0.5, 0.3, 0.2])]
    columns = Concatenate([Identity(1), *kinds], [[i] for i in range(5)])
    flow = cnf.Flow(standard(6, torch.float32), [Whiten(6), columns]).cuda()
    x = flow.sample(100)
    assert x.is_cuda
    assert (x[:, 4] == x[:, 4].floor()).all()
    assert flow.log_prob(x).isfinite().all()
    assert flow.score(x, probes=3).log_prob.isfinite().all()


@pytest.mark.parametrize("objective", ["mle", "matching", "hybrid"])
def test_a_fit_there_is_saved_for_the_cpu(objective, tmp_path):
    data = 3 + 2 * torch.randn(500, 2)
    flow = cnf.ffjord(2, hidden=(16, 16)).cuda()
    recipe = dataclasses.replace(QUICK, kinetic=0.0, jacobian=0.0)  # which matching has no use for
    cnf.fit(flow, data, objective=objective, recipe=recipe, steps=20, state=tmp_path / "state")
    cnf.save(flow, tmp_path / "model")
    found = cnf.load(tmp_path / "model").log_prob(data)
    torch.testing.assert_close(flow.log_prob(data.cuda()).cpu(), found, rtol=0, atol=1e-3)


def test_an_interrupted_fit_goes_on_there(tmp_path):
    data, whole = torch.randn(500, 2), cnf.ffjord(2, hidden=(16,)).cuda()
    cnf.save(whole, tmp_path / "start")
    started = cnf.load(tmp_path / "start").cuda()

    def stop(event):
        if event.step == 12:
            raise InterruptedError

    options = {"objective": "mle", "recipe": QUICK, "steps": 20}
    cnf.fit(whole, data, **options)
    options["state"] = tmp_path / "state"
    with pytest.raises(InterruptedError):
        cnf.fit(started, data, **options, state_seconds=1e-9, callbacks=[stop])
    cnf.fit(started, data, **options)
    left, right = (parameters_to_vector(each.parameters()) for each in (whole, started))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_a_joint_step_waits_for_the_gpu_once(with_gradient):
    flow = cnf.ffjord(2, hidden=(16, 16)).cuda().with_solver(step="joint")
    x = torch.randn(100, 2, device="cuda")
    flow.log_prob(x).sum().backward()  # coefficients and the like are brought there once
    with torch.set_grad_enabled(with_gradient), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            scored = flow.score_rows(x)
            if with_gradient:
                scored.log_prob.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    steps = int(np.max(scored.stats.accepted) + np.max(scored.stats.rejected))
    waits = sum("synchroniz" in str(warning.message) for warning in caught)
    # Beside the decision of each step: the first step's size, times, and checks at the ends.
    assert steps <= waits <= steps + 15, (steps, waits)


@pytest.mark.parametrize(("recipe", "within"), [(None, 1e-8), ("codes", 1e-4)])
def test_the_estimator_computes_there(recipe, within):
    rows = np.random.default_rng(0).normal(size=(300, 2))
    options = {"recipe": recipe, "max_steps": 5, "random_state": 0, "device": "cuda"}
    density = cnf.CNFDensity(**options).fit(rows, context=rows[:, 0])
    there = density.score_samples(rows, context=rows[:, 0])
    assert np.isfinite(density.sample(2, context=rows[:, 0])).all()
    density.device = "cpu"
    np.testing.assert_allclose(density.score_samples(rows, context=rows[:, 0]), there, atol=within)


@pytest.mark.parametrize("posterior", ["gaussian", "planar", "cnf"])
def test_a_vae_is_trained_resumed_scored_and_drawn(tmp_path, posterior):
    architecture = vae.Architecture((8, 8), 16, hidden=(16,), latent_dim=2, posterior=posterior)
    x, held_out = torch.rand(64, 64, device="cuda"), torch.rand(16, 64, device="cuda")
    arguments = x, held_out, vae.Plan(4, batch_size=32, settling=0.25, annealing=0.25)
    state = tmp_path / "state"

    def started():
        torch.manual_seed(0)
        return vae.VAE(architecture).to("cuda")

    def stop(step):
        if step.progress > 0.6:
            raise KeyboardInterrupt

    whole = started()
    vae.fit(whole, *arguments)
    model = started()
    with pytest.raises(KeyboardInterrupt):
        vae.fit(model, *arguments, callbacks=[stop], state=state)
    vae.fit(model, *arguments, state=state)
    torch.testing.assert_close(*(parameters_to_vector(m.parameters()) for m in (whole, model)))
    observed = model.likelihood.observe(held_out)
    bounds = vae.score(model, observed, samples=10)
    assert bounds.nll.device.type == "cuda"
    assert bounds.nll.isfinite().all()
    posterior_figure(model, observed)
    traversal_figure(model, observed)
