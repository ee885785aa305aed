"""What all programs share: one-line errors, exit statuses, and the types of arguments."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it; exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Main(Protocol):
    """A program: takes the arguments (the process's own when None), gives the exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run."""
        ...


def program(name: str) -> Callable[[Main], Main]:
    """Make a main function end with an exit status and one line, never with a traceback.

    0: done. 1: it ran and the answer is no, or the world failed. 2: a user's mistake.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except ValueError as error:
                return _say(name, error, 2)
            except (OSError, RuntimeError, MemoryError) as error:
                return _say(name, error, 1)
            except KeyboardInterrupt:
                return _say(name, "interrupted", 1)

        return guarded

    return decorate


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = _number(float, text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
    return value


def positive_integer(text: str) -> int:
    """A whole number above 0."""
    value = int(_number(int, text))
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0; got {text}")
    return value


def seed(text: str) -> int:
    """A whole number from 0 to 2³² − 1."""
    value = int(_number(int, text))
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^32 - 1; got {text}")
    return value


def _number(kind: type[int] | type[float], text: str) -> float:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {what}; got {text!r}") from None


def _say(name: str, message: object, status: int) -> int:
    line = " ".join(str(message).split()) or type(message).__name__
    print(f"{name}: {line}", file=sys.stderr)
    return status
