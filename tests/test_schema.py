"""Kinds of columns: what is inferred, what is asked for, and their layers."""

import dataclasses

import numpy as np
import pytest
import torch

import cnf
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import Recipe

SMALL = Recipe(objective="matching", hidden=(16,), scaling="whiten", validations=3)
NAMES = ["real", "price", "percent", "count", "stars", "colour"]
CATEGORIES = {"colour": ["red", "green", "blue"]}


@pytest.fixture(scope="module")
def values():
    """A column of each kind, and one more."""
    rng = np.random.default_rng(0)
    category = rng.choice(3, p=[0.6, 0.3, 0.1], size=3000)
    count = rng.poisson(30 + 20 * category)
    stars, percent = rng.integers(1, 6, size=3000), rng.beta(0.5, 0.5, size=3000) * 100
    price = np.exp(rng.normal(category, 1.0))
    return np.stack([rng.normal(count, 2.0), price, percent, count, stars, category], axis=1)


@pytest.fixture(scope="module")
def made(values):
    """A schema with bounds, and a flow that has learned next to nothing."""
    bounded = Column("percent", "bounded", 0.0, 100.0)
    schema = Schema.infer(values, NAMES, CATEGORIES).with_columns({"percent": bounded})
    torch.manual_seed(0)
    flow = SMALL.flow(schema.width, columns=schema.layers(values))
    cnf.fit(flow, torch.from_numpy(values), recipe=SMALL, steps=5)
    return schema, flow


def test_inferred_columns_and_their_layers(values):
    found = Schema.infer(values, NAMES, CATEGORIES)
    kinds = " ".join(column.kind for column in found.columns)
    assert kinds == "real positive real integer integer categorical"
    count, stars, colour = found.columns[3:]
    assert (count.low, count.high, stars.low, stars.high) == (None, None, 1.0, 5.0)
    assert colour.describe() == "colour: one of red, green, blue"
    assert found.width == 7
    assert Schema.infer(values[:50, :1], ["real"]).layers(values[:50, :1]) == []
    column = Column("c", "categorical", categories=("a", "b", "c"))  # of which one occurs
    (layer,) = Schema((column,)).layers(np.zeros((10, 1)))
    assert layer.layers[0].shares == pytest.approx([10.5 / 11.5, 0.5 / 11.5, 0.5 / 11.5])


def test_draws_are_of_their_columns_kinds(made, values):
    schema, flow = made
    assert flow.dim == 6
    drawn = flow.with_solver(step="joint", rtol=1e-2, atol=1e-2).sample(20_000).double().numpy()
    schema.check(drawn)
    assert (drawn[:, 1] > 0).all()
    assert ((drawn[:, 2] >= 0) & (drawn[:, 2] <= 100)).all()
    assert set(np.unique(drawn[:, 4])) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert set(np.unique(drawn[:, 5])) <= {0.0, 1.0, 2.0}
    scores = flow.score(torch.from_numpy(values[:20]).float(), probes=4)
    assert scores.log_prob.isfinite().all()
    # So are points far out in the base.
    z = 40 * torch.randn(5000, schema.width)
    for layer in flow.layers[-2:]:  # of the columns
        z = layer.transport(z)
    x = z.double().numpy()
    keep = np.isfinite(x).all(1) & (x[:, 1] > 0)  # e^-90 is zero in single precision
    schema.check(x[keep])
    assert keep.sum() > 1000


def test_json_and_saved_models_keep_the_columns(made, values, tmp_path):
    schema, flow = made
    assert Schema.infer(values, NAMES).with_columns(Schema.of(schema.json(), NAMES)) == schema
    cnf.save(flow, tmp_path)
    draws = []
    for each in (flow, cnf.load(tmp_path)):
        torch.manual_seed(0)
        draws.append(each.sample(50))
    assert torch.equal(*draws)


def test_columns_are_checked():
    for changes, message in (
        ({"kind": "ordinal"}, "a kind among real, .* in column 'x'; got 'ordinal'"),
        ({"kind": "bounded"}, "both bounds for kind bounded"),
        ({"kind": "bounded", "low": 1.0, "high": 1.0}, "lower bound below"),
        ({"kind": "real", "low": 0.0}, "at most 0 bounds"),
        ({"kind": "positive", "low": 0.0, "high": 1.0}, "at most 1 bounds"),
        ({"kind": "integer", "high": 1.0}, "lower bound below"),
        ({"kind": "integer", "low": 0.5}, "whole bounds"),
        ({"kind": "positive", "low": float("inf")}, "finite bounds"),
        ({"kind": "categorical"}, "at least 2 categories"),
        ({"kind": "real", "categories": ("a", "b")}, "at most 0 categories for kind real"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(Column("x"), **changes)


def test_values_that_a_column_cannot_have_are_named():
    for column, value in (
        (Column("x", "positive"), 0.0),
        (Column("x", "bounded", 0.0, 1.0), 1.5),
        (Column("x", "integer"), 0.5),
        (Column("x", "integer", 0, 4), 5.0),
        (Column("x", "categorical", categories=("a", "b")), 2.0),
    ):
        with pytest.raises(ValueError, match=r"x: .*; got .* in row 2 \(counting from 1; 1 such"):
            Schema((column,)).check(np.array([[1.0], [value]]))


def test_a_schema_of_something_else_is_refused():
    fields = "kind, low, high and categories for column 'x'"
    distinct = "Expected distinct texts for categories in column 'x'"
    for message, *cases in (
        ("got 'y', which is none of x", {"y": {"kind": "real"}}),
        (fields, {"x": {"sort": "real"}}, {"x": 3}),
        ("Expected an object of columns", 1.5, "x", [["x", {}]]),
        *(
            (distinct, {"x": {"kind": "categorical", "categories": categories}})
            for categories in (["a", 1], ["a", ["b"]], ["a", "a", "b"])
        ),
    ):
        for entries in cases:
            with pytest.raises(ValueError, match=message):
                Schema.of(entries, ["x"])
