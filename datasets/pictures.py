"""Grey pictures as densities in the plane: dark is dense."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.textpath import text_to_path
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from cnf.datasets.toy import Array, Toy

__all__ = ["PICTURES", "WORD", "Picture", "is_picture", "read_picture", "word_picture"]

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
"""What names of picture files end in."""

WORD = "word:"
"""What a name begins with that is no file's, but a word to be drawn."""

PIXELS = 250_000  # of a picture, at most: finer ones are averaged
LONGER = 4.0  # of the sides in the plane, so that columns have about unit spread
LETTERS = 64  # pixels that a word's letters are high, and the margin around it
MARGIN = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture(Toy):
    """The density of a grey picture, piecewise constant: a pixel's is as its darkness.

    With the darkness d of the pixels, of side s,

        p(x) = d(pixel of x) / (s² · sum of d),

    and no density off the picture. It is centred at the origin, x to the right and y up, its longer
    side is 4, and it keeps its proportions.

    Attributes:
        darkness: Shape (height, width), the uppermost row first as pictures have it; at least 0,
            and not all 0.

    Example:
        >>> checks = Picture.of([[1.0, 0.0], [0.0, 3.0]], "checks")
        >>> checks.bounds
        ((-2.0, 2.0), (-2.0, 2.0))
        >>> checks.log_prob([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])  # log 1/16, log 3/16, log 0
        array([-2.77258872, -1.67397643,        -inf])
    """

    darkness: Array

    @staticmethod
    def of(darkness: ArrayLike, name: str) -> Picture:
        """The picture of an array of darknesses.

        Raises:
            ValueError: It is no matrix of finite numbers of at least 0, or has nothing dark.
        """
        values = np.asarray(darkness, dtype=np.float64)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"Expected pixels of shape (height, width); got {values.shape}")
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError("Expected finite darknesses of at least 0; got others")
        if not values.any():
            raise ValueError(
                f"Expected a picture with something darker than white in {name}, since dark is "
                "dense; got white alone: draw something"
            )
        height, width = values.shape
        side = LONGER / max(height, width)
        half = (width * side / 2, height * side / 2)
        bounds = ((-half[0], half[0]), (-half[1], half[1]))
        return Picture(name=name, bounds=bounds, darkness=values)

    @property
    def side(self) -> float:
        """Of a pixel."""
        return LONGER / float(max(self.darkness.shape))

    def _sample(self, n: int, rng: np.random.Generator) -> Array:
        # Rows of pixels from the bottom, as y goes.
        mass = np.cumsum(self.darkness[::-1])
        pixels = np.searchsorted(mass, rng.uniform(0.0, mass[-1], n), side="right")
        row, column = np.divmod(pixels, self.darkness.shape[1])
        places = np.column_stack([column, row]) + rng.uniform(size=(n, 2))
        return np.asarray(places * self.side + self._corner)

    def _log_prob(self, x: Array) -> Array:
        height, width = self.darkness.shape
        column, row = np.floor((x - self._corner) / self.side).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        log_prob = np.full(len(x), -np.inf)
        places = height - 1 - row[inside].astype(np.intp), column[inside].astype(np.intp)
        with np.errstate(divide="ignore"):  # white is minus infinity
            log_prob[inside] = np.log(self.darkness[places])
        return np.asarray(log_prob - np.log(self.darkness.sum() * self.side**2))

    @property
    def _corner(self) -> Array:
        (left, _), (bottom, _) = self.bounds
        return np.array([left, bottom])


def is_picture(name: str) -> bool:
    """Whether a name is a picture's: a file's, by its ending, or `word:TEXT`.

    Example:
        >>> is_picture("logo.PNG"), is_picture("word:FFJORD"), is_picture("table.csv")
        (True, True, False)
    """
    return name.startswith(WORD) or name.lower().endswith(PICTURES)


def read_picture(name: str | os.PathLike[str]) -> Picture:
    """Read a picture from a file that Pillow reads, or draw the word of `word:TEXT`.

    Colours count as their grey; what is transparent lies on white. A picture of more than 250,000
    pixels is averaged over squares of them, with a warning.

    Raises:
        ValueError: There is no such file, it is no picture, or white alone.

    Example:
        >>> float(read_picture("word:FFJORD").darkness.max())
        255.0
    """
    text = os.fspath(name)
    if text.startswith(WORD):
        return word_picture(text.removeprefix(WORD))
    file = Path(text)
    if not file.is_file():
        got = "a folder" if file.is_dir() else "no such file"
        raise ValueError(f"Expected a picture at {file}; got {got}: check the path.")
    return Picture.of(_reduced(_darkness(file), file), text)


def word_picture(word: str) -> Picture:
    """A word in black on white, drawn by Matplotlib's own bold font; no display is needed.

    Raises:
        ValueError: There is nothing to be seen of it.

    Example:
        >>> word_picture("FFJORD").darkness.shape
        (105, 370)
    """
    # A $ in a word starts no formula.
    shown, font = word.replace("$", r"\$"), FontProperties(weight="bold")
    vertices, codes = text_to_path.get_text_path(font, shown)
    if not len(vertices):
        raise ValueError(f"Expected a word to draw, such as {WORD}FFJORD; got {WORD}{word}")
    # A font's size is about 4/3 of the height of its capitals.
    size = LETTERS * 4 / 3 / text_to_path.FONT_SCALE
    outline = Outline(np.array(vertices) * size, codes)
    (left, bottom), (right, top) = outline.get_extents().get_points()
    width, height = (int(np.ceil(side)) + 2 * MARGIN for side in (right - left, top - bottom))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
    ax.set(xlim=(left - MARGIN, left - MARGIN + width))
    ax.set(ylim=(bottom - MARGIN, bottom - MARGIN + height))
    ax.add_patch(PathPatch(outline, facecolor="black", linewidth=0))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    grey = np.asarray(canvas.buffer_rgba())[..., 0]  # type: ignore[no-untyped-call]
    return Picture.of(255.0 - grey, WORD + word)


def _darkness(file: Path) -> Array:
    """255 minus the grey of a file's pixels, on white."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                # As it is to be seen, whichever way the camera was held.
                return _on_white(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(
            f"Expected a picture of at most {Image.MAX_IMAGE_PIXELS} pixels; got more in {file}: "
            "scale it down."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can surface as anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"Expected a readable picture; got {file} ({reason}): write it again."
        ) from error


def _on_white(picture: Image.Image) -> Array:
    if picture.mode.startswith(("I", "F")):  # grey of 16 bits, which conversions would cut off
        values = np.asarray(picture, dtype=np.float64)
        return np.asarray(255.0 * (1 - values / max(65535.0, values.max(initial=0.0))))
    colours = picture.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    return 255.0 - np.asarray(Image.alpha_composite(white, colours).convert("L"), dtype=np.float64)


def _reduced(darkness: Array, file: Path) -> Array:
    """The means over squares of pixels, such that there are few enough of them."""
    height, width = darkness.shape
    times = int(np.ceil(np.sqrt(height * width / PIXELS)))
    if times <= 1:
        return darkness
    averaged: NDArray[Any] = np.asarray(Image.fromarray(darkness.astype(np.float32)).reduce(times))
    warnings.warn(
        f"{file} has {width} x {height} pixels: averaged over squares of {times} x {times} to "
        f"{averaged.shape[1]} x {averaged.shape[0]}",
        stacklevel=3,
    )
    return averaged.astype(np.float64)
