"""A table with columns of every kind and a known density: how far the flow is from it."""

import numpy as np
import pytest
import torch
from scipy import stats

import cnf
from cnf.datasets import ColumnType, Table
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
    table = Table("mixed", values, tuple(NAMES), 0, colours, {"colour": ColumnType("str")})
    schema = Schema.infer(table).with_columns(kinds)
    found = [column.kind for column in schema.columns]
    assert found == ["real", "positive", "bounded", "circular", "integer", "integer", "categorical"]
    _, recipe = choose_recipe(None, len(values), schema.width)
    flow = recipe.flow(schema.width, columns=schema.layers(values))
    cnf.fit(flow, torch.from_numpy(values), recipe=recipe, budget=120)
    view, rows = flow.with_solver(step="joint"), torch.from_numpy(fresh).float()
    with torch.no_grad():
        scored = torch.stack([view.log_prob(rows).double() for _ in range(DRAWS)])
    gaps = true_log_prob(fresh) - scored.logsumexp(0).numpy() + np.log(DRAWS)
    print(f"KL {gaps.mean():.4f} ± {gaps.std() / len(gaps) ** 0.5:.4f} nats")
    assert gaps.mean() < 0.1
    drawn = schema.table(flow.sample(5000).numpy()).values
    schema.check(drawn)
    assert ((drawn[:, 3] >= 0) & (drawn[:, 3] < 360)).all()
