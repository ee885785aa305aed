"""Grey images: scikit-learn's, published files in their layouts, and users' files."""

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
IDX = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")


def idx(images):
    """Images in LeCun's format."""
    return struct.pack(">4I", 2051, *images.shape) + images.tobytes()


def check(images, sizes, every):
    """Compare the sizes of the parts, and their images in any order."""
    parts = (images.train, images.validation, images.test)
    assert [len(part) for part in parts] == sizes
    assert sorted(image.tobytes() for part in parts for image in part) == sorted(
        image.tobytes() for image in every
    )


def refused(name, folder, message):
    with pytest.raises(ValueError, match=message):
        load_images(name, folder)


def test_digits_are_scikit_learns_in_three_parts():
    images, every = load_images("digits"), load_digits().images.astype(np.uint8)
    check(images, [1097, 200, 500], every)
    assert (images.size, images.white) == ((8, 8), 16)
    assert not np.array_equal(images.test, every[-500:])
    one, same, other = (load_images("digits", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.test, same.test)
    assert not np.array_equal(one.test, other.test)


def write_mnist(folder, layout):
    if layout == "arrays":
        np.savez(folder / "mnist.npz", train=TRAIN.reshape(-1, 784), test=TEST.reshape(-1, 784))
    elif layout == "keras":
        np.savez(folder / "mnist.npz", x_train=TRAIN, y_train=np.zeros(60), x_test=TEST)
    else:
        for name, part in zip(IDX, (TRAIN, TEST), strict=True):
            content = gzip.compress(idx(part)) if layout == ".gz" else idx(part)
            (folder / (name + layout)).write_bytes(content)


@pytest.mark.parametrize("layout", ["arrays", "keras", "", ".gz"])
def test_mnist_is_read_from_each_published_layout(tmp_path, monkeypatch, layout):
    write_mnist(tmp_path, layout)
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    images = load_images("mnist")
    check(images, [50, 10, 10], [*TRAIN, *TEST])
    assert np.array_equal(images.test, TEST)
    assert images.white == 255


def test_faces_are_read_from_each_layout(tmp_path):
    savemat(tmp_path / "frey_rawface.mat", {"ff": FACES.reshape(1965, 560).T})
    check(load_images("freyfaces", tmp_path), [1565, 200, 200], FACES)
    (tmp_path / "frey_rawface.mat").unlink()
    np.savez(tmp_path / "freyfaces.npz", data=FACES.reshape(1965, 560))
    check(load_images("freyfaces", tmp_path), [1565, 200, 200], FACES)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_files_of_users(tmp_path, dtype):
    own = TRAIN[:20, :6, :5].astype(dtype)
    np.save(tmp_path / "own.npy", own)
    np.savez(tmp_path / "own.npz", pictures=own)
    one, other = (load_images(f"{tmp_path}/own.{end}") for end in ("npy", "npz:pictures"))
    check(one, [16, 2, 2], TRAIN[:20, :6, :5])
    assert (one.size, one.train.dtype) == ((6, 5), np.uint8)
    assert np.array_equal(one.train, other.train)
    assert other.name.endswith("own.npz:pictures")


def test_names_and_files_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_DIR, raising=False)
    for name in ("digit", "elephants.tiff"):
        refused(name, None, f"images by name, such as .* or a file.*got '{name}'")
    for name in ("mnist", "freyfaces"):
        refused(name, None, rf"files of {name}; got none: give --data-dir.*https://")
        refused(name, tmp_path, "got no such file: it comes from https://")
    refused(f"{tmp_path}/own.npy", None, r"images in .*own\.npy; got no such file")


def test_files_that_hold_something_else(tmp_path):
    images = TRAIN[:20].astype(float)
    for own, message in (
        (images.reshape(20, -1), r"shape \(n, height, width\).*got .* \(20, 784\)"),
        (images / 255, "whole numbers from 0 to 255.*multiply by 255 and round"),
        (images - 1, "whole numbers from 0 to 255.*got -1.0"),
        (np.full((20, 2, 2), np.nan), "whole numbers from 0 to 255.*got nan"),
        (np.full((20, 2, 2), "a"), "Expected numbers"),
        (images[:3], "at least 10 rows"),
    ):
        np.savez(tmp_path / "own.npz", own=own)
        refused(f"{tmp_path}/own.npz:own", None, message)
    refused(f"{tmp_path}/own.npz:other", None, "an array 'other' in .*; its arrays are own")
    refused(f"{tmp_path}/own.npz", None, r"own\.npz:ARRAY, the name of an array in the file")
    (tmp_path / "text.npy").write_text("no images")
    refused(f"{tmp_path}/text.npy", None, r"text\.npy to hold an array of images")


def test_published_files_that_are_damaged(tmp_path):
    matrix, archive = tmp_path / "frey_rawface.mat", tmp_path / "mnist.npz"
    savemat(matrix, {"gg": np.zeros((560, 1965))})
    for layout in (".gz", "", "arrays"):
        write_mnist(tmp_path, layout)
    published = archive.read_bytes()
    archive.unlink()
    plain, packed, restore = tmp_path / IDX[1], tmp_path / f"{IDX[1]}.gz", "images in .*restore it"
    newer = b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"
    for file, name, message, contents in (
        (plain, "mnist", restore, (b"", idx(TEST)[:-1], b"\0\0\x08\x01" + idx(TEST)[4:])),
        (packed, "mnist", restore, (packed.read_bytes()[:500], b"\x1f\x8b" + bytes(50), b"")),
        (archive, "mnist", "mnist.npz to hold an array of images", (published[:20_000], b"")),
        (matrix, "freyfaces", "matrix ff in .*restore it", (matrix.read_bytes(), b"", newer)),
    ):
        for content in contents:
            file.write_bytes(content)
            refused(name, tmp_path, f"Expected .*{message}")
        file.unlink()
    np.savez(archive, train=TRAIN[:, :20], test=TEST)
    refused("mnist", tmp_path, r"images of 28 x 28.*\(60, 20, 28\)")
    np.savez(tmp_path / "freyfaces.npz", data=FACES[:100])
    refused("freyfaces", tmp_path, "Expected 1965 images of freyfaces; got 100")
