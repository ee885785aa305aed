"""Shell completion of the programs' names and options."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from importlib import import_module

import shtab

from cnf.datasets import BENCHMARKS, CONDITIONAL_TOYS, IMAGES, TABLES, TOYS
from cnf.datasets.series import SERIES_DATASETS

COMPLETION_SHELLS = tuple(shtab.SUPPORTED_SHELLS)
DATA_NAMES = (*TOYS, *CONDITIONAL_TOYS, *TABLES, *BENCHMARKS)
OTHER_NAMES: dict[str, Iterable[str]] = {"train-vae": IMAGES, "train-series": SERIES_DATASETS}
PATH_COMPLETIONS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}


def completion(shell: str, programs: Mapping[str, str]) -> str:
    """Return the script that makes a shell complete `cnf`, given the purpose of each program.

    Raises:
        ValueError: The shell is unknown.

    Example:
        >>> "--context-data" in completion("bash", {"sample": "draw rows"})
        True
    """
    if shell not in COMPLETION_SHELLS:
        raise ValueError(f"Expected a shell among {', '.join(COMPLETION_SHELLS)}; got {shell!r}")
    command = ArgumentParser("cnf")
    command.add_argument("--version", action="store_true", help="print the version")
    command.add_argument(
        "--print-completion", choices=COMPLETION_SHELLS, help="print a completion script"
    )
    subcommands = command.add_subparsers()
    for name, purpose in programs.items():
        own = import_module(f"cnf.scripts.{name.replace('-', '_')}").parser()
        for action in own._actions:
            if action.choices is not None:
                action.choices = tuple(action.choices)  # a mapping would stand for subcommands
            if action.metavar == "DATA":
                action.choices = tuple(OTHER_NAMES.get(name, DATA_NAMES))
            elif action.metavar in PATH_COMPLETIONS:
                action.complete = PATH_COMPLETIONS[action.metavar]
        subcommands.add_parser(name, parents=[own], add_help=False, help=purpose)
    return shtab.complete(command, shell)
