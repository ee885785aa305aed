"""Colours in grey, to colour-blind eyes and on a dark page."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cnf.plotting import DATA_COLOR, DENSITY_MAP, MODEL_COLOR, TIME_MAP, darken, draw_field
from cnf.plotting.style import DARK_INK, DARK_PAGE

# Of linear RGB, by Machado, Oliveira & Fernandes (2009), at severity 1.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lightness(colors: np.ndarray, eyes: str = "all cones") -> np.ndarray:
    """CIE L* of sRGB colours (n, 3)."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(EYES[eyes]), 0, 1)
    y = seen @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("name", [DENSITY_MAP, TIME_MAP])
def test_maps_only_get_lighter(name, eyes):
    """So that they print in grey, for any eyes."""
    shades = lightness(matplotlib.colormaps[name](np.linspace(0, 1, 64))[:, :3], eyes)
    assert (np.diff(shades) > -0.05).all()
    assert shades[-1] - shades[0] > 60


@pytest.mark.parametrize("eyes", EYES)
def test_data_and_model_differ_in_lightness(eyes):
    data, model = lightness(np.array([to_rgb(DATA_COLOR), to_rgb(MODEL_COLOR)]), eyes)
    assert abs(model - data) > 6


@pytest.mark.parametrize("page", ["white", DARK_PAGE])
def test_data_and_model_are_seen_on_both_pages(page):
    y = (lightness(np.array([to_rgb(c) for c in (DATA_COLOR, MODEL_COLOR, page)])) + 16) / 116
    data, model, background = y**3
    for own in (data, model):
        light, dark = max(own, background), min(own, background)
        assert (light + 0.05) / (dark + 0.05) > 2.8


def test_dark_page_leaves_nothing_black_and_no_trace():
    before = dict(matplotlib.rcParams)
    figure = Figure()
    ax, other = figure.subplots(1, 2)
    ax.plot([0, 1], [0, 1], color="black", label="truth")
    ax.plot([0, 1], [1, 0], color=DATA_COLOR)
    ax.set(title="title", xlabel="x")
    ax.legend(frameon=False)
    draw_field(other, lambda rows: rows, ((-1.0, 1.0), (-1.0, 1.0)))
    figure.suptitle("all")
    darken(figure).draw_without_rendering()
    assert figure.get_facecolor() == ax.get_facecolor() == to_rgba(DARK_PAGE)
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
    assert len(texts) > 10
    assert {to_rgba(text.get_color()) for text in texts} == {to_rgba(DARK_INK)}
    lines = [line.get_color() for line in ax.get_lines()]
    assert lines == [DARK_INK, DATA_COLOR]
    assert to_rgba(other.collections[0].get_facecolor()[0])[:3] == to_rgba(DARK_INK)[:3]
    ticks = [line for line in ax.xaxis.get_ticklines() if isinstance(line, Line2D)]
    assert {to_rgba(line.get_color()) for line in ticks} == {to_rgba(DARK_INK)}
    assert dict(matplotlib.rcParams) == before
