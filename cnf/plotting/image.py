"""Figures as the content of files."""

from __future__ import annotations

import warnings
from io import BytesIO

from matplotlib.figure import Figure


def png(figure: Figure, dpi: float = 110) -> bytes:
    """A figure as the content of a .png file."""
    content = BytesIO()
    with warnings.catch_warnings():  # a column's name may have letters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()
