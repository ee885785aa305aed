"""The files by which a rival's program gets a table and returns draws and log-masses."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

Steps = Mapping[str, float | None]
"""The step of each column of numbers, 0 where its values have a density; None for categories."""


@dataclass
class Exchange:
    """The folder of one comparison, the tables in it, and the times that were taken."""

    folder: Path
    budget: float
    seed: int
    steps: Steps
    seconds: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def open() -> Exchange:
        """Return the exchange that the command line names."""
        parser = argparse.ArgumentParser()
        parser.add_argument("folder", type=Path)
        parser.add_argument("--budget", type=float, required=True)
        parser.add_argument("--seed", type=int, required=True)
        given = parser.parse_args()
        steps = json.loads((given.folder / "columns.json").read_text())
        return Exchange(given.folder, given.budget, given.seed, steps)

    def read(self, part: str) -> pd.DataFrame:
        """Return `"train"`, `"validation"` or `"test"`, categories as text."""
        types = {name: str for name, step in self.steps.items() if step is None}
        path = self.folder / f"{part}.csv"
        return pd.read_csv(path, dtype=types, keep_default_na=False)

    def read_numbers(self, part: str) -> Any:
        """Return a part of a table of real numbers, (rows, columns).

        Raises:
            ValueError: The table has other columns too.
        """
        others = [name for name, step in self.steps.items() if step != 0]
        if others:
            raise ValueError(f"Expected columns of real numbers; got {others[0]}: leave it out")
        return self.read(part).to_numpy(float)

    def frame(self, rows: Any) -> pd.DataFrame:
        """Return rows of numbers, (rows, columns), with the columns' names."""
        return pd.DataFrame(rows, columns=[*self.steps])

    def counted(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a table whose numbers are counts of the steps, the centers of the grid's cells."""
        counts = {
            name: (table[name].astype(float) / step).round().astype("int64")
            for name, step in self.steps.items()
            if step is not None
        }
        return table.assign(**counts)

    def timed(self, name: str, run: Callable[[], Any]) -> Any:
        """Return what a function returns, and keep the seconds that it took."""
        begin = time.perf_counter()
        found = run()
        self.seconds[name] = time.perf_counter() - begin
        return found

    def write(self, draws: pd.DataFrame, log_mass: Any, chosen: str = "") -> None:
        """Write draws, the log-masses (rows,) of the test rows, and choices in words."""
        draws[[*self.steps]].to_csv(self.folder / "draws.csv", index=False)
        pd.DataFrame({"log_mass": log_mass}).to_csv(self.folder / "log_mass.csv", index=False)
        (self.folder / "seconds.json").write_text(json.dumps(self.seconds))
        (self.folder / "chosen.txt").write_text(chosen)

    def masks(self) -> Any:
        """Return masks (masks, columns) of questions about the test rows, None without any."""
        path = self.folder / "masks.csv"
        return pd.read_csv(path)[[*self.steps]].to_numpy() if path.exists() else None

    def write_answers(self, log_mass: Any) -> None:
        """Write log-masses of what is asked given the rest, (rows, masks)."""
        pd.DataFrame(log_mass).to_csv(self.folder / "answers.csv", index=False)
