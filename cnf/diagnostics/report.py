"""Findings of checks, with their limits, and reports of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from cnf.utils.serialization import json_value

Verdict = Literal["pass", "warn", "fail"]

VERDICTS: tuple[Verdict, ...] = ("pass", "warn", "fail")
"""From the best to the worst."""

MAX_NAMED_ROWS = 5  # in a line of a report
WARN_ERRORS = 3.0  # standard errors that pass, where these exceed a limit
FAIL_ERRORS = 5.0  # standard errors that do not fail yet


@dataclass(frozen=True)
class Limit:
    """The largest number that passes, `good`, and the largest that does not fail but warn, `bad`.

    Example:
        >>> [Limit(1e-3, 1e-2).verdict(value) for value in (1e-3, 2e-3, 0.1, float("nan"))]
        ['pass', 'warn', 'fail', 'fail']
    """

    good: float
    bad: float

    def verdict(self, value: float) -> Verdict:
        """Return the verdict on a number; NaN fails."""
        if value <= self.good:
            return "pass"
        return "warn" if value <= self.bad else "fail"


@dataclass(frozen=True)
class Finding:
    """A number that a check has found, and its verdict.

    Attributes:
        name: The name of the property that was checked.
        verdict: `"pass"`, `"warn"` or `"fail"`.
        value: The number that was found, in the unit that the sentence names.
        limit: The largest number that would have passed.
        sentence: What the number means.
        rows: The places in the data, from 0, of the rows with the largest numbers, these first.
    """

    name: str
    verdict: Verdict
    value: float
    limit: float
    sentence: str
    rows: tuple[int, ...] = ()

    @staticmethod
    def of(
        name: str, value: float, limit: Limit, sentence: str, rows: Sequence[int] = ()
    ) -> Finding:
        """Return the finding of a number with a limit."""
        return Finding(name, limit.verdict(value), value, limit.good, sentence, tuple(rows))

    def lines(self) -> list[str]:
        """Return the verdict with the number, and a line on what it means, for display."""
        named = f" Rows {', '.join(map(str, self.rows[:MAX_NAMED_ROWS]))}." if self.rows else ""
        return [
            f"{self.verdict}  {self.name:<36} {self.value:9.2g}  (passes up to {self.limit:.2g})",
            f"      {self.sentence}{named}",
        ]


Findings = Iterator[Finding | str]
"""The findings of a check, and sentences on what it did not check."""


@dataclass(frozen=True)
class Report:
    """The findings of all checks of a model.

    Attributes:
        findings: The findings, in the order of the checks.
        notes: Sentences on what was not checked, and why.
        rows: Number of rows of the data that were taken.

    Example:
        >>> found = Finding.of("a check", 0.5, Limit(1.0, 2.0), "Half of what may be.")
        >>> report = Report((found,), ("Nothing else was checked.",), rows=7)
        >>> print(report)
        pass  a check                                    0.5  (passes up to 1)
              Half of what may be.
        note  Nothing else was checked.
        pass: 1 pass, 0 warn, 0 fail, on 7 rows
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    rows: int

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all findings."""
        return max((found.verdict for found in self.findings), key=VERDICTS.index, default="pass")

    def lines(self) -> list[str]:
        """Return the report as lines for display, the verdict last."""
        verdicts = [found.verdict for found in self.findings]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS)
        return [
            *(line for found in self.findings for line in found.lines()),
            *(f"note  {note}" for note in self.notes),
            f"{self.verdict}: {counts}, on {self.rows} rows",
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def json(self) -> str:
        """Return one JSON object, with null for numbers that are not finite."""
        return json.dumps(json_value({"verdict": self.verdict, **asdict(self)}))
