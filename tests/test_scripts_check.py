"""`cnf check`: one page or one JSON object, and the exit status says whether a check fails."""

import json

import numpy as np
import pytest
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, run, write_csv

from cnf.diagnostics.report import Finding, Limit, Report

QUICK = ("--rows", "10", "--points", "300")
ROWS = rows_of_table(120)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table, and models of it: of all columns, and of two given the other."""
    place = tmp_path_factory.mktemp("checked")
    table = write_csv(place / "rows.csv", ROWS)
    done("train", table, "--out", place / "model", *SMALL)
    done("train", table, "--context", "width", "--out", place / "given", *SMALL)
    return place


@pytest.fixture
def verdict(monkeypatch):
    """A function that has every check find a number."""

    def find(value):
        report = Report((Finding.of("a check", value, Limit(1.0, 2.0), "Why."),), (), 10)
        monkeypatch.setattr("cnf.scripts.check.check", lambda *_, **__: report)

    return find


@pytest.mark.parametrize("model", ["model", "given"])
def test_a_trained_flow_passes_its_checks_on_held_out_rows(place, model):
    lines = done("check", place / model, *QUICK).splitlines()
    assert lines[0].startswith("pass  rows without a log p")
    assert "0 fail, on 10 rows" in lines[-1]


def test_json_is_one_object_and_nothing_else(place):
    result = run("check", place / "model", "--json", *QUICK)
    assert (result.status, result.err, result.out.count("\n")) == (0, "", 1)
    told = json.loads(result.out)
    assert set(told) == {"verdict", "rows", "findings", "notes"}
    assert told["verdict"] in ("pass", "warn")
    assert len(told["findings"]) >= 10


@pytest.mark.parametrize(
    ("value", "word", "status"), [(0, "pass", 0), (2, "warn", 0), (3, "fail", 1)]
)
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_exit_status_says_whether_a_check_fails(place, verdict, value, word, status, as_json):
    verdict(value)
    result = run("check", place / "model", *as_json)
    assert (result.status, result.err) == (status, "")
    assert word in result.out


def test_rows_of_a_file_are_checked_on(place, tmp_path):
    """Data from elsewhere: samples are told from it."""
    data = write_csv(tmp_path / "far.csv", ROWS + 50 * ROWS.std(0))
    result = run("check", place / "model", "--data", data, *QUICK, "--seed", 3)
    assert (result.status, result.err) == (1, "")
    assert "fail  samples against data" in result.out


def test_contexts_come_from_a_file(place, tmp_path):
    data = write_csv(tmp_path / "x.csv", ROWS[:20, [0, 2]], (COLUMNS[0], COLUMNS[2]))
    context = write_csv(tmp_path / "c.csv", ROWS[:20, [1]], (COLUMNS[1],))
    said = done("check", place / "given", "--data", data, "--context-data", context, *QUICK)
    assert "on 10 rows" in said
    assert "--data with --context-data" in complaint(
        "check", place / "given", "--context-data", context
    )


def test_options_reach_the_checks(place, monkeypatch):
    seen = {}

    def spy(flow, data, context, **options):
        seen.update(options, rows_given=len(data), trace=flow.layers[0].trace())
        return Report((), (), 0)

    monkeypatch.setattr("cnf.scripts.check.check", spy)
    options = ("--rows", 7, "--points", 8, "--seed", 9, "--divergence", "hutchinson")
    done("check", place / "model", *options)
    assert {name: seen[name] for name in ("rows", "points", "seed")} == {
        "rows": 7,
        "points": 8,
        "seed": 9,
    }
    assert seen["rows_given"] == 12
    assert "Hutchinson(count=16" in seen["trace"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rows", "0"), "--rows"),
        (("--points", "x"), "--points"),
        (("--seed", "-1"), "--seed"),
        (("--data", "nowhere.csv"), "nowhere.csv"),
        (("--divergence", "none"), "--divergence"),
    ],
)
def test_mistakes_are_one_line(place, arguments, words):
    assert words in complaint("check", place / "model", *arguments)


def test_values_that_are_missing_are_refused_or_left_out(place, tmp_path):
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    data = write_csv(tmp_path / "gap.csv", rows)
    assert "--missing drop" in complaint("check", place / "model", "--data", data)
    done("check", place / "model", "--data", data, "--missing", "drop", *QUICK)


def test_folder_that_is_none_is_refused(tmp_path):
    assert "config.json" in complaint("check", tmp_path)
