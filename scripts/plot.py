"""`plot DIR`: a trained flow's figures, into DIR/figures."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from math import nan
from pathlib import Path

from matplotlib.figure import Figure

from cnf.plotting import POINTS, density_figure, draw_learning_curve, pairs_figure
from cnf.scripts.data import Data
from cnf.scripts.program import Parser, program, say
from cnf.scripts.trained import METRICS, Trained


def plot(trained: Trained, data: Data) -> list[Path]:
    """Draw the density (2-D) or pairs of columns, and the learning curve; where they are."""
    folder = trained.folder / "figures"
    folder.mkdir(exist_ok=True)
    if len(trained.columns) == 2:
        truth = data.toy.log_prob if data.toy else None
        figures = {"density": density_figure(trained.flow, data.test, truth)}
    else:
        samples = trained.sample(POINTS, seed=0)
        figures = {"pairs": pairs_figure(data.test, samples, trained.columns)}
    metrics = trained.folder / METRICS
    if metrics.exists():
        figures["learning_curve"] = _learning_curve(metrics)
    return [write_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


@program("plot")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = Parser("plot", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    arguments = parser.parse_args(argv)
    trained = Trained.read(arguments.dir)
    say(*plot(trained, trained.data()))
    return 0


def _learning_curve(metrics: Path) -> Figure:
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    # A number that was not finite stands as null in the file.
    curves = (
        [nan if record[key] is None else record[key] for record in records]
        for key in ("seconds", "loss", "validation_nll")
    )
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    draw_learning_curve(figure.subplots(), *curves)
    return figure


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure under a temporary name, and rename it; gives the path."""
    temporary = path.with_name(f".{path.name}")
    with warnings.catch_warnings():  # a column's name may have letters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
