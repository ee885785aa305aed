"""`plot DIR`: write figures and a film of a trained flow to DIR/figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.datasets import ConditionalToy, Picture, Toy
from cnf.plotting import (
    FILMS,
    SCATTER_POINTS,
    Bounds,
    Film,
    check_film,
    conditional_figure,
    darken,
    density_figure,
    density_film,
    field_figure,
    grid_figure,
    learning_curve_figure,
    pairs_figure,
    png,
    projections_figure,
    samples_film,
    strip_figure,
    trajectories_figure,
    write_film,
)
from cnf.scripts.data import Data
from cnf.scripts.program import Parser, program, say
from cnf.scripts.rows import no_context
from cnf.scripts.trained import METRICS_FILE, TrainedModel
from cnf.training.objectives import FlowMatching
from cnf.utils.serialization import read_file, write_atomic

Array = NDArray[np.float64]

FLOW_MATCHING = FlowMatching.name


def plot(
    trained: TrainedModel,
    data: Data,
    figures: Sequence[str] | None = None,
    film: str | None = None,
    dark: bool = False,
) -> list[Path]:
    """Draw figures of a trained flow, and return their paths.

    Args:
        trained: The model.
        data: The training data.
        figures: Names in `FIGURES`; when None the density (2-D) or pairs of columns, in 2-D the
            density over time, and the learning curve. With a context the density is drawn (1-D or
            2-D) at a few of the held-out contexts.
        film: `"gif"` or `"mp4"`, to write a film of the flow as well.
        dark: Whether to draw on a dark page, in files named NAME_dark.

    Raises:
        ValueError: A figure or the film does not exist for such a flow, or an .mp4 is asked for
            without ffmpeg.
    """
    if film:
        check_film(f".{film}")
        _check_filmed(trained)
    # All are drawn before the first is written, so that a damaged folder stays unchanged.
    drawn = {name: FIGURES[name](trained, data) for name in figures or _default_figures(trained)}
    folder = trained.folder / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise ValueError(
            f"Expected to write to the folder {folder}; got a file of that name: move it away"
        ) from None
    end = "_dark" if dark else ""
    paths = [
        write_figure(darken(figure) if dark else figure, folder / f"{name}{end}.png")
        for name, figure in drawn.items()
    ]
    if film:
        paths.append(write_film(_film(trained, data, dark), folder / f"film{end}.{film}"))
    return paths


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("plot", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="a folder written by train")
    parser.add_argument(
        "--figures",
        metavar="NAME,NAME",
        type=_names,
        help=f"some of {', '.join(FIGURES)} (default: density and strip, or pairs, and "
        "learning_curve)",
    )
    parser.add_argument(
        "--film",
        choices=[ending.removeprefix(".") for ending in FILMS],
        help="write a film of the flow from base to data as well; mp4 needs ffmpeg",
    )
    parser.add_argument("--dark", action="store_true", help="draw on a dark page, as NAME_dark.png")
    return parser


@program("plot")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    trained = TrainedModel.read(arguments.dir)
    say(*plot(trained, trained.data(), arguments.figures, arguments.film, arguments.dark))
    return 0


def _names(text: str) -> list[str]:
    """Parse a comma-separated list of figures."""
    names = text.split(",")
    for name in names:
        if name not in FIGURES:
            raise argparse.ArgumentTypeError(
                f"expected figures among {', '.join(FIGURES)}; got {name!r}"
            )
    return names


def _default_figures(trained: TrainedModel) -> list[str]:
    """Return the names of the figures that are drawn by default."""
    if _has_drawable_density(trained):
        names = ["density"] if trained.context_columns else ["density", "strip"]
    else:
        names = ["pairs"]
    return names + ["learning_curve"] * (trained.folder / METRICS_FILE).exists()


def _has_drawable_density(trained: TrainedModel) -> bool:
    """Whether the flow's density can be drawn: over two real columns, or over one given others."""
    least = 1 if trained.context_columns else 2
    columns = len(trained.schema.columns)
    varying = len(_varying(trained)[0])
    return least <= columns == varying == trained.flow.dim <= 2 and not trained.flow.noisy


def _bounds(data: Data) -> Bounds | None:
    """Return the bounds of a picture, which keep its proportions; None for other data."""
    return data.toy.bounds if isinstance(data.toy, Picture) else None


def _density(trained: TrainedModel, data: Data) -> Figure:
    if trained.context_columns and _has_drawable_density(trained):
        names = (trained.schema.names, trained.context_columns)
        given = data.toy.log_prob if isinstance(data.toy, ConditionalToy) else None
        return conditional_figure(trained.flow, data.test.x, data.test.context, *names, given)
    _check_plane(trained, "density")
    truth = data.toy.log_prob if isinstance(data.toy, Toy) else None
    return density_figure(trained.flow, data.test.x, truth, bounds=_bounds(data))


