"""A cache of finished measurements by their keys, so that none is repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cnf.utils.serialization import json_value, write_atomic


class ResultCache:
    """A cache of results in a file, one JSON object a line; without a folder, in memory.

    A result is one object that holds both its key, which states what was measured, and its
    numbers. A number that is not finite is written as null.

    Args:
        folder: The folder of the file; None to keep results in memory.
        name: The file's name.

    Example:
        >>> cache = ResultCache(None, "toys.jsonl")
        >>> cache.add({"toy": "moons", "seed": 0}, {"kl": 0.01})
        >>> cache.find({"toy": "moons", "seed": 0})
        {'toy': 'moons', 'seed': 0, 'kl': 0.01}
        >>> print(cache.find({"toy": "moons", "seed": 1}))
        None
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = None if folder is None else folder / name
        self._lines: list[str] = []

    def find(self, key: Mapping[str, Any], numbers: Collection[str] = ()) -> dict[str, Any] | None:
        """Return the result with this key and numbers of these names; None if it is not cached.

        Raises:
            ValueError: A line of the file is not a JSON object.
        """
        found = [self._parse(i, line) for i, line in enumerate(self._read())]
        named = (each for each in found if each.keys() >= {*key, *numbers})
        matching = (each for each in named if all(each[name] == key[name] for name in key))
        return next(matching, None)

    def add(self, key: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Append a result; the file is replaced atomically, so that it is always complete.

        Raises:
            OSError: The file cannot be written.
        """
        line = json.dumps(json_value({**key, **numbers}), allow_nan=False)
        self._lines = [*self._read(), line]
        if self.path is not None:
            write_atomic({self.path: "".join(f"{each}\n" for each in self._lines).encode()})

    def _read(self) -> list[str]:
        """Read the current lines, some of which another process may have added."""
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
                f"{line[:40]!r}: remove the line, or give another --out"
            )
        return found


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that identify settings, which JSON can hold.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
        >>> fingerprint({"a": 1}) == fingerprint({"a": 2})
        False
    """
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
