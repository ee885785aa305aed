"""How often the estimator of outliers names the column of a planted error first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnf.outliers import CNFOutlier
from cnf.scripts.benchmarks.measure import Average, TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.outliers import OUR_MODULES, outlier_files, sources_of

Array = NDArray[np.float64]

ERROR_SETS = (
    *("2_annthyroid", "22_magic.gamma", "28_pendigits", "29_Pima", "32_shuttle"),
    *("37_Stamps", "38_thyroid", "39_vertebral", "45_wine", "47_yeast"),
)
"""Sets of ADBench (Han et al. 2022) with at most 16 columns."""
SHIFT = 5.0  # standard deviations
SHIFTED_ROWS = 60  # at most a fifth of the normal rows
NORMAL_ROWS = 10_000  # of a set at most, to train on


class ShiftedRows(NamedTuple):
    """Normal rows, and others with an error in one column each.

    Attributes:
        train: Rows to train on, shape (rows, columns).
        test: Others, of which one value each is shifted.
        places: The columns of these, shape (rows of `test`,).
    """

    train: Array
    test: Array
    places: NDArray[np.intp]

    @staticmethod
    def of(normal: Array, seed: int = 0) -> ShiftedRows:
        """Divide normal rows, and shift a random column of the test rows up or down.

        Example:
            >>> rows = ShiftedRows.of(np.random.default_rng(0).normal(size=(100, 3)))
            >>> rows.train.shape, rows.test.shape, rows.places.shape
            ((80, 3), (20, 3), (20,))
        """
        rng = np.random.default_rng(seed)
        rows = normal[rng.permutation(len(normal))]
        count = min(SHIFTED_ROWS, len(rows) // 5)
        test, train = rows[:count].copy(), rows[count : count + NORMAL_ROWS]
        deviations = train.std(0)
        places = rng.choice(np.flatnonzero(deviations), count)
        test[np.arange(count), places] += SHIFT * rng.choice([-1, 1], count) * deviations[places]
        return ShiftedRows(train, test, places)


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each set: how often the shifted column has the largest excess."""
    files = outlier_files(options.data_dir, options.sets or ERROR_SETS)
    sets = {path.stem: _normal_rows(path) for path in files}
    code = sources_of(__name__, "outliers.estimator", "tables.estimators", *OUR_MODULES)
    yield (
        f"Rows in which a column that was moved by {SHIFT:g} standard deviations is the first that "
        f"`explain` names; {options.budget:g} s of training, seed 0, {threads_used()}"
    )
    shares = []
    for name, normal in sets.items():
        rows = ShiftedRows.of(normal)
        key = key_of({"section": "explain", "set": name, "budget": options.budget}, *rows, *code)
        found = options.results.recall(key, partial(_first, rows, options.budget))
        shares.append(found["first"])
        yield {"set": name, **found}
    yield f"Mean over the {len(sets)} sets: {np.mean(shares):.3f}, the least: {min(shares):.3f}"


def _normal_rows(path: Path) -> Array:
    """Return the rows of a set that are no outliers."""
    with np.load(path) as held:
        return np.asarray(held["X"][held["y"] == 0], np.float64)


def _first(rows: ShiftedRows, budget: float) -> Row:
    """Measure how often the shifted column is named first."""
    with warnings.catch_warnings():  # of shifted values that a column cannot have
        warnings.simplefilter("ignore", UserWarning)
        detector = CNFOutlier(budget=budget, random_state=0).fit(rows.train)
        surprise, excess, _ = detector.explain(rows.test)
    first = Average.of(excess.argmax(1) == rows.places)
    return {
        "columns": rows.train.shape[1],
        "training rows": len(rows.train),
        "rows": len(rows.test),
        "first": first.mean,
        "± first": first.stderr,
        "by surprise": Average.of(surprise.argmax(1) == rows.places).mean,
        "note": "",
    }
