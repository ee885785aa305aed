"""Real numbers without bounds."""

from __future__ import annotations

from typing import ClassVar

from cnf.tables.kinds.kind import Array, ColumnKind, Looks


class RealColumn(ColumnKind):
    """A column of real numbers."""

    on_line: ClassVar[bool] = True

    @classmethod
    def infer(cls, values: Array, categories: tuple[str, ...]) -> Looks | None:
        """Return no bounds: any values may be real numbers."""
        return Looks()
