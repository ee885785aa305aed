"""Registries: named entries, each imported on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Registry(MutableMapping[str, T], Generic[T]):
    """A dictionary whose values may be given as `"module:attribute"`, imported on first use.

    Names can be listed and looked up without an import, so that parsers need no PyTorch. To
    register an entry, assign it, or its string, to a name.

    Args:
        entries: For each name its value, or the value's `"module:attribute"`.

    Example:
        >>> registry = Registry({"isfinite": "math:isfinite"})
        >>> list(registry), registry["isfinite"](1.0)
        (['isfinite'], True)
        >>> registry["isinf"] = "math:isinf"
        >>> "isinf" in registry, len(registry)
        (True, 2)
    """

    def __init__(self, entries: Mapping[str, T | str]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = cast("T", getattr(import_module(module), attribute))
        return entry

    def __setitem__(self, name: str, entry: T | str) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
