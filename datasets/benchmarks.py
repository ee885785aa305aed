"""The density benchmarks of Papamakarios et al. (2017): published files, preprocessing and splits.

Source: Papamakarios, Pavlakou and Murray (2017), Masked autoregressive flow for density estimation,
https://arxiv.org/abs/1705.07057, appendix D; files at https://zenodo.org/records/1161203.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cnf.datasets.patches import draw_patches
from cnf.datasets.table import Table

__all__ = ["BENCHMARKS", "DATA_DIR", "Benchmark", "BenchmarkSplit", "load_benchmark"]

Array = NDArray[np.float64]
DATA_DIR = "CNF_DATA"  # environment variable with the default folder of downloaded data
PUBLISHED_FILES = "data.tar.gz of https://zenodo.org/records/1161203, unpacked"


@dataclass(frozen=True, eq=False)
class BenchmarkSplit:
    """A table divided as published.

    Attributes:
        train: Training rows.
        validation: Validation rows.
        test: Test rows.
    """

    train: Table
    validation: Table
    test: Table


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and its reader.

    Attributes:
        read: Function of a folder that returns training, validation and test rows.
        files: Alternative groups of files to read, as paths within the folder.
        source: Source of the files, for error messages.
    """

    read: Callable[[Path], list[Array]]
    files: tuple[tuple[str, ...], ...]
    source: str = PUBLISHED_FILES


def load_benchmark(name: str, data_dir: str | os.PathLike[str] | None = None) -> BenchmarkSplit:
    """Read a benchmark's files; preprocess and divide them as published.

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

    Returns:
        Training, validation and test tables with columns x0, x1, …

    Raises:
        ValueError: If no folder is given, or a file is missing or not as published; the message
            names its source.

    Example:
        >>> load_benchmark("power", "/nowhere")
        Traceback (most recent call last):
        ValueError: Expected power/data.npy in /nowhere; got no such file: it comes from \
data.tar.gz of https://zenodo.org/records/1161203, unpacked.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"Expected a benchmark among {', '.join(BENCHMARKS)}; got {name!r}: choose one."
        )
    benchmark = BENCHMARKS[name]
    directory = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    if not directory:
        raise ValueError(
            f"Expected a folder with the files of {name}; got none: give --data-dir DIR, or set "
            f"{DATA_DIR}. They come from {benchmark.source}."
        )
    folder = Path(directory)
    for group in benchmark.files:
        if all((folder / file).is_file() for file in group):
            break
    else:
        wanted = " (or ".join(" and ".join(group) for group in benchmark.files)
        wanted += ")" * (len(benchmark.files) - 1)
        raise ValueError(
            f"Expected {wanted} in {folder}; got no such file: it comes from {benchmark.source}."
        )
    try:
        parts = benchmark.read(folder)
    except (LookupError, OSError, pd.errors.ParserError) as error:
        raise ValueError(
            f"Expected the files of {name} in {folder} to be as published; got {error}: restore "
            "them."
        ) from None
    columns = tuple(f"x{i}" for i in range(parts[0].shape[1]))
    return BenchmarkSplit(*(Table(name, np.asarray(part, np.float64), columns) for part in parts))


def _power(folder: Path) -> list[Array]:
    """Read, shuffle by the published seed, and add noise of the width of each column's rounding."""
    rng = np.random.RandomState(42)
    data = np.load(folder / "power/data.npy", allow_pickle=False)
    if data.ndim != 2 or data.shape[1] != 8:
        raise LookupError(f"an array of shape {data.shape} instead of 8 columns")
    rng.shuffle(data)
    n = len(data)
    power, voltage, metering, time = data[:, :1], data[:, 2:3], data[:, 4:7], data[:, 7:]
    voltage = voltage + 0.01 * rng.rand(n, 1)
    power = power + 0.001 * rng.rand(n, 1)
    metering = metering + rng.rand(n, 3)
    return _standardized(_tenths(np.hstack([power, voltage, metering, time])))


def _gas(folder: Path) -> list[Array]:
    """Read the sensors, leave out the first of each correlated pair, and standardise all rows."""
    table = folder / "gas/ethylene_CO.parquet"
    text = folder / "gas/ethylene_CO.txt"
    if table.is_file():
        frame = pd.read_parquet(table)
    else:
        frame = pd.read_csv(text, sep=r"\s+", skiprows=1, header=None)
    sensors = frame.iloc[:, 3:].to_numpy(np.float64)  # after time and two concentrations
    remaining = list(range(sensors.shape[1]))
    correlation = np.corrcoef(sensors.T)
    while True:
        correlated = (correlation[np.ix_(remaining, remaining)] > 0.98).sum(1) > 1
        if not correlated.any():
            break
        del remaining[int(correlated.argmax())]
    sensors = sensors[:, remaining]
    return _tenths((sensors - sensors.mean(0)) / sensors.std(0, ddof=1))


def _hepmass(folder: Path) -> list[Array]:
    """Read rows of the new particle without columns whose smallest value is repeated."""
    frames = [
        pd.read_csv(folder / f"hepmass/1000_{part}.csv", index_col=False)
        for part in ("train", "test")
    ]
    train, test = (
        frame[frame.iloc[:, 0] == 1].iloc[:, 1:].to_numpy(np.float64) for frame in frames
    )
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
