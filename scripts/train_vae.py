"""`train-vae DATA --out DIR`: train a VAE of images with a posterior of choice, score and draw it.

Of up to 500 test images the evidence lower bound and the importance-weighted bound are printed,
with the posterior solved with care. DIR receives the VAE, metrics.jsonl and figures/: images beside
their reconstructions, images from the prior, what the latents do, the learning curve, and of a VAE
with two latents its posteriors beside the true ones.
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
from cnf.scripts.trained import METRICS, STATE, write_metrics
from cnf.training.loop import drawing
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
from cnf.variational.posterior import AMORTIZATIONS

TESTED = 500  # test images that are scored, at most
SHOWN = 16  # of which are drawn
OBSERVED = 0  # seed of what is observed of the test images: the same for whatever is compared
INK = ("digits", "mnist")  # whose grey is a probability of ink, not light that was measured
HELP = {
    "likelihood": f"one of {', '.join(LIKELIHOODS)}: black and white pixels, drawn anew in each "
    "epoch, or all levels of grey (default: bernoulli of digits and mnist, levels of others)",
    "network": f"one of {', '.join(NETWORKS)}: perceptrons, or the gated convolutions of the "
    "Sylvester flows' paper",
    "hidden": "widths of the encoder's hidden layers, in reverse order the decoder's, of mlp",
    "latent_dim": "number of latents",
    "features": "numbers that the encoder tells the posterior beside loc and scale",
    "posterior": f"one of {', '.join(POSTERIORS)}",
    "amortize": f"of cnf, by what its field depends on the image: {', '.join(AMORTIZATIONS)}",
    "field": "of cnf, widths of its field's hidden layers",
    "flows": "of planar, how many",
    "epochs": "passes over the training images",
    "batch_size": "images for each step",
    "learning_rate": "peak learning rate, which falls as a cosine to 0",
    "warmup": "fraction of the run in which it rises",
    "annealing": "fraction of the run in which the KL term's weight rises from 0 to 1",
    "settling": "fraction of the run before what carries the posterior's Gaussian on learns",
    "weight_decay": "AdamW's weight decay",
    "max_grad_norm": "largest norm of the gradient",
}
ONLY = {"amortize": "cnf", "field": "cnf", "flows": "planar"}  # posteriors that options are of


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
    """Train, score and draw, in a folder."""
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
    """What a VAE of these images is made of, with their own likelihood where none is given."""
    likelihood = "bernoulli" if images.name in INK else "levels"
    return Architecture(images.size, images.white, **{"likelihood": likelihood, **given})


def train(
    vae: VAE, images: Images, plan: Plan, seed: int, folder: Path | None
) -> list[EpochRecord]:
    """Train a VAE, and save it in a folder; that may have the state of the same run."""
    pixels = vae.head.weight
    train, validation = (
        grey(part, images.white).to(pixels) for part in (images.train, images.validation)
    )
    metadata = {"data": images.name, "seed": seed, "plan": asdict(plan)}
    if folder is None:
        return fit(vae, train, validation, plan, seed, [_ProgressBar()])
    folder.mkdir(parents=True, exist_ok=True)
    callbacks: list[Callable[[VAEStep], None]] = [_ProgressBar(), _Recorder(folder, metadata)]
    records = fit(vae, train, validation, plan, seed, callbacks, folder / STATE)
    vae.save(folder, metadata)
    _write(folder, records)  # as a process that was killed, or a full disk, may not have done
    return records


def observed(vae: VAE, images: Images) -> Tensor:
    """What is observed of the test images that are scored, always the same."""
    generator = torch.Generator().manual_seed(OBSERVED)
    x = vae.likelihood.observe(grey(images.test[:TESTED], images.white), generator)
    return x.to(vae.head.weight)


def parser() -> Parser:
    """What the program can be asked."""
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
        help=f"folder with the files of mnist and freyfaces (default: what {DATA_DIR} says)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, if one was begun there"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of data and weights (default 0)")
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
            if field.name in HELP:
                default = None if field.name == "likelihood" else text_of(field.default)
                shown = "" if default is None else f" (default {default})"
                group.add_argument(_option(field.name), metavar="X", help=HELP[field.name] + shown)
    return parser


def _given(arguments: argparse.Namespace, kind: type[Architecture] | type[Plan]) -> dict[str, Any]:
    """The attributes that the command line names."""
    return {
        field.name: value_of(field.name, text, field.default)
        for field in fields(kind)
        if (text := getattr(arguments, field.name, None)) is not None
    }


def _architecture(arguments: argparse.Namespace, images: Images) -> Architecture:
    """What the VAE is made of, with the images' own likelihood where none is named."""
    given = _given(arguments, Architecture)
    made = architecture_of(images, **given)
    for name, posterior in ONLY.items():
        if name in given and made.posterior != posterior:
            raise ValueError(
                f"Expected no {_option(name)} with posterior {made.posterior}, which has no use "
                "for it"
            )
    if "features" in given and not made.uses_features:
        raise ValueError(
            "Expected no --features with a posterior that is told no more than loc and scale: "
            f"{made.posterior}{' of amortize none' * (made.posterior == 'cnf')}"
        )
    if made.network == "conv" and "hidden" in given:
        raise ValueError("Expected no --hidden with network conv, whose widths are its own")
    return made


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _summary(images: Images, vae: VAE) -> str:
    """What is about to be trained."""
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
    """The scores, with their standard errors over the images."""
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
    """All figures by name."""
    curve = Figure(figsize=(6, 3.5), layout="constrained")
    draw_bounds(curve.subplots(), records)
    with drawing(seed, x.device):
        figures = {
            "reconstructions": reconstructions_figure(vae, x[:SHOWN]),
            "samples": samples_figure(vae),
            "traversal": traversal_figure(vae, x),
            "learning_curve": curve,
        }
        if vae.architecture.latent_dim == 2:
            figures["posterior"] = posterior_figure(vae, x)
    return figures


class _ProgressBar:
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


class _Recorder:
    """A callback that keeps metrics.jsonl up to date, and saves the VAE that validates best.

    A disk that is full ends no run: the files of before stay, and the end tries again.
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
                f"{self.folder} cannot be written to ({error.strerror}): training goes on, what is "
                "there stays, and the end tries again",
                stacklevel=2,
            )


def _write(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Write metrics.jsonl, a line for each epoch."""
    write_metrics(folder / METRICS, (asdict(record) for record in records))


if __name__ == "__main__":
    raise SystemExit(main())
