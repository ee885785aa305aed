"""All toys on one page: each flow's density beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.datasets import TOYS
from cnf.flow import Flow
from cnf.plotting import draw_density
from cnf.scripts.benchmarks.truth import CHUNK, Distance

Array = NDArray[np.float64]

COLUMNS = 4
GRID = 120  # pixels along each side
TOLERANCE = 1e-4  # finer than colours are


@dataclass(frozen=True)
class Panel:
    """A toy on the sheet.

    Attributes:
        toy: Name of the toy.
        flow: Trained on it; None where training or scoring failed.
        distance: From the truth to the flow.
    """

    toy: str
    flow: Flow | None
    distance: Distance


def contact_sheet(panels: Sequence[Panel]) -> Figure:
    """The truth of each toy and below it the flow, in the same colours, labelled with the KL."""
    columns = min(COLUMNS, len(panels))
    bands = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(2.3 * columns + 0.3, 5.0 * bands), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, panel in enumerate(panels):
        band, column = divmod(i, COLUMNS)
        truth, model = axes[2 * band : 2 * band + 2, column]
        _draw(truth, model, panel)
        if column == 0:
            truth.set_ylabel("truth")
            model.set_ylabel("flow")
    return figure


def _draw(truth: Axes, model: Axes, panel: Panel) -> None:
    """A toy's two panels; the truth's largest density is the brightest colour of both."""
    toy = TOYS[panel.toy]
    for ax in (truth, model):
        ax.axis("on")
        ax.set(xticks=[], yticks=[])
    draw_density(truth, toy.log_prob, toy.bounds, grid=GRID).set_title(panel.toy)
    if panel.flow is None:
        model.set_box_aspect(1)
        model.set_xlabel("failed")
        return
    ceiling = truth.get_images()[0].get_clim()[1]
    draw_density(model, partial(_log_prob, panel.flow), toy.bounds, ceiling, GRID)
    model.set_xlabel(f"KL {panel.distance}")


def _log_prob(flow: Flow, rows: Array) -> Array:
    quick = flow.with_solver(rtol=TOLERANCE, atol=TOLERANCE, step="joint")
    with torch.no_grad():
        parts = torch.from_numpy(rows).to(flow.like).split(CHUNK)
        return torch.cat([quick.score_rows(part).log_prob for part in parts]).double().numpy()
