"""The density benchmarks of Papamakarios et al. (2017): published files, preprocessing and splits.

Source: Papamakarios, Pavlakou and Murray (2017), Masked autoregressive flow for density estimation,
https://arxiv.org/abs/1705.07057, appendix D; files at https://zenodo.org/records/1161203.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnf.datasets.table import Array, Table

Folder = str | os.PathLike[str] | None
DATA_DIR = "CNF_DATA"  # environment variable with the default folder of downloaded data
PUBLISHED_FILES = "data.tar.gz of https://zenodo.org/records/1161203, unpacked"

PATCH_SIDE = 8
VALIDATION_IMAGES = 20  # of the training images
PATCH_COUNTS = {"train": 1_000_000, "validation": 50_000, "test": 250_000}
PATCH_CHUNK = 50_000  # patches drawn at once


@dataclass(frozen=True, eq=False)
class BenchmarkSplit:
    """A table divided into training, validation and test rows as published."""

    train: Table
    validation: Table
    test: Table


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and its reader.

    Attributes:
        read: Function of a folder that returns training, validation and test rows.
        files: Alternative groups of files to read, as paths within the folder.
        source: Source of the files.
    """

    read: Callable[[Path], list[Array]]
    files: tuple[tuple[str, ...], ...]
    source: str = PUBLISHED_FILES


def load_benchmark(name: str, data_dir: Folder = None) -> BenchmarkSplit:
    """Read a benchmark's files; preprocess and divide them as published, with columns x0, x1, ….

    - `power`: household power, 6 columns with added noise of the width of their rounding.
    - `gas`: gas sensors, 8 columns, no two of which correlate by more than 0.98.
    - `hepmass`: particle collisions with a new particle, 21 columns.
    - `miniboone`: particle collisions, 43 columns.
    - `bsds300`: image patches, 63 columns; drawn from the images if the authors' patches are
      absent.

    All but the last are standardised.

    Args:
        name: A name in `BENCHMARKS`.
        data_dir: Folder with the files at their published paths (`power/data.npy`, …); the value
            of the environment variable CNF_DATA when None.

    Raises:
        ValueError: If no folder is given, or a file is missing or not as published; the message
            names its source.

    Example:
        >>> load_benchmark("power", "/nowhere")
        Traceback (most recent call last):
        ValueError: Expected power/data.npy in /nowhere; got no such file: it comes from \
data.tar.gz of https://zenodo.org/records/1161203, unpacked.
    """
    import pandas as pd  # here, since it takes long to import

    if name not in BENCHMARKS:
        raise ValueError(
            f"Expected a benchmark among {', '.join(BENCHMARKS)}; got {name!r}: choose one."
        )
    benchmark = BENCHMARKS[name]
    folder, _ = published_files(name, data_dir, benchmark.files, benchmark.source)
    try:
        parts = benchmark.read(folder)
    except (LookupError, OSError, pd.errors.ParserError) as error:
        raise ValueError(
            f"Expected the files of {name} in {folder} to be as published; got {error}: restore "
            "them."
        ) from None
    columns = tuple(f"x{i}" for i in range(parts[0].shape[1]))
    return BenchmarkSplit(*(Table(name, np.asarray(part, np.float64), columns) for part in parts))


def published_files(
    name: str, data_dir: Folder, groups: Sequence[Sequence[str]], source: str
) -> tuple[Path, list[Path]]:
    """Return the folder of published data, and the paths of the first group that is complete."""
    directory = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    if not directory:
        raise ValueError(
            f"Expected a folder with the files of {name}; got none: give --data-dir DIR, or set "
            f"{DATA_DIR}. They come from {source}."
        )
    for group in groups:
        paths = [Path(directory) / file for file in group]
        if all(map(os.path.isfile, paths)):
            return Path(directory), paths
    wanted = " or ".join(" and ".join(group) for group in groups)
    raise ValueError(
        f"Expected {wanted} in {os.fspath(directory)}; got no such file: it comes from {source}."
    )


