"""Numbers and names of a dataclass, as the command line takes them."""

from __future__ import annotations

from typing import Any

TRUTHS = ("false", "true")  # as the command line spells them


def value_of(name: str, text: str, default: Any) -> Any:
    """`text` as a value of the default's type.

    Raises:
        ValueError: It is none.

    Example:
        >>> value_of("hidden", "64,64", (32,))
        (64, 64)
    """
    kind = type(default)
    try:
        if kind is bool:
            return bool(TRUTHS.index(text.lower()))
        if kind is tuple:
            return tuple(_whole(part) for part in text.split(","))
        return _whole(text) if kind is int else kind(text)
    except (OverflowError, ValueError) as error:
        wanted = " or ".join(TRUTHS) if kind is bool else f"like {text_of(default)}"
        wanted += " and below 2^63" if isinstance(error, OverflowError) else ""
        raise ValueError(
            f"Expected --{name.replace('_', '-')} to be {wanted}; got {text!r}"
        ) from None


def _whole(text: str) -> int:
    """A whole number that 64 bits have; an OverflowError for others."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise OverflowError(text)
    return value


def text_of(value: object) -> str:
    """A value as the command line takes it.

    Example:
        >>> text_of((64, 64)), text_of(True)
        ('64,64', 'true')
    """
    if isinstance(value, bool):
        return TRUTHS[value]
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
