"""Gain and cost of a flow as the posterior of a VAE, against other posteriors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import log, nan, prod
from typing import Any

import numpy as np
import torch

from cnf.datasets import Images, load_images
from cnf.scripts import vae_training
from cnf.scripts.benchmarks.compared import VAE_POSTERIORS, VAE_SETTINGS
from cnf.scripts.benchmarks.measure import Array, Average, TableItem, median_seconds, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.tables import FAILURES
from cnf.vae import VAE, Architecture, Plan, score

IWAE_SAMPLES = 1000  # for the importance-weighted bound
BASELINE_POSTERIORS = ("gaussian", "planar")
BITS_PER_PIXEL_IMAGES = ("freyfaces",)  # for which papers report bits per pixel
COST_ARCHITECTURE = Architecture((28, 28), 255, network="conv", latent_dim=64)  # Sylvester's
COST_BATCH = 100


def bound_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each VAE, followed by the table of its images and a summary."""
    for images in [load_images(name, options.data_dir) for name in options.images or VAE_SETTINGS]:
        setting = VAE_SETTINGS[images.name]
        yield (
            f"{images.name}: {len(images.test[: vae_training.MAX_TEST_IMAGES])} test images, "
            f"{setting.latent_dim} latents, {setting.plan['epochs']} epochs, seeds: "
            f"{setting.seeds}; {threads_used()}; nats, ± standard errors over the images"
        )
        found: dict[str, list[Row]] = {each: [] for each in options.posteriors or VAE_POSTERIORS}
        for posterior in found:
            for seed in range(setting.seeds):
                row = bounds_of(options, images, posterior, seed)
                found[posterior].append(row)
                yield {"posterior": posterior, "seed": seed, **_shown([row])}
        yield ""
        yield from compare(images, found)
        yield ""


def cost_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of the time of a training step, on the convolutional VAE."""
    yield (
        f"Training step of the convolutional VAE, {COST_ARCHITECTURE.latent_dim} latents, "
        f"{COST_BATCH} images of 28 x 28; {threads_used(options.repeats)}"
    )
    steps = {name: _stepper(made) for name, made in VAE_POSTERIORS.items()}
    taken = median_seconds(steps, options.repeats)
    for name, seconds in taken.items():
        yield {"posterior": name, "seconds": seconds, "to gaussian": seconds / taken["gaussian"]}


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


def bounds_of(options: BenchmarkOptions, images: Images, posterior: str, seed: int) -> Row:
    """Return the bounds of a VAE, which is trained or resumed unless they are cached.

    Returns:
        The evidence lower bounds "elbo" of test images, and minus their importance-weighted ones
        "nll", in nats, both empty after a failure; that of validation images; seconds of training.
    """
    setting = VAE_SETTINGS[images.name]
    architecture = vae_training.architecture_of(
        images, latent_dim=setting.latent_dim, **VAE_POSTERIORS[posterior]
    )
    plan = Plan(**setting.plan)
    scored, parts = vae_training.MAX_TEST_IMAGES, (images.train, images.validation, images.test)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = {"images": images.name, "posterior": posterior, "seed": seed, "device": device}
    key = key_of(names, architecture, plan, IWAE_SAMPLES, scored, *parts)

    def measure() -> Row:
        torch.manual_seed(seed)
        vae = VAE(architecture).to(device)
        try:
            records = vae_training.train(vae, images, plan, seed, options.results.model_folder(key))
            found = score(vae, vae_training.observed(vae, images), IWAE_SAMPLES)
        except FAILURES as error:
            note = " ".join(str(error).split())
            return {"elbo": [], "nll": [], "validation": nan, "seconds": nan, "note": note}
        selectable = [each for each in records if plan.is_selectable(each.epoch / plan.epochs)]
        return {
            "elbo": found.elbo.tolist(),
            "nll": found.nll.tolist(),
            "validation": max(each.validation_elbo for each in selectable),
            "seconds": records[-1].seconds,
            "note": "",
        }

    return options.results.recall(key, measure)


def compare(images: Images, found: Mapping[str, Sequence[Row]]) -> Iterator[TableItem]:
    """Yield a row for each posterior, and compare this library's best with the baselines."""
    rivals = [rival for rival in BASELINE_POSTERIORS if rival in found]
    nll = {name: over_seeds(rows, "nll") for name, rows in found.items()}
    for name, rows in found.items():
        row = {"posterior": name, **_shown(rows)}
        if images.name in BITS_PER_PIXEL_IMAGES:
            bits = Average.of(nll[name]).mean / (prod(images.size) * log(2))
            row["bits / pixel"] = f"{bits:.4f}"
        yield row | {f"below {rival}": Average.of(nll[rival] - nll[name]) for rival in rivals}
    whole = [name for name, rows in found.items() if all(each["nll"] for each in rows)]
    ours = [name for name in whole if name not in BASELINE_POSTERIORS]
    if not ours:
        return
    best = max(ours, key=lambda name: np.mean([each["validation"] for each in found[name]]))
    for rival in (rival for rival in rivals if rival in whole):
        gain = Average.of(nll[rival] - nll[best])
        pairs = zip(found[best], found[rival], strict=True)
        seeds = (f"{np.mean(other['nll']) - np.mean(own['nll']):.3f}" for own, other in pairs)
        yield (
            f"{best}, which validates best of this library's, is {gain} nats ahead of {rival}: "
            f"{gain.mean / gain.stderr:.1f} standard errors of the difference image by image, "
            f"of these trained VAEs; seed by seed {', '.join(seeds)}"
        )


def over_seeds(rows: Sequence[Row], bound: str) -> Array:
    """Return the mean of a bound over seeds for each image; a single NaN where a seed failed."""
    whole = all(row[bound] for row in rows)
    return np.mean([row[bound] for row in rows], axis=0) if whole else np.array([nan])


def _shown(rows: Sequence[Row]) -> Row:
    """Return the columns of the mean over seeds."""
    return {
        "ELBO": Average.of(over_seeds(rows, "elbo")),
        f"NLL, IWAE-{IWAE_SAMPLES}": Average.of(over_seeds(rows, "nll")),
        "seconds": f"{np.mean([row['seconds'] for row in rows]):.0f}",
        "note": rows[0]["note"] if len(rows) == 1 else "",
    }
