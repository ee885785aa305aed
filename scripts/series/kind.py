"""The kind of model in a folder, and options that do not apply to it."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cnf.series import SERIES_MODELS
from cnf.utils.serialization import read_file

CONFIG_FILE = "config.json"
OF_SERIES, OF_ROWS = "series", "rows"  # kinds of models, in messages


def is_series(folder: str) -> bool:
    """Return whether a folder holds a model of series; False for what cannot be read."""
    try:
        config = json.loads(read_file(Path(folder) / CONFIG_FILE).decode())
    except (OSError, ValueError, RecursionError):
        return False
    kind = config.get("kind") if isinstance(config, dict) else None
    return isinstance(kind, str) and kind in SERIES_MODELS


def refuse_options(parser: ArgumentParser, arguments: Namespace, of: str, *names: str) -> None:
    """Raise a ValueError where options are given that a model of `of`, series or rows, lacks."""
    for name in names:
        given = getattr(arguments, name)
        if given != parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"Expected no {option} with a model of {of}; got {arguments.dir}: leave it out"
            )
