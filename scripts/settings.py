"""Values of a dataclass, as they are written on the command line."""

from __future__ import annotations

from typing import Any

BOOLEANS = ("false", "true")  # by their truth value, as spelt on the command line


def value_of(name: str, text: str, default: Any) -> Any:
    """Parse a text as a value of the default's type.

    Raises:
        ValueError: The text is no such value.

    Example:
        >>> value_of("hidden", "64,64", (32,))
        (64, 64)
    """
    kind = type(default)
    try:
        if kind is bool:
            return bool(BOOLEANS.index(text.lower()))
        if kind is tuple:
            return tuple(_whole(part) for part in text.split(","))
        return _whole(text) if kind is int else kind(text)
    except (OverflowError, ValueError) as error:
        wanted = " or ".join(BOOLEANS) if kind is bool else f"like {text_of(default)}"
        wanted += " and below 2^63" if isinstance(error, OverflowError) else ""
        raise ValueError(
            f"Expected --{name.replace('_', '-')} to be {wanted}; got {text!r}"
        ) from None


def _whole(text: str) -> int:
    """Parse a whole number of 64 bits; raise an OverflowError for larger ones."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise OverflowError(text)
    return value


def text_of(value: object) -> str:
    """Return a value as it is written on the command line.

    Example:
        >>> text_of((64, 64)), text_of(True)
        ('64,64', 'true')
    """
    if isinstance(value, bool):
        return BOOLEANS[value]
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
