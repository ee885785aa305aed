"""Programs of rivals, run by the interpreters of separate environments."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from cnf.scripts.benchmarks import rivals
from cnf.scripts.benchmarks.compared import RIVALS, TABLE_RIVALS
from cnf.scripts.benchmarks.density import FittedDensity, StandardizedSplit
from cnf.scripts.benchmarks.measure import Array


def program_of(method: str) -> Path:
    """Return the file of a rival's program."""
    return Path(rivals.__file__).with_name(RIVALS[method])


def run_program(folder: Path, method: str, python: Path, budget: float, seed: int) -> None:
    """Run a rival's program with one thread on the files of a folder.

    Raises:
        RuntimeError: The program failed.
    """
    command = [python, program_of(method), folder, "--budget", budget, "--seed", seed]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = run([*map(str, command)], capture_output=True, text=True, check=False, env=one_thread)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{method} ended with status {ended.returncode}: {last}")


def table_rivals(given: Sequence[str]) -> dict[str, tuple[Path, str]]:
    """Return the interpreters, and libraries with their versions, of NAME=PYTHON by name.

    Raises:
        ValueError: A rival does not model tables of real numbers, or its library is missing.
    """
    found = {}
    for each in given:
        method, _, python = each.partition("=")
        if method not in TABLE_RIVALS:
            raise ValueError(
                f"Expected rivals among {', '.join(TABLE_RIVALS)}; got {method}, which does not "
                "give densities: leave it out"
            )
        library = TABLE_RIVALS[method]
        version = f"from importlib.metadata import version; print(version('{library}'))"
        ended = run([python, "-c", version], capture_output=True, text=True, check=False)
        if ended.returncode:
            raise ValueError(
                f"Expected {library} in the environment of {method}; got none by {python}: "
                f"run {python} -m pip install {library} pandas"
            )
        found[method] = (Path(python), f"{library} {ended.stdout.strip()}")
    return found


def fit_rival(
    parts: StandardizedSplit, budget: float, seed: int, *, method: str, python: Path
) -> FittedDensity:
    """Fit a density by a rival's program, which scores the test rows alone.

    Raises:
        RuntimeError: The program failed.
    """
    names = [f"x{i}" for i in range(parts.train.shape[1])]
    with TemporaryDirectory() as name:
        folder = Path(name)
        for part, rows in parts._asdict().items():
            pd.DataFrame(rows, columns=names).to_csv(folder / f"{part}.csv", index=False)
        (folder / "columns.json").write_text(json.dumps(dict.fromkeys(names, 0.0)))
        run_program(folder, method, python, budget, seed)
        draws, scores = (
            pd.read_csv(folder / file).to_numpy(np.float64)
            for file in ("draws.csv", "log_mass.csv")
        )
        chosen = (folder / "chosen.txt").read_text()
        seconds = json.loads((folder / "seconds.json").read_text())["training"]

    def log_prob(rows: Array) -> Array:
        if not np.array_equal(rows, parts.test):
            raise ValueError(f"Expected the test rows; got others: {method} has scored no more")
        return scores[:, 0]

    return FittedDensity(log_prob, lambda count, seed: draws[:count], chosen, seconds)
