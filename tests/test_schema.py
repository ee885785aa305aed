"""Kinds of columns: what is inferred, what is asked for, and the layers that come of it."""

import dataclasses

import numpy as np
import pytest
import torch

import cnf
from cnf.layers import Bounded, Identity
from cnf.tables.kinds import KINDS, ColumnKind
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import Recipe

SMALL = Recipe(objective="matching", hidden=(16,), scaling="whiten", validations=3)


def table(rows=3000, seed=0):
    """A column of each kind, and one more."""
    rng = np.random.default_rng(seed)
    category = rng.choice(3, p=[0.6, 0.3, 0.1], size=rows)
    count = rng.poisson(30 + 20 * category)
    values = np.stack(
        [
            rng.normal(count, 2.0),
            np.exp(rng.normal(category, 1.0)),
            rng.beta(0.5, 0.5, size=rows) * 100,
            count,
            rng.integers(1, 6, size=rows),
            category,
        ],
        axis=1,
    )
    return values.astype(float)


NAMES = ["real", "price", "percent", "count", "stars", "colour"]
CATEGORIES = {"colour": ["red", "green", "blue"]}


def schema_of(values):
    bounded = Column("percent", "bounded", 0.0, 100.0)
    return Schema.infer(values, NAMES, CATEGORIES).with_columns({"percent": bounded})


def test_what_columns_look_like():
    found = Schema.infer(table(), NAMES, CATEGORIES)
    assert [column.kind for column in found.columns] == [
        "real", "positive", "real", "integer", "integer", "categorical",
    ]  # fmt: skip
    count, stars, colour = found.columns[3:]
    assert (count.low, count.high) == (None, None)
    assert (stars.low, stars.high) == (1.0, 5.0)
    assert colour.describe() == "colour: one of red, green, blue"
    assert found.width == 7


def test_draws_are_of_the_columns_kinds():
    """100,000 of them, of a flow that has learned next to nothing: it is the layers that hold."""
    values = table()
    schema = schema_of(values)
    flow = SMALL.flow(schema.width, columns=schema.layers(values))
    cnf.fit(flow, torch.from_numpy(values), recipe=SMALL, steps=30)
    assert flow.dim == 6
    drawn = flow.with_solver(step="joint", rtol=1e-2, atol=1e-2).sample(100_000).double().numpy()
    schema.check(drawn)
    assert (drawn[:, 1] > 0).all()
    assert ((drawn[:, 2] >= 0) & (drawn[:, 2] <= 100)).all()
    assert set(np.unique(drawn[:, 4])) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert set(np.unique(drawn[:, 5])) <= {0.0, 1.0, 2.0}
    scores = flow.score(torch.from_numpy(values[:20]).float(), probes=4)
    assert scores.log_prob.isfinite().all()


def test_extreme_points_of_the_base_stay_within_the_columns():
    values = table()
    schema = schema_of(values)
    layers = schema.layers(values)
    flow = cnf.Flow(cnf.ffjord(schema.width).base, layers)
    z = 40 * torch.randn(5000, schema.width)
    x = flow.transport(z).detach().double().numpy()
    keep = np.isfinite(x).all(1)
    keep &= x[:, 1] > 0  # e^-90 is zero in single precision
    schema.check(x[keep])
    assert keep.sum() > 1000


def test_json_and_back(tmp_path):
    schema = schema_of(table())
    again = Schema.infer(table(), NAMES).with_columns(Schema.of(schema.json(), NAMES))
    assert again == schema
    values = table()
    flow = cnf.Flow(cnf.ffjord(schema.width).base, schema.layers(values))
    cnf.save(flow, tmp_path)
    torch.manual_seed(0)
    one = flow.sample(50)
    torch.manual_seed(0)
    assert torch.equal(one, cnf.load(tmp_path).sample(50))


def test_a_table_of_reals_has_no_layers():
    values = np.random.default_rng(0).normal(size=(50, 2))
    assert Schema.infer(values, ["a", "b"]).layers(values) == []


def test_a_category_that_does_not_occur_has_some_share():
    column = Column("c", "categorical", categories=("a", "b", "c"))
    (layer,) = Schema((column,)).layers(np.zeros((10, 1)))
    assert layer.layers[0].shares == pytest.approx([10.5 / 11.5, 0.5 / 11.5, 0.5 / 11.5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "ordinal"}, "a kind among real, .* in column 'x'; got 'ordinal'"),
        ({"kind": "bounded"}, "both bounds for kind bounded"),
        ({"kind": "bounded", "low": 1.0, "high": 1.0}, "lower bound below"),
        ({"kind": "real", "low": 0.0}, "at most 0 bounds"),
        ({"kind": "positive", "low": 0.0, "high": 1.0}, "at most 1 bounds"),
        ({"kind": "integer", "high": 1.0}, "lower bound below"),
        ({"kind": "integer", "low": 0.5}, "whole bounds"),
        ({"kind": "positive", "low": float("inf")}, "finite bounds"),
        ({"kind": "categorical"}, "at least 2 categories"),
        ({"kind": "real", "categories": ("a", "b")}, "none for another"),
    ],
)
def test_columns_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Column("x"), **changes)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (Column("x", "positive"), 0.0),
        (Column("x", "bounded", 0.0, 1.0), 1.5),
        (Column("x", "integer"), 0.5),
        (Column("x", "integer", 0, 4), 5.0),
        (Column("x", "categorical", categories=("a", "b")), 2.0),
    ],
)
def test_values_that_a_column_cannot_have_are_named(column, value):
    with pytest.raises(ValueError, match=r"x: .*; got .* in row 2 \(counting from 1; 1 such"):
        Schema((column,)).check(np.array([[1.0], [value]]))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"y": {"kind": "real"}}, "got 'y', which is none of x"),
        ({"x": {"sort": "real"}}, "kind, low, high and categories for column 'x'"),
        ({"x": 3}, "kind, low, high and categories for column 'x'"),
    ],
)
def test_a_schema_of_something_else_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        Schema.of(entries, ["x"])


@pytest.mark.parametrize("categories", [["a", 1], ["a", ["b"]], ["a", "a", "b"]])
def test_categories_are_distinct_texts(categories):
    with pytest.raises(ValueError, match="Expected distinct texts for categories in column 'c'"):
        Schema.of({"c": {"kind": "categorical", "categories": categories}}, ["c"])


@pytest.mark.parametrize("entries", [1.5, "c", [["c", {}]]])
def test_a_schema_is_an_object(entries):
    with pytest.raises(ValueError, match="Expected an object of columns"):
        Schema.of(entries, ["c"])


def test_a_kind_of_column_is_a_class_and_an_entry_of_the_registry(monkeypatch):
    class ShareColumn(ColumnKind):
        on_line = True

        def continuous_layer(self):
            return Bounded([0.0], [1.0])

    monkeypatch.setitem(KINDS, "share", ShareColumn)
    schema = Schema((Column("x", "share"), Column("y")))
    assert schema.summary() == ["real        y", "share       x"]
    (layer,) = schema.layers(np.full((3, 2), 0.5))
    assert [type(each) for each in layer.layers] == [Bounded, Identity]
    assert Schema.infer(np.array([[0.5], [0.7]]), ["x"]).columns == (Column("x"),)
    with pytest.raises(ValueError, match="at most 0 bounds for kind share in column 'x'"):
        Column("x", "share", 0.0)
