"""What all fuzzed inputs start from: a table, and tiny models that are trained on it."""

import json
from pathlib import Path
from shutil import copytree, rmtree

from fuzz_tables import QUICK
from fuzzing import Place, drawing_nothing
from test_scripts_running import COLUMNS, done, rows_of_table, write_csv

from cnf.storage import with_checksum


def place_in(folder: Path) -> Place:
    """`model`; `given`, conditional on the first column; `sourced`, of a table in the work folder;
    `typed`, with whole numbers and categories.
    """
    place = Place(folder)
    rows = write_csv(folder / "rows.csv", rows_of_table(12, seed=1).round(4))
    typed = folder / "typed.csv"
    typed.write_text("x,n,colour\n" + "".join(f"{i / 7},{i},{'rgb'[i % 3]}\n" for i in range(12)))
    with drawing_nothing():
        done("train", rows, "--out", folder / "model", *QUICK)
        done("train", rows, "--out", folder / "given", "--context", COLUMNS[0], *QUICK)
        done("train", typed, "--out", folder / "typed", *QUICK)
    for name in ("model", "given", "typed"):
        rmtree(folder / name / "figures")
    copytree(folder / "model", folder / "sourced")
    config = json.loads((folder / "sourced" / "config.json").read_text())
    config["metadata"]["data"] = str(place.work / "source.csv")
    (folder / "sourced" / "config.json").write_text(json.dumps(with_checksum(config)))
    place.cleared()
    return place
