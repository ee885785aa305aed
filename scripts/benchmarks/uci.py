"""Regression tables of the UCI repository, in one file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import DATA_DIR

Array = NDArray[np.float64]

UCI_FILE = "uci_small.npz"
UCI_TABLES = (
    "wine",
    "housing",
    "concrete",
    "energy",
    "parkinsons",
    "protein",
    "elevators",
    "bike",
    "pol",
    "kin40k",
    "breastcancer",
)
UCI_SOURCE = (
    "it holds an array (rows, columns) for each of wine, housing, …, regression tables of "
    "https://archive.ics.uci.edu with the target as their last column"
)


def uci_file(data_dir: str | None) -> Path:
    """Return the path of the file of tables.

    Args:
        data_dir: The folder; the environment's CNF_DATA when None.

    Raises:
        ValueError: No folder is named, or the file does not exist.

    Example:
        >>> uci_file("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Expected uci_small.npz in /nowhere; got no such file: it holds ...
    """
    given = data_dir or os.environ.get(DATA_DIR)
    if not given:
        raise ValueError(
            f"Expected a folder with {UCI_FILE}; got none: give --data-dir DIR, or set {DATA_DIR}; "
            f"{UCI_SOURCE}"
        )
    path = Path(given) / UCI_FILE
    if not os.path.isfile(path):
        raise ValueError(f"Expected {UCI_FILE} in {given}; got no such file: {UCI_SOURCE}")
    return path


def uci_table(path: Path, name: str) -> Array:
    """Read a table of the file, shape (rows, columns).

    Raises:
        ValueError: The table does not exist, or is not a table of finite numbers.
    """
    try:
        # Opened here, since NumPy leaves a file open where the archive is damaged.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            values = np.asarray(arrays[name], np.float64)
    except Exception:  # NumPy, zipfile and zlib raise various errors for damaged files
        raise ValueError(
            f"Expected an array {name!r} in {path}; got none that can be read: {UCI_SOURCE}"
        ) from None
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"Expected finite numbers of shape (rows, columns) for {name} in {path}; got shape "
            f"{values.shape}, {np.isfinite(values).sum()} of {values.size} finite"
        )
    return values
