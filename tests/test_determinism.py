"""The same seed gives the same bits in processes of their own: of training, draws and scores."""

import os
import subprocess
import sys

import pytest
from test_scripts_running import rows_of_table, write_csv

RUN = """
from cnf.scripts.__main__ import main

for words in (
    "train rows.csv --out out --steps 12 --hidden 8 --seed 3",
    "sample out -n 50 --seed 5 --out drawn.csv",
    "log-prob out --data drawn.csv --out scores.csv --errors",
    "log-prob out --data drawn.csv --out estimates.csv --errors --divergence hutchinson",
):
    assert main(words.split()) == 0
"""
FILES = ("out/model.safetensors", "drawn.csv", "scores.csv", "estimates.csv")


def ran(place, threads):
    """The files of a run in a folder of its own, as bytes."""
    place.mkdir()
    write_csv(place / "rows.csv", rows_of_table(60))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = (sys.executable, "-c", RUN)
    subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
    return {name: (place / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_seed_gives_the_same_bits_in_every_process(threads, tmp_path):
    assert ran(tmp_path / "a", threads) == ran(tmp_path / "b", threads)
