"""Values as JSON can hold them."""

from __future__ import annotations

from math import isfinite
from typing import Any


def json_value(value: Any) -> Any:
    """A value with None for numbers that are not finite, which JSON has none of.

    Args:
        value: Numbers, texts, and lists, tuples and dictionaries of them.

    Example:
        >>> json_value({"nll": float("nan"), "rows": (1, 2)})
        {'nll': None, 'rows': [1, 2]}
    """
    if isinstance(value, dict):
        return {name: json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
