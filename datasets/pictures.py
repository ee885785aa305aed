"""Grey pictures as densities in the plane, proportional to darkness."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cnf.datasets.table import Array
from cnf.datasets.toy import Toy

if TYPE_CHECKING:  # functions import it, and Matplotlib, since they take long
    from PIL import Image

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
WORD_PREFIX = "word:"  # of a name that is not a file but a word to be drawn
MAX_PIXELS = 250_000  # of a picture; larger ones are averaged
PICTURE_SIDE = 4.0  # longer side in the plane, so that columns have about unit deviation
LETTER_PIXELS = 64  # height of a word's capitals
MARGIN_PIXELS = 12  # around a word


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture(Toy):
    """A piecewise constant density, proportional to the darkness of a grey picture's pixels.

    With the darkness d of the pixels, of side s,

        p(x) = d(pixel of x) / (s² · sum of d),

    and zero outside the picture. It is centred at the origin, x to the right and y up; its longer
    side is 4.

    Attributes:
        darkness: Shape (height, width), the uppermost row first; non-negative, and not all zero.

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
        """Make a picture of darknesses (height, width).

        Raises:
            ValueError: The array is not a matrix of finite non-negative numbers, or all are zero.
        """
        values = np.asarray(darkness, dtype=np.float64)
        if values.ndim != 2 or not values.size:
            raise ValueError(
                f"Expected pixels of shape (height, width); got {values.shape}: reshape"
            )
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError(
                f"Expected finite darknesses of at least 0; got {values.min()} to {values.max()}: "
                "correct them"
            )
        if not values.any():
            raise ValueError(
                f"Expected a picture with pixels darker than white in {name}; got white alone: "
                "draw something"
            )
        height, width = values.shape
        x, y = (PICTURE_SIDE * side / max(height, width) / 2 for side in (width, height))
        return Picture(name=name, bounds=((-x, x), (-y, y)), darkness=values)

    @property
    def side(self) -> float:
        """Side of a pixel."""
        return PICTURE_SIDE / float(max(self.darkness.shape))

    def _sample(self, n: int, rng: np.random.Generator) -> Array:
        # Rows of pixels from the bottom, as y increases upwards.
        mass = np.cumsum(self.darkness[::-1])
        pixels = np.searchsorted(mass, rng.uniform(0.0, mass[-1], n), side="right")
        row, column = np.divmod(pixels, self.darkness.shape[1])
        places = np.column_stack([column, row]) + rng.uniform(size=(n, 2))
        return np.asarray(places * self.side + np.array(self.bounds)[:, 0])

    def _log_prob(self, x: Array) -> Array:
        height, width = self.darkness.shape
        column, row = np.floor((x - np.array(self.bounds)[:, 0]) / self.side).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        log_prob = np.full(len(x), -np.inf)
        places = height - 1 - row[inside].astype(np.intp), column[inside].astype(np.intp)
        with np.errstate(divide="ignore"):  # log p of white is minus infinity
            log_prob[inside] = np.log(self.darkness[places])
        return np.asarray(log_prob - np.log(self.darkness.sum() * self.side**2))


def is_picture(name: str) -> bool:
    """Return whether a name is a picture file, by its ending, or `word:TEXT`.

    Example:
        >>> is_picture("logo.PNG"), is_picture("word:FFJORD"), is_picture("table.csv")
        (True, True, False)
    """
    return name.startswith(WORD_PREFIX) or name.lower().endswith(IMAGE_ENDINGS)


def read_picture(name: str | os.PathLike[str]) -> Picture:
    """Read a picture file with Pillow, or draw the word of `word:TEXT`.

    Colours are converted to grey, and transparency to white. A picture of more than 250,000 pixels
    is averaged over squares of pixels, with a warning.

    Raises:
        ValueError: There is no such file, it is not a picture, or it is all white.

    Example:
        >>> float(read_picture("word:FFJORD").darkness.max())
        255.0
    """
    text = os.fspath(name)
    if text.startswith(WORD_PREFIX):
        return word_picture(text.removeprefix(WORD_PREFIX))
    file = Path(text)
    if not file.is_file():
        got = "a folder" if file.is_dir() else "no such file"
        raise ValueError(f"Expected a picture at {file}; got {got}: check the path.")
    return Picture.of(_reduced(_darkness(file), file), text)


def word_picture(word: str) -> Picture:
    """Draw a word in black on white in Matplotlib's bold font, without a display.

    Raises:
        ValueError: The word has no visible letters.

    Example:
        >>> word_picture("FFJORD").darkness.shape
        (105, 370)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import text_to_path

    # A $ in a word starts no formula.
    shown, font = word.replace("$", r"\$"), FontProperties(weight="bold")
    vertices, codes = text_to_path.get_text_path(font, shown)
    if not len(vertices):
        raise ValueError(
            f"Expected a word to draw, such as {WORD_PREFIX}FFJORD; got {WORD_PREFIX}{word}: use "
            "visible letters"
        )
    # The size of a font is about 4/3 of the height of its capitals.
    size = LETTER_PIXELS * 4 / 3 / text_to_path.FONT_SCALE
    outline = Outline(np.array(vertices) * size, codes)
    (left, bottom), (right, top) = outline.get_extents().get_points()
    width, height = (int(np.ceil(s)) + 2 * MARGIN_PIXELS for s in (right - left, top - bottom))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
    x, y = left - MARGIN_PIXELS, bottom - MARGIN_PIXELS
    ax.set(xlim=(x, x + width), ylim=(y, y + height))
    ax.add_patch(PathPatch(outline, facecolor="black", linewidth=0))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    grey = np.asarray(canvas.buffer_rgba())[..., 0]  # type: ignore[no-untyped-call]
    return Picture.of(255.0 - grey, WORD_PREFIX + word)


def _darkness(file: Path) -> Array:
    """Return 255 minus the grey of a file's pixels, on white."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                # Rotated as the camera's orientation tag says.
                return _on_white(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(
            f"Expected a picture of at most {Image.MAX_IMAGE_PIXELS} pixels; got more in {file}: "
            "scale it down."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"Expected a readable picture; got {file} ({reason}): write it again."
        ) from error


def _on_white(picture: Image.Image) -> Array:
    from PIL import Image

    if picture.mode.startswith(("I", "F")):  # 16-bit grey, which conversions would clip
        values = np.asarray(picture, dtype=np.float64)
        return np.asarray(255.0 * (1 - values / max(65535.0, values.max(initial=0.0))))
    colours = picture.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    return 255.0 - np.asarray(Image.alpha_composite(white, colours).convert("L"), dtype=np.float64)


def _reduced(darkness: Array, file: Path) -> Array:
    from PIL import Image

    height, width = darkness.shape
    times = int(np.ceil(np.sqrt(height * width / MAX_PIXELS)))
    if times <= 1:
        return darkness
    averaged = np.asarray(Image.fromarray(darkness.astype(np.float32)).reduce(times), np.float64)
    warnings.warn(
        f"{file} has {width} x {height} pixels: averaged over squares of {times} x {times} to "
        f"{averaged.shape[1]} x {averaged.shape[0]}",
        stacklevel=3,
    )
    return averaged