def _power(folder: Path) -> list[Array]:
    """Shuffle by the published seed, and add noise of the width of each column's rounding."""
    rng = np.random.RandomState(42)
    data = np.load(folder / "power/data.npy", allow_pickle=False)
    if data.ndim != 2 or data.shape[1] != 8:
        raise LookupError(f"an array of shape {data.shape} instead of 8 columns")
    rng.shuffle(data)
    for columns, width in (([2], 0.01), ([0], 0.001), ([4, 5, 6], 1.0)):
        data[:, columns] += width * rng.rand(len(data), len(columns))
    return _standardized(_tenths(np.delete(data, [1, 3], axis=1)))


def _gas(folder: Path) -> list[Array]:
    """Leave out the first sensor of each correlated pair, and standardise all rows."""
    import pandas as pd

    table = folder / "gas/ethylene_CO.parquet"
    if table.is_file():
        frame = pd.read_parquet(table)
    else:
        frame = pd.read_csv(table.with_suffix(".txt"), sep=r"\s+", skiprows=1, header=None)
    frame = frame.iloc[:, 3:].astype(np.float64)  # without time and two concentrations
    correlation = frame.corr()
    while (correlated := (correlation > 0.98).sum() > 1).any():
        first = correlated.idxmax()
        correlation = correlation.drop(index=first, columns=first)
    frame = frame[correlation.columns]
    return _tenths(((frame - frame.mean()) / frame.std()).to_numpy())


def _hepmass(folder: Path) -> list[Array]:
    """Read rows of the new particle without columns whose smallest value is repeated."""
    import pandas as pd

    train, test = (
        pd.read_csv(folder / f"hepmass/1000_{part}.csv", index_col=False).to_numpy(np.float64)
        for part in ("train", "test")
    )
    train, test = (part[part[:, 0] == 1, 1:] for part in (train, test))
    test = test[:, : train.shape[1]]  # its header names one column too many
    mean, scale = train.mean(0), train.std(0, ddof=1)
    distinct = (train == train.min(0)).sum(0) <= 5
    train, test = ((part - mean)[:, distinct] / scale[distinct] for part in (train, test))
    held_out = len(train) // 10
    return [train[:-held_out], train[-held_out:], test]


def _miniboone(folder: Path) -> list[Array]:
    """Read the rows in the file's order and standardise them."""
    return _standardized(_tenths(np.load(folder / "miniboone/data.npy", allow_pickle=False)))


def _bsds300(folder: Path) -> list[Array]:
    """Read the authors' patches if present; otherwise draw patches from the images."""
    published = folder / BSDS300
    if not published.is_file():
        return draw_patches(folder / BSDS300_IMAGES)
    try:
        import h5py
    except ImportError:
        raise ValueError(
            f"Expected h5py to read {published}; got none installed: run pip install h5py."
        ) from None
    with h5py.File(published) as file:
        return [np.asarray(file[part], np.float64) for part in ("train", "validation", "test")]


def draw_patches(file: Path, seed: int = 0, sizes: dict[str, int] | None = None) -> list[Array]:
    """Draw patches from the images as Uria et al. (2013), whose patches later papers use.

    Grey patches of 8 x 8 pixels at uniformly random places; training patches from 180 of the 200
    training images, validation patches from the other 20, test patches from the 100 test images.
    Uniform noise on [0, 1) is added to the integers from 0 to 255, the sum divided by 256, the
    patch's mean subtracted, and the pixel at the lower right dropped, which the others determine.

    The authors' draw is not published, so this is another one of the same distribution; a Gaussian
    with full covariance reaches 96.3 nats on its test patches (96.7 on theirs).

    Args:
        file: An .npz file with the flattened images `train_px` and `test_px` (images, pixels),
            unsigned bytes, and their heights and widths `train_hw` and `test_hw` (images, 2).
        seed: Seed of the draw.
        sizes: Number of patches (…, 63) of each part; `PATCH_COUNTS`, as published, when None.

    Source: Uria, Murray and Larochelle (2013), RNADE: the real-valued neural autoregressive
    density-estimator.
    """
    sizes = sizes or PATCH_COUNTS
    try:
        with np.load(file, allow_pickle=False) as archive:
            pixels = {part: archive[f"{part}_px"] for part in ("train", "test")}
            shapes = {part: archive[f"{part}_hw"].astype(np.int64) for part in ("train", "test")}
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"Expected the images train_px, train_hw, test_px and test_hw in {file}; got {error}: "
            "restore it."
        ) from None
    order = np.random.default_rng([seed, len(PATCH_COUNTS)]).permutation(len(shapes["train"]))
    images = {
        "train": (pixels["train"], shapes["train"], order[VALIDATION_IMAGES:]),
        "validation": (pixels["train"], shapes["train"], order[:VALIDATION_IMAGES]),
        "test": (pixels["test"], shapes["test"], np.arange(len(shapes["test"]))),
    }
    return [
        patches_of(*images[part], count=sizes[part], rng=np.random.default_rng([seed, i]))
        for i, part in enumerate(PATCH_COUNTS)
    ]


