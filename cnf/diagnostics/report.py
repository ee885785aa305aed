"""What checks find: numbers held against limits, and all of them on one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from cnf.utils.serialization import json_value

Verdict = Literal["pass", "warn", "fail"]

VERDICTS: tuple[Verdict, ...] = ("pass", "warn", "fail")
"""From the best to the worst."""

SHOWN = 5  # rows that a line names


@dataclass(frozen=True)
class Limit:
    """Up to where a number passes, and from where on it fails; in between is a warning.

    Attributes:
        good: The largest number that passes.
        bad: The largest one that does not fail yet.

    Example:
        >>> [Limit(1e-3, 1e-2).verdict(value) for value in (1e-3, 2e-3, 0.1, float("nan"))]
        ['pass', 'warn', 'fail', 'fail']
    """

    good: float
    bad: float

    def verdict(self, value: float) -> Verdict:
        """What becomes of a number; what is none (NaN) fails."""
        if value <= self.good:
            return "pass"
        return "warn" if value <= self.bad else "fail"


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        name: Of what was checked.
        verdict: `"pass"`, `"warn"` or `"fail"`.
        value: The number that was found, in the unit that the sentence tells of.
        limit: The largest number that would have passed.
        sentence: What it means.
        rows: The rows where it is worst, the worst first, by their number in the data, from 0.
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
        """A number held against a limit."""
        return Finding(name, limit.verdict(value), value, limit.good, sentence, tuple(rows))

    def lines(self) -> list[str]:
        """For people: the verdict with the number, and below it what it means."""
        named = f" Rows {', '.join(map(str, self.rows[:SHOWN]))}." if self.rows else ""
        return [
            f"{self.verdict}  {self.name:<36} {self.value:9.2g}  (passes up to {self.limit:.2g})",
            f"      {self.sentence}{named}",
        ]


@dataclass(frozen=True)
class Report:
    """What all checks of a flow have found.

    Attributes:
        findings: In the order of the checks.
        notes: What was not checked, and why; a sentence each.
        rows: How many rows of the data were taken.

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
        """The worst of all."""
        return max((found.verdict for found in self.findings), key=VERDICTS.index, default="pass")

    def lines(self) -> list[str]:
        """All of it for people, the verdict last."""
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
        """One JSON object, null for numbers that are not finite."""
        entries = {"verdict": self.verdict, "rows": self.rows, "notes": self.notes}
        findings = [asdict(found) for found in self.findings]
        return json.dumps(json_value({**entries, "findings": findings}))
