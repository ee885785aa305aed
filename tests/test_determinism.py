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


def run_commands(place, threads):
    """Run the programs in a folder, without figures."""
    from cnf.scripts import training
    from cnf.scripts.__main__ import main

    torch.set_num_threads(threads)
    os.chdir(place)
    training.plot = lambda *_, **__: []
    for words in COMMANDS:
        assert main(words.split()) == 0


def test_a_seed_gives_the_same_bits_in_every_process(tmp_path):
    """Of training, draws and scores, by one thread or two."""
    places = {tmp_path / f"{threads}{name}": threads for threads in (1, 2) for name in "ab"}
    for place in places:
        place.mkdir()
        write_csv(place / "rows.csv", rows_of_table(60))
    assert wait(*(start(run_commands, *each) for each in places.items())) == [0] * 4
    for threads, name in product((1, 2), FILES):
        first, second = ((tmp_path / f"{threads}{side}" / name).read_bytes() for side in "ab")
        assert first == second, name
