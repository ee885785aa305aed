"""Heat maps of the joint shares of two columns, of data and of samples side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.datasets import Table
from cnf.plotting.panels import Array, short_name

Codes = NDArray[np.intp]

MAX_CELLS = 10  # along each side; rarer categories are one cell
DECILES = np.arange(0.1, 0.95, 0.1)
SHARES_MAP = "Blues"


def pair_shares_figure(data: Table, samples: Table, pairs: Sequence[tuple[str, str]]) -> Figure:
    """Draw the joint shares of pairs of columns as heat maps, of data and of samples side by side.

    Categories are named, the most frequent in the data first, and those beyond nine are one cell.
    Numbers of more than ten values are cut at the data's deciles. The maps of a pair have common
    colours, by the square roots of shares, so that small ones are visible.
    """
    figure = Figure(figsize=(7.6, 3.1 * len(pairs)), layout="constrained")
    for axes, names in zip(figure.subplots(len(pairs), 2, squeeze=False), pairs, strict=True):
        across, x, drawn_x = cells_of(data, samples, names[0])
        up, y, drawn_y = cells_of(data, samples, names[1])
        sides = (len(across), len(up))
        shares = [_joint_shares(x, y, sides), _joint_shares(drawn_x, drawn_y, sides)]
        largest = max(each.max() for each in shares)
        for ax, share, title in zip(axes, shares, ("data", "flow: samples"), strict=True):
            drawn = ax.imshow(share.T, SHARES_MAP, PowerNorm(0.5, 0, largest), aspect="auto")
            ax.set_title(title, fontsize=9)
            _name_cells(ax, names, (across, up))
        axes[1].set(ylabel="", yticklabels=[])
        figure.colorbar(drawn, ax=[*axes], shrink=0.8, pad=0.02).ax.tick_params(labelsize=7)
    return figure


def cells_of(data: Table, samples: Table, name: str) -> tuple[list[str], Codes, Codes]:
    """Return the names of a column's cells, and the numbers of those of data and of samples.

    Example:
        >>> tables = [Table("t", np.array(x)[:, None], ("x",)) for x in ([0.0, 2.0], [2.0, 3.0])]
        >>> labels, data, samples = cells_of(*tables, "x")
        >>> labels, data.tolist(), samples.tolist()
        (['0', '2', 'other'], [0, 1], [1, 2])
    """
    place = data.columns.index(name)
    values, drawn = (table.values[:, place] for table in (data, samples))
    found, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    texts = data.categories.get(name)
    if texts is None and len(found) > MAX_CELLS:
        edges = np.unique(np.nanquantile(values, DECILES))
        labels = [*(f"≤ {edge:.4g}" for edge in edges), f"> {edges[-1]:.4g}"]
        return labels, np.searchsorted(edges, values), np.searchsorted(edges, drawn)
    if texts is not None:
        found = found[np.argsort(-counts, kind="stable")][: MAX_CELLS - 1]
    labels = [f"{value:.4g}" if texts is None else texts[int(value)] for value in found]
    first, second = (
        np.where((hit := each[:, None] == found).any(1), hit.argmax(1), len(found))
        for each in (values, drawn)
    )
    others = (first == len(found)).any() or (second == len(found)).any()
    return labels + ["other"] * bool(others), first, second


def _joint_shares(a: Codes, b: Codes, sides: tuple[int, ...]) -> Array:
    counts = np.bincount(a * sides[1] + b, minlength=sides[0] * sides[1])
    return counts.reshape(sides) / len(a)


def _name_cells(ax: Axes, names: Sequence[str], labels: Sequence[Sequence[str]]) -> None:
    # A $ in a name starts no formula.
    across, up = ([short_name(label, 16) for label in each] for each in labels)
    ax.set_xticks(range(len(across)), across, rotation=90, fontsize=7, parse_math=False)
    ax.set_yticks(range(len(up)), up, fontsize=7, parse_math=False)
    ax.set_xlabel(short_name(names[0]), fontsize=8, parse_math=False)
    ax.set_ylabel(short_name(names[1]), fontsize=8, parse_math=False)
