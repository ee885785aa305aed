"""Cached trials of VAEs with each posterior on each set of images."""

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
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.result_cache import fingerprint
from cnf.vae import VAE, Architecture, Plan, score
from cnf.variational import AMORTIZATIONS

IWAE_SAMPLES = 1000  # for the importance-weighted bound
# With per-row weights, one hidden layer does as well as two in a third of the time.
POSTERIOR_FIELDS: dict[str, dict[str, Any]] = {"rank": {"field": (64,)}, "hyper": {"field": (64,)}}
VAE_POSTERIORS: dict[str, dict[str, Any]] = {
    "gaussian": {"posterior": "gaussian"},
    "planar": {"posterior": "planar"},
    **{
        f"cnf-{name}": {"posterior": "cnf", "amortize": name, **POSTERIOR_FIELDS.get(name, {})}
        for name in AMORTIZATIONS
    },
}
"""The posteriors that are compared, as arguments of `Architecture` by name."""


@dataclass(frozen=True)
class VAESetting:
    """The common settings of the VAEs of one set of images.

    Attributes:
        latent_dim: Number of latents.
        plan: The plan of training.
        seeds: Number of seeds for each posterior.
    """

    latent_dim: int
    plan: Plan
    seeds: int


VAE_SETTINGS = {
    # The images are so small that all latents are used, and no settling is needed.
    "digits": VAESetting(16, Plan(epochs=500, learning_rate=2e-3, settling=0.0), 3),
    "mnist": VAESetting(32, Plan(epochs=150, batch_size=256, learning_rate=2e-3), 1),
    # Two runs of one posterior differ by some 15 nats, more than any posterior gains. So all share
    # six tenths of the run: until a posterior has settled, each is the encoder's Gaussian.
    "freyfaces": VAESetting(16, Plan(epochs=600, settling=0.6), 1),
}
"""The settings by the names of the images."""


@dataclass(frozen=True)
class VAETrial:
    """A training run of a VAE; the key of its outcome.

    Attributes:
        images: Name of the set of images.
        posterior: A name in `VAE_POSTERIORS`.
        seed: Seed of the weights and of all draws; the split of the images is the same for all.
        threads: Threads of PyTorch.
        device: Type of the device.
        settings: Fingerprint of the architecture, the plan of training and the images.
    """

    images: str
    posterior: str
    seed: int
    threads: int
    device: str
    settings: str

    def folder(self, out: Path) -> Path:
        """Return the folder that the VAE is saved in."""
        name = (
            f"{self.posterior}-seed{self.seed}-threads{self.threads}-{self.device}-{self.settings}"
        )
        return out / "models" / self.images / name


@dataclass(frozen=True)
class VAEOutcome:
    """The outcome of a training run.

    Attributes:
        elbo: Evidence lower bound of each test image, in nats; empty where the run failed.
        nll: Minus the importance-weighted bound of each test image, in nats.
        validation: Evidence lower bound of the validation images by the selected weights.
        seconds: Seconds of training.
        reason: The reason of a failure, in words; empty on success.
        cached: Whether the outcome was read from the cache.
    """

    elbo: tuple[float, ...] = ()
    nll: tuple[float, ...] = ()
    validation: float = nan
    seconds: float = nan
    reason: str = ""
    cached: bool = False

    @staticmethod
    def of(result: Mapping[str, Any]) -> VAEOutcome:
        """Return the outcome of a cached result."""
        found: dict[str, Any] = {name: _numbers(result[name]) for name in VAE_OUTCOME_FIELDS}
        return VAEOutcome(**found, cached=True)


VAE_OUTCOME_FIELDS = tuple(field.name for field in fields(VAEOutcome) if field.name != "cached")


def _numbers(value: Any) -> Any:
    """Restore tuples and NaN in a value from JSON, which has neither."""
    if isinstance(value, list):
        return tuple(map(_numbers, value))
    return nan if value is None else value


def architecture_for(images: Images, posterior: str) -> Architecture:
    """Return the architecture of a VAE of these images with a posterior."""
    latent_dim = VAE_SETTINGS[images.name].latent_dim
    return train_vae.architecture_of(images, latent_dim=latent_dim, **VAE_POSTERIORS[posterior])


def trial_of(images: Images, posterior: str, seed: int) -> VAETrial:
    """Return the trial of a posterior on these images."""
    settings = {
        "architecture": asdict(architecture_for(images, posterior)),
        "plan": asdict(VAE_SETTINGS[images.name].plan),
        "samples": IWAE_SAMPLES,
        "tested": train_vae.MAX_TEST_IMAGES,
        "images": _digest(images),
    }
    threads, device = torch.get_num_threads(), _device()
    return VAETrial(images.name, posterior, seed, threads, device, fingerprint(settings))


def outcome_of(options: BenchmarkOptions, trial: VAETrial, images: Images) -> VAEOutcome:
    """Return the outcome of a trial, which is trained unless it is cached.

    With a folder for results, an interrupted training resumes. A failure is recorded and does not
    end the other trials.
    """
    found = options.vae_results.find(asdict(trial), VAE_OUTCOME_FIELDS)
    if found is not None:
        return VAEOutcome.of(found)
    folder = None if options.out is None else trial.folder(options.out)
    try:
        outcome = _run_trial(trial, images, folder)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        outcome = VAEOutcome(reason=" ".join(str(error).split()))
    options.vae_results.add(
        asdict(trial), {name: getattr(outcome, name) for name in VAE_OUTCOME_FIELDS}
    )
    return outcome


def _run_trial(trial: VAETrial, images: Images, folder: Path | None) -> VAEOutcome:
    """Train and score the VAE of a trial."""
    torch.manual_seed(trial.seed)
    vae = VAE(architecture_for(images, trial.posterior)).to(trial.device)
    plan = VAE_SETTINGS[images.name].plan
    records = train_vae.train(vae, images, plan, trial.seed, folder)
    bounds = score(vae, train_vae.observed(vae, images), IWAE_SAMPLES)
    return VAEOutcome(
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
    """Return the checksum of images."""
    parts = (images.train, images.validation, images.test)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
