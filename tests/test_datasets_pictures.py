"""Pictures as densities: what is dark, which way is up, what is no picture."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2

from cnf.datasets import Picture, is_picture, pictures, read_picture, word_picture
from cnf.datasets.pictures import IMAGE_ENDINGS


def write(path, grey, mode="L"):
    Image.fromarray(np.asarray(grey, dtype=np.uint8)).convert(mode).save(path)
    return path


def centers(picture: Picture) -> np.ndarray:
    """The pixels' centres, shape (height, width, 2), as a picture lies: the uppermost row first."""
    height, width = picture.darkness.shape
    x = (np.arange(width) + 0.5 - width / 2) * picture.side
    y = (height / 2 - np.arange(height) - 0.5) * picture.side
    return np.stack(np.meshgrid(x, y), -1)


@pytest.fixture
def noise() -> Picture:
    """A picture of all greys, a third of it white."""
    random = np.random.default_rng(0)
    return Picture.of(random.uniform(0, 255, (7, 12)) * (random.uniform(size=(7, 12)) > 0.3), "")


def test_density_is_the_darkness_and_integrates_to_one(noise):
    density = np.exp(noise.log_prob(centers(noise).reshape(-1, 2))).reshape(7, 12)
    np.testing.assert_allclose(density * noise.side**2, noise.darkness / noise.darkness.sum())


def test_samples_are_of_the_density(noise):
    """Pearson's test over the pixels, and of uniformity within them; none where it is white."""
    rows = noise.sample(100_000, seed=0)
    assert np.isfinite(noise.log_prob(rows)).all()
    places = (rows - [-2, noise.bounds[1][0]]) / noise.side
    count = np.histogram2d(*places.T, [np.arange(13), np.arange(8)])[0].T[::-1]
    expected = noise.darkness / noise.darkness.sum() * len(rows)
    there = expected > 0
    statistic = ((count - expected)[there] ** 2 / expected[there]).sum()
    assert chi2.sf(statistic, there.sum() - 1) > 1e-3
    within = np.histogram2d(*(places % 1).T, bins=5)[0]
    assert chi2.sf(((within - 4000) ** 2 / 4000).sum(), 24) > 1e-3


def test_right_is_right_and_up_is_up(tmp_path):
    """And the proportions stay: the longer side from -2 to 2."""
    grey = np.full((10, 40), 255)
    grey[0, -1] = 0
    picture = read_picture(write(tmp_path / "corner.png", grey))
    assert picture.bounds == ((-2.0, 2.0), (-0.5, 0.5))
    rows = picture.sample(100, seed=0)
    assert ((rows >= [1.9, 0.4]) & (rows <= [2.0, 0.5])).all()


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".gif", ".PGM"])
def test_grey_is_read_from_files(ending, tmp_path):
    grey = np.arange(0, 256, 16).reshape(2, 8)
    path = tmp_path / f"picture{ending}"
    assert is_picture(str(path))
    np.testing.assert_array_equal(read_picture(write(path, grey)).darkness, 255 - grey)


def test_colour_counts_as_its_grey_and_nothing_as_white(tmp_path):
    colours = np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 128], [255, 255, 255, 255]]])
    Image.fromarray(colours.astype(np.uint8)).save(tmp_path / "rgba.png")
    red, clear, half, white = read_picture(tmp_path / "rgba.png").darkness[0]
    assert red == pytest.approx(255 * (1 - 0.299), abs=1)
    assert (clear, white) == (0, 0)
    assert half == pytest.approx(128, abs=1)


def test_sixteen_bits_are_not_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    darkness = read_picture(tmp_path / "deep.png").darkness
    np.testing.assert_allclose(darkness, [[255, 127.5, 0]], atol=0.01)


def test_large_picture_is_averaged_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    grey = np.zeros((20, 40))
    grey[:, ::2] = 200
    with pytest.warns(UserWarning, match="40 x 20 pixels: averaged .* 3 x 3 to 14 x 7"):
        picture = read_picture(write(tmp_path / "large.png", grey))
    assert picture.darkness.shape == (7, 14)
    assert picture.darkness.mean() == pytest.approx(155, rel=0.1)


def test_camera_held_upright(tmp_path):
    grey = np.array([[0, 255, 255]], dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera's right is down
    Image.fromarray(grey).save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").darkness.shape == (3, 1)


def test_word_is_drawn_upright_and_whole():
    picture = word_picture("L")
    dark = picture.darkness > 128
    rows, columns = np.where(dark)
    height, width = dark.shape
    assert 0 < rows.min() < rows.max() < height - 1
    assert 0 < columns.min() < columns.max() < width - 1
    assert dark[: height // 2].sum() < dark[height // 2 :].sum()  # an L stands on its bar
    assert dark[:, : width // 2].sum() > dark[:, width // 2 :].sum()
    assert word_picture("FFJORD").darkness.shape[1] > 3 * word_picture("FFJORD").darkness.shape[0]


def test_word_is_a_name_of_a_picture():
    np.testing.assert_array_equal(read_picture("word:Ab").darkness, word_picture("Ab").darkness)
    assert is_picture("word:Ab")


@pytest.mark.parametrize("name", ["moons", "a.csv", "a.npy", "png"])
def test_names_of_other_data_are_no_pictures(name):
    assert not is_picture(name)


def test_mistakes_are_named(tmp_path):
    white = write(tmp_path / "white.png", np.full((3, 3), 255))
    empty, text = tmp_path / "empty.png", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("no picture")
    torn = tmp_path / "torn.png"
    torn.write_bytes(
        write(
            tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (20, 20))
        ).read_bytes()[:200]
    )
    for path, message in (
        (white, "white alone"),
        (empty, "Expected a readable picture"),
        (text, "Expected a readable picture"),
        (torn, "Expected a readable picture"),
        (tmp_path / "none.png", "no such file"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            read_picture(path)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)
    for word in ("", " "):
        with pytest.raises(ValueError, match="Expected a word"):
            word_picture(word)


def test_dollars_start_no_formula():
    assert word_picture("$a$").darkness.shape[1] > 2.5 * word_picture("a").darkness.shape[1]


def test_endless_picture_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "huge.png", np.zeros((20, 20)))
    for most in (300, 100):  # Pillow warns of the one and raises for the other
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ValueError, match=f"at most {most} pixels"):
            read_picture(path)


@pytest.mark.parametrize("darkness", [np.zeros(3), [[-1.0, 2.0]], [[np.nan]], np.zeros((0, 2))])
def test_what_is_no_darkness(darkness):
    with pytest.raises(ValueError, match="Expected"):
        Picture.of(darkness, "")


def test_endings_are_pillows():
    Image.init()
    assert set(IMAGE_ENDINGS) <= set(Image.registered_extensions())


def test_one_pixel_is_a_density():
    picture = dataclasses.replace(Picture.of([[9.0]], "dot"), name="point")
    assert picture.log_prob([[0.0, 0.0]]) == pytest.approx(-np.log(16))
