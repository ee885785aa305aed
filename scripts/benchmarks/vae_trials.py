"""VAEs trained with each posterior on each set of images, once, and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from cnf.datasets import Images
from cnf.posterior import AMORTIZATIONS
from cnf.scripts.benchmarks.cells import fingerprint
from cnf.scripts.benchmarks.options import Options
from cnf.scripts.train_vae import architecture_of, observed, train
from cnf.vae import VAE, Architecture, Plan, score

SAMPLES = 1000  # for the importance-weighted bound
POSTERIORS: dict[str, dict[str, Any]] = {
    "gaussian": {"posterior": "gaussian"},
    "planar": {"posterior": "planar"},
    **{f"cnf-{name}": {"posterior": "cnf", "amortize": name} for name in AMORTIZATIONS},
}
"""What is compared, by name: what a VAE is made of."""


@dataclass(frozen=True)
class Setting:
    """What the VAEs of some images share.

    Attributes:
        latent_dim: Number of latents.
        plan: How they are trained.
        seeds: How many times each.
    """

    latent_dim: int
    plan: Plan
    seeds: int


SETTINGS = {
    "digits": Setting(8, Plan(epochs=500, learning_rate=2e-3), 3),
    "mnist": Setting(32, Plan(epochs=150, batch_size=256, learning_rate=2e-3), 1),
    "freyfaces": Setting(16, Plan(epochs=500, learning_rate=1e-3), 1),
}
"""By the images' names."""


@dataclass(frozen=True)
class Trial:
    """What was trained.

    Attributes:
        images: Their name.
        posterior: A name in `POSTERIORS`.
        seed: Of the weights and of all that is drawn; the images are divided alike for all.
        threads: PyTorch's.
        settings: The fingerprint of what the VAE is made of and how it is trained.
    """

    images: str
    posterior: str
    seed: int
    threads: int
    settings: str

    def folder(self, out: Path) -> Path:
        """Where the VAE is kept."""
        name = f"{self.posterior}-seed{self.seed}-threads{self.threads}-{self.settings}"
        return out / "models" / self.images / name


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        elbo: The test images' evidence lower bound, in nats, image by image.
        nll: Minus their importance-weighted bound, alike.
        seconds: Of training.
        kept: Whether it was there already.
    """

    elbo: tuple[float, ...]
    nll: tuple[float, ...]
    seconds: float
    kept: bool = False

    @staticmethod
    def of(cell: Mapping[str, Any]) -> Outcome:
        """An outcome that was finished before."""
        return Outcome(tuple(cell["elbo"]), tuple(cell["nll"]), cell["seconds"], kept=True)


KEPT = tuple(field.name for field in fields(Outcome) if field.name != "kept")


def made_of(images: Images, posterior: str) -> Architecture:
    """What a VAE of these images with a posterior is made of."""
    latent_dim = SETTINGS[images.name].latent_dim
    return architecture_of(images, latent_dim=latent_dim, **POSTERIORS[posterior])


def trial_of(images: Images, posterior: str, seed: int) -> Trial:
    """What is trained."""
    made, plan = made_of(images, posterior), SETTINGS[images.name].plan
    mark = fingerprint({"architecture": asdict(made), "plan": asdict(plan), "samples": SAMPLES})
    return Trial(images.name, posterior, seed, torch.get_num_threads(), mark)


def outcome_of(options: Options, trial: Trial, images: Images) -> Outcome:
    """The outcome of a trial, which is trained unless it is there already.

    With a folder for results, a training that was interrupted goes on where it was.
    """
    found = options.vae_cells.find(asdict(trial), KEPT)
    if found is not None:
        return Outcome.of(found)
    torch.manual_seed(trial.seed)
    vae = VAE(made_of(images, trial.posterior))
    vae = vae.to("cuda" if torch.cuda.is_available() else "cpu")
    folder = None if options.out is None else trial.folder(options.out)
    records = train(vae, images, SETTINGS[images.name].plan, trial.seed, folder)
    bounds = score(vae, observed(vae, images), SAMPLES)
    outcome = Outcome(tuple(bounds.elbo.tolist()), tuple(bounds.nll.tolist()), records[-1].seconds)
    options.vae_cells.add(asdict(trial), {name: getattr(outcome, name) for name in KEPT})
    return outcome
