"""Gain and cost of a flow as the posterior of a VAE, against other posteriors."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from math import log, nan, prod
from statistics import median
from typing import Any

import numpy as np
import torch

from cnf.datasets import Images, load_images
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.overhead import one_thread
from cnf.scripts.benchmarks.ranking import Average
from cnf.scripts.benchmarks.vae_trials import (
    IWAE_SAMPLES,
    VAE_POSTERIORS,
    VAE_SETTINGS,
    VAEOutcome,
    outcome_of,
    trial_of,
)
from cnf.vae import VAE, Architecture

BASELINE_POSTERIORS = ("gaussian", "planar")
BITS_PER_PIXEL_IMAGES = ("freyfaces",)  # for which papers report bits per pixel
COST_ARCHITECTURE = Architecture(
    (28, 28), 255, network="conv", latent_dim=64
)  # as in the Sylvester flows' paper
COST_BATCH = 100


def bound_lines(options: BenchmarkOptions) -> Iterator[str]:
    """Yield the tables of all images, each after a line for every VAE trained for it."""
    every = [load_images(name, options.data_dir) for name in options.images or tuple(VAE_SETTINGS)]
    for images in every:
        found: dict[str, list[VAEOutcome]] = {}
        for posterior in options.posteriors or tuple(VAE_POSTERIORS):
            found[posterior] = yield from _outcomes(options, images, posterior)
        yield ""
        yield from _table(images, found)
        yield ""
        yield from _summary(found)


def cost_lines(repeats: int) -> Iterator[str]:
    """Yield the table of the time of a training step, on the convolutional VAE."""
    with one_thread():
        steps = {name: _stepper(made) for name, made in VAE_POSTERIORS.items()}
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(repeats + 2):  # the first two warm up
            for name, step in steps.items():
                begin = time.perf_counter()
                step()
                if repeat >= 2:
                    taken[name].append(time.perf_counter() - begin)
        latent_dim, threads = COST_ARCHITECTURE.latent_dim, torch.get_num_threads()
        yield (
            f"Training step of the convolutional VAE, {latent_dim} latents, {COST_BATCH} "
            f"images of 28 x 28; threads: {threads}, median of {repeats}"
        )
    yield f"{'posterior':<14}{'seconds':>10}{'to gaussian':>14}"
    first = median(taken["gaussian"])
    for name, seconds in taken.items():
        yield f"{name:<14}{median(seconds):>10.4f}{median(seconds) / first:>14.2f}"


def _outcomes(
    options: BenchmarkOptions, images: Images, posterior: str
) -> Generator[str, None, list[VAEOutcome]]:
    """Return the outcomes of a posterior for all seeds, and yield a line for each new one."""
    outcomes = []
    for seed in range(VAE_SETTINGS[images.name].seeds):
        outcome = outcome_of(options, trial_of(images, posterior, seed), images)
        outcomes.append(outcome)
        if not outcome.cached:
            nll, elbo = (Average.of(_over_seeds([each])) for each in (outcome.nll, outcome.elbo))
            yield (
                f"  {images.name} {posterior} seed {seed}: NLL {nll}, ELBO {elbo}, "
                f"{outcome.seconds:.0f} s {outcome.reason}".rstrip()
            )
    return outcomes


def _table(images: Images, found: Mapping[str, Sequence[VAEOutcome]]) -> Iterator[str]:
    """Yield the table of the images, in Markdown."""
    setting = VAE_SETTINGS[images.name]
    count = max(len(outcome.nll) for outcomes in found.values() for outcome in outcomes)
    yield (
        f"{images.name}: {count} test images, {setting.latent_dim} latents, {setting.plan.epochs} "
        f"epochs, seeds: {setting.seeds}; threads: {torch.get_num_threads()}; nats, ± standard "
        "errors over the images"
    )
    yield ""
    bits = images.name in BITS_PER_PIXEL_IMAGES
    rivals = [rival for rival in BASELINE_POSTERIORS if rival in found]
    heads = ["posterior", "ELBO", f"NLL, IWAE-{IWAE_SAMPLES}", *(["bits / pixel"] if bits else [])]
    heads += [*(f"below {rival}" for rival in rivals), "seconds"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name, outcomes in found.items():
        nll = Average.of(_over_seeds([outcome.nll for outcome in outcomes]))
        elbo = Average.of(_over_seeds([outcome.elbo for outcome in outcomes]))
        cells = [name, str(elbo), str(nll)]
        cells += [f"{nll.mean / (prod(images.size) * log(2)):.4f}"] if bits else []
        cells += ["" if name == rival else str(_ahead(found, name, rival)) for rival in rivals]
        cells.append(f"{np.mean([outcome.seconds for outcome in outcomes]):.0f}")
        yield f"| {' | '.join(cells)} |"


def _summary(found: Mapping[str, Sequence[VAEOutcome]]) -> Iterator[str]:
    """Yield lines that compare this library's best-validating flow with the baselines."""
    whole = [name for name, outcomes in found.items() if not any(each.reason for each in outcomes)]
    ours = [name for name in whole if name not in BASELINE_POSTERIORS]
    if not ours:
        return
    best = max(ours, key=lambda name: np.mean([each.validation for each in found[name]]))
    for rival in (rival for rival in BASELINE_POSTERIORS if rival in whole):
        ahead = _ahead(found, best, rival)
        pairs = zip(found[best], found[rival], strict=True)
        seeds = ", ".join(f"{np.mean(other.nll) - np.mean(own.nll):.3f}" for own, other in pairs)
        yield (
            f"{best}, which validates best of this library's, is {ahead} nats ahead of {rival}: "
            f"{ahead.mean / ahead.stderr:.1f} standard errors of the difference image by image, "
            f"of these trained VAEs; seed by seed {seeds}"
        )


def _ahead(found: Mapping[str, Sequence[VAEOutcome]], name: str, rival: str) -> Average:
    """Return the mean difference of NLL from a rival to a posterior, over images."""
    own, other = (_over_seeds([outcome.nll for outcome in found[each]]) for each in (name, rival))
    return Average.of((np.asarray(other) - own).tolist())


def _over_seeds(numbers: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over seeds for each image; a single NaN where a seed failed."""
    if not all(numbers):
        return [nan]
    means: list[float] = np.mean(numbers, axis=0).tolist()
    return means


def _stepper(posterior: Mapping[str, Any]) -> Callable[[], None]:
    """Return a function that takes an optimizer step of a convolutional VAE."""
    torch.manual_seed(0)
    vae = VAE(replace(COST_ARCHITECTURE, **posterior))
    optimizer = torch.optim.AdamW(vae.parameters(), fused=True)
    x = vae.likelihood.observe(torch.rand(COST_BATCH, prod(COST_ARCHITECTURE.size)))

    def step() -> None:
        optimizer.zero_grad()
        (-vae.bound(x).value.mean()).backward()
        optimizer.step()

    return step
