"""`train-vae DATA --out DIR`: train a VAE of images with a chosen posterior, score and draw it.

The evidence lower bound and the importance-weighted bound of up to 500 test images are printed,
with the posterior solved at tight tolerances. DIR receives the VAE, metrics.jsonl and figures/:
images and their reconstructions, images from the prior, traversals of the latents, the learning
curve and, for a VAE with two latents, its posteriors and the true ones.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from math import log
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from cnf.datasets import DATA_DIR, IMAGES, Images, load_images
from cnf.scripts.folder import run_folder
from cnf.scripts.plot import write_figure
from cnf.scripts.program import Parser, positive_integer, program, say, seed
from cnf.scripts.settings import text_of, value_of
from cnf.scripts.trained import METRICS_FILE, STATE_FILE, write_metrics
from cnf.utils.random import seeded
from cnf.vae import (
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    VAE,
    Architecture,
    EpochRecord,
    LikelihoodBounds,
    Plan,
    VAEStep,
    fit,
    grey,
    score,
)
from cnf.vae.figures import (
    draw_bounds,
    posterior_figure,
    reconstructions_figure,
    samples_figure,
    traversal_figure,
)
from cnf.variational import AMORTIZATIONS

MAX_TEST_IMAGES = 500  # scored after training
SHOWN_IMAGES = 16  # of the scored ones, in the figure of reconstructions
OBSERVATION_SEED = 0  # of the observed test images: equal for all VAEs that are compared
INK_IMAGES = ("digits", "mnist")  # whose grey levels are probabilities of ink, not measured light
VAE_HELP = {
    "likelihood": f"one of {', '.join(LIKELIHOODS)}: black and white pixels, drawn anew in each "
    "epoch, or all levels of grey (default: bernoulli for digits and mnist, levels for others)",
    "network": f"one of {', '.join(NETWORKS)}: perceptrons, or the gated convolutions of the "
    "Sylvester flows' paper",
    "hidden": "mlp: widths of the encoder's hidden layers, and in reverse order of the decoder's",
    "latent_dim": "number of latents",
    "features": "number of features for the posterior from the encoder, besides loc and scale",
    "posterior": f"one of {', '.join(POSTERIORS)}",
    "amortize": f"cnf: how its field depends on the image: {', '.join(AMORTIZATIONS)}",
    "field": "cnf: widths of its field's hidden layers",
    "flows": "planar: number of flows",
    "epochs": "passes over the training images",
    "batch_size": "images for each step",
    "learning_rate": "peak learning rate, which decays as a cosine to 0",
    "warmup": "fraction of the run in which the learning rate rises",
    "annealing": "fraction of the run in which the KL term's weight rises from 0 to 1",
    "settling": "fraction of the run before the posterior's flow starts to train",
    "weight_decay": "AdamW's weight decay",
    "max_grad_norm": "norm above which the gradient is clipped",
}
POSTERIOR_OF_OPTION = {
    "amortize": "cnf",
    "field": "cnf",
    "flows": "planar",
}  # the posterior that an option belongs to


@program("train-vae")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    images = load_images(arguments.data, arguments.data_dir, arguments.seed)
    plan = Plan(**_given(arguments, Plan))
    torch.manual_seed(arguments.seed)
    vae = VAE(_architecture(arguments, images))
    with run_folder(arguments.out, arguments.resume) as folder:
        _run(vae, images, plan, arguments, folder)
    return 0


def _run(vae: VAE, images: Images, plan: Plan, arguments: argparse.Namespace, folder: Path) -> None:
    """Train a VAE, score it and draw its figures, in a folder."""
    vae = vae.to("cuda" if torch.cuda.is_available() else "cpu")
    say(_summary(images, vae))
    records = train(vae, images, plan, arguments.seed, folder)
    say(
        f"{len(records)} epochs in {records[-1].seconds:.1f} s; kept the weights that validate best"
    )
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
    vae: VAE, images: Images, plan: Plan, seed: int, folder: Path | None
) -> list[EpochRecord]:
    """Train a VAE and save it in a folder, resuming from a checkpoint of the same run if any."""
    pixels = vae.head.weight
    train, validation = (
        grey(part, images.white).to(pixels) for part in (images.train, images.validation)
    )
    metadata = {"data": images.name, "seed": seed, "plan": asdict(plan)}
    if folder is None:
        return fit(vae, train, validation, plan, seed, [_VAEProgressBar()])
    folder.mkdir(parents=True, exist_ok=True)
    callbacks: list[Callable[[VAEStep], None]] = [_VAEProgressBar(), _VAERecorder(folder, metadata)]
    records = fit(vae, train, validation, plan, seed, callbacks, folder / STATE_FILE)
    vae.save(folder, metadata)
    _write(folder, records)  # which a killed process or a full disk may have left unwritten
    return records


def observed(vae: VAE, images: Images) -> Tensor:
    """Return the observations of the scored test images, the same in each call."""
    generator = torch.Generator().manual_seed(OBSERVATION_SEED)
    x = vae.likelihood.observe(grey(images.test[:MAX_TEST_IMAGES], images.white), generator)
    return x.to(vae.head.weight)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("train-vae", description=__doc__)
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        default="digits",
        help=f"{', '.join(IMAGES)}, or a file of whole numbers from 0 to 255 of shape (n, height, "
        "width): .npy or FILE.npz:ARRAY (default: digits)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=os.path.abspath,
        help=f"folder with the files of mnist and freyfaces (default: the value of {DATA_DIR})",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in --out, if there is one"
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of data and weights (default 0)")
    parser.add_argument(
        "--samples",
        metavar="K",
        type=positive_integer,
        default=1000,
        help="draws for the importance-weighted bound (default 1000)",
    )
    for title, kind in (("the VAE", Architecture), ("its training", Plan)):
        group = parser.add_argument_group(title)
        for field in fields(kind):
            if field.name in VAE_HELP:
                default = None if field.name == "likelihood" else text_of(field.default)
                shown = "" if default is None else f" (default {default})"
                group.add_argument(
                    _option(field.name), metavar="X", help=VAE_HELP[field.name] + shown
                )
    return parser


def _given(arguments: argparse.Namespace, kind: type[Architecture] | type[Plan]) -> dict[str, Any]:
    """Return the attributes that the command line sets."""
    return {
        field.name: value_of(field.name, text, field.default)
        for field in fields(kind)
        if (text := getattr(arguments, field.name, None)) is not None
    }


def _architecture(arguments: argparse.Namespace, images: Images) -> Architecture:
    """Return the architecture that the arguments describe; refuse options without effect."""
    given = _given(arguments, Architecture)
    made = architecture_of(images, **given)
    for name, posterior in POSTERIOR_OF_OPTION.items():
        if name in given and made.posterior != posterior:
            raise ValueError(
                f"Expected no {_option(name)} with posterior {made.posterior}, which does not "
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


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _summary(images: Images, vae: VAE) -> str:
    """Return a line that describes the images and the VAE to be trained."""
    made, (height, width) = vae.architecture, images.size
    posterior = made.posterior + (
        f" amortized by {made.amortize}" if made.posterior == "cnf" else ""
    )
    return (
        f"{images.name}: {len(images.train)} training images of {height} x {width}; "
        f"{made.network} of {made.latent_dim} latents, likelihood {made.likelihood}, posterior "
        f"{posterior}, {sum(p.numel() for p in vae.parameters())} weights"
    )


def _lines(bounds: LikelihoodBounds, pixels: int, samples: int) -> list[str]:
    """Return the scores as lines, with their standard errors over the images."""
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
    """Draw all figures, by name."""
    curve = Figure(figsize=(6, 3.5), layout="constrained")
    draw_bounds(curve.subplots(), records)
    with seeded(seed, x.device):
        figures = {
            "reconstructions": reconstructions_figure(vae, x[:SHOWN_IMAGES]),
            "samples": samples_figure(vae),
            "traversal": traversal_figure(vae, x),
            "learning_curve": curve,
        }
        if vae.architecture.latent_dim == 2:
            figures["posterior"] = posterior_figure(vae, x)
    return figures


class _VAEProgressBar:
    """A callback that shows loss and validation bound; quiet where there is no terminal."""

    def __init__(self) -> None:
        bar_format = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
        self._bar: tqdm[Any] = tqdm(total=1.0, disable=None, bar_format=bar_format, leave=False)

    def __call__(self, step: VAEStep) -> None:
        bound = f"{step.records[-1].validation_elbo:.3f}" if step.records else "-"
        self._bar.set_postfix_str(
            f"epoch {len(step.records)}  loss {step.loss:.3f}  validation bound {bound}",
            refresh=False,
        )
        self._bar.update(step.progress - self._bar.n)
        if step.progress == 1.0:
            self._bar.close()


class _VAERecorder:
    """A callback that writes metrics.jsonl and saves each VAE that improves.

    A full disk does not end the run: the last complete files stay, and the end of the run writes
    them again.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self.folder, self.metadata = folder, metadata

    def __call__(self, step: VAEStep) -> None:
        if step.record is None:
            return
        try:
            _write(self.folder, step.records)
            if step.improved:
                step.vae.save(self.folder, self.metadata)
        except OSError as error:
            warn(
                f"{self.folder} cannot be written to ({error.strerror}): training continues, the "
                "last complete files stay, and the end of the run tries again",
                stacklevel=2,
            )


def _write(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Write metrics.jsonl, one line for each epoch."""
    write_metrics(folder / METRICS_FILE, (asdict(record) for record in records))


if __name__ == "__main__":
    raise SystemExit(main())
