"""Data sets of series at irregular times by name, as frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnf.datasets.benchmarks import Folder
from cnf.datasets.physionet import physionet2012
from cnf.datasets.series_toys import (
    LinearGaussianSeries,
    OrnsteinUhlenbeckSeries,
    PeriodicSeries,
    SeriesToy,
    SpiralSeries,
)
from cnf.datasets.table import closest

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd

Frames = tuple["pd.DataFrame", "pd.DataFrame | None"]


@dataclass(frozen=True)
class SeriesDataset:
    """A data set of series.

    Attributes:
        help: A line on it.
        read: Function of the number of series (None for the usual one), a seed and a folder of
            data, that returns the frame and the labels.
        toy: The law of a toy, whose log-density may be known.
    """

    help: str
    read: Callable[[int | None, int, Folder], Frames]
    toy: SeriesToy | None = None


def load_series(
    name: str, n: int | None = None, seed: int = 0, data_dir: Folder = None
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Load a data set of series by its name in `SERIES_DATASETS`.

    Args:
        name: The name.
        n: The number of series; of data that are not drawn, the first ones. By default 1000 of
            toys, and all others.
        seed: The seed of toys.
        data_dir: Folder with the files of data that are not drawn; the value of the environment
            variable CNF_DATA when None.

    Returns:
        A frame with the columns `id`, `time` and those observed, NaN for gaps; a frame with `id`
        and one label of each series, or None where there are no labels.

    Raises:
        ValueError: There is no such name, or its files are missing.

    Example:
        >>> frame, labels = load_series("spirals", n=4)
        >>> frame.columns.tolist(), labels["clockwise"].tolist()
        (['id', 'time', 'x', 'y'], [0, 1, 0, 1])
    """
    if name not in SERIES_DATASETS:
        near = ", ".join(closest(name, SERIES_DATASETS))
        raise ValueError(f"Expected a data set of series; got {name!r}: the closest are {near}.")
    return SERIES_DATASETS[name].read(n, seed, data_dir)


def _toy(help: str, toy: SeriesToy) -> SeriesDataset:
    def read(n: int | None, seed: int, _: Folder) -> Frames:
        return toy.sample(1000 if n is None else n, seed), None

    return SeriesDataset(help, read, toy)


def _spirals(n: int | None, seed: int, _: Folder) -> Frames:
    frame = SpiralSeries().sample(1000 if n is None else n, seed)
    labels = frame[["id"]].drop_duplicates(ignore_index=True)
    return frame, labels.assign(clockwise=labels["id"] % 2)


def _physionet(n: int | None, _: int, data_dir: Folder) -> Frames:
    frame, outcomes = physionet2012(data_dir)
    labels = outcomes[["id", "In-hospital_death"]][:n]
    return frame[frame["id"].isin(labels["id"])].reset_index(drop=True), labels


SERIES_DATASETS: dict[str, SeriesDataset] = {
    "periodic": _toy("sine waves of random frequency, 100 common times", PeriodicSeries()),
    "spirals": SeriesDataset(
        "spirals in the plane in either direction, 50 to 100 times", _spirals, SpiralSeries()
    ),
    "ornstein_uhlenbeck": _toy(
        "a noisy Ornstein-Uhlenbeck process, exact log-density", OrnsteinUhlenbeckSeries()
    ),
    "linear_gaussian": _toy("a noisy damped rotation, exact log-density", LinearGaussianSeries()),
    "physionet2012": SeriesDataset(
        "8000 intensive-care stays of 48 hours, 41 variables; needs its files", _physionet
    ),
}
"""Data sets of series by name; a new one is an entry with a line of help."""
