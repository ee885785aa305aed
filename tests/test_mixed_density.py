"""A table with columns of every kind and a known density: how far the flow is from it."""

import numpy as np
import pytest
import torch
from scipy import stats

import cnf
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import choose_recipe

SHARES = np.array([0.5, 0.3, 0.2])
NAMES = ["real", "price", "percent", "direction", "count", "stars", "colour"]
DRAWS = 32  # of noise for each row


def draw(rows, rng):
    """Columns that depend on each other by the last one, a category."""
    c = rng.choice(3, p=SHARES, size=rows)
    columns = [
        rng.normal(2.0 * c - 2, 1.0),
        np.exp(rng.normal(0.5 * c, 0.5)),
        100 * rng.beta(2 + c, 3 - c),
        np.degrees(rng.vonmises(2.5 * c, 2.0)) % 360,
        rng.poisson(20 + 10 * c),
        rng.binomial(4, 0.2 + 0.3 * c),
        c,
    ]
    return np.stack([np.asarray(column, float) for column in columns], axis=1)


def true_log_prob(x):
    c = x[:, 6].astype(int)
    return (
        np.log(SHARES[c])
        + stats.norm(2.0 * c - 2, 1.0).logpdf(x[:, 0])
        + stats.lognorm(0.5, scale=np.exp(0.5 * c)).logpdf(x[:, 1])
        + stats.beta(2 + c, 3 - c).logpdf(x[:, 2] / 100)
        - np.log(100)
        + stats.vonmises(2.0, loc=2.5 * c).logpdf(np.radians(x[:, 3]))
        + np.log(np.pi / 180)
        + stats.poisson(20 + 10 * c).logpmf(x[:, 4])
        + stats.binom(4, 0.2 + 0.3 * c).logpmf(x[:, 5])
    )


@pytest.mark.slow
def test_a_table_of_all_kinds_is_within_a_tenth_of_a_nat():
    """By the bound of the log-mass, so that the divergence itself is smaller."""
    rng = np.random.default_rng(0)
    values, fresh = draw(20_000, rng), draw(4000, rng)
    kinds = {
        "percent": Column("percent", "bounded", 0.0, 100.0),
        "direction": Column("direction", "circular", 0.0, 360.0),
    }
    colours = {"colour": ("red", "green", "blue")}
    schema = Schema.infer(values, NAMES, colours).with_columns(kinds)
    assert [column.kind for column in schema.columns] == [
        "real", "positive", "bounded", "circular", "integer", "integer", "categorical",
    ]  # fmt: skip
    _, recipe = choose_recipe(None, len(values), schema.width)
    flow = recipe.flow(schema.width, columns=schema.layers(values))
    cnf.fit(flow, torch.from_numpy(values), recipe=recipe, budget=120)
    view, rows = flow.with_solver(step="joint"), torch.from_numpy(fresh).float()
    with torch.no_grad():
        scored = torch.stack([view.log_prob(rows).double() for _ in range(DRAWS)])
    log_prob = scored.logsumexp(0).numpy() - np.log(DRAWS)
    gaps = true_log_prob(fresh) - log_prob
    print(f"KL {gaps.mean():.4f} ± {gaps.std() / len(gaps) ** 0.5:.4f} nats")
    assert gaps.mean() < 0.1
    drawn = schema.tabled(flow.sample(5000).double().numpy())
    schema.check(drawn)
    assert ((drawn[:, 3] >= 0) & (drawn[:, 3] < 360)).all()
