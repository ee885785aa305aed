"""The command in a shell: completion, --version, help on one screen, quick starts."""

import json
import shutil
import subprocess
import sys

import pytest
from test_scripts_running import complaint, done, run

import cnf
from cnf.datasets import CONDITIONAL_TOYS, TABLES, TOYS
from cnf.scripts.__main__ import PROGRAMS
from cnf.scripts.completion import COMPLETION_SHELLS, completion
from cnf.training.recipes import Recipe

WORDS = {
    "": set(PROGRAMS),
    "eva": {"evaluate"},
    "train --bud": {"--budget"},
    "train --x-s": {"--x-scale"},
    "train 8g": {"8gaussians"},
    "check run": {"runs_of_mine"},
}


SLOW = {"torch", "pandas", "scipy", "matplotlib", "sklearn"}
ROOMS = ("fields", "layers", "ode", "training", "datasets", "tables", "variational")
CALLS = f"""
import json, sys
from cnf.scripts.__main__ import main
for words in json.loads(sys.argv[1]):
    try:
        status = main(words)
    except SystemExit as exited:
        status = exited.code
    print("\\nended:", status, *({SLOW} & set(sys.modules)))
"""


def python(code: str, *words: str) -> str:
    """The standard output of a process of Python."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash")
def test_bash_completes_programs_options_data_and_folders(tmp_path):
    """One bash sources the script, and completes the last of some words on each line."""
    (tmp_path / "runs_of_mine").mkdir()
    asked = completion("bash", PROGRAMS)
    asked += '\nname=$(complete -p cnf | sed "s/.*-F \\([^ ]*\\) .*/\\1/")\n'
    for words in WORDS:
        quoted = " ".join(map(repr, ["cnf", *words.split(" ")]))
        asked += f"COMP_WORDS=({quoted}) COMP_CWORD={len(words.split(' '))}\nCOMPREPLY=()\n"
        asked += '$name cnf\necho "${COMPREPLY[@]}"\n'
    told = subprocess.run(
        ["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stderr == ""
    first, *others = (set(line.split()) for line in told.stdout.splitlines())
    assert first >= set(PROGRAMS)
    assert others == list(WORDS.values())[1:]


def test_each_shell_has_a_script_and_another_shell_none():
    for shell in COMPLETION_SHELLS:
        text = done("--print-completion", shell)
        assert all(name in text for name in PROGRAMS)
    for words in [[], ["csh"], ["bash", "zsh"]]:
        assert "bash" in complaint("--print-completion", *words)


def test_version_of_the_command_and_of_the_package():
    asked = [sys.executable, "-m", "cnf", "--version"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert told.stdout == done("--version") == f"cnf-flows {cnf.__version__}\n"


def test_help_of_train_is_one_screen_and_the_full_one_has_each_number_of_a_recipe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "102")  # argparse leaves two free
    text = run("train", "--help").out
    assert text.count("\n") <= 40
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in (*TOYS, *CONDITIONAL_TOYS, *TABLES, "--help-all"))
    assert "--rtol" not in text
    lines = [line.strip() for line in run("train", "--help-all").out.splitlines()]
    for name in Recipe.numbers():
        option = f"--{name.replace('_', '-')} X "
        assert sum(f"{line} ".startswith(option) for line in lines) == 1, option


def test_help_and_mistakes_need_no_pytorch():
    """One process is asked for each in turn: the slow imports after each call are none."""
    calls = [[name, option] for name in PROGRAMS for option in ("--help", "--no-such-option")]
    calls += [["--help"], ["trian"], ["--version"]]
    calls += [["sample", "out", "--out", "a.csv", "-n", "x"]]
    said = python(CALLS, json.dumps(calls)).splitlines()
    found = [line.removeprefix("ended: ") for line in said if line.startswith("ended: ")]
    assert found == ["0", "2"] * (len(PROGRAMS) + 1) + ["0", "2"]


def test_registries_need_no_pytorch():
    """They are listed, and the methods that choose their steps."""
    code = f"import sys, cnf, {', '.join(f'cnf.{room}' for room in ROOMS)}"
    code += "; print(*cnf.ode.GRADIENTS, *[each.adaptive for each in cnf.ode.TABLEAUS.values()])"
    listed, slow = python(f"{code}; print(*{SLOW} & set(sys.modules))").splitlines()
    assert listed.split()[:3] == ["backprop", "checkpoint", "backsolve"]
    assert "True" in listed
    assert slow == ""


FITTED = """
import sys, cnf
cnf.fit, cnf.ode.solve, cnf.load, cnf.Flow, cnf.ffjord
print(*sys.modules)
import torch
flow, data = cnf.ffjord(3, hidden=(8,)), torch.randn(50, 3)
cnf.fit(flow, data, steps=2)
flow.log_prob(data), flow.score(data), flow.sample(3)
print(*sys.modules)
"""


def test_what_takes_long_to_import_is_imported_when_it_is_needed():
    """By no name that is touched, nor by fitting, scoring and sampling a flow over numbers."""
    touched, fitted = (set(line.split()) for line in python(FITTED).splitlines())
    assert "torch" in touched
    assert not {*(SLOW - {"torch"}), "sympy", "torch._dynamo"} & touched
    assert not (SLOW - {"torch"}) & fitted
