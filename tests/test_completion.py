"""The command as a shell sees it: completion, --version, `python -m cnf`, help on one screen."""

import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
from test_scripts_running import complaint, done, run

import cnf
from cnf.scripts.__main__ import PROGRAMS
from cnf.scripts.completion import COMPLETION_SHELLS, completion
from cnf.scripts.train import RECIPE_GROUPS
from cnf.training.recipes import Recipe

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash")


@pytest.fixture(scope="module")
def script():
    return completion("bash", PROGRAMS)


def completed(script: str, *words: str) -> set[str]:
    """What bash completes the last of some words to."""
    asked = (
        f"{script}\nCOMP_WORDS=({' '.join(map(repr, words))}) COMP_CWORD={len(words) - 1}\n"
        'name=$(complete -p cnf | sed "s/.*-F \\([^ ]*\\) .*/\\1/")\n$name cnf\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    told = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    return set(told.stdout.split())


@bash
def test_the_script_is_valid(script):
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@bash
def test_programs_options_and_data_are_completed(script):
    assert set(PROGRAMS) <= completed(script, "cnf", "")
    assert completed(script, "cnf", "eva") == {"evaluate"}
    assert completed(script, "cnf", "train", "--bud") == {"--budget"}
    assert completed(script, "cnf", "train", "--x-s") == {"--x-scale"}
    assert completed(script, "cnf", "train", "8g") == {"8gaussians"}


@bash
def test_folders_are_completed(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs_of_mine").mkdir()
    assert completed(script, "cnf", "check", "run") == {"runs_of_mine"}


@pytest.mark.parametrize("shell", COMPLETION_SHELLS)
def test_each_shell_has_a_script(shell):
    text = done("--print-completion", shell)
    assert all(name in text for name in PROGRAMS)


@pytest.mark.parametrize("words", [[], ["csh"], ["bash", "zsh"]])
def test_another_shell_is_refused(words):
    assert "bash" in complaint("--print-completion", *words)


def test_version():
    assert done("--version") == f"cnf-flows {cnf.__version__}\n"


def test_the_package_runs_as_the_command():
    asked = [sys.executable, "-m", "cnf", "--version"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert told.stdout == done("--version")


def test_help_of_train_is_one_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "102")  # argparse leaves two free
    text = run("train", "--help").out
    assert text.count("\n") <= 40
    assert max(map(len, text.splitlines())) <= 100
    assert "--help-all" in text
    assert "--rtol" not in text


def test_each_number_of_a_recipe_stands_in_one_group():
    grouped = [name for names in RECIPE_GROUPS.values() for name in names.split()]
    assert sorted(grouped) == sorted(field.name for field in fields(Recipe))
