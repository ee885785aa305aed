"""scikit-learn's bundled tables, and loading of tables by name or path."""

from collections.abc import Callable
from functools import partial
from os import sep
from os.path import exists
from pathlib import Path

import numpy as np

from cnf.datasets.conditional_toys import CONDITIONAL_TOYS
from cnf.datasets.files import ENDINGS, Missing, read_table
from cnf.datasets.reading import ReadOptions
from cnf.datasets.table import Table, closest
from cnf.datasets.toys import TOYS


def _features(name: str) -> Table:
    from sklearn import datasets  # here, since it takes long to import

    bunch = getattr(datasets, f"load_{name}")()
    return Table(name, np.asarray(bunch.data, np.float64), tuple(map(str, bunch.feature_names)))


def _digits() -> Table:
    """Load 8 x 8 images of digits, each pixel an integer from 0 to 16 plus U[0, 1).

    Without the noise the density is unbounded at the integers; with it, mean log p in nats is a
    lower bound on the log-probability of the integers (Theis et al. 2016,
    https://arxiv.org/abs/1511.01844). The noise is fixed, so that scores are comparable.
    """
    table = _features("digits")
    noise = np.random.default_rng(0).uniform(size=table.values.shape)
    return Table(table.name, table.values + noise, table.columns)


TABLES: dict[str, Callable[[], Table]] = {
    "digits": _digits,
    **{name: partial(_features, name) for name in ("wine", "breast_cancer", "diabetes", "iris")},
}
"""Loaders by name: the features, without the target, in scikit-learn's order and units.

Digits are dequantised: noise from U[0, 1), drawn from a fixed seed, is added to each pixel, an
integer from 0 to 16. Diabetes is scaled by scikit-learn.
"""


def load(data: str, missing: Missing = "refuse", options: ReadOptions | None = None) -> Table:
    """Load a table by its name in `TABLES`, or from a file as `read_table` does.

    The options `drop` and `only` also hold for the columns of bundled tables.

    Raises:
        ValueError: If there is no such name or file, or the file is not a table of finite numbers.

    Example:
        >>> wine = load("wine")
        >>> wine.values.shape, wine.columns[0]
        ((178, 13), 'alcohol')
    """
    if data in TABLES:
        return (options or ReadOptions()).select(TABLES[data]())
    if Path(data).suffix or sep in data or exists(data):
        return read_table(data, missing, options)
    for registry, toys in (("TOYS", TOYS), ("CONDITIONAL_TOYS", CONDITIONAL_TOYS)):
        if data in toys:
            raise ValueError(
                f"Expected a table; got the toy {data!r}: use cnf.datasets.{registry}[{data!r}]."
            )
    near = ", ".join(closest(data, [*TOYS, *CONDITIONAL_TOYS, *TABLES]))
    raise ValueError(
        f"Expected the name of a data set; got {data!r}: the closest names are {near}, "
        f"and a path that ends in {ENDINGS} also works."
    )
