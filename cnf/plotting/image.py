"""Figures encoded as image files."""

from __future__ import annotations

import warnings
from io import BytesIO

from matplotlib.figure import Figure


def png(figure: Figure, dpi: float = 110) -> bytes:
    """Return a figure encoded as PNG."""
    content = BytesIO()
    with warnings.catch_warnings():  # names of columns may have letters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()
