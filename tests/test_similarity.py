"""The similarity of drawn tables to real ones: scores, shapes, pairs, and copying."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from cnf.datasets import ColumnType, Table
from cnf.diagnostics.similarity import (
    column_shapes,
    detection_score,
    nearer_to_training,
    pair_trends,
    similarity,
)

NAMES = ("size", "count", "colour", "flag")
COLOURS = ("red", "green", "blue")


def mixed(rows: int, seed: int) -> Table:
    """A table of a number, a whole number, a category and a boolean, all dependent."""
    rng = np.random.default_rng(seed)
    colour = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
    size = rng.normal(colour * 3.0, 1.0)
    count, flag = rng.poisson(1 + colour), rng.random(rows) < 1 / (1 + np.exp(-size))
    values = np.column_stack([size, count, colour, flag]).astype(float)
    types = {"flag": ColumnType("bool"), "count": ColumnType("int64")}
    return Table("mixed", values, NAMES, categories={"colour": COLOURS}, types=types)


def shuffled(table: Table) -> Table:
    rng = np.random.default_rng(5)
    return replace(table, values=rng.permuted(table.values, axis=0))


def only(values, **given) -> Table:
    return Table("one", np.asarray(values, float)[:, None], ("x",), **given)


@pytest.fixture(params=["XGBoost", "scikit-learn"])
def detector(request, monkeypatch):
    if request.param == "XGBoost":
        pytest.importorskip("xgboost")
    else:
        monkeypatch.setitem(sys.modules, "xgboost", None)  # importing it fails
    monkeypatch.setattr("cnf.diagnostics.similarity.TREES", 20)
    return request.param


def test_score_is_one_for_the_same_distribution_and_falls_where_columns_are_independent(detector):
    rows = mixed(1000, 0)
    same = detection_score(rows, mixed(1100, 1))
    assert same.score > 0.9
    assert (same.detector, same.rows) == (detector, 1000)
    apart = detection_score(rows, shuffled(rows))
    assert apart.score < 0.5
    assert apart.score == pytest.approx(1 - 2 * (apart.auc - 0.5))
    assert detection_score(rows, shuffled(rows)) == apart
    other = replace(rows, values=rows.values + np.array([9.0, 0, 0, 0]))
    assert detection_score(rows, other).score < 0.01


def test_score_takes_many_categories_gaps_and_infinities(detector):
    """Of 400 categories the trees of scikit-learn see the most frequent and the rest as one."""
    rng, names = np.random.default_rng(0), tuple(f"c{i}" for i in range(400))
    codes = rng.permutation(np.r_[np.repeat(np.arange(100), 6), np.arange(400)]).astype(float)
    codes[:50], same = np.nan, {"categories": {"x": names}}
    assert detection_score(only(codes, **same), only(codes[::-1], **same)).score > 0.8
    frequent = np.where(codes < 50, 7, codes)
    assert detection_score(only(codes, **same), only(frequent, **same)).auc > 0.6
    numbers = np.r_[rng.normal(size=300), np.inf, -np.inf, np.nan]
    assert detection_score(only(numbers), only(np.repeat(np.nan, 300))).score < 0.05


def test_categories_are_compared_by_name():
    rows = mixed(300, 0)
    order = [2, 0, 1]
    values = rows.values.copy()
    values[:, 2] = np.argsort(order)[rows.values[:, 2].astype(int)]
    same = replace(rows, values=values, categories={"colour": tuple(COLOURS[i] for i in order)})
    assert [*column_shapes(rows, same).values()] == [0.0] * 4
    assert {pair.error for pair in pair_trends(rows, same)} == {0.0}
    assert nearer_to_training(rows, same, rows) == 0.5


def test_shapes_are_distances_of_distribution_functions_or_of_shares():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=500), rng.normal(0.3, 1.0, size=400)
    assert column_shapes(only(a), only(b))["x"] == pytest.approx(ks_2samp(a, b).statistic)
    few = column_shapes(only([0, 0, 1, 2]), only([0, 1, 1, 3]))
    assert few == {"x": pytest.approx(0.5)}
    gaps = np.where(np.arange(500) < 50, np.nan, a)
    assert column_shapes(only(gaps), only(a))["x"] >= 0.1
    assert column_shapes(only([np.nan, 1]), only([1, 1])) == {"x": 0.5}
    names = {"categories": {"x": ("a", "b")}}
    assert column_shapes(only([0, 0, 1], **names), only([1, 1, 1], **names))["x"] == pytest.approx(
        2 / 3
    )


def test_pairs_whose_association_differs_come_first():
    """Beyond chance, and not where a column alone differs."""
    rows = mixed(2000, 0)
    values = mixed(2000, 1).values.copy()
    same = pair_trends(rows, replace(rows, values=values))
    assert len(same) == 6
    ratio = np.mean([pair.error / pair.chance for pair in same])
    assert 0.7 < ratio < 1.3
    values[:, 3] = np.random.default_rng(2).permuted(values[:, 3])
    values[:, 1] += 3
    found = pair_trends(rows, replace(rows, values=values))
    assert {(pair.a, pair.b) for pair in found[:2]} == {("size", "flag"), ("colour", "flag")}
    order = [pair.error - pair.chance - pair.alone for pair in found]
    assert order == sorted(order, reverse=True)
    assert order[1] > 0.1 > order[2]
    alone = {pair: pair.alone > 0.3 for pair in found}
    assert alone == {pair: "count" in (pair.a, pair.b) for pair in found}
    assert pair_trends(only([1, 2]), only([1, 2])) == ()


def test_pairs_are_cut_at_the_rows_deciles():
    x = np.arange(1000.0)
    rows = Table("t", np.column_stack([x, x]), ("x", "y"))
    turned = Table("t", np.column_stack([x, x[::-1]]), ("x", "y"))
    within = Table("t", np.column_stack([x, x // 100 * 100 + x[::-1] % 100]), ("x", "y"))
    assert pair_trends(rows, turned)[0].error == pytest.approx(1.0)
    assert pair_trends(rows, within)[0].error < 0.05


def test_copies_of_training_rows_are_nearer_to_them():
    training, held_out, draws = mixed(1000, 0), mixed(500, 1), mixed(2000, 2)
    assert 0.45 < nearer_to_training(training, held_out, draws) < 0.55
    assert nearer_to_training(held_out, training, held_out) > 0.9
    assert nearer_to_training(training, held_out, held_out) < 0.1
    # Each half of the training rows is taken in its turn, as many as are held out.
    assert nearer_to_training(training, held_out, training) == pytest.approx(0.75, abs=0.03)
    shares = [nearer_to_training(training, mixed(60, 1), draws, k) for k in range(5)]
    assert np.std(shares) < 0.01  # several groups' mean


def test_distance_sums_ranks_and_categories():
    names = {"categories": {"c": ("a", "b")}}
    table = lambda *rows: Table("t", np.array(rows, float), ("x", "c"), **names)  # noqa: E731
    # From (0, a): 3/4 of ranks away, or another category, which is 1 away.
    training, other = table([0, 1], [1, 1], [2, 1], [3, 1]), table([3, 0], [3, 0], [3, 0], [3, 0])
    assert nearer_to_training(training, other, table([0, 0])) == 0.0
    assert nearer_to_training(training, other, table([0.5, 1])) == 1.0
    assert nearer_to_training(training, training, table([0, 0])) == 0.5


def test_all_measures_are_printed():
    found = similarity(mixed(300, 0), mixed(200, 1), mixed(250, 2))
    lines = "\n".join(found.lines())
    for text in (f"{found.detection.score:.3f}", "on 250 rows", *NAMES):
        assert text in lines
    assert found.mean_shape == np.mean([*found.shapes.values()])
    numbers = json.loads(found.json())
    assert numbers["detection"]["rows"] == 250
    assert numbers["shapes"] == dict(found.shapes)
    assert numbers["pairs"][0]["error"] == found.pairs[0].error
    assert numbers["nearer_to_training"] == found.nearer_to_training


def test_tables_that_cannot_be_compared_are_refused():
    rows = mixed(10, 0)
    for call in (
        lambda: detection_score(rows, rows.select(NAMES[:2])),
        lambda: column_shapes(rows, replace(rows, categories={})),
    ):
        with pytest.raises(ValueError, match="Expected tables of the same columns"):
            call()
    with pytest.raises(ValueError, match="at least 3 rows and draws.*got 2"):
        detection_score(rows, mixed(2, 1))
    with pytest.raises(ValueError, match="got an empty table"):
        nearer_to_training(rows, mixed(0, 1), rows)
