"""Finished measurements, each with what it was of: what is there is not measured again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cnf.utils.serialization import json_value, write_whole


class Cells:
    """Finished cells in a file of a folder, one JSON object a line; without a folder, in memory.

    A cell is its key, which says what was measured, and its numbers, side by side in one object. A
    number that is not finite stands as null.

    Args:
        folder: Where the file is, or will be; None for none.
        name: The file's name.

    Example:
        >>> cells = Cells(None, "toys.jsonl")
        >>> cells.add({"toy": "moons", "seed": 0}, {"kl": 0.01})
        >>> cells.find({"toy": "moons", "seed": 0})
        {'toy': 'moons', 'seed': 0, 'kl': 0.01}
        >>> cells.find({"toy": "moons", "seed": 1}) is None
        True
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = None if folder is None else folder / name
        self._lines: list[str] = []

    def find(self, key: Mapping[str, Any], numbers: Collection[str] = ()) -> dict[str, Any] | None:
        """The cell with this key and numbers of these names; None where there is none.

        Raises:
            ValueError: A line of the file is no JSON object.
        """
        found = [self._parse(i, line) for i, line in enumerate(self._read())]
        named = (each for each in found if each.keys() >= {*key, *numbers})
        own = (each for each in named if all(each[name] == key[name] for name in key))
        return next(own, None)

    def add(self, key: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Append a cell; the file is there whole at all times, whatever is killed on the way.

        Raises:
            OSError: The file cannot be written.
        """
        line = json.dumps(json_value({**key, **numbers}), allow_nan=False)
        self._lines = [*self._read(), line]
        if self.path is not None:
            write_whole({self.path: "".join(f"{each}\n" for each in self._lines).encode()})

    def _read(self) -> list[str]:
        """The lines as they are now: another process may have added some."""
        if self.path is None or not self.path.exists():
            return self._lines
        return self.path.read_text(encoding="utf-8").splitlines()

    def _parse(self, i: int, line: str) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                f"Expected a JSON object in line {i + 1} of {self.path}; got "
                f"{line[:40]!r}. Take the line out, or give another --out"
            )
        return found


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits by which settings, ready for JSON, are told from others.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
        >>> fingerprint({"a": 1}) == fingerprint({"a": 2})
        False
    """
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
