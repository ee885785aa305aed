"""The work of `cnf train-vae`: train a VAE of images, score it and draw its figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import cnf.vae.figures as vae_figures
from cnf.datasets import Images, load_images
from cnf.scripts.figures import write_figure
from cnf.scripts.folder import run_folder, write_records
from cnf.scripts.options import given_numbers, option_of
from cnf.scripts.program import say
from cnf.scripts.trained import STATE_FILE
from cnf.scripts.training import RunRecorder, by_threads, last_threads
from cnf.training.callbacks import ProgressBar
from cnf.training.numbers import numbers_of
from cnf.utils.random import seeded
from cnf.utils.threads import Threads, number_of_threads
from cnf.vae import VAE, Architecture, EpochRecord, LikelihoodBounds, Plan, fit, grey, score
from cnf.vae.training import Callback

MAX_TEST_IMAGES = 500  # scored after training
SHOWN_IMAGES = 16  # of the scored ones, in the figure of reconstructions
OBSERVATION_SEED = 0  # of the observed test images: equal for all VAEs that are compared
INK_IMAGES = ("digits", "mnist")  # whose grey levels are probabilities of ink, not measured light


def train_and_score(arguments: argparse.Namespace) -> None:
    """Train a VAE as the command line says, score it and draw its figures."""
    images = load_images(arguments.data, arguments.data_dir, arguments.seed)
    plan = Plan(**given_numbers(arguments, numbers_of(Plan)))
    torch.manual_seed(arguments.seed)
    vae = VAE(_architecture(arguments, images))
    with run_folder(arguments.out, arguments.resume) as folder:
        vae = vae.to("cuda" if torch.cuda.is_available() else "cpu")
        say(_summary(images, vae))
        records = train(vae, images, plan, arguments.seed, folder, arguments.threads)
        threads = [record.threads for record in records]
        taken = f"{len(records)} epochs in {records[-1].seconds:.1f} s{by_threads(threads)}"
        say(f"{taken}; kept the weights that validate best")
        with number_of_threads(last_threads(threads)):
            _show(arguments, images, vae, records, folder)


def _show(
    arguments: argparse.Namespace,
    images: Images,
    vae: VAE,
    records: Sequence[EpochRecord],
    folder: Path,
) -> None:
    """Score the trained VAE and draw its figures."""
    x = observed(vae, images)
    say(*_lines(score(vae, x, arguments.samples), x.shape[1], arguments.samples))
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for name, figure in _figures(vae, x, records, arguments.seed).items():
        say(f"  {write_figure(figure, figures / f'{name}.png')}")


def architecture_of(images: Images, **given: Any) -> Architecture:
    """Return the architecture of a VAE of these images, with their default likelihood."""
    likelihood = "bernoulli" if images.name in INK_IMAGES else "levels"
    return Architecture(images.size, images.white, **{"likelihood": likelihood, **given})


def train(
    vae: VAE,
    images: Images,
    plan: Plan,
    seed: int,
    folder: Path | None,
    threads: Threads = "auto",
) -> list[EpochRecord]:
    """Train a VAE and save it in a folder, resuming from a checkpoint of the same run if any."""
    pixels = vae.head.weight
    train, validation = (
        grey(part, images.white).to(pixels) for part in (images.train, images.validation)
    )
    metadata = {"data": images.name, "seed": seed, "plan": asdict(plan)}
    bar = VAEProgressBar()
    if folder is None:
        return fit(vae, train, validation, plan, seed, [bar], threads=threads)
    folder.mkdir(parents=True, exist_ok=True)
    recorder = RunRecorder(folder, lambda step: step.vae.save(folder, metadata))
    callbacks: list[Callback] = [bar, recorder]
    state = folder / STATE_FILE
    records = fit(vae, train, validation, plan, seed, callbacks, state, threads)
    vae.save(folder, metadata)
    write_records(folder, records)  # which a killed process or a full disk may have left unwritten
    return records


def observed(vae: VAE, images: Images) -> Tensor:
    """Return the observations of the scored test images, the same in each call."""
    generator = torch.Generator().manual_seed(OBSERVATION_SEED)
    x = vae.likelihood.observe(grey(images.test[:MAX_TEST_IMAGES], images.white), generator)
    return x.to(vae.head.weight)


def _architecture(arguments: argparse.Namespace, images: Images) -> Architecture:
    numbers = numbers_of(Architecture)
    given = given_numbers(arguments, numbers)
    made = architecture_of(images, **given)
    for name in given:
        used_by = numbers[name].used_by
        if used_by and made.posterior not in used_by:
            raise ValueError(
                f"Expected no {option_of(name)} with posterior {made.posterior}, which does not "
                "use it"
            )
    if "features" in given and not made.uses_features:
        raise ValueError(
            "Expected no --features with a posterior that takes only loc and scale: "
            f"{made.posterior}{' of amortize none' * (made.posterior == 'cnf')}"
        )
    if made.network == "conv" and "hidden" in given:
        raise ValueError("Expected no --hidden with network conv, whose widths are fixed")
    return made


def _summary(images: Images, vae: VAE) -> str:
    made, (height, width) = vae.architecture, images.size
    amortized = f" amortized by {made.amortize}" if made.posterior == "cnf" else ""
    return (
        f"{images.name}: {len(images.train)} training images of {height} x {width}; "
        f"{made.network} of {made.latent_dim} latents, likelihood {made.likelihood}, posterior "
        f"{made.posterior}{amortized}, {sum(p.numel() for p in vae.parameters())} weights"
    )


def _lines(bounds: LikelihoodBounds, pixels: int, samples: int) -> list[str]:
    count = len(bounds.nll)
    elbo, nll = (
        f"{each.mean():.3f} ± {each.std() / count**0.5:.3f}" for each in (bounds.elbo, bounds.nll)
    )
    bits = bounds.nll.mean().item() / (pixels * log(2))
    return [
        f"  {'test images':<16} {count}",
        f"  {'ELBO':<16} {elbo} nats",
        f"  {f'NLL, IWAE-{samples}':<16} {nll} nats, {bits:.4f} bits per pixel",
    ]


def _figures(vae: VAE, x: Tensor, records: Sequence[EpochRecord], seed: int) -> dict[str, Figure]:
    curve = Figure(figsize=(6, 3.5), layout="constrained")
    vae_figures.draw_bounds(curve.subplots(), records)
    with seeded(seed, x.device):
        figures = {
            "reconstructions": vae_figures.reconstructions_figure(vae, x[:SHOWN_IMAGES]),
            "samples": vae_figures.samples_figure(vae),
            "traversal": vae_figures.traversal_figure(vae, x),
            "learning_curve": curve,
        }
        if vae.architecture.latent_dim == 2:
            figures["posterior"] = vae_figures.posterior_figure(vae, x)
    return figures


class VAEProgressBar(ProgressBar):
    """A progress bar with loss and validation bound, on terminals only."""

    def describe(self, event: Any) -> str:
        bound = f"{event.records[-1].validation_elbo:.3f}" if event.records else "-"
        return f"epoch {len(event.records)}  loss {event.loss:.3f}  validation bound {bound}"
