"""What all programs share: one-line errors, exit statuses, printing, the types of arguments."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

from tqdm import tqdm

from cnf.datasets import check_writable
from cnf.utils.distributed import is_alone, is_first, rank

LONGEST = 2000  # characters of a message


class Main(Protocol):
    """A program: takes the arguments (the process's own when None), gives the exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run."""
        ...


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it; exit status 2.

    Args:
        name: The program's name.
        description: The module's docstring: its first words name the program, the rest is shown.
        usage: How it is called, where there are too many options to name them.
    """

    def __init__(self, name: str, description: str | None, usage: str | None = None) -> None:
        told = (description or "").replace("`", "")
        super().__init__(f"cnf {name}", description=told, usage=usage)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.nargs is None and arg_strings == ["--"]:  # argparse would take it for no value
            raise argparse.ArgumentError(action, "expected one argument")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is."""
        told = f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n"
        self.exit(2, told if is_first() else None)


def program(name: str) -> Callable[[Main], Main]:
    """Make a main function end with an exit status and one line, never with a traceback.

    0: done. 1: it ran and the answer is no, or the world failed. 2: a user's mistake.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            try:
                with _warnings(name), _terminable():
                    return main(argv)
            except ValueError as error:  # the same in every process: the first one tells
                return _complain(name, error, 2) if is_first() else 2
            except (OSError, RuntimeError, MemoryError) as error:
                return _complain(name, error, 1)
            except KeyboardInterrupt:
                return _complain(name, "interrupted", 1)

        return guarded

    return decorate


@contextmanager
def _warnings(name: str) -> Iterator[None]:
    """Have warnings stand on one line, like errors, without the code that they come from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        with tqdm.external_write_mode():
            _complain(name, f"warning: {message}", 0)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end a program as Ctrl-C does, with what it has so far written.

    Of several processes each is ended as it is: one would wait for the others.
    """
    if not is_alone() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(*lines: object) -> None:
    """Print lines at once, the first of several processes alone.

    Where nobody reads them any more, go on in silence.
    """
    if rank() > 0:
        return
    try:
        text, encoding = "\n".join(map(str, lines)), sys.stdout.encoding or "utf-8"
        # A file's name may hold what no encoding has.
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # What Python would flush on its way out goes nowhere instead of failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_out(out: str, **inputs: str | None) -> None:
    """Check, before work is done for it, that --out can be written to and is none of the inputs.

    Args:
        out: The file to be.
        inputs: What the program reads, by the options' names with `_` for `-`.

    Raises:
        ValueError: It cannot be, or is one.
    """
    check_writable(out)
    for option, name in inputs.items():
        if name and os.path.exists(name) and os.path.exists(out) and os.path.samefile(name, out):
            raise ValueError(
                f"Expected --out to be another file than --{option.replace('_', '-')}; got {out}"
            )


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = _number(float, text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
    return value


def positive_integer(text: str) -> int:
    """A whole number above 0."""
    value = int(_number(int, text))
    if not 0 < value < 2**63:
        wanted = "a whole number above 0" + (" and below 2^63" if value > 0 else "")
        raise argparse.ArgumentTypeError(f"expected {wanted}; got {text}")
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


def _complain(name: str, message: object, status: int) -> int:
    print(f"cnf {name}: {_one_line(message)}", file=sys.stderr)
    return status


def _one_line(message: object) -> str:
    """A message on one line, what is too long for people left out in its middle."""
    line = " ".join(str(message).split()) or type(message).__name__
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}"
