"""The figures and the film of a trained model, for `cnf plot`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.figure import Figure

import cnf.plotting as plotting
from cnf.datasets import ConditionalToy, Picture, Table, Toy
from cnf.flow import Flow
from cnf.plotting import SCATTER_POINTS, Bounds, png
from cnf.plotting.cells import is_mixed
from cnf.scripts.data import Data
from cnf.scripts.plot import FIGURES
from cnf.scripts.rows import ContextRows
from cnf.scripts.trained import METRICS_FILE, TrainedModel
from cnf.training.objectives import FlowMatching
from cnf.utils.serialization import read_file, write_atomic

MIXED_ROWS = 5000  # that shares are drawn of

FLOW_MATCHING = FlowMatching.name


def plot(
    trained: TrainedModel,
    data: Data,
    figures: Sequence[str] | None = None,
    film: str | None = None,
    dark: bool = False,
) -> list[Path]:
    """Draw figures of a trained model, and return their paths.

    Args:
        trained: The model.
        data: The training data.
        figures: Names in `FIGURES`; when None those that suit the model.
        film: `"gif"` or `"mp4"`, to write a film of the flow as well.
        dark: Whether to draw on a dark page, in files named NAME_dark.

    Raises:
        ValueError: A figure or the film does not exist for such a model, or an .mp4 is asked for
            without ffmpeg.
    """
    check_names(figures or (), FIGURES, "rows")
    if film:
        plotting.check_film(f".{film}")
        _check_filmed(trained)
    # All are drawn before the first is written, so that a damaged folder stays unchanged.
    drawn = {name: FIGURES[name](trained, data) for name in figures or _default_figures(trained)}
    paths = write_figures(drawn, trained.folder / "figures", dark)
    if film:
        end = "_dark" if dark else ""
        flow, x, (names, varying) = _flow(trained), data.test.x, _varying(trained)
        if _has_drawable_density(trained):
            drawing = plotting.density_film(flow, x, _bounds(data), dark)
        else:
            drawing = plotting.samples_film(flow, x, names, dark, columns=varying)
        paths.append(plotting.write_film(drawing, trained.folder / "figures" / f"film{end}.{film}"))
    return paths


def check_names(names: Sequence[str], registry: Collection[str], of: str) -> None:
    """Raise a ValueError for figures that models of `of`, rows or series, do not have."""
    for name in names:
        if name not in registry:
            raise ValueError(
                f"Expected figures of a model of {of}, {', '.join(registry)}; got {name!r}"
            )


def write_figures(drawn: Mapping[str, Figure], folder: Path, dark: bool = False) -> list[Path]:
    """Write figures by their names into a folder, on dark pages if asked; return their paths."""
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise ValueError(
            f"Expected to write to the folder {folder}; got a file of that name: move it away"
        ) from None
    end = "_dark" if dark else ""
    return [
        write_figure(plotting.darken(figure) if dark else figure, folder / f"{name}{end}.png")
        for name, figure in drawn.items()
    ]


def _default_figures(trained: TrainedModel) -> list[str]:
    if _has_drawable_density(trained):
        names = ["density"] if trained.context_columns else ["density", "strip"]
    else:
        names = ["pairs"]
    return names + ["learning_curve"] * (trained.folder / METRICS_FILE).exists()


def _has_drawable_density(trained: TrainedModel) -> bool:
    """Whether a flow's density can be drawn: over two real columns, or over one given others."""
    if not isinstance(trained.model, Flow):
        return False
    least = 1 if trained.context_columns else 2
    columns = len(trained.schema.columns)
    varying = len(_varying(trained)[0])
    return least <= columns == varying == trained.model.dim <= 2 and not trained.model.noisy


def _flow(trained: TrainedModel) -> Flow:
    """Return the model, which checks have found to be a flow."""
    return cast("Flow", trained.model)


def _bounds(data: Data) -> Bounds | None:
    """Return the bounds of a picture, which keep its proportions."""
    return data.toy.bounds if isinstance(data.toy, Picture) else None


def density(trained: TrainedModel, data: Data) -> Figure:
    """Draw the density, with the truth where it is known, or that given some contexts."""
    if trained.context_columns and _has_drawable_density(trained):
        names = (trained.schema.names, trained.context_columns)
        given = data.toy.log_prob if isinstance(data.toy, ConditionalToy) else None
        rows = (data.test.x, data.test.context)
        return plotting.conditional_figure(_flow(trained), *rows, *names, given)
    _check_plane(trained, "density")
    truth = data.toy.log_prob if isinstance(data.toy, Toy) else None
    return plotting.density_figure(_flow(trained), data.test.x, truth, bounds=_bounds(data))


