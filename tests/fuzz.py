"""Fuzzed cases by hand: `python tests/fuzz.py KINDS PROGRAMS FIRST [COUNT]` prints their faults."""

import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from fuzz_place import place_in
from fuzzing import Place, drawing_nothing, verdict


def main(kinds: str, programs: str, first: str, count: str = "1") -> int:
    """Run cases, tell of their faults, and of how many there were; several names take commas."""
    faults = 0
    with tempfile.TemporaryDirectory() as folder, drawing_nothing():
        place = place_in(Path(folder))
        for kind in kinds.split(","):
            made = import_module(f"fuzz_{kind}")
            for program in made.CASES if programs == "all" else programs.split(","):
                faults += _run(kind, program, range(int(first), int(first) + int(count)), place)
    return int(faults > 0)


def _run(kind: str, program: str, numbers: range, place: Place) -> int:
    made = import_module(f"fuzz_{kind}")
    start, faults, taken = time.monotonic(), 0, 0
    for number in numbers:
        case = made.case(place, program, number)
        if len(numbers) == 1:
            print(case)
        wrong, was_taken = verdict(kind, case, number, place.folder)
        faults, taken = faults + bool(wrong), taken + was_taken
        print(wrong, end="", flush=True)
    told = f"{len(numbers)} cases, {taken} taken, {faults} faults"
    print(f"{kind} {program}: {told}, {time.monotonic() - start:.1f} s", flush=True)
    return faults


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
