"""Options that several programs share, and numbers of a configuration as options."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Collection, Mapping
from typing import Any

from cnf.datasets import DATA_DIR, ReadOptions
from cnf.fields import DIVERGENCES
from cnf.scripts.program import positive_integer, seed, threads
from cnf.training.numbers import Number

DEFAULT_NOISE_DRAWS = 8
BOOLEANS = ("false", "true")  # by their truth value, as spelt on the command line
SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "dir": {"metavar": "DIR", "help": "a folder written by train"},
    "--data": {"help": "the rows: a name or a file (default: the held-out rows)"},
    "--context-data": {
        "metavar": "FILE",
        "help": "the contexts of a conditional model, one for each row (default: columns of "
        "--data)",
    },
    "--missing": {
        "choices": ("refuse", "drop"),
        "help": "treatment of missing values: refuse the table (default, except of a model that "
        "was trained on them, which takes what is there), or drop their rows",
    },
    "--sep": {
        "metavar": "CHAR",
        "help": "the separator of cells in a text file: , ; | tab or another character (default: "
        "found out)",
    },
    "--decimal": {
        "metavar": "CHAR",
        "help": "the decimal mark in a text file: . or , (default: found out)",
    },
    "--thousands": {
        "metavar": "CHAR",
        "help": "the mark between thousands in a text file: , . ' or a space (default: found out)",
    },
    "--encoding": {
        "metavar": "NAME",
        "help": "the encoding of a text file, such as latin-1 (default: UTF-8, UTF-16 or "
        "Windows-1252, found out)",
    },
    "--na-values": {
        "metavar": "TEXT,TEXT",
        "help": "cells of a text file that are missing values, in addition to those that pandas "
        "takes for them",
    },
    "--data-dir": {
        "metavar": "DIR",
        "type": os.path.abspath,
        "help": f"folder with the files of benchmarks or images (default: ${DATA_DIR})",
    },
    "--static": {
        "metavar": "FILE",
        "help": "a table with a row for each series: its id, and columns that do not change",
    },
    "--labels": {"metavar": "FILE", "help": "a table with a row for each series: id and label"},
    "--times": {
        "metavar": "FILE",
        "help": "a table of times, with the columns of id and time, or of time for every series",
    },
    "--divergence": {
        "choices": ("auto", *DIVERGENCES),
        "default": "auto",
        "help": "method for the trace (default: auto, exact where that is cheap)",
    },
    "--draws": {
        "metavar": "K",
        "type": positive_integer,
        "default": DEFAULT_NOISE_DRAWS,
        "help": "draws of noise for each row, where there are columns of whole numbers or "
        "categories: more draws tighten the bound on the log-mass "
        f"(default {DEFAULT_NOISE_DRAWS})",
    },
    "--seed": {"metavar": "N", "type": seed, "default": 0, "help": "seed of all draws (default 0)"},
    "--threads": {
        "metavar": "N",
        "type": threads,
        "default": "auto",
        "help": "PyTorch's threads in training: N, or auto for the fastest now (default auto)",
    },
    "--json": {"action": "store_true", "help": "print one JSON object, nothing else"},
    "--out": {
        "metavar": "FILE",
        "required": True,
        "help": "the file to write: .csv, .npy, .npz or .parquet",
    },
}
"""The arguments of `add_argument` for each option."""

READ_OPTIONS = ("--sep", "--decimal", "--thousands", "--encoding", "--na-values")
"""The shared options about how a text file is read."""


def add_options(parser: argparse._ActionsContainer, *names: str) -> None:
    """Add some of the shared options to a parser."""
    for name in names:
        parser.add_argument(name, **SHARED_OPTIONS[name])


def read_options(arguments: argparse.Namespace, drop: Collection[str] = ()) -> ReadOptions:
    """Return the choices about how a file is read that the command line makes."""
    absent = arguments.na_values
    return ReadOptions(
        arguments.sep,
        arguments.decimal,
        arguments.thousands,
        arguments.encoding,
        () if absent is None else listed(absent),
        drop,
    )


def listed(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas, in which names with commas are quoted.

    Example:
        >>> listed('a,"b, c"')
        ('a', 'b, c')
    """
    return tuple(next(csv.reader([text])) or [""])


def option_of(name: str) -> str:
    """Return the option that sets a number."""
    return f"--{name.replace('_', '-')}"


def given_numbers(arguments: argparse.Namespace, numbers: Mapping[str, Number]) -> dict[str, Any]:
    """Return the values of the numbers that the command line sets."""
    return {
        name: value_of(name, text, number.default)
        for name, number in numbers.items()
        if (text := getattr(arguments, name)) is not None
    }


def value_of(name: str, text: str, default: Any) -> Any:
    """Parse a text as a value of the default's type; raise a ValueError for others.

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
        raise ValueError(f"Expected {option_of(name)} to be {wanted}; got {text!r}") from None


def _whole(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise OverflowError(text)
    return value


def text_of(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, bool):
        return BOOLEANS[value]
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
