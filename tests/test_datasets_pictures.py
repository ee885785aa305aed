"""Pictures as densities: darkness, orientation, and files that are no pictures."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2

from cnf.datasets import Picture, is_picture, pictures, read_picture, word_picture
from cnf.datasets.pictures import IMAGE_ENDINGS


def write(path, grey, **options):
    Image.fromarray(np.asarray(grey, dtype=np.uint8)).save(path, **options)
    return path


def test_samples_are_of_the_density_which_is_the_darkness():
    """Pearson's test over the pixels, and of uniformity within them; none where it is white."""
    random = np.random.default_rng(0)
    darkness = random.uniform(0, 255, (7, 12)) * (random.uniform(size=(7, 12)) > 0.3)
    picture = Picture.of(darkness, "")
    x, y = (np.arange(12) - 5.5) * picture.side, (3 - np.arange(7)) * picture.side
    centers = np.stack(np.meshgrid(x, y), -1)  # the uppermost row first
    mass = np.exp(picture.log_prob(centers.reshape(-1, 2))).reshape(7, 12) * picture.side**2
    np.testing.assert_allclose(mass, darkness / darkness.sum())
    rows = picture.sample(100_000, seed=0)
    assert np.isfinite(picture.log_prob(rows)).all()
    places = (rows - [-2, picture.bounds[1][0]]) / picture.side
    count = np.histogram2d(*places.T, [np.arange(13), np.arange(8)])[0].T[::-1]
    expected = mass * len(rows)
    there = expected > 0
    statistic = ((count - expected)[there] ** 2 / expected[there]).sum()
    assert chi2.sf(statistic, there.sum() - 1) > 1e-3
    within = np.histogram2d(*(places % 1).T, bins=5)[0]
    assert chi2.sf(((within - 4000) ** 2 / 4000).sum(), 24) > 1e-3
    assert Picture.of([[9.0]], "dot").log_prob([[0.0, 0.0]]) == pytest.approx(-np.log(16))


def test_orientation_and_proportions(tmp_path):
    grey = np.full((10, 40), 255)
    grey[0, -1] = 0
    picture = read_picture(write(tmp_path / "corner.png", grey))
    assert picture.bounds == ((-2.0, 2.0), (-0.5, 0.5))
    rows = picture.sample(100, seed=0)
    assert ((rows >= [1.9, 0.4]) & (rows <= [2.0, 0.5])).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera's right is down
    turned = write(tmp_path / "turned.png", [[0, 255, 255]], exif=exif)
    assert read_picture(turned).darkness.shape == (3, 1)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".gif", ".PGM"])
def test_grey_is_read_from_files(ending, tmp_path):
    grey, path = np.arange(0, 256, 16).reshape(2, 8), tmp_path / f"picture{ending}"
    assert is_picture(str(path))
    np.testing.assert_array_equal(read_picture(write(path, grey)).darkness, 255 - grey)


def test_colour_counts_as_its_grey_and_transparency_as_white(tmp_path):
    colours = [[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 128], [255, 255, 255, 255]]]
    darkness = read_picture(write(tmp_path / "rgba.png", colours)).darkness
    np.testing.assert_allclose(darkness, [[255 * (1 - 0.299), 0, 128, 0]], atol=1)
    assert darkness[0, 1] == darkness[0, 3] == 0
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    darkness = read_picture(tmp_path / "deep.png").darkness
    np.testing.assert_allclose(darkness, [[255, 127.5, 0]], atol=0.01)


def test_large_picture_is_averaged_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    path = write(tmp_path / "large.png", np.tile([200, 0], (20, 20)))
    with pytest.warns(UserWarning, match="40 x 20 pixels: averaged .* 3 x 3 to 14 x 7"):
        picture = read_picture(path)
    assert picture.darkness.shape == (7, 14)
    assert picture.darkness.mean() == pytest.approx(155, rel=0.1)


def test_names_are_of_files_or_of_words_drawn_upright_and_whole():
    dark = word_picture("L").darkness > 128
    height, width = dark.shape
    for places, side in zip(np.where(dark), dark.shape, strict=True):
        assert 0 < places.min() < places.max() < side - 1
    assert dark[: height // 2].sum() < dark[height // 2 :].sum()  # an L stands on its bar
    assert dark[:, : width // 2].sum() > dark[:, width // 2 :].sum()
    assert word_picture("$a$").darkness.shape[1] > 2.5 * word_picture("a").darkness.shape[1]
    word = word_picture("FFJORD").darkness
    assert word.shape[1] > 3 * word.shape[0]
    np.testing.assert_array_equal(read_picture("word:FFJORD").darkness, word)
    names = ("word:Ab", "moons", "a.csv", "a.npy", "png")
    assert [name for name in names if is_picture(name)] == ["word:Ab"]
    Image.init()
    assert set(IMAGE_ENDINGS) <= set(Image.registered_extensions())


def test_mistakes_are_named(tmp_path, monkeypatch):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    write(tmp_path / "white.png", np.full((3, 3), 255))
    torn = write(tmp_path / "torn.png", np.random.default_rng(0).integers(0, 256, (20, 20)))
    torn.write_bytes(torn.read_bytes()[:200])
    huge = write(tmp_path / "huge.png", np.zeros((20, 20)))
    for name, message in {
        "white.png": "white alone",
        "empty.png": "Expected a readable picture",
        "text.jpg": "Expected a readable picture",
        "torn.png": "Expected a readable picture",
        "none.png": "no such file",
    }.items():
        with pytest.raises(ValueError, match=message) as raised:
            read_picture(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert str(tmp_path / name) in str(raised.value)
    for most in (300, 100):  # Pillow warns of the one and raises for the other
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ValueError, match=f"at most {most} pixels"):
            read_picture(huge)
    for word in ("", " "):
        with pytest.raises(ValueError, match="Expected a word"):
            word_picture(word)
    for darkness in (np.zeros(3), [[-1.0, 2.0]], [[np.nan]], np.zeros((0, 2))):
        with pytest.raises(ValueError, match="Expected"):
            Picture.of(darkness, "")