def patches_of(
    pixels: NDArray[np.uint8],
    shapes: NDArray[np.int64],
    images: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> Array:
    """Draw dequantised patches (count, 63) of some images, without their mean and last pixel.

    The flattened images are of shape (images, pixels), their heights and widths (images, 2), and
    `images` are the indices of those to draw from.

    Example:
        >>> pixels = np.full((1, 90), 7, dtype=np.uint8)
        >>> places = np.array([[9, 10]]), np.array([0])
        >>> patches = patches_of(pixels, *places, count=3, rng=np.random.default_rng(0))
        >>> patches.shape, bool(np.abs(patches).max() < 1 / 256)
        ((3, 63), True)
    """
    patches = np.empty((count, PATCH_SIDE**2 - 1))
    inside = np.arange(PATCH_SIDE)
    for start in range(0, count, PATCH_CHUNK):
        size = min(PATCH_CHUNK, count - start)
        chosen = images[rng.integers(len(images), size=size)]
        top, left = (rng.random((size, 2)) * (shapes[chosen] - PATCH_SIDE + 1)).astype(np.int64).T
        rows = (top[:, None] + inside)[:, :, None] * shapes[chosen, 1][:, None, None]
        places = rows + (left[:, None] + inside)[:, None, :]
        cut = pixels[chosen[:, None], places.reshape(size, -1)]
        grey = (cut + rng.random(cut.shape)) / 256
        patches[start : start + size] = (grey - grey.mean(1, keepdims=True))[:, :-1]
    return patches


def _tenths(data: Array) -> list[Array]:
    """Split off the last tenth for testing and the last tenth of the rest for validation."""
    rest = len(data) - len(data) // 10
    train = rest - rest // 10
    return [data[:train], data[train:rest], data[rest:]]


def _standardized(parts: list[Array]) -> list[Array]:
    """Standardise by mean and standard deviation of training and validation rows together."""
    known = np.vstack(parts[:2])
    mean, scale = known.mean(0), known.std(0)
    return [(part - mean) / scale for part in parts]


BSDS300 = "BSDS300/BSDS300.hdf5"
BSDS300_IMAGES = "bsds300_images.npz"
GAS_SOURCE = (
    "https://archive.ics.uci.edu/dataset/322 (ethylene_CO.txt), or from the published pickle, "
    "which can run code when it is read: convert it where that does not matter, by "
    "pandas.read_pickle(...).to_parquet(...)"
)

BENCHMARKS: dict[str, Benchmark] = {
    "power": Benchmark(_power, (("power/data.npy",),)),
    "gas": Benchmark(
        _gas, (("gas/ethylene_CO.parquet",), ("gas/ethylene_CO.txt",)), source=GAS_SOURCE
    ),
    "hepmass": Benchmark(_hepmass, (("hepmass/1000_train.csv", "hepmass/1000_test.csv"),)),
    "miniboone": Benchmark(_miniboone, (("miniboone/data.npy",),)),
    "bsds300": Benchmark(_bsds300, ((BSDS300,), (BSDS300_IMAGES,))),
}
"""The benchmarks by name."""
