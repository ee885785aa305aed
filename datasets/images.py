"""Grey images: scikit-learn's digits, MNIST, the Frey Faces, and user-provided files."""

import gzip
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.benchmarks import Folder, published_files
from cnf.datasets.files import REGULAR_FILE, path_kind
from cnf.datasets.splitting import split
from cnf.datasets.table import closest

Grey = NDArray[np.uint8]
BYTE_WHITE = 255
# A truncated or damaged file can raise anything: NumPy, SciPy, zipfile, zlib, struct and tokenize
# have their own errors. Only their calls may stand where it is caught.
ANY_READ_ERROR = Exception


@dataclass(frozen=True, eq=False)
class Images:
    """Grey images divided into training, validation and test images.

    Attributes:
        name: A name in `IMAGES`, or the absolute path of a file.
        train: Training images, shape (n, height, width), where 0 is black; `validation` and `test`
            likewise.
        white: Grey value of white.
    """

    name: str
    train: Grey
    validation: Grey
    test: Grey
    white: int = BYTE_WHITE

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        _, height, width = self.train.shape
        return height, width


def load_images(data: str, data_dir: Folder = None, seed: int = 0) -> Images:
    """Load images by their name in `IMAGES` or from a file.

    - `digits`: scikit-learn's 1797 of 8 x 8 with 17 levels; 1097, 200 and 500 of them at random.
    - `mnist`: 70,000 of 28 x 28; the published test images, and at random 10,000 of the others for
      validation.
    - `freyfaces`: 1965 of 28 x 20; 1565, 200 and 200 at random.
    - a file, .npy or FILE.npz:ARRAY: integers from 0 to 255 of shape (n, height, width); 80, 10 and
      10 % at random.

    Args:
        data: A name, or a path.
        data_dir: Folder with the files of `mnist` and `freyfaces`; the value of the environment
            variable CNF_DATA when None.
        seed: Seed of the division.

    Raises:
        ValueError: There is no such name or file, or it holds no such images; the message names
            the source of a missing file.

    Example:
        >>> load_images("digits").size
        (8, 8)
        >>> load_images("freyfaces", "/nowhere")
        Traceback (most recent call last):
        ValueError: Expected freyfaces.npz or frey_rawface.mat in /nowhere; got no such file: it \
comes from https://cs.nyu.edu/~roweis/data/frey_rawface.mat.
    """
    if data in IMAGES:
        return IMAGES[data](data_dir, seed)
    file, _, array = data.partition(".npz:")
    path = Path(f"{file}.npz" if array else data)
    if path.suffix not in (".npy", ".npz"):
        hint = ", ".join(closest(data, IMAGES) or IMAGES)
        raise ValueError(
            f"Expected images by name, such as {hint}, or a file .npy or FILE.npz:ARRAY; "
            f"got {data!r}: choose one of them"
        )
    if path.suffix == ".npz" and not array:
        raise ValueError(
            f"Expected {data}:ARRAY, the name of an array in the file; got {data}: append it"
        )
    images = _as_bytes(_read(path, array or None), str(path))
    parts = split(len(images), seed)
    name = os.path.abspath(path) + (f":{array}" if array else "")
    return Images(name, images[parts.train], images[parts.validation], images[parts.test])


def _digits(_: Folder, seed: int) -> Images:
    from sklearn.datasets import load_digits  # here, since it takes long to import

    images = load_digits().images.astype(np.uint8)
    return _divided("digits", images, (1097, 200, 500), seed, white=16)


def _freyfaces(data_dir: Folder, seed: int) -> Images:
    """Read Roweis' 560 x 1965 matrix, or an array `data` of its transpose."""
    source = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
    groups = (("freyfaces.npz",), ("frey_rawface.mat",))
    _, (path,) = published_files("freyfaces", data_dir, groups, source)
    if path.suffix == ".mat":
        from scipy.io import loadmat  # here, since it takes long to import

        try:
            rows = loadmat(path)["ff"].T
        except ANY_READ_ERROR as error:
            raise ValueError(f"Expected the matrix ff in {path}; got {error}: restore it") from None
    else:
        rows = _read(path, "data")
    images = _as_bytes(_as_images(rows, (28, 20), path), str(path))
    return _divided("freyfaces", images, (1565, 200, 200), seed)


