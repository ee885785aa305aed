"""A contact sheet of all toys: each flow's density and the true one."""

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
from cnf.scripts.benchmarks.truth import BENCHMARK_CHUNK_ROWS, Distance

Array = NDArray[np.float64]

PANELS_IN_A_ROW = 4
PANEL_PIXELS = 120  # pixels along each side
DRAWING_TOLERANCE = 1e-4  # finer than the colours


@dataclass(frozen=True)
class SheetPanel:
    """A toy on the contact sheet.

    Attributes:
        toy: Name of the toy.
        flow: The flow trained on the toy; None where training or scoring failed.
        distance: The KL divergence from the truth to the flow.
    """

    toy: str
    flow: Flow | None
    distance: Distance


def contact_sheet(panels: Sequence[SheetPanel]) -> Figure:
    """Draw the true density of each toy above the flow's, in the same colours, with the KL."""
    columns = min(PANELS_IN_A_ROW, len(panels))
    bands = -(-len(panels) // PANELS_IN_A_ROW)
    figure = Figure(figsize=(2.3 * columns + 0.3, 5.0 * bands), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, panel in enumerate(panels):
        band, column = divmod(i, PANELS_IN_A_ROW)
        truth, model = axes[2 * band : 2 * band + 2, column]
        _draw(truth, model, panel)
        if column == 0:
            truth.set_ylabel("truth")
            model.set_ylabel("flow")
    return figure


def _draw(truth: Axes, model: Axes, panel: SheetPanel) -> None:
    """Draw a toy's two panels, with the largest true density as the brightest colour of both."""
    toy = TOYS[panel.toy]
    for ax in (truth, model):
        ax.axis("on")
        ax.set(xticks=[], yticks=[])
    draw_density(truth, toy.log_prob, toy.bounds, grid=PANEL_PIXELS).set_title(panel.toy)
    if panel.flow is None:
        model.set_box_aspect(1)
        model.set_xlabel("failed")
        return
    ceiling = truth.get_images()[0].get_clim()[1]
    draw_density(model, partial(_log_prob, panel.flow), toy.bounds, ceiling, PANEL_PIXELS)
    model.set_xlabel(f"KL {panel.distance}")


def _log_prob(flow: Flow, rows: Array) -> Array:
    quick = flow.with_solver(rtol=DRAWING_TOLERANCE, atol=DRAWING_TOLERANCE, step="joint")
    with torch.no_grad():
        parts = torch.from_numpy(rows).to(flow.like).split(BENCHMARK_CHUNK_ROWS)
        return torch.cat([quick.score_rows(part).log_prob for part in parts]).double().numpy()
