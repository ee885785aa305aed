"""`train-vae DATA --out DIR`: train a VAE of images with a chosen posterior, score and draw it.

The evidence lower bound and the importance-weighted bound of up to 500 test images are printed,
with the posterior solved at tight tolerances. DIR receives the VAE, metrics.jsonl and figures/:
images and their reconstructions, images from the prior, traversals of the latents, the learning
curve and, for a VAE with two latents, its posteriors and the true ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnf.datasets import IMAGES
from cnf.scripts.options import add_options, option_of, text_of
from cnf.scripts.program import Parser, positive_integer, program
from cnf.training.numbers import numbers_of
from cnf.vae.architecture import Architecture
from cnf.vae.plan import Plan


@program("train-vae")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    from cnf.scripts.vae_training import train_and_score

    train_and_score(arguments)
    return 0


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
    add_options(parser, "--data-dir", "--seed", "--threads")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in --out, if there is one"
    )
    parser.add_argument(
        "--samples",
        metavar="K",
        type=positive_integer,
        default=1000,
        help="draws for the importance-weighted bound (default 1000)",
    )
    for title, kind in (("the VAE", Architecture), ("its training", Plan)):
        group = parser.add_argument_group(title)
        for name, number in numbers_of(kind).items():
            default = "" if name == "likelihood" else f" (default {text_of(number.default)})"
            group.add_argument(option_of(name), metavar="X", help=number.describe() + default)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
