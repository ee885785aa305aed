"""Colours that are safe in greyscale and for colour-blind readers; dark pages."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.quiver import Quiver
from matplotlib.text import Text

DENSITY_MAP = "magma"
"""Colour map of densities, of increasing lightness, so that it prints in grey; dark is 0."""

TIME_MAP = "viridis"
"""Colour map of time along a path, from base to data, of increasing lightness."""

DATA_COLOR = "#3b6fb6"
MODEL_COLOR = "#e07b39"
GRID_COLOR = "#7f7f7f"
"""Blue, orange and grey, distinct for all kinds of colour blindness and in greyscale."""

INK = "black"
PAGE = "white"
DARK_INK = "#c9d1d9"
DARK_PAGE = "#0d1117"
"""Ink and page of a figure; the dark pair is that of GitHub's dark theme."""


def darken(figure: Figure) -> Figure:
    """Put a finished figure on a dark page in place, and return it.

    White becomes dark and black becomes light; other colours stay, since they are chosen to be
    visible on both. Matplotlib's global state is not changed.

    Example:
        >>> figure = Figure()
        >>> ax = figure.subplots()
        >>> darken(figure).get_facecolor() == to_rgba(DARK_PAGE)
        True
    """
    figure.set_facecolor(DARK_PAGE)
    for part in figure.subfigs:
        part.set_facecolor(DARK_PAGE)
    for ax in figure.get_axes():
        _darken_axes(ax)
    for artist in figure.findobj():
        if isinstance(artist, Text | Line2D | Quiver) and _is(_color(artist), INK):
            artist.set_color(DARK_INK)
    return figure


def _darken_axes(ax: Axes) -> None:
    if _is(ax.get_facecolor(), PAGE):
        ax.set_facecolor(DARK_PAGE)
    for spine in ax.spines.values():
        spine.set_edgecolor(DARK_INK)
    # Ticks are created when they are drawn, with these parameters.
    ax.tick_params(which="both", colors=DARK_INK)


def _color(artist: Text | Line2D | Quiver) -> object:
    return artist.get_facecolor()[0] if isinstance(artist, Quiver) else artist.get_color()


def _is(color: object, other: str) -> bool:
    """Return whether two colours are equal apart from opacity."""
    return to_rgba(color)[:3] == to_rgba(other)[:3]  # type: ignore[arg-type]
