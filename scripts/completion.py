"""What makes a shell complete the programs' names and options."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from importlib import import_module

import shtab

from cnf.datasets import BENCHMARKS, CONDITIONAL_TOYS, IMAGES, TABLES, TOYS
from cnf.scripts.program import Parser

SHELLS = tuple(shtab.SUPPORTED_SHELLS)
DATA = (*TOYS, *CONDITIONAL_TOYS, *TABLES, *BENCHMARKS)
PATHS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}


def completion(shell: str, programs: Mapping[str, str]) -> str:
    """A script that a shell reads to complete `cnf`.

    Args:
        shell: One of `SHELLS`.
        programs: Purposes by program.

    Raises:
        ValueError: There is no such shell.

    Example:
        >>> "--context-data" in completion("bash", {"sample": "draw rows"})
        True
    """
    if shell not in SHELLS:
        raise ValueError(f"Expected a shell among {', '.join(SHELLS)}; got {shell!r}")
    command = ArgumentParser("cnf")
    command.add_argument("--version", action="store_true", help="print the version")
    command.add_argument("--print-completion", choices=SHELLS, help="print a script like this one")
    subcommands = command.add_subparsers()
    for name, purpose in programs.items():
        own = import_module(f"cnf.scripts.{name.replace('-', '_')}").parser()
        _name_values(own, tuple(IMAGES) if name == "train-vae" else DATA)
        subcommands.add_parser(name, parents=[own], add_help=False, help=purpose)
    return shtab.complete(command, shell)


def _name_values(parser: Parser, data: tuple[str, ...]) -> None:
    """Have arguments completed by what their help calls them: data, files or folders."""
    for action in parser._actions:
        if action.choices is not None:
            action.choices = tuple(action.choices)  # a mapping would stand for subcommands
        if action.metavar == "DATA":
            action.choices = data
        elif action.metavar in PATHS:
            action.complete = PATHS[action.metavar]  # type: ignore[attr-defined]
