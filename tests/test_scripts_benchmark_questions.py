"""The benchmark of questions about rows: its laws and scores, and each section on small tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from test_scripts_running import complaint, done

from cnf.datasets import Table
from cnf.mixtures.normal import NormalMixture
from cnf.scripts.benchmarks import known_laws, questions
from cnf.scripts.benchmarks.imputers import IMPUTERS, Design, DrawScores
from cnf.scripts.benchmarks.known_laws import KNOWN_LAWS
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.question_models import MixtureAnswers, RowAnswers
from cnf.scripts.benchmarks.question_tables import (
    GAP_MECHANISMS,
    QuestionSplit,
    question_masks,
    question_split,
)
from cnf.tables import Schema
from cnf.tables.coding import Coding
from cnf.tables.masked_flow import MaskedFlow

COLUMNS = ("kind", "x", "y")


def _frame(rows: int = 400) -> pd.DataFrame:
    """Rows of a category, a number that depends on it with a spike at 0, and one on that."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, rows)
    x = np.where(rng.random(rows) < 0.2, 0.0, rng.normal(4 * kind))
    return pd.DataFrame(
        {"kind": np.array(["a", "b"])[kind], "x": x, "y": x + rng.normal(size=rows)}
    )


def _split() -> QuestionSplit:
    frame = _frame()
    values = frame.assign(kind=(frame["kind"] == "b").astype(float)).to_numpy()
    table = Table("t", values, COLUMNS, categories={"kind": ("a", "b")})
    return QuestionSplit(Schema.infer(table), *np.split(values, [300, 350]))


