"""Grey images: scikit-learn's, published files in their layouts, and one's own."""

import gzip
import struct

import numpy as np
import pytest
from scipy.io import savemat
from sklearn.datasets import load_digits

from cnf.datasets import DATA_DIR, load_images

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(256, size=(60, 28, 28), dtype=np.uint8)
TEST = RNG.integers(256, size=(10, 28, 28), dtype=np.uint8)
FACES = RNG.integers(256, size=(1965, 28, 20), dtype=np.uint8)


def idx(images):
    """Images in LeCun's format."""
    return struct.pack(">4I", 2051, *images.shape) + images.tobytes()


def as_sets(*parts):
    """The images of parts, in no order."""
    return sorted(image.tobytes() for part in parts for image in part)


def test_digits_are_scikit_learns_in_three_parts():
    images = load_images("digits")
    assert [len(part) for part in (images.train, images.validation, images.test)] == [
        1097,
        200,
        500,
    ]
    assert images.size == (8, 8)
    assert images.white == 16
    every = load_digits().images.astype(np.uint8)
    assert as_sets(images.train, images.validation, images.test) == as_sets(every)
    assert as_sets(images.test) != as_sets(every[-500:])


def test_the_seed_divides():
    one, same, other = (load_images("digits", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.test, same.test)
    assert not np.array_equal(one.test, other.test)


def write_mnist(folder, layout):
    if layout == "arrays":
        flat = (part.reshape(-1, 784) for part in (TRAIN, TEST))
        np.savez(folder / "mnist.npz", **dict(zip(("train", "test"), flat, strict=True)))
    elif layout == "keras":
        np.savez(folder / "mnist.npz", x_train=TRAIN, y_train=np.zeros(60), x_test=TEST)
    else:
        names = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
        for name, part in zip(names, (TRAIN, TEST), strict=True):
            content = idx(part)
            if layout == "gz":
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("layout", ["arrays", "keras", "idx", "gz"])
def test_mnist_is_read_from_each_published_layout(tmp_path, monkeypatch, layout):
    write_mnist(tmp_path, layout)
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    images = load_images("mnist")
    assert np.array_equal(images.test, TEST)
    assert as_sets(images.train, images.validation) == as_sets(TRAIN)
    assert len(images.validation) == 10
    assert images.white == 255


@pytest.mark.parametrize("layout", ["array", "matrix"])
def test_faces_are_read_from_each_layout(tmp_path, layout):
    flat = FACES.reshape(1965, 560)
    if layout == "array":
        np.savez(tmp_path / "freyfaces.npz", data=flat)
    else:
        savemat(tmp_path / "frey_rawface.mat", {"ff": flat.T})
    images = load_images("freyfaces", tmp_path)
    assert [len(part) for part in (images.train, images.validation, images.test)] == [
        1565,
        200,
        200,
    ]
    assert as_sets(images.train, images.validation, images.test) == as_sets(FACES)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_a_file_of_ones_own(tmp_path, dtype):
    own = TRAIN[:20, :6, :5].astype(dtype)
    np.save(tmp_path / "own.npy", own)
    np.savez(tmp_path / "own.npz", pictures=own)
    one = load_images(str(tmp_path / "own.npy"))
    other = load_images(str(tmp_path / "own.npz:pictures"))
    assert one.size == (6, 5)
    assert one.train.dtype == np.uint8
    assert [len(part) for part in (one.train, one.validation, one.test)] == [16, 2, 2]
    assert np.array_equal(one.train, other.train)
    assert other.name.endswith("own.npz:pictures")


def test_names_that_are_unknown():
    with pytest.raises(
        ValueError, match="images by name, such as digits, .* or a file.*got 'digit'"
    ):
        load_images("digit")
    with pytest.raises(ValueError, match="Expected images by name.*got 'elephants.tiff'"):
        load_images("elephants.tiff")


@pytest.mark.parametrize("name", ["mnist", "freyfaces"])
def test_files_that_are_not_there(tmp_path, monkeypatch, name):
    monkeypatch.delenv(DATA_DIR, raising=False)
    with pytest.raises(ValueError, match=rf"files of {name}; got none: give --data-dir.*https://"):
        load_images(name)
    with pytest.raises(ValueError, match="got no such file: it comes from https://"):
        load_images(name, tmp_path)
    with pytest.raises(ValueError, match=r"images in .*own\.npy; got no such file"):
        load_images(str(tmp_path / "own.npy"))


def refused(tmp_path, own, match):
    np.savez(tmp_path / "own.npz", own=own)
    with pytest.raises(ValueError, match=match):
        load_images(str(tmp_path / "own.npz:own"))


def test_files_that_hold_something_else(tmp_path):
    images = TRAIN[:20].astype(float)
    refused(tmp_path, images.reshape(20, -1), r"shape \(n, height, width\).*got .* \(20, 784\)")
    refused(tmp_path, images / 255, "whole numbers from 0 to 255.*multiply by 255 and round")
    refused(tmp_path, images - 1, "whole numbers from 0 to 255.*got -1.0")
    refused(tmp_path, np.full((20, 2, 2), np.nan), "whole numbers from 0 to 255.*got nan")
    refused(tmp_path, np.full((20, 2, 2), "a"), "Expected numbers")
    refused(tmp_path, images[:3], "at least 10 rows")
    with pytest.raises(ValueError, match="an array 'other' in .*; its arrays are own"):
        load_images(str(tmp_path / "own.npz:other"))
    with pytest.raises(ValueError, match=r"own\.npz:ARRAY, the name of an array in the file"):
        load_images(str(tmp_path / "own.npz"))
    (tmp_path / "text.npy").write_text("no images")
    with pytest.raises(ValueError, match=r"text\.npy to hold an array of images"):
        load_images(str(tmp_path / "text.npy"))


def test_published_files_that_are_damaged(tmp_path):
    write_mnist(tmp_path, "idx")
    path = tmp_path / "t10k-images-idx3-ubyte"
    for content in (b"", idx(TEST)[:-1], b"\x00\x00\x08\x01" + idx(TEST)[4:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="Expected images in .*restore it"):
            load_images("mnist", tmp_path)
    whole = tmp_path / "whole.npz"
    np.savez(whole, train=TRAIN, test=TEST)
    for content in (whole.read_bytes()[:20_000], b""):
        (tmp_path / "mnist.npz").write_bytes(content)
        with pytest.raises(ValueError, match="Expected .*mnist.npz to hold an array of images"):
            load_images("mnist", tmp_path)
    np.savez(tmp_path / "mnist.npz", train=TRAIN[:, :20], test=TEST)
    with pytest.raises(ValueError, match=r"images of 28 x 28.*\(60, 20, 28\)"):
        load_images("mnist", tmp_path)
    np.savez(tmp_path / "freyfaces.npz", data=FACES[:100])
    with pytest.raises(ValueError, match="Expected 1965 images of freyfaces; got 100"):
        load_images("freyfaces", tmp_path)
    matrix = tmp_path / "frey_rawface.mat"
    savemat(matrix, {"gg": np.zeros((560, 1965))})
    (tmp_path / "freyfaces.npz").unlink()
    for content in (matrix.read_bytes(), b"", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"):
        matrix.write_bytes(content)
        with pytest.raises(ValueError, match="Expected the matrix ff in .*restore it"):
            load_images("freyfaces", tmp_path)


def test_a_packed_file_that_is_damaged(tmp_path):
    write_mnist(tmp_path, "gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    for content in (path.read_bytes()[:500], b"\x1f\x8b" + bytes(50), b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="Expected images in .*restore it"):
            load_images("mnist", tmp_path)
