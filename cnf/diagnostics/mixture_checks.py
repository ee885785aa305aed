"""The checks of a mixture of flows: the worst finding of its flows by each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

from cnf.diagnostics.report import VERDICTS, Finding, Report


def worst_of(reports: Sequence[Report]) -> Report:
    """Return the worst finding of each name in reports of several flows, and all their notes.

    Example:
        >>> from cnf.diagnostics.report import Limit
        >>> found = [Finding.of("error", value, Limit(1.0, 2.0), "A number.") for value in (0.5, 3)]
        >>> worst = worst_of([Report((each,), (), rows=7) for each in found])
        >>> worst.verdict, worst.findings[0].sentence
        ('fail', 'Of flow 2, the worst of 2: A number.')
    """
    findings: dict[str, Finding] = {}
    for k, report in enumerate(reports):
        for each in report.findings:
            if each.name not in findings or _badness(each) > _badness(findings[each.name]):
                sentence = f"Of flow {k + 1}, the worst of {len(reports)}: {each.sentence}"
                findings[each.name] = replace(each, sentence=sentence)
    notes = dict.fromkeys(note for report in reports for note in report.notes)
    return Report((*findings.values(),), (*notes,), reports[0].rows)


def _badness(found: Finding) -> tuple[int, bool, float]:
    return VERDICTS.index(found.verdict), isnan(found.value), found.value
