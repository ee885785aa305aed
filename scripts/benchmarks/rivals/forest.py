"""Adversarial random forests, by arfpy: a program for an environment that has arfpy 0.1.1.

It runs with pandas below 2.3, NumPy below 2, scikit-learn below 1.6 and SciPy below 1.14.

    p(x) = Σ over trees t of p(x | leaf of x in t) P(leaf of x in t) / T,

where a leaf has independent columns: shares of categories, and normal distributions between the
leaf's bounds, from which a number's mass is that of the cell around it, or its density where a
step is 0.

Source: Watson, Blesch, Kapar and Wright (2023), Adversarial random forests for density estimation
and generative modeling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

Array = NDArray[np.float64]

ANSWERED_ROWS = 20  # at once, in each of all leaves


def cell_log_mass(x: Array, step: float, leaves: pd.DataFrame) -> Array:
    """Return the log-mass of the cells x ± step / 2 by truncated normal distributions.

    A leaf whose rows are all equal has a mass at their value.

    Args:
        x: Centers of the cells, shape (rows,), or (rows, 1) for all leaves at each.
        step: Their width; 0 for the log-density at x.
        leaves: The columns mean, sd, min and max, one line for each of the rows, or for each leaf.
    """
    mean, sd, low, high = (leaves[each].to_numpy(float) for each in ("mean", "sd", "min", "max"))
    point = ~(sd > 0)
    scale = np.where(point, 1.0, sd)
    whole = _log_interval((low - mean) / scale, (high - mean) / scale)
    if step == 0:
        log_density = -0.5 * ((x - mean) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))
        cell = np.where((low <= x) & (x <= high), log_density, -np.inf)
        at_point = np.where(x == mean, np.inf, -np.inf)
    else:
        begin, end = (np.clip(x + half, low, high) for half in (-step / 2, step / 2))
        cell = _log_interval((begin - mean) / scale, (end - mean) / scale)
        at_point = np.where(np.abs(x - mean) <= step / 2, 0.0, -np.inf)
    return np.where(point, at_point, cell - whole)


def _log_interval(a: Array, b: Array) -> Array:
    """Return ln (Φ(b) − Φ(a)), −∞ where b is not above a."""
    flip = a > 0
    below, above = np.where(flip, -b, a), np.where(flip, -a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = log_ndtr(above) + np.log(-np.expm1(log_ndtr(below) - log_ndtr(above)))
    return np.where(above > below, found, -np.inf)


def log_mass(
    codes: pd.DataFrame, leaf: NDArray[np.int64], fitted: Any, steps: Mapping[str, float | None]
) -> Array:
    """Return the log-mass of rows, −∞ where no tree gives them any.

    Args:
        codes: The rows, categories by their numbers.
        leaf: The leaf of each row in each tree, shape (rows, trees).
        fitted: The forest after `forde`, whose parameters `bnds`, `params` and `class_probs` are.
        steps: The width of the cells of each column of numbers, None for categories.
    """
    bounds = fitted.bnds.drop_duplicates(["tree", "nodeid"]).set_index(["tree", "nodeid"])["cvg"]
    numbers, shares = fitted.params, fitted.class_probs
    trees = []
    for tree in range(leaf.shape[1]):
        place = pd.MultiIndex.from_arrays([np.full(len(codes), tree), leaf[:, tree]])
        with np.errstate(divide="ignore"):
            total = np.log(bounds.reindex(place).fillna(0.0).to_numpy(float))
        for name, step in steps.items():
            if step is None:
                mine = shares[(shares["variable"] == name) & (shares["tree"] == tree)]
                known = mine.set_index(["nodeid", "value"])["prob"]
                at = pd.MultiIndex.from_arrays([leaf[:, tree], codes[name]])
                with np.errstate(divide="ignore"):
                    total = total + np.log(known.reindex(at).fillna(0.0).to_numpy(float))
            else:
                mine = numbers[(numbers["variable"] == name) & (numbers["tree"] == tree)]
                leaves = mine.set_index("nodeid").reindex(leaf[:, tree])
                cell = cell_log_mass(codes[name].to_numpy(float), step, leaves)
                total = total + np.where(np.isnan(cell), -np.inf, cell)
        trees.append(total)
    return np.asarray(logsumexp(trees, axis=0) - np.log(leaf.shape[1]))


def answers(
    codes: pd.DataFrame, fitted: Any, steps: Mapping[str, float | None], masks: NDArray[np.int64]
) -> Array:
    """Return log p(asked | given) of cells, (rows, masks), NaN where no leaf has what is given.

    All leaves have a part in a marginal: log Σ over leaves of P(leaf) Π p(cell | leaf).

    Args:
        codes: As in `log_mass`.
        fitted: The same.
        steps: The same.
        masks: 1 for cells that are given, 2 for those that are asked, shape (masks, columns).
    """
    leaves = fitted.bnds.drop_duplicates(["tree", "nodeid"])
    place = pd.MultiIndex.from_frame(leaves[["tree", "nodeid"]])
    with np.errstate(divide="ignore"):
        weights = np.log(leaves["cvg"].to_numpy(float) / leaves["tree"].nunique())
    parts = []
    for start in range(0, len(codes), ANSWERED_ROWS):
        rows = codes[start : start + ANSWERED_ROWS]
        cells = np.stack([_by_leaf(rows[name], steps[name], fitted, place) for name in steps])
        found = []
        for mask in masks:
            both, given = (
                logsumexp(weights + cells[chosen].sum(0), axis=1)
                for chosen in (mask > 0, mask == 1)
            )
            with np.errstate(invalid="ignore"):
                found.append(both - given)
        parts.append(np.column_stack(found))
    return np.concatenate(parts)


def _by_leaf(
    column: pd.Series[Any], step: float | None, fitted: Any, place: pd.MultiIndex
) -> Array:
    """Return the log-masses of a column's cells in each leaf, (rows, leaves)."""
    if step is None:
        mine = fitted.class_probs
        mine = mine[mine["variable"] == column.name]
        shares = mine.pivot_table("prob", ["tree", "nodeid"], "value").reindex(place)
        with np.errstate(divide="ignore"):
            logs = np.log(shares.reindex(columns=column.unique()).fillna(0.0))
        return np.asarray(logs[column].to_numpy().T)
    mine = fitted.params[fitted.params["variable"] == column.name]
    leaves = mine.set_index(["tree", "nodeid"]).reindex(place)
    cell = cell_log_mass(column.to_numpy(float)[:, None], step, leaves)
    return np.where(np.isnan(cell), -np.inf, cell)


def main() -> None:
    """Fit a forest with its authors' settings, draw from it, and score the test rows."""
    from arfpy import arf
    from exchange import Exchange

    exchange = Exchange.open()
    np.random.seed(exchange.seed)  # noqa: NPY002 (the one that arfpy draws from)
    train, test = exchange.read("train"), exchange.read("test")
    options = {"num_trees": 30, "min_node_size": 5, "verbose": False, "n_jobs": 1}
    forest = exchange.timed("training", lambda: _fitted(arf.arf, train, options))
    draws = exchange.timed("sampling", lambda: forest.forge(n=len(train)))
    codes = test[[*train]].copy()
    for name, levels in forest.levels.items():
        codes[name] = pd.Categorical(codes[name], categories=levels).codes
    leaf = forest.clf.apply(codes)
    scored = exchange.timed("scoring", lambda: log_mass(codes, leaf, forest, exchange.steps))
    exchange.write(draws, scored)
    masks = exchange.masks()
    if masks is not None:
        exchange.write_answers(answers(codes, forest, exchange.steps, masks))


def _fitted(make: Any, train: pd.DataFrame, options: Mapping[str, Any]) -> Any:
    forest = make(x=train, **options)
    forest.forde()
    return forest


if __name__ == "__main__":
    main()
