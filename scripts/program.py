"""The frame of every program: one-line errors, exit statuses, printing, argument types."""

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

MAX_MESSAGE_LENGTH = 2000  # characters


class Main(Protocol):
    """A program: a function of the arguments (the process's own if None) to the exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the program."""
        ...


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line without the usage, with exit status 2.

    Args:
        name: The program's name.
        description: The module's docstring, which is shown as the description.
        usage: The usage line, where there are too many options to list them.
    """

    def __init__(self, name: str, description: str | None, usage: str | None = None) -> None:
        text = (description or "").replace("`", "")
        super().__init__(f"cnf {name}", description=text, usage=usage)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.nargs is None and arg_strings == ["--"]:  # argparse would drop it
            raise argparse.ArgumentError(action, "expected one argument")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Print the error and where help is, and exit with status 2."""
        line = f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n"
        self.exit(2, line if is_first() else None)


def program(name: str) -> Callable[[Main], Main]:
    """Return a decorator that ends a main function with a status and one line, no traceback.

    Status 0: done. 1: it ran and the answer is no, or the system failed. 2: a user's mistake.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            try:
                with _warnings(name), _terminable():
                    return main(argv)
            except ValueError as error:  # the same in every process: the first one prints it
                return _print_error(name, error, 2) if is_first() else 2
            except (OSError, RuntimeError, MemoryError) as error:
                return _print_error(name, error, 1)
            except KeyboardInterrupt:
                return _print_error(name, "interrupted", 1)

        return guarded

    return decorate


@contextmanager
def _warnings(name: str) -> Iterator[None]:
    """Print warnings on one line, like errors, without the code that raised them."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        with tqdm.external_write_mode():
            _print_error(name, f"warning: {message}", 0)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end a program as Ctrl-C does, which saves its progress.

    One of several processes keeps the default handler: it would otherwise wait for the others.
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
    """Print lines and flush them; of several processes only the first prints.

    Where the reader has closed the pipe, continue in silence.
    """
    if rank() > 0:
        return
    try:
        text, encoding = "\n".join(map(str, lines)), sys.stdout.encoding or "utf-8"
        # A file's name may hold characters that the encoding lacks.
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # Python flushes standard output at exit: send it nowhere instead of failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_out(out: str, **inputs: str | None) -> None:
    """Check, before any work is done, that --out is writable and differs from every input.

    Args:
        out: The file to write.
        inputs: The files that the program reads, by their options' names with `_` for `-`.

    Raises:
        ValueError: The file cannot be written, or is an input.
    """
    check_writable(out)
    for option, name in inputs.items():
        if name and os.path.exists(name) and os.path.exists(out) and os.path.samefile(name, out):
            raise ValueError(
                f"Expected --out to be another file than --{option.replace('_', '-')}; got {out}"
            )


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    value = _number(float, text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
    return value


def positive_integer(text: str) -> int:
    """Parse a whole number above 0."""
    value = int(_number(int, text))
    if not 0 < value < 2**63:
        wanted = "a whole number above 0" + (" and below 2^63" if value > 0 else "")
        raise argparse.ArgumentTypeError(f"expected {wanted}; got {text}")
    return value


def seed(text: str) -> int:
    """Parse a seed: a whole number from 0 to 2³² − 1."""
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


def _print_error(name: str, message: object, status: int) -> int:
    print(f"cnf {name}: {_one_line(message)}", file=sys.stderr)
    return status


def _one_line(message: object) -> str:
    """Return a message on one line, with the middle of a long one left out."""
    line = " ".join(str(message).split()) or type(message).__name__
    half = MAX_MESSAGE_LENGTH // 2
    return line if len(line) <= MAX_MESSAGE_LENGTH else f"{line[:half]} … {line[-half:]}"
