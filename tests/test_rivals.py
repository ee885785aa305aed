"""Log-masses of rivals, from parameters as their libraries have them: against quadrature."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import truncnorm

from cnf.scripts.benchmarks.rivals.forest import answers, cell_log_mass, log_mass

STEPS = {"x": 0.5, "k": 1.0, "c": None}


def leaves(**columns):
    return pd.DataFrame(columns)


def test_the_cells_of_a_truncated_normal_sum_to_one_and_are_integrals():
    low, high, mean, sd = -1.25, 7.25, 0.3, 2.0
    x = np.arange(-3, 10, 0.5)
    each = pd.DataFrame([{"mean": mean, "sd": sd, "min": low, "max": high}] * len(x))
    found = np.exp(cell_log_mass(x, 0.5, each))
    truth = truncnorm((low - mean) / sd, (high - mean) / sd, mean, sd)
    np.testing.assert_allclose(found, truth.cdf(x + 0.25) - truth.cdf(x - 0.25), atol=1e-12)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    far = cell_log_mass(np.array([40.0]), 1.0, each[:1].assign(mean=0.0, sd=1.0, max=np.inf))
    assert far[0] == pytest.approx(truncnorm(-1.25, np.inf).logsf(39.5), abs=1e-6)


def test_a_leaf_of_equal_rows_has_a_mass_at_their_value():
    each = pd.DataFrame([{"mean": 3.0, "sd": 0.0, "min": -np.inf, "max": np.inf}] * 3)
    assert np.exp(cell_log_mass(np.array([2.0, 3.0, 4.0]), 1.0, each)).tolist() == [0, 1, 0]


@pytest.fixture
def forest():
    """Two trees of two leaves, split by k at 1.5."""
    bounds = leaves(tree=[0, 0, 1, 1], nodeid=[1, 2, 1, 2], cvg=[0.25, 0.75, 0.5, 0.5])
    params = pd.DataFrame(
        [
            {"tree": t, "nodeid": n, "variable": v, "mean": m, "sd": 1.0, "min": a, "max": b}
            for t in (0, 1)
            for n, m, cut in ((1, 1.0, (-np.inf, 1.5)), (2, 2.0, (1.5, np.inf)))
            for v, a, b in (("x", -np.inf, np.inf), ("k", *cut))
        ]
    )
    shares = leaves(
        tree=[0, 0, 0, 1, 1], nodeid=[1, 2, 2, 1, 2], variable="c", value=[0, 0, 1, 0, 1]
    )
    shares["prob"] = [1.0, 0.4, 0.6, 1.0, 1.0]
    return SimpleNamespace(bnds=bounds, params=params, class_probs=shares)


def _grid():
    """Rows of all cells of the grid that have some mass."""
    grid = [(x, k, c) for x in np.arange(-8, 12, 0.5) for k in range(-6, 11) for c in (0, 1)]
    return pd.DataFrame(grid, columns=[*STEPS])


def test_the_mass_of_a_forest_is_the_mean_of_its_trees(forest):
    rows = _grid()
    leaf = np.where(rows["k"] < 1.5, 1, 2)[:, None].repeat(2, 1)
    found = log_mass(rows, leaf, forest, STEPS)
    assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-6)
    assert (found[(rows["k"] < 1.5) & (rows["c"] == 1)] == -np.inf).all()


def test_answers_of_a_forest_are_those_of_its_masses(forest):
    rows = _grid()
    masks = np.array([[2, 2, 2], [2, 0, 1], [0, 2, 1], [1, 1, 2]])
    whole, *found = map(pd.Series, np.exp(answers(rows, forest, STEPS, masks)).T)
    assert whole.sum() == pytest.approx(1.0, abs=1e-6)
    leaf = np.where(rows["k"] < 1.5, 1, 2)[:, None].repeat(2, 1)
    np.testing.assert_allclose(whole, np.exp(log_mass(rows, leaf, forest, STEPS)), atol=1e-12)
    for mine, (asked, given) in zip(
        found, [("x", ["c"]), ("k", ["c"]), ("c", ["x", "k"])], strict=True
    ):
        both = whole.groupby([rows[name] for name in (asked, *given)]).transform("sum")
        alone = whole.groupby([rows[name] for name in given]).transform("sum")
        np.testing.assert_allclose(mine, both / alone, atol=1e-6)
    nothing = answers(rows[:1].assign(c=5), forest, STEPS, masks[1:2])
    assert np.isnan(nothing).all()
