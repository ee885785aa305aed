"""VAEs trained with each posterior on each set of images, once, and scored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import nan
from pathlib import Path
from typing import Any

import torch

import cnf.scripts.train_vae as train_vae
from cnf.datasets import Images
from cnf.scripts.benchmarks.cells import fingerprint
from cnf.scripts.benchmarks.options import Options
from cnf.vae import VAE, Architecture, Plan, score
from cnf.variational.posterior import AMORTIZATIONS

SAMPLES = 1000  # for the importance-weighted bound
# Of weights of each row's own, one hidden layer does as well as two at a third of the time.
FIELDS: dict[str, dict[str, Any]] = {"rank": {"field": (64,)}, "hyper": {"field": (64,)}}
POSTERIORS: dict[str, dict[str, Any]] = {
    "gaussian": {"posterior": "gaussian"},
    "planar": {"posterior": "planar"},
    **{
        f"cnf-{name}": {"posterior": "cnf", "amortize": name, **FIELDS.get(name, {})}
        for name in AMORTIZATIONS
    },
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
    # Images so small that all latents are of use: nothing has to settle.
    "digits": Setting(16, Plan(epochs=500, learning_rate=2e-3, settling=0.0), 3),
    "mnist": Setting(32, Plan(epochs=150, batch_size=256, learning_rate=2e-3), 1),
    # Two runs of one posterior end some 15 nats apart, more than any gains. So all have six tenths
    # of the run in common: until a posterior has settled, it is the encoder's Gaussian in each.
    "freyfaces": Setting(16, Plan(epochs=600, settling=0.6), 1),
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
        device: Its type.
        settings: The fingerprint of what the VAE is made of, how it is trained and on what.
    """

    images: str
    posterior: str
    seed: int
    threads: int
    device: str
    settings: str

    def folder(self, out: Path) -> Path:
        """Where the VAE is kept."""
        name = (
            f"{self.posterior}-seed{self.seed}-threads{self.threads}-{self.device}-{self.settings}"
        )
        return out / "models" / self.images / name


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        elbo: The test images' evidence lower bound, in nats, image by image; none where it failed.
        nll: Minus their importance-weighted bound, alike.
        validation: The evidence lower bound of the validation images by the weights that were kept.
        seconds: Of training.
        reason: What failed, in words; empty where nothing did.
        kept: Whether it was there already.
    """

    elbo: tuple[float, ...] = ()
    nll: tuple[float, ...] = ()
    validation: float = nan
    seconds: float = nan
    reason: str = ""
    kept: bool = False

    @staticmethod
    def of(cell: Mapping[str, Any]) -> Outcome:
        """An outcome that was finished before."""
        found: dict[str, Any] = {name: _numbers(cell[name]) for name in KEPT}
        return Outcome(**found, kept=True)


KEPT = tuple(field.name for field in fields(Outcome) if field.name != "kept")


def _numbers(value: Any) -> Any:
    """A value as it was before JSON, which has no numbers that are not finite."""
    if isinstance(value, list):
        return tuple(map(_numbers, value))
    return nan if value is None else value


def made_of(images: Images, posterior: str) -> Architecture:
    """What a VAE of these images with a posterior is made of."""
    latent_dim = SETTINGS[images.name].latent_dim
    return train_vae.architecture_of(images, latent_dim=latent_dim, **POSTERIORS[posterior])


def trial_of(images: Images, posterior: str, seed: int) -> Trial:
    """What is trained."""
    settings = {
        "architecture": asdict(made_of(images, posterior)),
        "plan": asdict(SETTINGS[images.name].plan),
        "samples": SAMPLES,
        "tested": train_vae.TESTED,
        "images": _digest(images),
    }
    threads, device = torch.get_num_threads(), _device()
    return Trial(images.name, posterior, seed, threads, device, fingerprint(settings))


def outcome_of(options: Options, trial: Trial, images: Images) -> Outcome:
    """The outcome of a trial, which is trained unless it is there already.

    With a folder for results, a training that was interrupted goes on where it was. What fails is
    told and does not stop the others.
    """
    found = options.vae_cells.find(asdict(trial), KEPT)
    if found is not None:
        return Outcome.of(found)
    folder = None if options.out is None else trial.folder(options.out)
    try:
        outcome = _made(trial, images, folder)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        outcome = Outcome(reason=" ".join(str(error).split()))
    options.vae_cells.add(asdict(trial), {name: getattr(outcome, name) for name in KEPT})
    return outcome


def _made(trial: Trial, images: Images, folder: Path | None) -> Outcome:
    """Train and score."""
    torch.manual_seed(trial.seed)
    vae = VAE(made_of(images, trial.posterior)).to(trial.device)
    plan = SETTINGS[images.name].plan
    records = train_vae.train(vae, images, plan, trial.seed, folder)
    bounds = score(vae, train_vae.observed(vae, images), SAMPLES)
    return Outcome(
        tuple(bounds.elbo.tolist()),
        tuple(bounds.nll.tolist()),
        max(
            each.validation_elbo for each in records if plan.is_selectable(each.epoch / plan.epochs)
        ),
        records[-1].seconds,
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _digest(images: Images) -> str:
    """By which images are known again."""
    parts = (images.train, images.validation, images.test)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
