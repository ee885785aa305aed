"""The README's examples run, and its commands are the programs' own."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from cnf.scripts.__main__ import PROGRAMS, main

QUICK = {
    "train": ("--steps", "5"),
    "train-vae": ("--epochs", "1", "--samples", "10"),
    "check": ("--points", "2000"),
}
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    examples = blocks("python")
    assert len(examples) >= 4
    for example in examples:
        exec(example, names)
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_commands_run_on_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(100, 3))
    for name in ("table.csv", "new.csv"):
        np.savetxt(name, rows, delimiter=",", header="a,b,c", comments="")
    lines = [line for block in blocks("sh") for line in block.splitlines() if line[:4] == "cnf "]
    assert {line.split()[1] for line in lines} == set(PROGRAMS)
    for line in lines:
        arguments = shlex.split(line, comments=True)[1:]
        assert main([*arguments, *QUICK.get(arguments[0], ())]) == 0
    assert (tmp_path / "scores.csv").exists()
    assert (tmp_path / "samples.csv").exists()


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(path):
    assert (Path(__file__).parents[1] / path).exists()
