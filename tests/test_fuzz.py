"""Fuzzed inputs for every program: no traceback, no hang, no wrong answer that is taken silently.

The ordinary suite runs a few of each kind, by fixed numbers; `pytest -m slow tests/test_fuzz.py` at
least two thousand for each program. A fault tells how it is seen again.
"""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest
from fuzz_place import place_in
from fuzzing import Outcome, Place, drawing_nothing, fault, snapshot, verdict

from cnf.scripts.__main__ import PROGRAMS

KINDS = ("tables", "arguments", "models")
SLICE = 250  # cases of a slow test
# Cases of each kind for each program: `few` in the ordinary suite, and in all.
FEW = {"tables": 12, "arguments": 12, "models": 12}
DEAR = {"check": 3, "train-vae": 4, "plot": 6, "evaluate": 8}  # of seconds where they are taken
ALL = {"tables": 1250, "arguments": 750, "models": 750}
PROCESSES = 50


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    with drawing_nothing():
        yield place_in(tmp_path_factory.mktemp("place"))


def pairs() -> list[tuple[str, str]]:
    return [(kind, name) for kind in KINDS for name in import_module(f"fuzz_{kind}").CASES]


def faults(place: Place, kind: str, program: str, numbers: range) -> str:
    """The faults of some cases, as text."""
    made = import_module(f"fuzz_{kind}").case
    return "".join(verdict(kind, made(place, program, i), i, place.folder)[0] for i in numbers)


@pytest.mark.parametrize(("kind", "program"), pairs())
def test_a_few(kind, program, place):
    found = faults(place, kind, program, range(DEAR.get(program, FEW[kind])))
    assert not found, found


def slices() -> list[tuple[str, str, int]]:
    return [
        (kind, program, start)
        for kind, program in pairs()
        for start in range(0, count(kind, program), SLICE)
    ]


def count(kind: str, program: str) -> int:
    """So many that each program has two thousand, though it may have no models."""
    rest = 0 if program in import_module("fuzz_models").CASES or kind == "models" else 375
    return ALL[kind] + rest


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "program", "start"), slices())
def test_all(kind, program, start, place):
    end = min(start + SLICE, count(kind, program))
    found = faults(place, kind, program, range(start, end))
    assert not found, found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(PROCESSES))
@pytest.mark.parametrize("program", PROGRAMS)
def test_processes(program, number, place):
    """Some of the same, each in a process of its own, which is all that a user has."""
    kinds = [kind for kind, name in pairs() if name == program]
    kind = kinds[number % len(kinds)]
    case = import_module(f"fuzz_{kind}").case(place, program, number)
    before = snapshot(place.folder)
    words = [word for word in case.argv if "\0" not in word]
    command = (sys.executable, "-m", "cnf.scripts", program, *words)
    ended = subprocess.run(command, capture_output=True, cwd=place.work, timeout=120, check=False)
    out, err = (stream.decode("utf-8", "replace") for stream in (ended.stdout, ended.stderr))
    came = Outcome(ended.returncode, out, err, 0.0, "", before, snapshot(place.folder))
    wrong = fault(case, came)
    assert not wrong, f"{kind} {program} {number}: {case.argv}\n{wrong}"