def _mnist(data_dir: Folder, seed: int) -> Images:
    """Read an .npz of the arrays train and test, or x_train and x_test; or LeCun's files."""
    idx = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    source = (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz, or four .gz files "
        "of https://ossci-datasets.s3.amazonaws.com/mnist"
    )
    groups = (("mnist.npz",), idx, tuple(f"{name}.gz" for name in idx))
    _, paths = published_files("mnist", data_dir, groups, source)
    if len(paths) == 1:
        prefix = "x_" if "x_train" in _arrays(paths[0]) else ""
        train, test = (_read(paths[0], prefix + part) for part in ("train", "test"))
    else:
        train, test = map(_read_idx, paths)
    train, test = (
        _as_bytes(_as_images(part, (28, 28), paths[0]), "MNIST") for part in (train, test)
    )
    held_out = len(train) // 6  # 10,000 of the 60,000
    order = np.random.default_rng(seed).permutation(len(train))
    return Images("mnist", train[order[held_out:]], train[order[:held_out]], test)


IMAGES: dict[str, Callable[[Folder, int], Images]] = {
    "digits": _digits,
    "mnist": _mnist,
    "freyfaces": _freyfaces,
}
"""Readers by name: functions of the folder with the files and the seed of the division."""


def _divided(
    name: str, images: Grey, sizes: Sequence[int], seed: int, white: int = BYTE_WHITE
) -> Images:
    if len(images) != sum(sizes):
        raise ValueError(f"Expected {sum(sizes)} images of {name}; got {len(images)}: restore them")
    order = np.random.default_rng(seed).permutation(len(images))
    train, validation, test = np.split(images[order], np.cumsum(sizes)[:-1])
    return Images(name, train, validation, test, white)


def _arrays(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return list(arrays)
    except ANY_READ_ERROR:
        return []


def _read(path: Path, array: str | None) -> NDArray[Any]:
    kind = path_kind(path)
    if kind != REGULAR_FILE:
        raise ValueError(f"Expected images in {path}; got {kind}: check the path")
    try:
        with open(path, "rb") as file:  # NumPy leaves the file of a damaged archive open
            content = np.load(file, allow_pickle=False)
            return np.asarray(content if array is None else content[array])
    except KeyError:
        names = ", ".join(_arrays(path)) or "none"
        raise ValueError(
            f"Expected an array {array!r} in {path}; its arrays are {names}: choose one"
        ) from None
    except ANY_READ_ERROR as error:
        raise ValueError(
            f"Expected {path} to hold an array of images; got {error}: write it again"
        ) from None


def _read_idx(path: Path) -> NDArray[Any]:
    """Read images in LeCun's format: a magic number, three sizes, and a byte for each pixel."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        magic, *shape = struct.unpack(">4I", content[:16])
        if magic != 2051:
            raise ValueError(f"the magic number {magic} instead of 2051")
        return np.frombuffer(content, np.uint8, offset=16).reshape(shape)
    except ANY_READ_ERROR as error:
        raise ValueError(f"Expected images in {path}; got {error}: restore it") from None


def _as_images(rows: NDArray[Any], size: tuple[int, int], path: Path) -> NDArray[Any]:
    try:
        return rows.reshape(-1, *size) if rows.ndim == 2 else rows.reshape(len(rows), *size)
    except (ValueError, TypeError):
        raise ValueError(
            f"Expected images of {size[0]} x {size[1]} in {path}; got an array of shape "
            f"{rows.shape}: restore it"
        ) from None


def _as_bytes(images: NDArray[Any], where: str) -> Grey:
    if images.ndim != 3 or 0 in images.shape:
        raise ValueError(
            f"Expected images of shape (n, height, width) in {where}; got an array of shape "
            f"{images.shape}: reshape it"
        )
    if images.dtype.kind not in "uif":
        raise ValueError(f"Expected numbers in {where}; got {images.dtype}: convert them")
    wrong = ~((images >= 0) & (images <= BYTE_WHITE) & (images == np.round(images)))
    if wrong.any():
        raise ValueError(
            f"Expected whole numbers from 0 to {BYTE_WHITE} in {where}; got {images[wrong][0]}: "
            f"multiply by {BYTE_WHITE} and round, if white is 1"
        )
    return images.astype(np.uint8)
