"""The libraries that this one is compared with."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor


def peer(name: str) -> Any:
    """Import a module of another library, which the `bench` extra installs.

    Raises:
        ValueError: The library is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        library = name.partition(".")[0]
        raise ValueError(
            f"Expected {library} to compare with; got none installed: "
            "run pip install 'cnf-flows[bench]'"
        ) from None


class CountedField:
    """A field that counts its calls, and the steps that torchdiffeq accepts."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self.f, self.calls, self.steps = f, 0, 0

    def __call__(self, *arguments: Any) -> Tensor:
        """Evaluate the field, and count the call."""
        self.calls += 1
        return self.f(*arguments)

    def callback_accept_step(self, *_: Any) -> None:
        """Count an accepted step."""
        self.steps += 1
