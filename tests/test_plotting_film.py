"""Films: whole files of the frames that were drawn."""

from unittest.mock import Mock

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

import cnf
from cnf.plotting import Film, density_film, samples_film, write_film
from cnf.plotting.style import DARK_PAGE


def bar(frames: int = 5) -> Film:
    """A black bar that grows from the left, over noise."""
    figure = Figure(figsize=(1, 1))
    ax = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
    noise = np.random.default_rng(0).uniform(size=(100, 100))
    ax.imshow(noise, cmap="magma", extent=(0, 1, 0, 1), aspect="auto")
    (drawn,) = ax.bar([0], [1], width=0, align="edge", color="black")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return Film(figure, lambda i: drawn.set_width((i + 1) / (frames + 1)), frames, rate=10)


def black(pixels: np.ndarray) -> float:
    """The share of columns that are black."""
    return (pixels[..., :3] < 20).all((0, 2)).mean()


def test_gif_has_the_frames_in_their_order_and_holds_the_last(tmp_path):
    path = write_film(bar(), tmp_path / "film.gif")
    assert [*tmp_path.iterdir()] == [path]
    with Image.open(path) as film:
        assert film.info["loop"] == 0
        for i, frame in enumerate(ImageSequence.Iterator(film)):
            assert frame.info["duration"] == (100 if i < 4 else 2100)
            share = black(np.asarray(frame.convert("RGB")))
            assert share == pytest.approx((i + 1) / 6, abs=0.03)
    largest = path.stat().st_size // 3  # a larger one is made smaller
    small = write_film(bar(), tmp_path / "small.gif", largest=largest)
    assert small.stat().st_size <= largest
    with Image.open(small) as film:
        assert film.n_frames == 5


def test_frame_that_cannot_be_drawn_leaves_no_file(tmp_path):
    draw = Mock(side_effect=[None, RuntimeError("no frame")])
    with pytest.raises(RuntimeError, match="no frame"):
        write_film(Film(Figure(figsize=(1, 1)), draw, frames=2), tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())


def with_ffmpeg(folder, monkeypatch, script: str) -> None:
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_mp4_is_what_ffmpeg_makes_of_all_frames(tmp_path, monkeypatch):
    """Here a program that keeps the pixels; the last frame comes 1 + 10 * 2 times."""
    with_ffmpeg(tmp_path, monkeypatch, 'for last; do :; done; cat > "$last"')
    path = write_film(bar(), tmp_path / "film.mp4")
    frames = np.frombuffer(path.read_bytes(), np.uint8).reshape(5 + 20, 100, 100, 4)
    expected = np.minimum(np.arange(1, 26), 5) / 6
    np.testing.assert_allclose([*map(black, frames)], expected, atol=0.03)


@pytest.mark.parametrize(
    ("name", "script", "error", "message"),
    [
        ("film.mp4", 'echo "no such codec" >&2; exit 3', RuntimeError, "the film: no such codec"),
        ("film.mp4", None, ValueError, "Expected ffmpeg on the PATH"),
        ("film.avi", None, ValueError, r"Expected a path that ends in \.gif or \.mp4"),
    ],
)
def test_films_that_cannot_be_written(name, script, error, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        with_ffmpeg(tmp_path, monkeypatch, f"cat > /dev/null; {script}")
    with pytest.raises(error, match=message):
        write_film(bar(), tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("dark", [False, True])
def test_density_film_runs_from_the_base_to_the_flows_samples(fitted, dark):
    film = density_film(fitted, fitted.sample(500).numpy(), dark=dark, frames=3, rows=3000)
    (ax,) = film.figure.get_axes()
    base = fitted.base.sample((3000,))
    for layer in fitted.layers[1:]:
        base = layer.transport(base)
    for frame, rows, least in ((2, fitted.sample(3000), 0.8), (0, base, 0.6)):
        film.draw(frame)
        assert ax.get_title() == f"t = {frame / 2:.2f}"
        counts = np.histogram2d(*rows.numpy().T, 40, [ax.get_xlim(), ax.get_ylim()])[0].T
        shades = np.asarray(ax.get_images()[0].get_array())
        coarse = shades.reshape(40, 4, 40, 4).mean((1, 3))
        assert np.corrcoef(coarse.ravel(), counts.ravel())[0, 1] > least
    page = next(iter(film.images())).getpixel((1, 1))
    assert page == (tuple(bytes.fromhex(DARK_PAGE[1:])) if dark else (255, 255, 255))


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_samples_film_of_any_number_of_columns(dim):
    data = np.random.default_rng(0).normal(size=(100, dim))
    film = samples_film(cnf.ffjord(dim, hidden=(8,)), data, [f"c{i}" for i in range(dim)], frames=2)
    *_, last = film.images()
    ax = film.figure.get_axes()[0]
    assert (ax.get_title(), ax.get_xlabel()) == ("t = 1.00", "c0")
    assert np.asarray(last).std() > 5
