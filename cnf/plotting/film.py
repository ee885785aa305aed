"""Animations, written as GIF or MP4."""

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

from cnf.utils.serialization import write_atomic

GIF, MP4 = ".gif", ".mp4"
FILMS = (GIF, MP4)
MAX_GIF_BYTES = 1_500_000  # larger GIFs are scaled down
GIF_COLORS = 96  # more are not visible and cost bytes
PALETTE_FRAMES = 4  # frames from which the palette is computed


@dataclass(frozen=True, eq=False)
class Film:
    """An animated figure.

    Attributes:
        figure: The figure.
        draw: Function that updates the figure to the frame of an index, from 0.
        frames: Number of frames, shown at `rate` per second with `dpi` pixels per inch.
        hold: Seconds for which the last frame stays.

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
        """Yield each frame as an image."""
        self.figure.set_dpi(self.dpi)
        canvas = FigureCanvasAgg(self.figure)
        for i in self.indices():
            self.draw(i)
            canvas.draw()  # type: ignore[no-untyped-call]
            pixels = np.array(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
            yield Image.fromarray(pixels).convert("RGB")

    def indices(self) -> Iterator[int]:
        """Yield the frames' indices, with a progress bar on a terminal."""
        return iter(tqdm(range(self.frames), desc="filming", disable=None, leave=False))


def write_film(film: Film, path: str | os.PathLike[str], largest: int = MAX_GIF_BYTES) -> Path:
    """Write a film atomically as .gif or .mp4, by the path's ending; return the path.

    Pillow encodes a GIF with one palette and without dithering, which keeps it small; it is scaled
    down until it takes at most `largest` bytes. An .mp4 requires ffmpeg on the PATH.

    Raises:
        ValueError: The path has another ending, or ffmpeg is missing for an .mp4.
        OSError: The file cannot be written.
        RuntimeError: ffmpeg fails.
    """
    file = Path(path)
    ending = file.suffix.lower()
    if ending not in FILMS:
        raise ValueError(
            f"Expected a path that ends in {' or '.join(FILMS)}; got {file}: rename it"
        )
    check_film(ending)
    write_atomic({file: _mp4(film) if ending == MP4 else _gif(film, largest)})
    return file


def check_film(ending: str) -> None:
    """Raise a ValueError if the ending is .mp4 and ffmpeg is not on the PATH."""
    if ending == MP4 and not FFMpegWriter.isAvailable():
        raise ValueError(
            "Expected ffmpeg on the PATH for an .mp4; got none: install it, or write a .gif, which "
            "needs no other program"
        )


def _gif(film: Film, largest: int) -> bytes:
    images = list(film.images())
    durations = [round(1000 / film.rate)] * len(images)
    durations[-1] += round(1000 * film.hold)
    content = _encoded(images, durations)
    while len(content) > largest and min(images[0].size) > 32:
        # Bytes are about proportional to the area; the factor below 1 ensures termination.
        scale = min(0.9, (largest / len(content)) ** 0.5)
        size = (round(images[0].width * scale), round(images[0].height * scale))
        images = [image.resize(size, Image.Resampling.LANCZOS) for image in images]
        content = _encoded(images, durations)
    return content


def _encoded(images: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    # One palette for all frames, from a few of them, so that still parts do not flicker.
    places = np.linspace(0, len(images) - 1, min(PALETTE_FRAMES, len(images))).round().astype(int)
    sheet = Image.fromarray(np.vstack([np.asarray(images[place]) for place in places]))
    palette = sheet.quantize(GIF_COLORS, method=Image.Quantize.MEDIANCUT)
    first, *rest = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    content = BytesIO()
    options = {"duration": list(durations), "loop": 0, "optimize": True}
    first.save(content, format="GIF", save_all=True, append_images=rest, **options)
    return content.getvalue()


def _mp4(film: Film) -> bytes:
    held = round(film.rate * film.hold)
    # Many players support no other pixel format.
    writer = FFMpegWriter(fps=film.rate, extra_args=["-pix_fmt", "yuv420p"])
    with TemporaryDirectory() as folder:
        file = Path(folder) / "film.mp4"
        try:
            with writer.saving(film.figure, str(file), film.dpi):
                for i in film.indices():
                    film.draw(i)
                    for _ in range(1 + held * (i == film.frames - 1)):
                        writer.grab_frame()
            return file.read_bytes()
        except (subprocess.CalledProcessError, BrokenPipeError, FileNotFoundError) as error:
            output = getattr(error, "stderr", None) or str(error)
            reason = (str(output).strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"ffmpeg could not make the film: {reason}") from None
