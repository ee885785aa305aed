"""The folder that a training program writes to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cnf.files import is_left_over
from cnf.scripts.trained import STATE


def what_is_wrong(folder: Path, resume: bool) -> str:
    """Make a folder, and say what is wrong with it for a new run, or to go on with one.

    Args:
        folder: Which is to be new or empty.
        resume: Or a begun run's.

    Returns:
        Nothing where all is well: it is there, and can be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A run that is killed while it first writes leaves nothing but that behind.
        found = [path for path in folder.iterdir() if not (resume and is_left_over(path))]
        if found and not (resume and (folder / STATE).exists()):
            hint = f"and holds no {STATE} to go on from" if resume else "(or --resume)"
            return f"Expected --out to be a new or empty folder; {folder} is not empty {hint}"
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        return f"Expected --out to be a folder to write to; {folder}: {why}"
    return ""
