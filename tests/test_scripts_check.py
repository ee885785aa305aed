"""`cnf check`: one page or one JSON object, and an exit status that says whether a check fails."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
from test_scripts_running import COLUMNS, complaint, done, rows_of_table, run, write_csv

from cnf.diagnostics import MAX_CHECK_POINTS, MAX_CHECK_ROWS
from cnf.diagnostics.report import Finding, Limit, Report

QUICK = ("--rows", "10", "--points", "300")
ROWS = rows_of_table(120)


@pytest.mark.parametrize("model", ["table", "given"])
def test_a_trained_flow_passes_its_checks_on_held_out_rows(model, request):
    words = ("check", request.getfixturevalue(model), *QUICK)
    lines = done(*words).splitlines()
    assert lines[0].startswith("pass  rows without a log p")
    assert "0 fail, on 10 rows" in lines[-1]
    told = json.loads(out := done(*words, "--json"))
    assert out.count("\n") == 1
    assert set(told) == {"verdict", "rows", "findings", "notes"}
    assert told["verdict"] in ("pass", "warn")
    assert len(told["findings"]) >= 10


@pytest.mark.parametrize(
    ("value", "word", "status"), [(0, "pass", 0), (2, "warn", 0), (3, "fail", 1)]
)
def test_exit_status_says_whether_a_check_fails(table, monkeypatch, value, word, status):
    report = Report((Finding.of("a check", value, Limit(1.0, 2.0), "Why."),), (), 10)
    monkeypatch.setattr("cnf.diagnostics.check", lambda *_, **__: report)
    for result in (run("check", table), run("check", table, "--json")):
        assert (result.status, result.err, word in result.out) == (status, "", True)


def test_rows_of_a_file_are_checked_on(table, tmp_path):
    """Samples are distinguished from data far away, once its rows with gaps are left out."""
    rows = ROWS + 50 * ROWS.std(0)
    rows[3, 1] = np.nan
    data = write_csv(tmp_path / "far.csv", rows)
    assert "--missing drop" in complaint("check", table, "--data", data)
    result = run("check", table, "--data", data, "--missing", "drop", *QUICK, "--seed", 3)
    assert (result.status, result.err) == (1, "")
    assert "fail  samples against data" in result.out


def test_contexts_come_from_a_file(given, tmp_path):
    data = write_csv(tmp_path / "x.csv", ROWS[:20, [0, 2]], (COLUMNS[0], COLUMNS[2]))
    context = write_csv(tmp_path / "c.csv", ROWS[:20, [1]], (COLUMNS[1],))
    assert "on 10 rows" in done("check", given, "--data", data, "--context-data", context, *QUICK)
    assert "--data with" in complaint("check", given, "--context-data", context)


def test_options_reach_the_checks(table, monkeypatch):
    check = Mock(return_value=Report((), (), 0))
    monkeypatch.setattr("cnf.diagnostics.check", check)
    done("check", table)
    options = ("--rows", 7, "--points", 8, "--seed", 9, "--divergence", "hutchinson")
    done("check", table, *options)
    usual, own = check.call_args_list
    assert len(usual.args[1]) == 20
    assert usual.kwargs == {"rows": MAX_CHECK_ROWS, "points": MAX_CHECK_POINTS, "seed": 0}
    assert own.kwargs == {"rows": 7, "points": 8, "seed": 9}
    assert "Hutchinson(count=16" in own.args[0].layers[0].trace()


def test_mistakes_are_one_line(table):
    for words in ("--rows 0", "--points x", "--seed -1", "--divergence none"):
        assert words.split()[0] in complaint("check", table, *words.split())
    assert "nowhere.csv" in complaint("check", table, "--data", "nowhere.csv")
