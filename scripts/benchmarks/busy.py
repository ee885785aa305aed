"""The KL divergence of toys' flows that are trained beside busy processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory

from cnf.datasets import TOYS
from cnf.scripts.benchmarks.measure import TableItem
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.toys import KL_ROWS, distance_of, fresh_rows, toy_recipe
from cnf.scripts.trained import METRICS_FILE
from cnf.storage import load_flow
from cnf.utils.serialization import read_file

BUSY_COUNTS = (0, 1, 2)  # busy processes beside the training
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # with them a caller fixes the threads
# Ends with its parent, however that ends.
SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each toy and number of busy processes, each kept as it ends."""
    yield (
        f"cnf train TOY --budget {options.budget:g} beside busy processes, on {os.cpu_count()} "
        f"processors; KL over {KL_ROWS} fresh rows"
    )
    for toy in options.toys or TOYS:
        quiet = nan
        for busy in BUSY_COUNTS:
            row = _training_of(options, toy, busy)
            quiet = row["KL"] if busy == 0 else quiet
            yield {"toy": toy, "busy": busy, "to quiet": row["KL"] / quiet, **row}


def _training_of(options: BenchmarkOptions, toy: str, busy: int) -> Row:
    """Return a training's KL, standard error, steps and last threads, run unless it is cached."""
    names = {"toy": toy, "busy": busy, "budget": options.budget}
    key = key_of(names, toy_recipe()[1])
    return options.results.recall(key, partial(_train, options.budget, toy, busy))


def _train(budget: float, toy: str, busy: int) -> Row:
    """Run the default command for a toy beside busy processes, and score its flow after them."""
    environment = {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES}
    with TemporaryDirectory() as folder:
        out = Path(folder, "flow")
        command = ("-m", "cnf", "train", toy, "--budget", f"{budget:g}", "--out", str(out))
        with busy_processes(busy):
            ended = subprocess.run(
                [sys.executable, *command], env=environment, capture_output=True, text=True
            )
        if ended.returncode:
            why = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
            return dict.fromkeys(("KL", "stderr", "steps", "threads"), nan) | {"note": why}
        record = json.loads(read_file(out / METRICS_FILE).decode().splitlines()[-1])
        far, _ = distance_of(load_flow(out), toy, fresh_rows(toy, KL_ROWS, 0))
    ran = {"steps": record["step"], "threads": record.get("threads", "")}
    return {"KL": far.mean, "stderr": far.stderr, **ran, "note": ""}


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """Keep processes busy within the context, which is given their ids; they end with it."""
    with ExitStack() as stack:
        ids: list[int] = []
        for _ in range(count):
            command = [sys.executable, "-c", SPIN, str(os.getpid())]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)  # before the process's own exit, which waits for its end
            ids.append(process.pid)
        yield ids
