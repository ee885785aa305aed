"""Numbers of a configuration: fields of a dataclass that carry their help, group and limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any


@dataclass(frozen=True)
class Number:
    """A number, name or list of widths in a configuration."""

    default: Any  # whose type all its values have
    help: str  # a line, without the names to choose from
    group: str = ""  # the heading that its option stands under
    low: float | None = None  # least value of it, or of a list's entries; above 0 when None
    high: float = inf  # which numbers are below
    choices: Collection[str] | Callable[[], Collection[str]] = ()  # names; any when empty
    used_by: Collection[str] = ()  # the objectives or models that use it; all when empty

    @property
    def names(self) -> Collection[str]:
        return self.choices() if callable(self.choices) else self.choices

    def describe(self) -> str:
        """Return the help with the names to choose from."""
        return f"{self.help}: one of {', '.join(self.names)}" if self.names else self.help

    def check(self, name: str, value: Any) -> None:
        """Raise a ValueError, with the value's name, unless it is within the limits."""
        if isinstance(self.default, bool):
            right, wanted = isinstance(value, bool), "True or False"
        elif isinstance(self.default, str):
            right = not self.names or value in self.names
            wanted = f"one of {', '.join(self.names)}"
        else:
            number = min(value, default=0) if isinstance(value, tuple) else value
            above = number > 0 if self.low is None else number >= self.low
            right = above and number < self.high
            wanted = "finite and " + ("above 0" if self.low is None else f"at least {self.low}")
            wanted += f" and below {self.high}" if self.high < inf else ""
        if not right:
            raise ValueError(f"Expected {name} to be {wanted}; got {value!r}")

    def check_type(self, name: str, value: Any) -> None:
        """Raise a ValueError, with its name, unless a value from JSON has the default's type."""
        if isinstance(self.default, tuple):
            right = isinstance(value, list) and all(type(width) is int for width in value)
            wanted = "a list of whole numbers"
        else:
            kind = type(self.default)
            right = type(value) in ((int, float) if kind is float else (kind,))
            wanted = _TYPES[kind]
        if not right:
            raise ValueError(f"Expected {name} to be {wanted}; got {value!r}")


_TYPES = {str: "a name", bool: "true or false", int: "a whole number", float: "a number"}


def number(default: Any, help: str, **options: Any) -> Any:
    """Return a dataclass's field for a `Number` with these options.

    Example:
        >>> @dataclass
        ... class Walk:
        ...     steps: int = number(5, "number of steps")
        >>> numbers_of(Walk)["steps"].describe(), Walk().steps
        ('number of steps', 5)
    """
    return field(default=default, metadata={"number": Number(default, help, **options)})


def numbers_of(kind: type) -> dict[str, Number]:
    """Return a dataclass's numbers by their names."""
    return {
        each.name: each.metadata["number"] for each in fields(kind) if "number" in each.metadata
    }


def document_numbers(kind: type) -> None:
    """Add the help of a dataclass's numbers to its docstring, as its attributes."""
    numbers = numbers_of(kind).items()
    lines = "".join(f"        {name}: {each.describe()}.\n" for name, each in numbers)
    kind.__doc__ = f"{kind.__doc__}\n    Attributes:\n{lines}"


def check_numbers(configuration: Any) -> None:
    """Raise a ValueError unless a configuration's numbers are within their limits."""
    owner = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(configuration).__name__).lower()
    for name, each in numbers_of(type(configuration)).items():
        each.check(f"the {owner}'s {name}", getattr(configuration, name))
