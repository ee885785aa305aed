"""`plot DIR`: a trained flow's figures, into DIR/figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cnf.datasets import ConditionalToy, Toy
from cnf.files import write_whole
from cnf.plotting import (
    POINTS,
    conditional_figure,
    density_figure,
    draw_learning_curve,
    pairs_figure,
    png,
)
from cnf.scripts.data import Data
from cnf.scripts.program import Parser, program, say
from cnf.scripts.rows import no_context
from cnf.scripts.trained import METRICS, Trained


def plot(trained: Trained, data: Data) -> list[Path]:
    """Draw the density (2-D) or pairs of columns, and the learning curve; where they are.

    With a context the density is drawn (1-D or 2-D) at a few of the held-out contexts.
    """
    folder = trained.folder / "figures"
    folder.mkdir(exist_ok=True)
    figures = _conditional(trained, data) if trained.context_columns else _plain(trained, data)
    metrics = trained.folder / METRICS
    if metrics.exists():
        figures["learning_curve"] = _learning_curve(metrics)
    return [write_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def parser() -> Parser:
    """What the program can be asked."""
    parser = Parser("plot", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    return parser


@program("plot")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    trained = Trained.read(arguments.dir)
    say(*plot(trained, trained.data()))
    return 0


def _plain(trained: Trained, data: Data) -> dict[str, Figure]:
    names, varying = _varying(trained)
    if len(names) == len(trained.schema.columns) == 2 and not trained.flow.noisy:
        truth = data.toy.log_prob if isinstance(data.toy, Toy) else None
        return {"density": density_figure(trained.flow, data.test.x, truth)}
    samples = trained.sample(no_context(POINTS), seed=0)
    return {"pairs": pairs_figure(data.test.x[:, varying], samples[:, varying], names)}


def _conditional(trained: Trained, data: Data) -> dict[str, Figure]:
    (own, varying), given = _varying(trained), trained.context_columns
    if len(trained.schema.columns) <= 2 and not trained.flow.noisy and len(own) == trained.flow.dim:
        truth = data.toy.log_prob if isinstance(data.toy, ConditionalToy) else None
        rows = data.test
        return {
            "density": conditional_figure(trained.flow, rows.x, rows.context, own, given, truth)
        }
    rows = data.test[:POINTS]
    samples = trained.sample(rows.context, seed=0)
    # The context, the same in both, comes last: how the rows depend on it shows where it has room.
    shown, drawn = (np.hstack([x[:, varying], rows.context]) for x in (rows.x, samples))
    return {"pairs": pairs_figure(shown, drawn, (*own, *given))}


def _varying(trained: Trained) -> tuple[tuple[str, ...], list[int]]:
    """The names and places of the columns that are not constant."""
    schema, places = trained.schema.without(trained.schema.constant)
    return schema.names, places


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
    """Write a figure, whole or not at all; gives the path."""
    write_whole({path: png(figure)})
    return path


if __name__ == "__main__":
    raise SystemExit(main())
