"""Films: figures whose frames are drawn one after another, written as GIF or MP4."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from cnf.utils.serialization import write_whole

GIF, MP4 = ".gif", ".mp4"
LARGEST = 1_500_000  # bytes of a GIF: larger ones are made smaller on the page
COLORS = 96  # of a GIF: more are not seen, and cost bytes
SAMPLED = 4  # frames that these are chosen by


@dataclass(frozen=True, eq=False)
class Film:
    """A figure, and how its frames are drawn on it.

    Attributes:
        figure: The figure.
        draw: Takes the number of a frame, from 0, and changes the figure to it.
        frames: How many there are.
        rate: Frames a second.
        hold: Seconds that the last one stays.
        dpi: Pixels an inch.

    Example:
        >>> figure = Figure(figsize=(1, 1))
        >>> dot, = figure.subplots().plot([0], [0], "o")
        >>> film = Film(figure, lambda i: dot.set_data([i], [0]), frames=2)
        >>> [frame.size for frame in film.images()]
        [(100, 100), (100, 100)]
    """

    figure: Figure
    draw: Callable[[int], object]
    frames: int
    rate: int = 12
    hold: float = 2.0
    dpi: float = 100.0

    def images(self) -> Iterator[Image.Image]:
        """Each frame as an image, with a progress bar on a terminal."""
        self.figure.set_dpi(self.dpi)
        canvas = FigureCanvasAgg(self.figure)
        for i in self._numbers():
            self.draw(i)
            canvas.draw()  # type: ignore[no-untyped-call]
            pixels = np.array(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
            yield Image.fromarray(pixels).convert("RGB")

    def _numbers(self) -> Iterator[int]:
        bar = tqdm(range(self.frames), desc="filming", disable=None, leave=False)
        yield from bar


def write_film(film: Film, path: str | os.PathLike[str], largest: int = LARGEST) -> Path:
    """Write a film as .gif or .mp4, by the path's ending, whole or not at all; gives the path.

    A GIF is made by Pillow, with one palette and without dithering, which keeps it small; where it
    takes more than `largest` bytes it is made smaller on the page until it does not. An MP4 is made
    by ffmpeg, which has to be on the PATH.

    Raises:
        ValueError: The path ends in something else, or there is no ffmpeg for an .mp4.
        OSError: It cannot be written.
        RuntimeError: ffmpeg fails.
    """
    file = Path(path)
    ending = file.suffix.lower()
    if ending not in FILMS:
        raise ValueError(f"Expected a path that ends in {' or '.join(FILMS)}; got {file}")
    check_film(ending)
    content = _mp4(film) if ending == MP4 else _gif(film, largest)
    write_whole({file: content})
    return file


def check_film(ending: str) -> None:
    """Check, before work is done for it, that films of an ending can be made.

    Raises:
        ValueError: They cannot: there is no ffmpeg on the PATH.
    """
    if ending == MP4 and not FFMpegWriter.isAvailable():
        raise ValueError(
            "Expected ffmpeg on the PATH for an .mp4; found none: install it, or write a .gif, "
            "which needs no other program"
        )


def _gif(film: Film, largest: int) -> bytes:
    images = list(film.images())
    durations = [round(1000 / film.rate)] * len(images)
    durations[-1] += round(1000 * film.hold)
    content = _encoded(images, durations)
    while len(content) > largest and min(images[0].size) > 32:
        # Bytes go with the area; a little less each time, so that it ends.
        scale = min(0.9, (largest / len(content)) ** 0.5)
        size = (round(images[0].width * scale), round(images[0].height * scale))
        images = [image.resize(size, Image.Resampling.LANCZOS) for image in images]
        content = _encoded(images, durations)
    return content


def _encoded(images: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    palette = _palette(images)
    first, *rest = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    content = BytesIO()
    first.save(
        content,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=list(durations),
        loop=0,
        optimize=True,
    )
    return content.getvalue()


def _palette(images: Sequence[Image.Image]) -> Image.Image:
    """One palette for all frames, so that still parts stay as they are, by a few of them."""
    places = np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).round().astype(int)
    width, height = images[0].size
    sheet = Image.new("RGB", (width, height * len(places)))
    for line, place in enumerate(places):
        sheet.paste(images[place], (0, line * height))
    return sheet.quantize(COLORS, method=Image.Quantize.MEDIANCUT)


def _mp4(film: Film) -> bytes:
    held = round(film.rate * film.hold)
    # For players that know no other colours than those of television.
    writer = FFMpegWriter(fps=film.rate, extra_args=["-pix_fmt", "yuv420p"])
    with TemporaryDirectory() as folder:
        file = Path(folder) / "film.mp4"
        try:
            with writer.saving(film.figure, str(file), film.dpi):
                for i in film._numbers():
                    film.draw(i)
                    for _ in range(1 + held * (i == film.frames - 1)):
                        writer.grab_frame()
            return file.read_bytes()
        except (subprocess.CalledProcessError, BrokenPipeError, FileNotFoundError) as error:
            told = getattr(error, "stderr", None) or str(error)
            reason = (str(told).strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"ffmpeg could not make the film: {reason}") from None


FILMS = (GIF, MP4)
