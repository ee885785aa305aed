"""Drawn inputs for every program: no traceback, no hang, no wrong answer without a word.

The ordinary suite runs a few of each kind, by fixed seeds; `pytest -m slow tests/test_fuzz.py` at
least two thousand for each program. Hypothesis prints how to repeat a failure.
"""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest
from fuzzing import Case, Outcome, Place, fault, outcome, place_in, snapshot
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from cnf.scripts.__main__ import PROGRAMS

KINDS = {
    (kind, program): make
    for kind in ("tables", "arguments", "models")
    for program, make in import_module(f"fuzz_{kind}").CASES.items()
}
FEW = 5
DEAR = {
    "check": 2,
    "train": 3,
    "train-vae": 2,
    "train-series": 3,
    "plot": 3,
    "evaluate": 3,
}  # programs that take seconds
PARTS, PART = 4, 250
PROCESSES = 50


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("place")) as place:
        yield place


def fuzz(kinds, program: str, place: Place, examples: int, part: int = 0, run=outcome) -> None:
    """Run drawn cases of a program, always the same for a part."""

    @seed(f"{kinds} {program} {part}")
    @settings(
        max_examples=examples,
        phases=[Phase.generate],  # shrinking a failure takes minutes
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[*HealthCheck],
    )
    @given(st.data())
    def cases(data: st.DataObject) -> None:
        case = KINDS[data.draw(st.sampled_from(kinds)), program](data.draw, place)
        note(f"cnf {program} {[word[:200] for word in case.words]}")
        wrong = fault(case, run(case, place))
        assert not wrong, wrong

    cases()


@pytest.mark.parametrize(("kind", "program"), KINDS)
def test_a_few(kind, program, place):
    fuzz([kind], program, place, DEAR.get(program, FEW))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, PARTS + 1))
@pytest.mark.parametrize(("kind", "program"), KINDS)
def test_all(kind, program, part, place):
    fuzz([kind], program, place, PART, part)


def in_a_process(case: Case, place: Place) -> Outcome:
    """Run a program as a user does."""
    before = snapshot(place.folder)
    words = [word for word in case.words if "\0" not in word]
    command = (sys.executable, "-m", "cnf.scripts", case.program, *words)
    ended = subprocess.run(command, capture_output=True, cwd=place.work, timeout=120, check=False)
    out, err = (stream.decode("utf-8", "replace") for stream in (ended.stdout, ended.stderr))
    return Outcome(ended.returncode, out, err, "", before, snapshot(place.folder))


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_processes(program, place):
    kinds = [kind for kind, name in KINDS if name == program]
    fuzz(kinds, program, place, PROCESSES, run=in_a_process)
