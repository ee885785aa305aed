"""Colours that are safe in greyscale and for colour-blind readers; dark pages; PNG files."""

import warnings
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.quiver import Quiver
from matplotlib.text import Text

# Colour maps of increasing lightness, so that they print in grey.
DENSITY_MAP = "magma"  # dark is 0
TIME_MAP = "viridis"  # along a path, from base to data

SHARES_MAP, DARK_SHARES_MAP = "Blues", "Blues_r"  # the page's colour is about 0

# Distinct for all kinds of colour blindness and in greyscale.
DATA_COLOR = "#3b6fb6"
MODEL_COLOR = "#e07b39"
GRID_COLOR = "#7f7f7f"

INK, PAGE = "black", "white"
DARK_INK, DARK_PAGE = "#c9d1d9", "#0d1117"  # of GitHub's dark theme


def png(figure: Figure, dpi: float = 110) -> bytes:
    """Return a figure encoded as PNG."""
    content = BytesIO()
    with warnings.catch_warnings():  # names of columns may have letters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def darken(figure: Figure) -> Figure:
    """Put a finished figure on a dark page in place, and return it.

    White becomes dark and black becomes light, and maps of shares are reversed; other colours stay,
    since they are chosen to be visible on both. Matplotlib's global state is not changed.

    Example:
        >>> figure = Figure()
        >>> ax = figure.subplots()
        >>> darken(figure).get_facecolor() == to_rgba(DARK_PAGE)
        True
    """
    for part in figure.findobj(FigureBase):
        part.set_facecolor(DARK_PAGE)
    for ax in figure.findobj(Axes):
        if _is(ax.get_facecolor(), PAGE):
            ax.set_facecolor(DARK_PAGE)
        ax.spines[:].set_edgecolor(DARK_INK)
        # Ticks are created when they are drawn, with these parameters.
        ax.tick_params(which="both", colors=DARK_INK)
    for image in figure.findobj(AxesImage):
        if image.get_cmap().name == SHARES_MAP:
            image.set_cmap(DARK_SHARES_MAP)
    for artist in figure.findobj():
        if isinstance(artist, Text | Line2D | Quiver) and _is(_color(artist), INK):
            artist.set_color(DARK_INK)
    return figure


def _color(artist: Text | Line2D | Quiver) -> object:
    return artist.get_facecolor()[0] if isinstance(artist, Quiver) else artist.get_color()


def _is(color: object, other: str) -> bool:
    """Return whether two colours are equal apart from opacity."""
    return to_rgba(color)[:3] == to_rgba(other)[:3]  # type: ignore[arg-type]
