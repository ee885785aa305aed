"""Kinds of columns: what is inferred, what is asked for, and their layers."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

import cnf
from cnf.datasets import ColumnType, Table, frame_table, table_frame
from cnf.tables.dates import date_parts
from cnf.tables.kinds.lattice import Lattice
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import Recipe

SMALL = Recipe(objective="matching", hidden=(16,), scaling="whiten", validations=3)
NAMES = ("real", "price", "percent", "count", "stars", "colour")
COLOURS = {"colour": ("red", "green", "blue")}
TYPES = {"colour": ColumnType("str")}


@pytest.fixture(scope="module")
def table():
    """A column of each of six kinds."""
    rng = np.random.default_rng(0)
    category = rng.choice(3, p=[0.6, 0.3, 0.1], size=3000)
    count = rng.poisson(30 + 20 * category)
    stars, percent = rng.integers(1, 6, size=3000), rng.beta(0.5, 0.5, size=3000) * 100
    price = np.exp(rng.normal(category, 1.0))
    columns = [rng.normal(count, 2.0), price, percent, count, stars, category]
    return Table("mixed", np.stack(columns, axis=1), NAMES, 0, COLOURS, TYPES)


@pytest.fixture(scope="module")
def made(table):
    """A schema with bounds, and a flow that has learned next to nothing."""
    bounded = Column("percent", "bounded", 0.0, 100.0)
    schema = Schema.infer(table).with_columns({"percent": bounded})
    torch.manual_seed(0)
    flow = SMALL.flow(schema.width, columns=schema.layers(table.values))
    cnf.fit(flow, torch.from_numpy(table.values), recipe=SMALL, steps=5)
    return schema, flow


def inferred(frame):
    """The schema of a frame, and its numbers."""
    table = frame_table(frame)
    schema = Schema.infer(table)
    return schema, schema.numbers(table.values, table.categories, table.types)


def described(**columns):
    schema, _ = inferred(pd.DataFrame(columns))
    return [column.describe() for column in schema.columns]


def test_inferred_columns_and_their_layers(table):
    found = Schema.infer(table)
    kinds = " ".join(column.kind for column in found.columns)
    assert kinds == "real positive real integer integer categorical"
    count, stars, colour = found.columns[3:]
    assert (count.low, count.high, stars.low, stars.high) == (0.0, None, 1.0, 5.0)
    assert colour.describe() == "colour: one of red, green, blue"
    years = np.arange(1990.0, 2030.0)
    others = np.stack([years, years - 2000, 1000 * (years - 1990)], axis=1)
    wholes = Schema.infer(Table("wholes", others, ("year", "change", "count"))).columns
    assert [column.low for column in wholes] == [None, None, 0.0]
    assert found.width == 7
    few = Table("few", table.values[:50, :1], NAMES[:1])
    assert Schema.infer(few).layers(few.values) == []
    column = Column("c", "categorical", categories=("a", "b", "c"))  # of which one occurs
    (layer,) = Schema((column,)).layers(np.zeros((10, 1)))
    assert layer.layers[0].shares == pytest.approx([10.5 / 11.5, 0.5 / 11.5, 0.5 / 11.5])


def test_draws_are_of_their_columns_kinds(made, table):
    schema, flow = made
    assert flow.dim == 6
    drawn = flow.with_solver(step="joint", rtol=1e-2, atol=1e-2).sample(20_000).double().numpy()
    schema.check(drawn)
    assert (drawn[:, 1] > 0).all()
    assert ((drawn[:, 2] >= 0) & (drawn[:, 2] <= 100)).all()
    assert set(np.unique(drawn[:, 4])) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert set(np.unique(drawn[:, 5])) <= {0.0, 1.0, 2.0}
    scores = flow.score(torch.from_numpy(table.values[:20]).float(), probes=4)
    assert scores.log_prob.isfinite().all()
    # So are points far out in the base.
    z = 40 * torch.randn(5000, schema.width)
    for layer in flow.layers[-2:]:  # of the columns
        z = layer.transport(z)
    x = z.double().numpy()
    keep = np.isfinite(x).all(1) & (x[:, 1] > 0)  # e^-90 is zero in single precision
    schema.check(x[keep])
    assert keep.sum() > 1000


def test_json_and_saved_models_keep_the_columns(made, table, tmp_path):
    schema, flow = made
    again = Schema(tuple(Schema.of(json.loads(json.dumps(schema.json())), NAMES).values()))
    assert (again, again.types) == (schema, schema.types)
    old = {
        name: {k: each[k] for k in ("kind", "low", "high")} for name, each in again.json().items()
    }
    old["colour"]["categories"] = ["red", "green", "blue"]
    assert list(Schema.of(old, NAMES).values())[-1].of_kind.table_type == ColumnType("str")
    cnf.save(flow, tmp_path)
    draws = []
    for each in (flow, cnf.load(tmp_path)):
        torch.manual_seed(0)
        draws.append(each.sample(50))
    assert torch.equal(*draws)


def test_columns_are_checked():
    grid = {"kind": "grid", "step": 0.5}
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
        ({"kind": "grid"}, "at least 1 steps for kind grid"),
        ({"kind": "grid", "step": 0.0}, "a step above 0"),
        ({**grid, "origin": float("nan")}, "a finite origin"),
        ({**grid, "low": 0.0, "high": 0.7}, "bounds on the grid of 0.5"),
        ({"kind": "integer", "step": 2.0}, "at most 0 steps for kind integer"),
        ({"kind": "spike"}, "at least 1 atoms for kind spike"),
        ({"kind": "datetime", "type": ColumnType("int64")}, "dates for kind datetime .*got whole"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(Column("x"), **changes)


def test_values_that_a_column_cannot_have_are_named():
    day = ColumnType("datetime64[us]", unit="D", origin="2024-01-01")
    for column, value, got in (
        (Column("x", "positive"), 0.0, "0"),
        (Column("x", "bounded", 0.0, 1.0), 1.5, "1.5"),
        (Column("x", "integer"), 0.5, "0.5"),
        (Column("x", "integer", 0, 4), 5.0, "5"),
        (Column("x", "categorical", categories=("a", "b")), 2.0, "2"),
        (Column("x", "grid", step=0.25, origin=10.0), 0.5, "10.125"),
        (Column("x", "datetime", 0.0, type=day), -2.0, "2023-12-30"),
        (Column("x"), np.nan, r"a gap \(NaN\)"),
    ):
        message = rf"x: .*; got {got} in row 2 \(counting from 1; 1 such.*\(--drop x\)"
        with pytest.raises(ValueError, match=message):
            Schema((column,)).check(np.array([[1.0], [value]]))


def test_a_schema_of_something_else_is_refused():
    fields = "kind, low, high and categories for column 'x'"
    distinct = "Expected distinct texts for categories in column 'x'"
    for message, *cases in (
        ("got 'y', which is none of x", {"y": {"kind": "real"}}),
        (fields, {"x": {"sort": "real"}}, {"x": 3}, {"x": {"type": {"sort": "real"}}}),
        ("Expected an object of columns", 1.5, "x", [["x", {}]]),
        *(
            (distinct, {"x": {"kind": "categorical", "categories": categories}})
            for categories in (["a", 1], ["a", ["b"]], ["a", "a", "b"])
        ),
    ):
        for entries in cases:
            with pytest.raises(ValueError, match=message):
                Schema.of(entries, ["x"])


def test_kinds_by_the_values_and_by_the_type():
    rng, rows = np.random.default_rng(0), 600
    days = pd.date_range("2024-03-01", periods=rows, freq="12h", tz="Asia/Tokyo")
    half = pd.Series(days).dt.tz_localize(None) + pd.to_timedelta(rng.integers(2, size=rows), "h")
    spend = np.where(rng.random(rows) < 0.9, 0.0, rng.lognormal(3.0, 1.0, rows))
    capped = np.minimum(rng.normal(90.0, 10.0, rows), 100.0)
    assert described(
        x=rng.normal(size=rows),
        cents=rng.integers(0, 900, rows) / 100,
        digits=np.round(rng.normal(size=rows), 6),
        hundreds=rng.integers(1500, 2000, rows) * 100,
        odd=rng.integers(0, 3, rows) * 2 + 1,
        large=rng.integers(-(2**30), 2**30, rows),
        sparse=np.where(np.arange(rows) % 7, rng.integers(0, 2, rows), 2**18),
        few=pd.array(rng.integers(0, 3, rows), "Int64"),
        tailed=np.floor(rng.lognormal(3.0, 2.0, rows)).astype(int),
        codes=pd.Categorical(rng.choice([30, 10], rows), categories=[30, 10, 20]),
        flag=rng.random(rows) < 0.5,
        zip=rng.choice(["01234", "10115"], rows),
        when=days,
        half=half,
        spend=spend,
        capped=capped,
        rate=np.arange(rows) % 2 / 3,
        same=2.5,
    ) == [
        "x: real",
        "cents: grid in steps of 0.01 from 0",
        "digits: real",
        "hundreds: grid in steps of 100",
        "odd: grid in steps of 2 from 1 to 5",
        "large: grid in steps of 1",
        "sparse: grid in steps of 1 from 0",
        "few: integer from 0 to 2",
        "tailed: integer from 0",
        "codes: one of 30, 10, 20",
        "flag: boolean",
        "zip: one of 01234, 10115",
        "when: datetime since 2024-03-01 00:00 every 12 h",
        "half: datetime since 2024-03-01 01:00 every h",
        f"spend: spike at 0 ({100 * (spend == 0).mean():.0f} %)",
        f"capped: spike at 100 ({100 * (capped == 100).mean():.0f} %)",
        "rate: spike at 0 (50 %), 0.333333 (50 %)",
        "same: constant 2.5",
    ]


@given(st.integers(0, 10**6), st.integers(20, 2000), st.sampled_from([None, 1, 3, 6, 9]))
@settings(max_examples=40)
def test_continuous_and_rounded_columns_have_no_spikes(seed, rows, decimals):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(2, rows) * 10.0 ** rng.integers(-3, 4)
    values = values if decimals is None else np.round(values, decimals)
    for column in (values, values.astype(np.float32), np.abs(values)):
        schema, numbers = inferred(pd.DataFrame({"x": column}))
        assert schema.columns[0].kind != "spike"
        assert not any("no density" in line for line in schema.remarks(numbers))


def test_remarks_name_ids_and_spikes():
    rng, rows = np.random.default_rng(0), 60
    table = pd.DataFrame(
        {
            "x": rng.normal(size=rows),
            "spend": np.where(np.arange(rows) % 4, 0.0, rng.normal(size=rows)),
            "sku": [f"sku{i}" for i in range(rows)],
            "row": rng.permutation(rows) + 1,
            "tens": 10 * rng.permutation(rows),
            "day": pd.date_range("2024-01-01", periods=rows),
            "n": rng.integers(0, 50, rows),
        }
    )
    lines = Schema.remarks(*inferred(table))
    for line, start in zip(
        lines,
        (
            "column 'spend' is 0 in 75 % of rows: no density, the NLL falls for as long as",
            "column 'sku' holds 60 different texts in 60 rows: an id? Leave it out (--drop sku)",
            "column 'row' holds the numbers from 1 to 60, one a row: row numbers? Leave it out (-",
            "column 'tens' holds the numbers from 0 to 590, one a row: row numbers?",
        ),
        strict=True,
    ):
        assert line.startswith(start)
    texts = pd.DataFrame({"sku": [f"sku{i % 101}" for i in range(200)], "gone": np.nan})
    with pytest.raises(ValueError, match="100 categories in column 'sku'; got 101 in 200 rows: "):
        inferred(texts[["sku"]])
    twice = pd.DataFrame({"sku": [f"sku{i % 500}" for i in range(1000)]})
    assert len(inferred(twice)[0].columns[0].categories) == 500
    with pytest.raises(ValueError, match=r"all different: an id\?.*--drop sku\), or merge rare"):
        inferred(texts[["sku"]].drop_duplicates())
    with pytest.raises(ValueError, match="values in column 'gone'; got none: leave it out"):
        inferred(texts[["gone"]])


COLUMNS = {
    "bool": (st.booleans(), "bool"),
    "boolean": (st.booleans(), "boolean"),
    "float64": (st.floats(-1e15, 1e15), "float64"),
    "float32": (st.floats(-(2.0**50), 2.0**50, width=32), "float32"),
    "cents": (st.integers(-(10**6), 10**6).map(lambda n: n / 100), "float64"),
    "int64": (st.integers(-(2**50), 2**50), "int64"),
    "Int16": (st.integers(-(2**15), 2**15 - 1), "Int16"),
    "uint8": (st.integers(0, 255), "uint8"),
    "str": (st.sampled_from(["", "a", "01", "NA", "ä b"]), "str"),
    "category": (st.sampled_from([3, 1, 7]), pd.CategoricalDtype([7, 3, 1, 9], ordered=True)),
    "dates": (st.datetimes(pd.Timestamp(1900, 1, 1), pd.Timestamp(2100, 1, 1)), "datetime64[us]"),
    "zone": (
        st.integers(0, 10**6).map(
            lambda n: pd.Timestamp("2024-01-01", tz="UTC") + n * pd.Timedelta("15min")
        ),
        "datetime64[s, UTC]",
    ),
    "span": (st.integers(0, 10**5).map(lambda n: pd.Timedelta(minutes=n)), "timedelta64[ns]"),
}


@st.composite
def frames(draw):
    rows = draw(st.integers(1, 25))
    columns = {}
    for name in draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, unique=True)):
        values, dtype = COLUMNS[name]
        column = pd.Series(draw(st.lists(values, min_size=rows, max_size=rows)), dtype=dtype)
        if (
            column[1:].nunique() > 1
            and dtype not in ("bool", "int64", "uint8")
            and draw(st.booleans())
        ):
            column.iloc[0] = None
        columns[name] = column
    return pd.DataFrame(columns)


@given(frames())
@settings(max_examples=60, deadline=None)
def test_frames_of_all_dtypes_come_back_from_their_numbers(frame):
    """From those of a schema that was saved, too, and of tables with other origins and codes."""
    schema, numbers = inferred(frame)
    gaps = np.isnan(numbers)
    schema.check(np.where(gaps, np.nanmax(numbers, 0), numbers))
    entries = json.loads(json.dumps(schema.json()))
    again = Schema(tuple(Schema.of(entries, schema.names).values()))
    for each in (schema, again):
        assert_frame_equal(table_frame(each.table(numbers)), frame, rtol=1e-12)
    part = frame_table(frame.iloc[len(frame) // 2 :])
    found = again.numbers(part.values, part.categories, part.types)
    np.testing.assert_allclose(found, numbers[len(frame) // 2 :], rtol=1e-9)


def test_unknown_categories_and_numbers_for_texts():
    schema, _ = inferred(pd.DataFrame({"c": ["07", "8", "9"], "flag": [True, False, True]}))
    values = np.array([[0.0, 0.0], [np.nan, 1.0], [1.0, 1.0]])
    texts = {"c": ("9", "10"), "flag": ("FALSE", "True")}
    found = schema.numbers(values, texts, {}, unknown="keep")
    np.testing.assert_array_equal(found, [[2.0, 0.0], [np.nan, 1.0], [-1.0, 1.0]])
    with pytest.raises(ValueError, match="one of 07, 8, 9 in column 'c'; got '10' in row 3"):
        schema.numbers(values, texts, {})
    with pytest.raises(ValueError, match="one of 07, 8, 9 in column 'c'; got 6 in row 2"):
        schema.numbers(np.array([[7.0, 0.0], [6.0, 1.0]]), {}, {})
    stars = Schema((Column("stars", "categorical", categories=("1", "2")),))
    assert stars.numbers(np.array([[2.0], [1.0]])).tolist() == [[1.0], [0.0]]
    assert stars.table(np.array([[1.0]])).values.item() == 2.0
    assert stars.types["stars"].dtype == "int64"
    with pytest.raises(ValueError, match="numbers .* in column 'x'; got text, 'a'"):
        Schema((Column("x"),)).numbers(np.zeros((1, 1)), {"x": ("a",)})


@given(
    st.lists(st.integers(-(10**8), 10**8), min_size=2, max_size=30, unique=True),
    st.integers(1, 500),
    st.integers(0, 4),
)
def test_lattices_hold_their_values_exactly(counts, step, decimals):
    values = np.array([n * step / 10**decimals for n in counts])
    lattice = Lattice.of(np.unique(values))
    found = lattice.counts(values)
    assert (found % 1 == 0).all()
    assert found.min() == 0
    np.testing.assert_array_equal(lattice.values(found), values)
    assert np.gcd.reduce(found.astype(np.int64)) == 1


def test_parts_of_dates_are_columns_of_their_own():
    frame = pd.DataFrame({"when": ["2024-02-29 23:30", "2024-12-01 07:00", None], "n": 1.5})
    names = ["when", "when_hour", "n_hour", "when_weekday", "when_month", "when_year", "then_hour"]
    found = date_parts(frame_table(frame), names)
    assert found.columns == ("when", "n", "when_hour", "when_weekday", "when_month")
    np.testing.assert_array_equal(found.values[:, 2:], [[23, 3, 2], [7, 6, 12], [np.nan] * 3])
    assert found.types["when_month"] == ColumnType("int64")
    assert date_parts(found, names).columns == found.columns


def test_many_draws_of_a_mixed_table_keep_to_its_types_and_kinds():
    rng, rows = np.random.default_rng(0), 2000
    count = np.where(
        rng.random(rows) < 0.02, rng.integers(1000, 100_000, rows), rng.poisson(3, rows)
    )
    frame = pd.DataFrame(
        {
            "flag": pd.array(rng.random(rows) < 0.3, "boolean"),
            "when": pd.Timestamp("2024-01-01", tz="UTC")
            + pd.to_timedelta(30 * rng.integers(0, 20_000, rows), "min"),
            "price": rng.integers(800, 9000, rows) * 100,
            "cents": pd.Series(rng.gamma(2.0, 5.0, rows).round(2), dtype="float32"),
            "weight": rng.lognormal(3.0, 1.0, rows).round(4),
            "count": count.astype("uint32"),
            "dice": rng.integers(1, 7, rows),
            "colour": pd.Categorical(rng.choice([2, 1], rows), categories=[1, 2, 3]),
            "zip": rng.choice(["01234", "10115"], rows),
        }
    )
    schema, numbers = inferred(frame)
    kinds = " ".join(column.kind for column in schema.columns)
    assert kinds == ("boolean datetime grid grid positive integer integer categorical categorical")
    torch.manual_seed(0)
    flow = SMALL.flow(schema.width, columns=schema.layers(numbers))
    cnf.fit(flow, torch.from_numpy(numbers), recipe=SMALL, steps=10)
    with torch.no_grad():
        drawn = flow.with_solver(step="joint", rtol=1e-2, atol=1e-2).sample(100_000)
    table = schema.table(drawn.numpy())
    schema.check(schema.numbers(table.values, table.categories, table.types))
    draws = table_frame(table)
    assert_frame_equal(draws.head(0), frame.head(0))
    assert not draws.isna().any().any()
    assert (draws["when"].dt.minute % 30 == 0).all()
    assert (draws["price"] % 100 == 0).all()
    for name, decimals in (("cents", 2), ("weight", 4)):
        assert (draws[name].round(decimals) == draws[name]).all()
        assert (draws[name] >= 0).all()
    assert draws["dice"].between(1, 6).all()
    assert draws["count"].nunique() > 20


def test_gaps_have_a_meaning_in_each_column():
    columns = (
        Column("x", "positive", gaps="value"),
        Column("c", "categorical", categories=("a", "b"), gaps="value"),
        Column("b", "boolean", gaps="value"),
        Column("s", "constant", 2.0, gaps="value"),
        Column("n", "integer"),
    )
    schema, gap = Schema(columns), np.nan
    entries = json.loads(json.dumps(schema.json()))
    assert [each.get("gaps") for each in entries.values()] == ["value"] * 4 + [None]
    assert Schema(tuple(Schema.of(entries, schema.names).values())) == schema
    assert [each.describe().endswith(" or missing") for each in columns] == [True] * 4 + [False]
    assert columns[1].text(gap) == "missing"
    rows = np.array(
        [[0.5, 1.0, 0.0, 2.0, 3.0], [gap, gap, gap, gap, gap], [1.5, 0.0, 1.0, 2.0, 9.0]]
    )
    assert not schema.outside(rows).any()
    schema.check(rows, gaps=True)
    with pytest.raises(ValueError, match=r"n: integer; got a gap \(NaN\) in row 2"):
        schema.check(rows)
    numbers = schema.numbers(schema.table(rows).values, {"c": ("a", "b")})
    np.testing.assert_array_equal(numbers, rows)
    with pytest.raises(ValueError, match="gaps among unknown, value in column 'x'; got 'both'"):
        Column("x", gaps="both")


def test_gaps_hide_no_constant_and_no_rounding():
    gap = np.nan
    same = np.array([[3.0, 1e12], [gap, 1e12 + 1e3], [3.0, gap], [3.0, 1e12 + 2e3]])
    schema = Schema((Column("x"), Column("far")))
    found = schema.without_constants(same[:, :1].repeat(2, 1))
    assert [each.kind for each in found.columns] == ["constant"] * 2
    with pytest.raises(ValueError, match="column 'x', which is constant, 3 in every row"):
        schema.check_varying(same)
    with pytest.raises(ValueError, match="apart; got 'far'"):
        schema.check_apart(same)
    real, names = schema.real(same)
    assert names == ["x", "far"]
    assert np.isfinite(real).all()
    assert np.isfinite(schema.continuous(same)).all()
    alone = np.full((3, 1), gap)
    assert np.isnan(Schema((Column("x"),)).real(alone)[0]).all()
