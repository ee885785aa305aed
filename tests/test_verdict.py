"""Findings and reports: the worst counts, and JSON is JSON."""

import json
from math import inf, nan

import pytest

from cnf.diagnostics.report import Finding, Limit, Report

GOOD, BAD = 1e-3, 1e-2


def found(value, rows=()):
    return Finding.of(f"a check of {value}", value, Limit(GOOD, BAD), "What it means.", rows)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (0.0, "pass"),
        (GOOD, "pass"),
        (2e-3, "warn"),
        (BAD, "warn"),
        (0.1, "fail"),
        (inf, "fail"),
        (nan, "fail"),
    ],
)
def test_numbers_against_limits(value, verdict):
    assert found(value).verdict == verdict
    assert found(value).limit == GOOD


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((), "pass"), ((0,), "pass"), ((0, 2e-3), "warn"), ((1, 0, 2e-3), "fail")],
)
def test_the_worst_counts(values, verdict):
    report = Report(tuple(map(found, values)), (), 3)
    assert report.verdict == verdict
    assert report.lines()[-1].startswith(verdict)


def test_lines_tell_everything():
    text = str(Report((found(0.5, (7, 8, 9, 10, 11, 12)),), ("Left out.",), 3))
    for words in (
        "fail",
        "a check of 0.5",
        "What it means. Rows 7, 8, 9, 10, 11.",
        "note  Left out.",
    ):
        assert words in text


def test_json_has_all_of_it_and_no_nan():
    def refuse(constant):
        raise AssertionError(constant)

    report = Report((found(nan, (4,)), found(0.0)), ("Left out.",), 3)
    told = json.loads(report.json(), parse_constant=refuse)
    assert (told["verdict"], told["rows"], told["notes"]) == ("fail", 3, ["Left out."])
    assert [one["value"] for one in told["findings"]] == [None, 0.0]
    assert set(told["findings"][0]) == {"name", "verdict", "value", "limit", "sentence", "rows"}