def _plane(name: str, draw: Callable[..., Figure]) -> Callable[[TrainedModel, Data], Figure]:
    """Return a figure function that first checks for a flow over two real columns."""

    def drawn(trained: TrainedModel, data: Data) -> Figure:
        _check_plane(trained, name)
        return draw(_flow(trained), data.test.x, bounds=_bounds(data))

    return drawn


strip = _plane("strip", plotting.strip_figure)
trajectories = _plane("trajectories", plotting.trajectories_figure)
field = _plane("field", plotting.field_figure)
grid = _plane("grid", plotting.grid_figure)


def _check_plane(trained: TrainedModel, name: str) -> None:
    if trained.context_columns or not _has_drawable_density(trained):
        raise ValueError(
            f"Expected a flow over two real columns, without a context, for the figure {name}; got "
            f"{trained.kind} of {len(trained.schema.columns)} columns{_given(trained)}: draw pairs"
        )


def _given(trained: TrainedModel) -> str:
    return f" given {', '.join(trained.context_columns)}" if trained.context_columns else ""


def pairs(trained: TrainedModel, data: Data) -> Figure:
    """Draw pairs of columns, held-out rows against samples, as suits the columns."""
    mixed = is_mixed(joined_table(trained, data.test[:MIXED_ROWS]))
    rows, samples = _rows_and_samples(trained, data, MIXED_ROWS if mixed else SCATTER_POINTS)
    if mixed:
        return plotting.mixed_pairs_figure(rows, samples)
    return plotting.pairs_figure(rows.values, samples.values, rows.columns)


def projection(trained: TrainedModel, data: Data) -> Figure:
    """Draw three columns in perspective, held-out rows against samples."""
    rows, samples = _rows_and_samples(trained, data, SCATTER_POINTS)
    if len(rows.columns) != 3:
        raise ValueError(
            f"Expected three columns for the figure projection; got {len(rows.columns)}: draw pairs"
        )
    return plotting.projections_figure(rows.values, samples.values, rows.columns)


def _rows_and_samples(trained: TrainedModel, data: Data, count: int) -> tuple[Table, Table]:
    """Return held-out rows, and as many samples as are asked for, or at the rows' contexts.

    Samples have the gaps of the rows.
    """
    rows = data.test[:count] if trained.context_columns else data.test
    partners = rows if trained.context_columns else rows.at(np.resize(np.arange(len(rows)), count))
    samples = trained.with_gaps(trained.sample(partners.context, seed=0), partners)
    return joined_table(trained, rows), joined_table(trained, samples)


def joined_table(trained: TrainedModel, rows: ContextRows) -> Table:
    """Return the columns that vary, and the context, in the units of the training's table."""
    # The context, equal in both, comes last, where there is room to show the dependence on it.
    return trained.table(rows).select([*trained.schema.varying, *trained.context_columns])


def _varying(trained: TrainedModel) -> tuple[tuple[str, ...], list[int]]:
    schema, positions = trained.schema.without(trained.schema.constant)
    return schema.names, positions


def learning_curve(trained: TrainedModel, data: Data) -> Figure:
    """Draw the course of the training, from its records."""
    return metrics_figure(trained.folder)


def metrics_figure(folder: Path) -> Figure:
    """Draw the records of a training in a folder."""
    metrics = folder / METRICS_FILE
    if not metrics.exists():
        raise ValueError(f"Expected {metrics} for the figure learning_curve; got none")
    try:
        records = [json.loads(line) for line in read_file(metrics).decode().splitlines()]
        for record in records:
            if record["objective"] == FLOW_MATCHING:
                record["loss"] = None  # it is not in nats
        # A number that is not finite is written as null.
        curves = [
            [nan if record[key] is None else float(record[key]) for record in records]
            for key in ("seconds", "loss", "validation_nll", "nfe")
        ]
    except (KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected the records that train writes in {metrics}; got something else ({error}): "
            "restore it, or remove it to plot without the learning curve"
        ) from None
    return plotting.learning_curve_figure(*curves)


def _check_filmed(trained: TrainedModel) -> None:
    names, _ = _varying(trained)
    flow = isinstance(trained.model, Flow)
    if not flow or trained.context_columns or len(names) < 2:
        raise ValueError(
            "Expected a flow over two columns or more, without a context, for a film; got "
            f"{trained.kind} of {', '.join(names)}{_given(trained)}"
        )


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure atomically, and return the path."""
    write_atomic({path: png(figure)})
    return path
