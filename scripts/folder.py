"""The folder that a training program writes to."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cnf.datasets.pictures import WORD_PREFIX
from cnf.scripts.trained import METRICS_FILE, STATE_FILE, state_file
from cnf.utils.distributed import gather, rank
from cnf.utils.serialization import is_temporary, json_value, write_atomic

RUN_FILE_ENDINGS = (".json", ".jsonl", ".safetensors")  # of the files that a run writes
LOCK_FILE = ".lock"  # in a folder that a run writes to


def default_folder(data: str) -> str:
    """Return the folder of a run without --out: one in runs/, named after its data.

    Example:
        >>> [default_folder(data) for data in ("moons", "a/uci.npz:wine", "word:St. Ives", "%")]
        ['runs/moons', 'runs/wine', 'runs/St._Ives', 'runs/data']
    """
    last = data.removeprefix(WORD_PREFIX)
    if last == data:
        last = Path(data.rpartition(":")[2] or data).stem
    name = re.sub(r"[^\w.+-]+", "_", last)[:60].strip("._")
    return f"runs/{name or 'data'}"


def write_records(folder: Path, records: Iterable[Any]) -> None:
    """Write metrics.jsonl, one line of JSON for each record."""
    lines = "".join(json.dumps(json_value(asdict(record))) + "\n" for record in records)
    write_atomic({folder / METRICS_FILE: lines.encode()})


@contextmanager
def run_folder(out: str, resume: bool) -> Iterator[Path]:
    """Make and lock the folder of a run: a new or empty one, or one with a run to resume.

    Raises:
        ValueError: The folder holds something else, cannot be written to, or is another run's.
    """
    folder = Path(out)
    new = not folder.exists()
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    wrong, *_ = gather("" if rank() > 0 else _what_is_wrong(folder, resume, lock))
    try:
        if wrong:
            raise ValueError(wrong)
        yield folder
    finally:
        if lock.is_locked:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            lock.release()
        if new and rank() == 0:
            with suppress(OSError):  # it is not empty, but for a run that was refused
                folder.rmdir()


def _what_is_wrong(folder: Path, resume: bool, lock: FileLock) -> str:
    """Make and lock the folder; return the error message, empty where this succeeds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        found = [path for path in folder.iterdir() if path.name != LOCK_FILE]
        if resume:  # a run that is killed during its first write leaves only temporary files
            found = [path for path in found if not is_temporary(path)]
        if found and not (resume and state_file(folder)):
            hint = f"and holds no {STATE_FILE} to resume from" if resume else "(or --resume)"
            return f"Expected --out to be a new or empty folder; {folder} is not empty {hint}"
        for path in found:
            if path.suffix in RUN_FILE_ENDINGS and not path.is_file():
                return (
                    f"Expected files in {folder}; {path.name} is a folder or a pipe: move it away"
                )
        with tempfile.TemporaryFile(dir=folder):
            pass
    except Timeout:
        return (
            f"Expected --out to be a folder that no other run uses; another run is writing to "
            f"{folder}: wait for it, or name another folder"
        )
    except (OSError, ValueError) as error:  # a ValueError where it is no valid path
        why = "it is a file" if os.path.isfile(folder) else getattr(error, "strerror", error)
        return f"Expected --out to be a folder to write to; {folder}: {why}"
    return ""
