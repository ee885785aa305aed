"""Registries: named entries, each imported on first use."""

from collections import UserDict
from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any, TypeVar, cast

T = TypeVar("T")


def name_of(entry: object, registry: Mapping[str, object], place: str) -> str:
    """Return the name of an entry, by which a saved configuration refers to it.

    Args:
        entry: The entry.
        registry: The registry.
        place: The registry's name in messages.

    Raises:
        ValueError: There is no such entry.

    Example:
        >>> import math
        >>> name_of(math.isinf, {"isinf": math.isinf}, "math")
        'isinf'
    """
    for name, other in registry.items():
        if other is entry:
            return name
    raise ValueError(
        f"Expected an entry of {place}; got {getattr(entry, '__name__', entry)}: register it "
        "there, or save its state_dict yourself"
    )


def constructor_arguments(made: object) -> dict[str, Any]:
    """Return the arguments that an object keeps in attributes of the same names, JSON-ready.

    Arguments without such an attribute are left out.

    Example:
        >>> from fractions import Fraction
        >>> constructor_arguments(Fraction(1, 3))
        {'numerator': 1, 'denominator': 3}
    """
    values = {name: getattr(made, name, None) for name in signature(type(made)).parameters}
    return {
        name: [*value] if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }


class Registry(UserDict[str, T]):
    """A dictionary whose values may be given as `"module:attribute"`, imported on first use.

    Names can be listed and looked up without an import, so that parsers need no PyTorch. To
    register an entry, assign it, or its string, to a name.

    Example:
        >>> registry = Registry({"isfinite": "math:isfinite"})
        >>> list(registry), registry["isfinite"](1.0)
        (['isfinite'], True)
        >>> registry["isinf"] = "math:isinf"
        >>> "isinf" in registry, len(registry)
        (True, 2)
    """

    def __init__(self, entries: Mapping[str, T | str]) -> None:
        super().__init__(cast("Mapping[str, T]", entries))

    def __getitem__(self, name: str) -> T:
        entry = super().__getitem__(name)
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self[name] = getattr(import_module(module), attribute)
        return entry
