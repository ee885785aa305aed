"""Films: whole files of the frames that were drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import cnf
from cnf.plotting import Film, density_film, samples_film, write_film
from cnf.plotting.style import DARK_PAGE


def bar(frames: int = 5, size: float = 1.0) -> Film:
    """A black bar that grows from the left, over noise."""
    figure = Figure(figsize=(size, size))
    ax = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[], xlim=(0, 1))
    noise = np.random.default_rng(0).uniform(size=(100, 100))
    ax.imshow(noise, cmap="magma", extent=(0, 1, 0, 1), aspect="auto")
    (drawn,) = ax.bar([0], [1], width=0, align="edge", color="black")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return Film(figure, lambda i: drawn.set_width((i + 1) / (frames + 1)), frames, rate=10)


def black(image: Image.Image) -> float:
    """The share of columns that are black."""
    return float((np.asarray(image.convert("L")) < 20).all(0).mean())


def pages(path) -> list[tuple[Image.Image, int]]:
    with Image.open(path) as film:
        found = []
        for i in range(film.n_frames):
            film.seek(i)
            found.append((film.convert("RGB"), film.info["duration"]))
        return found


def test_gif_has_the_frames_in_their_order_and_holds_the_last(tmp_path):
    path = write_film(bar(), tmp_path / "film.gif")
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.gif"]
    images, durations = zip(*pages(path), strict=True)
    assert durations == (100, 100, 100, 100, 2100)
    shares = [black(image) for image in images]
    np.testing.assert_allclose(shares, np.arange(1, 6) / 6, atol=0.03)
    with Image.open(path) as film:
        assert film.info["loop"] == 0


def test_gif_that_is_too_large_is_made_smaller(tmp_path):
    whole = write_film(bar(), tmp_path / "whole.gif").stat().st_size
    small = write_film(bar(), tmp_path / "small.gif", largest=whole // 3)
    assert small.stat().st_size <= whole // 3
    assert len(pages(small)) == 5


def test_frame_that_cannot_be_drawn_leaves_no_file(tmp_path):
    def fail(i):
        if i == 1:
            raise RuntimeError("no frame")

    with pytest.raises(RuntimeError, match="no frame"):
        write_film(Film(Figure(figsize=(1, 1)), fail, frames=2), tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())


def with_ffmpeg(tmp_path, monkeypatch, script: str) -> None:
    """A program of that name which does what the script does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_mp4_is_what_ffmpeg_makes_of_all_frames(tmp_path, monkeypatch):
    """Here a program that keeps the pixels; the last frame comes 1 + 10 * 2 times."""
    with_ffmpeg(tmp_path, monkeypatch, 'for last; do :; done; cat > "$last"')
    path = write_film(bar(), tmp_path / "film.mp4")
    frames = np.frombuffer(path.read_bytes(), np.uint8).reshape(5 + 20, 100, 100, 4)
    shares = [(frame[..., :3] < 20).all((0, 2)).mean() for frame in frames]
    expected = [*np.arange(1, 6) / 6, *[5 / 6] * 20]
    np.testing.assert_allclose(shares, expected, atol=0.03)


def test_ffmpeg_that_fails_is_reported(tmp_path, monkeypatch):
    with_ffmpeg(tmp_path, monkeypatch, 'cat > /dev/null; echo "no such codec" >&2; exit 3')
    with pytest.raises(RuntimeError, match="ffmpeg could not make the film: no such codec"):
        write_film(bar(), tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()


def test_mp4_without_ffmpeg_and_other_endings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="Expected ffmpeg on the PATH"):
        write_film(bar(), tmp_path / "film.mp4")
    with pytest.raises(ValueError, match=r"Expected a path that ends in \.gif or \.mp4"):
        write_film(bar(), tmp_path / "film.avi")


@pytest.mark.parametrize("dark", [False, True])
def test_density_film_ends_with_the_flows_samples(fitted, dark):
    """Where it is bright at the end, samples are many; in its first frame the base is."""
    data = fitted.sample(500).numpy()
    film = density_film(fitted, data, dark=dark, frames=3, rows=3000)
    image, ax = film.figure.get_axes()[0].get_images()[0], film.figure.get_axes()[0]
    film.draw(2)
    last = image.get_array()
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    counts = np.histogram2d(*fitted.sample(3000).numpy().T, 40, [(x0, x1), (y0, y1)])[0].T
    coarse = np.asarray(last).reshape(40, 4, 40, 4).mean((1, 3))
    assert np.corrcoef(coarse.ravel(), counts.ravel())[0, 1] > 0.8
    assert ax.get_title() == "t = 1.00"
    film.draw(0)
    base = fitted.base.sample((3000,))
    for layer in fitted.layers[1:]:
        base = layer.transport(base)
    counts = np.histogram2d(*base.numpy().T, 40, [(x0, x1), (y0, y1)])[0].T
    coarse = np.asarray(image.get_array()).reshape(40, 4, 40, 4).mean((1, 3))
    assert np.corrcoef(coarse.ravel(), counts.ravel())[0, 1] > 0.6
    page = next(iter(film.images())).getpixel((1, 1))
    assert page == (tuple(bytes.fromhex(DARK_PAGE[1:])) if dark else (255, 255, 255))


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_samples_film_of_any_number_of_columns(dim):
    flow = cnf.ffjord(dim, hidden=(8,))
    data = np.random.default_rng(0).normal(size=(100, dim))
    film = samples_film(flow, data, [f"c{i}" for i in range(dim)], frames=2)
    *_, last = film.images()
    ax = film.figure.get_axes()[0]
    assert ax.get_title() == "t = 1.00"
    assert ax.get_xlabel() == "c0"
    assert np.asarray(last).std() > 5