def _plane(draw: Callable[..., Figure], name: str) -> Callable[[TrainedModel, Data], Figure]:
    """Return a figure function that first checks for a flow over two real columns."""

    def drawn(trained: TrainedModel, data: Data) -> Figure:
        _check_plane(trained, name)
        return draw(trained.flow, data.test.x, bounds=_bounds(data))

    return drawn


def _check_plane(trained: TrainedModel, name: str) -> None:
    if trained.context_columns or not _has_drawable_density(trained):
        given = f" given {', '.join(trained.context_columns)}" if trained.context_columns else ""
        raise ValueError(
            f"Expected a flow over two real columns, without a context, for the figure {name}; got "
            f"{len(trained.schema.columns)} columns{given}: draw pairs"
        )


def _pairs(trained: TrainedModel, data: Data) -> Figure:
    return pairs_figure(*_rows_and_samples(trained, data))


def _projection(trained: TrainedModel, data: Data) -> Figure:
    rows, samples, names = _rows_and_samples(trained, data)
    if len(names) != 3:
        raise ValueError(
            f"Expected three columns for the figure projection; got {len(names)}: draw pairs"
        )
    return projections_figure(rows, samples, names)


def _rows_and_samples(trained: TrainedModel, data: Data) -> tuple[Array, Array, tuple[str, ...]]:
    """Return held-out rows, samples and the names of their columns, without constant ones."""
    (names, varying), given = _varying(trained), trained.context_columns
    rows = data.test[:SCATTER_POINTS] if given else data.test
    samples = trained.sample(rows.context if given else no_context(SCATTER_POINTS), seed=0)
    # The context, equal in both, comes last, where there is room to show the dependence on it.
    drawn = np.hstack([samples[:, varying], rows.context]) if given else samples[:, varying]
    return np.hstack([rows.x[:, varying], rows.context]), drawn, (*names, *given)


def _varying(trained: TrainedModel) -> tuple[tuple[str, ...], list[int]]:
    """Return the names and positions of the columns that are not constant."""
    schema, positions = trained.schema.without(trained.schema.constant)
    return schema.names, positions


def _learning_curve(trained: TrainedModel, data: Data) -> Figure:
    metrics = trained.folder / METRICS_FILE
    if not metrics.exists():
        raise ValueError(f"Expected {metrics} for the figure learning_curve; got none")
    try:
        records = [json.loads(line) for line in read_file(metrics).decode().splitlines()]
        # Flow matching's loss is not in nats.
        losses = [
            {**each, "loss": None} if each["objective"] == FLOW_MATCHING else each
            for each in records
        ]
        # A number that is not finite is written as null.
        curves = [
            [nan if record[key] is None else float(record[key]) for record in losses]
            for key in ("seconds", "loss", "validation_nll", "nfe")
        ]
    except (KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected the records that train writes in {metrics}; got something else ({error}): "
            "restore it, or remove it to plot without the learning curve"
        ) from None
    return learning_curve_figure(*curves)


def _check_filmed(trained: TrainedModel) -> None:
    names, _ = _varying(trained)
    if trained.context_columns or len(names) < 2:
        given = f" given {', '.join(trained.context_columns)}" if trained.context_columns else ""
        raise ValueError(
            f"Expected a flow over two columns or more, without a context, for a film; got "
            f"{', '.join(names)}{given}"
        )


def _film(trained: TrainedModel, data: Data, dark: bool) -> Film:
    """Return a film of the density of a flow over two real columns; else of its samples."""
    _check_filmed(trained)
    if _has_drawable_density(trained):
        return density_film(trained.flow, data.test.x, _bounds(data), dark)
    names, varying = _varying(trained)
    return samples_film(trained.flow, data.test.x, names, dark, columns=varying)


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure atomically, and return the path."""
    write_atomic({path: png(figure)})
    return path


FIGURES: dict[str, Callable[[TrainedModel, Data], Figure]] = {
    "density": _density,
    "strip": _plane(strip_figure, "strip"),
    "trajectories": _plane(trajectories_figure, "trajectories"),
    "field": _plane(field_figure, "field"),
    "grid": _plane(grid_figure, "grid"),
    "pairs": _pairs,
    "projection": _projection,
    "learning_curve": _learning_curve,
}
"""The figures of a trained flow, by name."""


if __name__ == "__main__":
    raise SystemExit(main())