@pytest.fixture
def folder(tmp_path):
    """A folder with a table of numbers and a mixed one."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(300, 3))
    values[:, 2] += 2 * values[:, 0]
    np.savez(tmp_path / "uci_small.npz", wine=values)
    (tmp_path / "mixed").mkdir()
    _frame().to_csv(tmp_path / "mixed" / "adult.csv", index=False)
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    numbers = {"MASKS": 3, "ASKED_ROWS": 12, "ERROR_ROWS": 8, "COVERED_ROWS": 4, "SCORED_DRAWS": 3}
    for name, number in numbers.items():
        monkeypatch.setattr(questions, name, number)
    monkeypatch.setattr(known_laws, "KNOWN_ROWS", 200)
    monkeypatch.setattr(questions, "BENCHMARK_CHUNK_ROWS", 20)


@pytest.mark.parametrize("name", KNOWN_LAWS)
def test_known_laws_are_densities_of_their_draws(name):
    law = KNOWN_LAWS[name]()
    x = law.draw(20_000, seed=0)
    columns = x.shape[1]
    grid = np.linspace(-60, 60, 6001)
    rows = np.tile(x[0], (len(grid), 1))
    rows[:, -1] = grid
    last = np.arange(columns) == columns - 1
    given = np.arange(columns) == columns - 2
    mass = np.exp(law.log_prob(rows, given, last))
    assert np.trapezoid(mass, grid) == pytest.approx(1.0, abs=1e-3)
    near = x[np.abs(x[:, -2] - x[0, -2]) < 0.15, -1]
    median = np.interp(0.5, np.cumsum(mass) * (grid[1] - grid[0]), grid)
    assert np.median(near) == pytest.approx(median, abs=5 * near.std() / len(near) ** 0.5)
    if name == "mixed":
        pairs = np.array([(c, d) for c in range(3) for d in range(4)])
        rows = np.hstack([pairs, np.tile(x[0, 2:], (12, 1))])
        asked = np.arange(columns) < 2
        assert np.exp(law.log_prob(rows, ~asked, asked)).sum() == pytest.approx(1.0)
        found = np.exp(law.log_prob(rows, ~asked & asked, asked))
        shares = [(x[:, :2] == pair).all(1).mean() for pair in pairs]
        np.testing.assert_allclose(shares, found, atol=0.02)


def test_masks_and_gaps():
    masks = [*question_masks(5, 200, seed=0)]
    assert all(asked.any() and not (given & asked).any() for given, asked in masks)
    assert 0.3 < np.mean([(given | asked).all() for given, asked in masks]) < 0.7
    x = np.random.default_rng(0).normal(size=(4000, 4))
    for name, hide in GAP_MECHANISMS.items():
        hidden = hide(x, np.random.default_rng(0))
        assert not hidden.all(1).any()
        assert hidden[:, 1:].mean() == pytest.approx(0.3, abs=0.08)
        by_first = np.corrcoef(x[:, 0], hidden[:, 1:].mean(1))[0, 1]
        assert (by_first > 0.3) == (name == "by a column")


def test_scores_are_those_of_distances():
    parts = _split()
    truth = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    draws = np.array([[[1.0, 1.0, 4.0], [1.0, 0.0, 0.0]], [[0.0, 1.0, 3.0], [1.0, 0.0, 0.0]]])
    gaps = np.array([[True, False, True], [False, False, False]])
    found = DrawScores.of(parts, truth, draws, gaps)
    y = parts.deviations[2]
    far, near, apart = (np.array(each) for each in ((1, 2 / y), (0, 1 / y), (1, 1 / y)))
    assert found.crps == pytest.approx([(far + near - apart).mean() / 2])
    norms = [np.linalg.norm(each) for each in (far, near, apart)]
    assert found.energy == pytest.approx([(norms[0] + norms[1] - norms[2]) / 2])


def test_the_mixture_is_a_density_and_keeps_what_is_there():
    parts = _split()
    coding = Coding.fit(parts.schema, parts.train, bins=1)
    model = MixtureAnswers.fit(parts, coding, budget=5.0, seed=0)
    grid = np.linspace(-9, 14, 20_001) + 1e-7
    rows = np.column_stack([np.ones(len(grid)), grid, np.full(len(grid), np.nan)])
    given, asked = np.array([[True, False, False], [False, True, False]])
    mass = np.trapezoid(np.exp(model.log_prob(rows, given, asked)), grid)
    atom = np.exp(model.log_prob(np.array([[1.0, 0.0, np.nan]]), given, asked))[0]
    assert mass + atom == pytest.approx(1.0, abs=1e-3)
    assert atom == pytest.approx(0.2, abs=0.06)
    x = np.where(np.arange(3) == 1, np.nan, np.repeat([[1.0, 0.0, 4.5]], 300, 0))
    drawn = model.impute(x, seed=0)
    assert (drawn[:, [0, 2]] == x[:, [0, 2]]).all()
    assert np.median(drawn[:, 1]) == pytest.approx(4.3, abs=0.5)


def test_other_imputers_keep_what_is_there():
    parts = _split()
    design = Design.of(parts)
    assert design.matrix(parts.train).shape == (300, 4)
    np.testing.assert_allclose(design.rows(design.matrix(parts.test)), parts.test, atol=1e-12)
    seen = parts.with_gaps(GAP_MECHANISMS["at random"], seed=0)
    gaps = np.isnan(seen.test)
    for name in ("bayesian ridge", "nearest rows"):
        draws = IMPUTERS[name](seen, seen.test, 3, 0)
        assert draws.shape == (3, *seen.test.shape)
        assert (draws[:, ~gaps] == parts.test[~gaps]).all()
        assert set(np.unique(draws[:, :, 0])) == {0.0, 1.0}
        assert (np.ptp(draws, 0).max() > 0) == (name == "bayesian ridge")


def _command(folder, section: str, tables: str, *more: object) -> tuple[object, ...]:
    given = ("--data-dir", folder, "--splits", 1, "--budget", 0.2, "--tables", tables)
    return ("benchmark", "questions", "--section", section, *given, *more)


@pytest.mark.parametrize(
    ("section", "columns", "methods"),
    [
        ("conditionals", ("NLL", "joint", "gap"), ("ours", "mixture")),
        (
            "imputation",
            ("CRPS", "energy"),
            ("ours", "mixture", "bayesian", "nearest"),
        ),
        ("errors", ("first", "numbers", "categories"), ("ours",)),
        ("known", ("error", "coverage"), ("ours", "mixture")),
    ],
)
def test_each_section_has_a_row_for_each_table_and_method(section, columns, methods, folder, small):
    given = _command(folder, section, "wine,adult", "--out", folder / "out")
    text = done(*given)
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("table"))
    assert {"table", "split", "method", *columns} <= set(header.split())
    names = KNOWN_LAWS if section == "known" else ("wine", "adult")
    found = [line for line in lines if line.startswith((*names,))]
    for name in names:
        for method in methods:
            assert any(line.startswith(name) and f" {method}" in line for line in found), text
    assert section in ("errors", "imputation") or "nan" not in text
    assert [line.endswith("cached") for line in done(*given).splitlines()].count(True) == len(found)


def test_cost_is_that_of_solves(folder, small):
    text = done(*_command(folder, "cost", "wine", "--repeats", 1))
    header = next(line for line in text.splitlines() if line.startswith("table"))
    assert "one mask / flow" in header
    told = complaint(*_command(folder, "cost", "adult", "--repeats", 1), status=2)
    assert "Expected tables of numbers alone to measure solves" in told


def test_errors_are_far_or_unlikely(folder):
    parts = question_split(str(folder), "adult", 0)
    coding = Coding.fit(parts.schema, parts.train, bins=8)
    x, places = questions._with_errors(parts, coding, seed=0)
    truth = parts.test[: len(x)]
    changed = x != truth
    assert (changed.sum(1) == 1).all()
    assert (changed.argmax(1) == places).all()
    apart = np.abs(x - truth)[:, 1:].max(1) / parts.deviations[places]
    assert (apart[places > 0] > 4.9).all()
    assert {*x[:, 0]} <= {0.0, 1.0}


def test_a_rivals_answers_are_densities_where_ours_are(folder, small, monkeypatch):
    """A program that answers with the number of asked cells, on a grid."""
    parts = question_split(str(folder), "wine", 0)
    seen = {}

    def run_rival(folder, rows, budget, seed, method, python):
        masks = pd.read_csv(folder / "masks.csv")
        seen.update(masks=masks, steps=rows.steps)
        answers = np.tile(-(masks == 2).sum(axis=1).to_numpy(float), (len(rows.test), 1))
        answers[0, 0] = -np.inf
        if method == "arf":
            pd.DataFrame(answers).to_csv(folder / "answers.csv", index=False)
        (folder / "seconds.json").write_text('{"training": 2.0}')

    monkeypatch.setattr(questions, "run_rival", run_rival)
    setting = questions.QuestionSetting(1.0, 0, 1, None)
    row = questions._rival("arf", folder, parts, setting)["arf"]
    assert list(seen["masks"]) == ["x0", "x1", "x2"]
    assert (seen["masks"].iloc[-1] == 2).all()
    assert row["joint"] == pytest.approx(1 + np.mean(np.log([*seen["steps"].values()])))
    assert row["impossible"] == pytest.approx(1 / (4 * 12))
    assert row["seconds"] == 2.0
    monkeypatch.setattr(questions, "_conditionals", lambda *_: {})
    given = {"splits": 1, "data_dir": str(folder), "tables": ("wine",), "rivals": ("arf=python",)}
    *_, last = questions.conditional_lines(BenchmarkOptions("questions", **given))
    assert (last["method"], last["joint"]) == ("arf", row["joint"])
    with pytest.raises(ValueError, match="rivals that answer questions, such as arf; got argn"):
        questions._rival("argn", folder, parts, setting)


def test_models_are_kept_in_a_folder(tmp_path):
    first, second = (RowAnswers.of(_split(), 0.1, 0, tmp_path / "model") for _ in range(2))
    asked = np.ones(3, np.bool_)
    x = _split().test[:5]
    np.testing.assert_array_equal(*(each.log_prob(x, ~asked, asked) for each in (first, second)))


def test_accuracy_is_lost_by_rows_without_relations():
    frame = _split()
    flipped = QuestionSplit(
        Schema(frame.schema.columns[::-1]),
        *(part[:, ::-1] for part in (frame.train, frame.validation, frame.test)),
    )
    same = questions._accuracy_lost(flipped, flipped.train)
    shuffled = np.random.default_rng(0).permuted(flipped.train, axis=0)
    assert same == 0
    assert questions._accuracy_lost(flipped, shuffled) > 0.2


def test_the_plain_flow_is_that_of_whole_rows():
    torch.manual_seed(0)
    values = questions._moving(MaskedFlow(NormalMixture(1, 3), hidden=(8, 8)), seed=0)
    z, everything = torch.randn(20, 3), torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        found = questions.plain_flow(values).log_prob(z)
        wanted = values.log_prob(z, ~everything, everything)
        base = values.base.log_prob(z, ~everything, everything)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert (wanted - base).abs().mean() > 0.01
