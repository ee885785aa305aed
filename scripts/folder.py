"""The folder that a training program writes to."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cnf.datasets.pictures import WORD_PREFIX
from cnf.scripts.trained import STATE
from cnf.utils.distributed import gather, rank
from cnf.utils.serialization import is_left_over

FILES = (".json", ".jsonl", ".safetensors")  # endings of what a run writes
LOCK = ".lock"  # in a folder that a run writes to


def default_folder(data: str) -> str:
    """Where a run goes that is not told where to: into runs/, called after its data.

    Example:
        >>> [default_folder(data) for data in ("moons", "a/uci.npz:wine", "word:St. Ives", "%")]
        ['runs/moons', 'runs/wine', 'runs/St._Ives', 'runs/data']
    """
    last = data.removeprefix(WORD_PREFIX)
    if last == data:
        last = Path(data.rpartition(":")[2] or data).stem
    name = re.sub(r"[^\w.+-]+", "_", last)[:60].strip("._")
    return f"runs/{name or 'data'}"


@contextmanager
def run_folder(out: str, resume: bool) -> Iterator[Path]:
    """Make a folder and have it for a run alone, new or empty, or to go on with what is begun.

    Args:
        out: Where it is to be.
        resume: Whether it may hold a begun run.

    Raises:
        ValueError: It holds something else, cannot be written to, or another run has it.
    """
    folder = Path(out)
    lock = FileLock(folder / LOCK, blocking=False)
    wrong, *_ = gather("" if rank() > 0 else _what_is_wrong(folder, resume, lock))
    try:
        if wrong:
            raise ValueError(wrong)
        yield folder
    finally:
        if lock.is_locked:
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()


def _what_is_wrong(folder: Path, resume: bool, lock: FileLock) -> str:
    """Make the folder and lock it; nothing where all is well."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        # A run that is killed while it first writes leaves nothing but that behind.
        found = [
            path
            for path in folder.iterdir()
            if path.name != LOCK and not (resume and is_left_over(path))
        ]
        if found and not (resume and (folder / STATE).exists()):
            hint = f"and holds no {STATE} to go on from" if resume else "(or --resume)"
            return f"Expected --out to be a new or empty folder; {folder} is not empty {hint}"
        names = [path.name for path in found if path.suffix in FILES and not path.is_file()]
        if names:
            return f"Expected files in {folder}; {names[0]} is a folder or a pipe: move it away"
        with tempfile.TemporaryFile(dir=folder):
            pass
    except Timeout:
        return (
            f"Expected --out to be a folder of this run's alone; another one is writing to "
            f"{folder}. Wait for it, or name another folder"
        )
    except (OSError, ValueError) as error:  # the second where it can be no path at all
        why = "it is a file" if os.path.isfile(folder) else getattr(error, "strerror", error)
        return f"Expected --out to be a folder to write to; {folder}: {why}"
    return ""
