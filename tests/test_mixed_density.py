"""Tables of columns of many kinds: their models, and how far one is from a known density."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import polars
import pytest
import torch
from scipy import stats
from sklearn.base import clone

import cnf
from cnf import CNFDensity
from cnf.datasets import ColumnType, Table, table_frame
from cnf.tables import CodeRecipe, RowModel
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import choose_recipe

SHARES = np.array([0.5, 0.3, 0.2])
NAMES = ["real", "price", "percent", "direction", "count", "stars", "colour"]
UNITS = [1, 1, 100, 180 / np.pi, 1, 1]
DRAWS = 32  # of noise for each row


def conditionals(c):
    """The distributions of the columns given the last one, a category."""
    return [
        stats.norm(2.0 * c - 2, 1.0),
        stats.lognorm(0.5, scale=np.exp(0.5 * c)),
        stats.beta(2 + c, 3 - c),
        stats.vonmises(2.0, loc=2.5 * c),
        stats.poisson(20 + 10 * c),
        stats.binom(4, 0.2 + 0.3 * c),
    ]


def draw(rows, rng):
    c = rng.choice(3, p=SHARES, size=rows)
    columns = [each.rvs(size=rows, random_state=rng) for each in conditionals(c)]
    drawn = np.stack([*columns, c], axis=1) * [*UNITS, 1]
    drawn[:, 3] %= 360
    return drawn


def true_log_prob(x):
    c = x[:, 6].astype(int)
    log_prob = np.log(SHARES[c]) - np.log(UNITS).sum()
    for i, each in enumerate(conditionals(c)):
        log_prob += (each.logpmf if i > 3 else each.logpdf)(x[:, i] / UNITS[i])
    return log_prob


@pytest.fixture(scope="module")
def all_kinds():
    """A table of every kind of column, its schema, and fresh rows."""
    rng = np.random.default_rng(0)
    values, fresh = draw(20_000, rng), draw(4000, rng)
    kinds = {
        "percent": Column("percent", "bounded", 0.0, 100.0),
        "direction": Column("direction", "circular", 0.0, 360.0),
    }
    colours = {"colour": ("red", "green", "blue")}
    table = Table("mixed", values, tuple(NAMES), 0, colours, {"colour": ColumnType("str")})
    schema = Schema.infer(table).with_columns(kinds)
    found = [column.kind for column in schema.columns]
    assert found == ["real", "positive", "bounded", "circular", "integer", "integer", "categorical"]
    return table, schema, fresh


def check_divergence(fresh, log_prob):
    gaps = true_log_prob(fresh) - log_prob
    print(f"KL {gaps.mean():.4f} ± {gaps.std() / len(gaps) ** 0.5:.4f} nats")
    assert gaps.mean() < 0.1


@pytest.mark.slow
def test_a_flow_of_all_kinds_is_within_a_tenth_of_a_nat(all_kinds):
    """By the bound of the log-mass, so that the divergence itself is smaller."""
    table, schema, fresh = all_kinds
    _, recipe = choose_recipe(None, len(table.values), schema.width)
    flow = recipe.flow(schema.width, columns=schema.layers(table.values))
    cnf.fit(flow, torch.from_numpy(table.values), recipe=recipe, budget=120)
    view, rows = flow.with_solver(step="joint"), torch.from_numpy(fresh).float()
    with torch.no_grad():
        scored = torch.stack([view.log_prob(rows).double() for _ in range(DRAWS)])
    check_divergence(fresh, scored.logsumexp(0).numpy() - np.log(DRAWS))
    drawn = schema.table(flow.sample(5000).numpy()).values
    schema.check(drawn)
    assert ((drawn[:, 3] >= 0) & (drawn[:, 3] < 360)).all()


@pytest.mark.slow
def test_a_model_of_rows_of_all_kinds_is_within_a_tenth_of_a_nat(all_kinds):
    table, schema, fresh = all_kinds
    density = CNFDensity(schema=schema, max_steps=500, budget=None, random_state=0, threads=1)
    density.fit(table_frame(table))
    assert isinstance(density.model_, RowModel)
    check_divergence(fresh, density.score_samples(table_frame(replace(table, values=fresh))))


def mixed_frame(rows, seed=0):
    """A category, and a flag, a spend that is often 0 and a day that depend on it."""
    rng = np.random.default_rng(seed)
    place = rng.choice(3, p=SHARES, size=rows)
    flag = rng.random(rows) < np.array([0.1, 0.5, 0.9])[place]
    days = rng.integers(0, 100, rows) + 150 * place
    return pd.DataFrame(
        {
            "colour": pd.Categorical.from_codes(place, ["red", "green", "blue"]),
            "flag": flag,
            "spend": np.where(flag, rng.lognormal(0.5 * place), 0.0),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(days, "D"),
        }
    )


def codes(steps=2, **options):
    fixed = {"schema": "infer", "max_steps": steps, "random_state": 0, "threads": 1}
    return CNFDensity(**{**fixed, **options})


@pytest.fixture(scope="module")
def fitted():
    return codes(120, recipe=CodeRecipe(batch_size=64)).fit(mixed_frame(1500))


def test_a_frame_of_mixed_types_comes_back(fitted):
    assert isinstance(fitted.model_, RowModel)
    frame, drawn = mixed_frame(1500), fitted.sample(1500, random_state=0)
    pd.testing.assert_frame_equal(drawn.head(0), frame.head(0))
    assert abs((drawn["spend"] == 0).mean() - (frame["spend"] == 0).mean()) < 0.06
    assert ((drawn["spend"] == 0) == ~drawn["flag"]).mean() > 0.8
    assert drawn["spend"].min() == 0
    pd.testing.assert_frame_equal(fitted.sample(5, random_state=1), fitted.sample(5, 1))
    with pytest.raises(AttributeError, match="a fitted flow; got a model of rows: use model_"):
        fitted.flow_  # noqa: B018


def test_training_learns_what_depends_on_what(fitted):
    """A network of codes starts with independent columns."""
    fresh = mixed_frame(500, seed=1)
    independent = codes(1).fit(mixed_frame(1500))
    found, uncertainty = fitted.score_samples_uncertainty(fresh)
    assert fitted.score(fresh) == fitted.score_samples(fresh).mean()
    assert found.mean() == pytest.approx(fitted.score(fresh), abs=1e-5)
    assert found.mean() > independent.score(fresh) + 1
    assert (uncertainty < 1e-4).all()
    assert abs(fitted.history_.validation_nll.min() + found.mean()) < 1
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.score_samples(fresh), fitted.score_samples(fresh))
    assert clone(fitted).get_params() == fitted.get_params()


def test_the_random_state_determines_a_fit():
    frame = mixed_frame(100)[["colour", "spend"]]
    one, same, other = (codes(3, random_state=seed).fit(frame).score(frame) for seed in (0, 0, 1))
    assert one == same != other


def test_values_that_a_column_cannot_have(fitted):
    rows = mixed_frame(4).astype({"colour": "str"})
    rows.loc[2, "colour"], rows.loc[3, "colour"] = "pink", "grey"
    message = (
        r"'colour' \(one of red, green, blue\) of X has 'pink' in row 3 .*; 2 such rows\): log"
    )
    with pytest.warns(UserWarning, match=message):
        found = fitted.score_samples(rows)
    assert np.isneginf(found).tolist() == [False, False, True, True]
    with pytest.warns(UserWarning, match=message):
        assert np.isneginf(fitted.score_samples_uncertainty(rows)[0]).sum() == 2
    rows = rows[:2].assign(spend=[np.nan, 2.5])
    dropping = pickle.loads(pickle.dumps(fitted)).set_params(missing="drop")
    assert np.isnan(dropping.score_samples(rows)).tolist() == [True, False]
    assert np.isnan(dropping.score_samples(rows[:1])).all()


@pytest.fixture(scope="module")
def conditional():
    frame = mixed_frame(1500)
    fast = codes(80, recipe=CodeRecipe(batch_size=64))
    return fast.fit(frame[["spend"]], context=frame[["colour", "day"]].assign(unit="cm"))


def test_contexts_of_categories(conditional):
    """The share of zeros is 0.9 of red rows and 0.1 of blue ones."""
    assert isinstance(conditional.model_, RowModel)
    assert conditional.n_context_features_in_ == 3
    day = pd.Timestamp("2024-03-01")
    given = pd.DataFrame({"colour": ["red", "blue"], "day": [day, day], "unit": "cm"})
    drawn = conditional.sample(400, random_state=0, context=given)["spend"].to_numpy()
    none, most = (drawn.reshape(2, 400) == 0).mean(1)
    assert none > 0.7
    assert most < 0.5
    rows = pd.DataFrame({"spend": [0.0, 0.0]})
    red, blue = conditional.score_samples(rows, context=given)
    assert red > blue + 0.5
    foreign = given.assign(colour=["red", "pink"])
    message = r"'colour' \(one of red, green, blue\) of context has 'pink' in row 2 "
    with pytest.warns(UserWarning, match=message + ".*: log p is NaN"):
        found = conditional.score_samples(rows, context=foreign)
    assert found[0] == pytest.approx(red)
    assert np.isnan(found[1])
    with pytest.raises(ValueError, match=message + ".*: correct it"):
        conditional.sample(1, context=foreign)
    with pytest.raises(ValueError, match="columns of context as in fit, colour, day, unit; got"):
        conditional.sample(1, context=given[["day", "colour", "unit"]])


@pytest.mark.parametrize("name", ["colour", None])
def test_a_context_may_be_one_column_of_text(name):
    colours = pd.Series(["red", "blue"] * 50, name=name)
    density = codes().fit(np.random.default_rng(0).normal(size=(100, 1)), context=colours)
    assert density.sample(3, context=colours[:2], random_state=0).shape == (6, 1)
    for each in (polars.Series(name or "", ["red"]), pd.DataFrame({"colour": ["red"]})):
        assert np.isfinite(density.score_samples(np.zeros((1, 1)), context=each)).all()


def test_a_constant_context_is_none():
    frame = mixed_frame(300)
    density = codes().fit(frame, context=pd.DataFrame({"unit": ["cm"] * 300}))
    assert density.model_.context_dim == 0
    assert len(density.sample(2, context=pd.DataFrame({"unit": ["cm"] * 3}))) == 6


@pytest.mark.filterwarnings("ignore:column 'spend' is 0 in")  # of flows
def test_columns_and_recipes_choose_the_model():
    frame = mixed_frame(300)
    real = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=["a", "b"])
    angle = Column("day", "circular", 0.0, 365.0)
    turning = frame[["colour"]].assign(day=np.random.default_rng(0).uniform(0, 365, 300))
    kinds = Schema((Column("colour", "categorical", categories=("red", "green", "blue")), angle))
    quick = {"max_steps": 1, "threads": 1, "verbose": True}
    for data, options, wanted in (
        (frame, {"schema": "infer"}, RowModel),
        (frame, {"schema": "infer", "objective": "matching"}, cnf.FlowMixture),
        (frame, {"schema": "infer", "recipe": "table-large", "objective": "matching"}, cnf.Flow),
        (frame, {"schema": "infer", "recipe": CodeRecipe(batch_size=32)}, RowModel),
        (turning, {"schema": kinds}, RowModel),
        (real, {"schema": "infer"}, cnf.Flow),
        (real, {}, cnf.Flow),
        (real, {"recipe": "codes"}, RowModel),
    ):
        density = CNFDensity(**quick, **options).fit(data)
        assert type(density.model_) is wanted, options
        assert (getattr(density, "flow_", None) is not None) == (wanted is not RowModel)


def test_weights_are_shares_of_a_category():
    frame = mixed_frame(600)
    weight = np.where(frame["colour"] == "blue", 0.0, np.where(frame["colour"] == "red", 1.0, 4.0))
    drawn = codes(20).fit(frame, sample_weight=weight).sample(1000, random_state=0)["colour"]
    green = 4 * (frame["colour"] == "green").sum() / weight.sum()
    assert (drawn == "green").mean() == pytest.approx(green, abs=0.06)
    assert (drawn == "blue").mean() < 0.03


def test_rows_of_weight_0_have_no_part_in_the_codes():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=600), "flag": rng.random(600) < 0.5})
    frame.loc[:299, "x"] += 1e3
    weight = np.repeat([0.0, 1.0], 300)
    density = codes(3).fit(frame, sample_weight=weight)
    some = codes(3).fit(frame[300:])
    assert density.model_.coding == some.model_.coding


def test_numbers_between_those_of_a_grid_count_as_the_nearest(fitted):
    frame = mixed_frame(1500).assign(count=np.random.default_rng(0).poisson(3, 1500))
    density = codes(3).fit(frame)
    rows = frame.head(4).astype({"count": float})
    rows.loc[1, "count"] += 0.25
    with pytest.warns(UserWarning, match="'count'.* in row 2 .*: it counts as the nearest number"):
        found = density.score_samples(rows)
    np.testing.assert_allclose(found, density.score_samples(frame.head(4)), atol=1e-5)
