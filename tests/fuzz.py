"""Fuzzed cases by hand: `python tests/fuzz.py KIND PROGRAM NUMBER [COUNT]` prints their faults."""

import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from fuzz_place import place_in
from fuzzing import drawing_nothing, verdict

KINDS = ("tables", "arguments", "models", "settings")


def main(kind: str, program: str, first: str, count: str = "1") -> int:
    """Run cases, tell of their faults, and of how many there were."""
    with tempfile.TemporaryDirectory() as folder, drawing_nothing():
        place = place_in(Path(folder))
        made = import_module(f"fuzz_{kind}")
        start, faults = time.monotonic(), 0
        for number in range(int(first), int(first) + int(count)):
            case = made.case(place, program, number)
            if int(count) == 1:
                print(case)
            wrong = verdict(kind, case, number, place.folder)
            faults += bool(wrong)
            print(wrong, end="", flush=True)
        print(f"{kind} {program}: {count} cases, {faults} faults, {time.monotonic() - start:.1f} s")
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
