"""The frame of every program: one-line errors, exit statuses, printing, argument types.

A program's module imports only what its parser needs; `main` imports PyTorch's users after
parsing, so that help and mistakes in the arguments are answered at once.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

from cnf.utils.launch import is_alone, is_first

MAX_MESSAGE_LENGTH = 2000  # characters
MAX_THREADS = 1024

N = TypeVar("N", int, float)
Main = Callable[..., int]  # of the arguments (the process's own without any) to the exit status


class Parser(argparse.ArgumentParser):
    """A parser, described by a docstring, whose errors are one line, with exit status 2."""

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
            _let_threads_sleep()
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


def _let_threads_sleep() -> None:
    """Have OpenMP's threads sleep where they wait for each other, unless the user decided.

    They would keep their cores busy. Where another process has one of these, an operation of 10 µs
    then takes 20 ms. PyTorch, which is imported later, reads it once.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"


@contextmanager
def _warnings(name: str) -> Iterator[None]:
    """Print warnings on one line, as errors are."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():
            _print_error(name, f"warning: {message}", 0)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end a program as Ctrl-C does, unless it would wait for other processes."""
    if not is_alone() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(*lines: object) -> None:
    """Print lines in the first process, and flush them; continue where the reader is gone."""
    if not is_first():
        return
    try:
        text, encoding = "\n".join(map(str, lines)), sys.stdout.encoding or "utf-8"
        # A file's name may hold characters that the encoding lacks.
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # Python flushes standard output at exit: send it nowhere instead of failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    return _parsed(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def share(text: str) -> float:
    """Parse a share: a number from 0 to below 1."""
    return _parsed(float, text, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def positive_integer(text: str) -> int:
    """Parse a whole number above 0."""
    wanted = "a whole number above 0 and below 2^63"
    return _parsed(int, text, lambda value: 0 < value < 2**63, wanted)


def threads(text: str) -> int | str:
    """Parse a number of threads, or "auto"."""
    wanted = f"auto or a whole number from 1 to {MAX_THREADS}"
    within = range(1, MAX_THREADS + 1)
    return text if text == "auto" else _parsed(int, text, within.__contains__, wanted)


def seed(text: str) -> int:
    """Parse a seed: a whole number from 0 to 2³² − 1."""
    wanted = "a whole number from 0 to 2^32 - 1"
    return _parsed(int, text, lambda value: 0 <= value < 2**32, wanted)


def _parsed(kind: type[N], text: str, allowed: Callable[[N], bool], wanted: str) -> N:
    with suppress(ValueError):
        value = kind(text)
        if allowed(value):
            return value
    raise argparse.ArgumentTypeError(f"expected {wanted}; got {text!r}")


def _print_error(name: str, message: object, status: int) -> int:
    print(f"cnf {name}: {_one_line(message)}", file=sys.stderr)
    return status


def _one_line(message: object) -> str:
    """Return a message on one line, without the middle of a long one."""
    line = " ".join(str(message).split()) or type(message).__name__
    half = MAX_MESSAGE_LENGTH // 2
    return line if len(line) <= MAX_MESSAGE_LENGTH else f"{line[:half]} … {line[-half:]}"
