"""The same seed gives the same bits in every process."""

import os
from itertools import product

import torch
from children import start, wait
from test_scripts_running import rows_of_table, write_csv

COMMANDS = (
    "train rows.csv --out out --steps 3 --hidden 4 --seed 3",
    "sample out -n 20 --seed 5 --out drawn.csv",
    "log-prob out --data drawn.csv --out scores.csv --errors",
    "log-prob out --data drawn.csv --out estimates.csv --errors --divergence hutchinson",
)
FILES = ("out/model.safetensors", "drawn.csv", "scores.csv", "estimates.csv")


def run_commands(place):
    """Run the programs by one thread and by two, each in a folder, without figures."""
    from cnf.scripts import training
    from cnf.scripts.__main__ import main

    training.plot = lambda *_, **__: []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        os.chdir(place / str(threads))
        for words in COMMANDS:
            fixed = ["--threads", str(threads)] if words.startswith("train") else []
            assert main([*words.split(), *fixed]) == 0


def test_a_seed_gives_the_same_bits_in_every_process(tmp_path):
    """Of training, draws and scores, by one thread or two."""
    places = [tmp_path / name for name in "ab"]
    for place, threads in product(places, "12"):
        (place / threads).mkdir(parents=True)
        write_csv(place / threads / "rows.csv", rows_of_table(60))
    assert wait(*(start(run_commands, place) for place in places)) == [0, 0]
    for threads, name in product("12", FILES):
        first, second = ((place / threads / name).read_bytes() for place in places)
        assert first == second, name
