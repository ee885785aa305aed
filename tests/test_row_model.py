"""Models of rows: exact masses, one log p for a row in any company, storage and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cnf
from cnf.datasets import Table
from cnf.tables import RowModel, Schema
from cnf.tables.row_training import fit_rows, new_row_model

ROWS = 3000


def _table(rows: int = ROWS, seed: int = 0) -> Table:
    """Return rows of a category, a spike at 0, a count of few values, and a dependent number."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, rows).astype(float)
    spike = np.where(rng.random(rows) < 0.3, 0.0, rng.normal(group, 0.5))
    number = rng.normal(spike + 2 * group, 0.3)
    values = np.column_stack([group, spike, rng.poisson(2, rows), number])
    return Table("t", values, ("group", "spike", "count", "number"), {"group": ("a", "b", "c")})


def _model(table: Table, **options: object) -> tuple[RowModel, np.ndarray]:
    schema = Schema.infer(table)
    numbers = schema.numbers(table.values, table.categories, table.types)
    return new_row_model(schema, numbers, hidden=32, **options), numbers


@pytest.fixture(scope="module")
def trained() -> tuple[RowModel, np.ndarray]:
    model, numbers = _model(_table(), bins=8)
    fit_rows(model, numbers, steps=150, threads=1)
    return model, numbers


def test_the_total_mass_of_a_mixed_table_is_one() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.integers(0, 2, 2000), rng.normal(size=2000)])
    values[rng.random(2000) < 0.2, 1] = 0.0
    schema = Schema.infer(Table("t", values, ("flag", "x")))
    for flow in (False, True):
        model = new_row_model(schema, values, hidden=16, bins=4, flow=flow).in_double()
        grid = np.linspace(-9, 9, 8_001) + 1e-7
        mass = 0.0
        for flag in (0.0, 1.0):
            atom = torch.tensor([[flag, 0.0]], dtype=torch.float64)
            x = torch.tensor(np.column_stack([np.full(len(grid), flag), grid]))
            with torch.no_grad():
                density = model.log_prob(x, max_batch=10_000).exp().numpy()
                mass += np.trapezoid(density, grid) + model.log_prob(atom).exp().item()
        assert mass == pytest.approx(1.0, abs=1e-3)


def test_the_mass_of_a_grid_with_atoms_is_one() -> None:
    rng = np.random.default_rng(1)
    counts = np.where(rng.random(4000) < 0.4, 7.0, rng.integers(-900, 900, 4000))
    values = np.column_stack([counts, rng.integers(0, 2, 4000)])
    schema = Schema.infer(Table("t", values, ("n", "flag")))
    for bins in (1, 8):
        model = new_row_model(schema, values, hidden=16, bins=bins, flow=False).in_double()
        n = np.arange(-20_000.0, 20_000.0)
        rows = [np.column_stack([n, np.full(len(n), flag)]) for flag in (0.0, 1.0)]
        with torch.no_grad():
            log_prob = model.log_prob(torch.tensor(np.concatenate(rows)), seed=0, draws=32)
        assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=5e-3)


def test_a_row_alone_and_among_others_has_one_log_prob(
    trained: tuple[RowModel, np.ndarray],
) -> None:
    model, numbers = trained
    rows = torch.tensor(numbers[:50])
    with torch.no_grad():
        together = model.log_prob(rows, seed=0)
        alone = torch.cat([model.log_prob(row[None], seed=0) for row in rows[:5]])
    torch.testing.assert_close(alone, together[:5], atol=1e-4, rtol=0)


def test_training_learns_dependence(trained: tuple[RowModel, np.ndarray]) -> None:
    model, _ = trained
    fresh = _table(seed=1).values
    untrained, _ = _model(_table(), bins=8)
    with torch.no_grad():
        gain = model.log_prob(torch.tensor(fresh)) - untrained.log_prob(torch.tensor(fresh))
    assert gain.mean() > 1.0
    draws = model.sample(2000).numpy()
    means = [draws[draws[:, 0] == group, 3].mean() for group in range(3)]
    wanted = [fresh[fresh[:, 0] == group, 3].mean() for group in range(3)]
    assert np.abs(np.subtract(means, wanted)).max() < 0.4
    assert abs((draws[:, 1] == 0).mean() - (fresh[:, 1] == 0).mean()) < 0.05


def test_values_without_a_code_have_no_density(trained: tuple[RowModel, np.ndarray]) -> None:
    model, numbers = trained
    rows = torch.tensor(numbers[:2])
    rows[0, 2] = 0.5  # between whole numbers
    with torch.no_grad():
        log_prob = model.log_prob(rows)
    assert log_prob[0] == -torch.inf
    assert log_prob[1].isfinite()


def test_a_saved_model_is_the_same(trained: tuple[RowModel, np.ndarray], tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, numbers = trained
    cnf.save(model, tmp_path)
    loaded = cnf.load(tmp_path)
    assert isinstance(loaded, RowModel)
    rows = torch.tensor(numbers[:20])
    with torch.no_grad():
        assert torch.equal(loaded.log_prob(rows), model.log_prob(rows))


def test_a_run_that_resumes_is_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = []
    for state in (None, tmp_path):
        model, numbers = _model(_table(600), bins=4)
        fit_rows(model, numbers, steps=20, threads=1, state=state)
        found.append(model)
    model, numbers = _model(_table(600), bins=4)
    fit_rows(model, numbers, steps=20, threads=1, state=tmp_path)  # which has ended
    rows = torch.tensor(numbers[:10])
    with torch.no_grad():
        once, again, resumed = (each.log_prob(rows) for each in (*found, model))
    assert torch.equal(once, again)
    assert torch.equal(once, resumed)


def test_scores_have_errors_and_mistakes_one_line(trained: tuple[RowModel, np.ndarray]) -> None:
    model, numbers = trained
    rows = torch.tensor(numbers[:20])
    scores = model.score(rows)
    with torch.no_grad():
        torch.testing.assert_close(scores.log_prob, model.log_prob(rows))
    assert (scores.stderr == 0).all()
    assert (scores.solver_error < 1e-3).all()
    with pytest.raises(ValueError, match="Expected probes of at least 1; got 0"):
        model.score(rows, probes=0)
    with pytest.raises(ValueError, match=r"Expected x of shape \(rows, 4\); got \(20, 1\)"):
        model.log_prob(rows[:, :1])
