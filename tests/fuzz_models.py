"""Trained folders with something wrong with them: damaged, cut off, foreign, edited by hand."""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from shutil import copytree
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
from fuzz_files import bytes_changed
from fuzzing import Case, Outcome, Place, chance, outcome, pipe

from cnf.storage import with_checksum

JUNK: tuple[Any, ...] = (
    None, "", "junk", "os.system", -1, 0, 1, 2, 1.5, -0.0, 1e300, -1e300, 1e-320, float("nan"),
    float("inf"), 10**9, 10**18, 10**30, 10**400, True, False, [], {}, [[]], [1], ["height"],
    [None], {"a": 1}, [1e300], "ü", "\ud800", "a\nb", "\0", "x" * 5000, [1] * 1000, [[1, 2], [3]],
    "1", "float64", "../rows.csv", "moons", "dopri8", "euler", "mle", [4, 4], [0], [-4], [4.0],
    ["4"], "NaN",
)  # fmt: skip
FILES = ("config.json", "model.safetensors", "metrics.jsonl", "training.safetensors")
DATA = {"evaluate": ("--json",), "check": ("--rows", "5", "--points", "5", "--json")}


def entries(config: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the entries of a configuration are, at every depth."""
    inner: Any = ()
    if isinstance(config, dict):
        inner = config.items()
    elif isinstance(config, list):
        inner = enumerate(config)
    for key, entry in inner:
        yield (*path, key)
        yield from entries(entry, (*path, key))


def edited(random: Random, config: dict[str, Any]) -> str:
    """An entry that is another, gone, there twice, or a little off; tells which."""
    path = random.choice(list(entries(config)))
    place = config
    for key in path[:-1]:
        place = place[key]
    last, old = path[-1], place[path[-1]]
    what = random.choice(["junk"] * 4 + ["gone", "new", "near", "near", "wrapped"])
    if what == "gone":
        del place[last]
    elif what == "new" and isinstance(place, dict):
        place["bogus"] = random.choice(JUNK)
    elif what == "near" and isinstance(old, int | float):
        place[last] = random.choice(
            [old + 1, old - 1, old * 2, -old, float(old), old / 2, str(old)]
        )
    elif what == "near" and isinstance(old, str):
        place[last] = random.choice([old + " ", old.upper(), old[:-1], old + "x"])
    elif what == "near" and isinstance(old, list):
        place[last] = random.choice([[*old, *old], old[::-1], old[:-1], [*old, 1], [*old, "a"]])
    elif what == "wrapped":
        place[last] = random.choice([[old], {"value": old}, str(old)])
    else:
        place[last] = random.choice(JUNK)
    made = str(place.get(last))[:60] if isinstance(place, dict) else ""
    return f"{what} {'.'.join(map(str, path))} {made!r}"


def config_edited(random: Random, folder: Path) -> str:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    story = edited(random, config)
    if random.random() < 0.2:
        story += "; " + edited(random, config)
    seal = random.random() < 0.5
    path.write_text(json.dumps(with_checksum(config) if seal else config, indent=2))
    return f"{story}{', sealed' * seal}"


def file_damaged(random: Random, folder: Path) -> str:
    path = folder / random.choice([*FILES, "config.json", "config.json", "model.safetensors"])
    content, story = bytes_changed(random, path.read_bytes())
    path.write_bytes(content)
    return f"{path.name}{story}"


def file_cut(random: Random, folder: Path) -> str:
    """At every KiB of every file, and a byte beside it."""
    path = folder / random.choice(FILES)
    content = path.read_bytes()
    at = 1024 * random.randrange(len(content) // 1024 + 1) + random.choice([0, 0, -1, 1])
    path.write_bytes(content[: max(at, 0)])
    return f"{path.name} cut at {at}"


def weights_foreign(random: Random, folder: Path) -> str:
    """Weights of something else, or with another number in them, by their right checksum."""
    path = folder / "model.safetensors"
    tensors = dict(safetensors.numpy.load(path.read_bytes()))
    name = random.choice(sorted(tensors))  # files have them in any order
    own = tensors[name]
    what = random.choice(
        ["other", "none", "fewer", "more", "shape", "kind", "nan", "huge", "renamed"]
    )
    tensors |= {
        "other": {"other": np.zeros(3)},
        "more": {"bogus": np.zeros(3, np.float32)},
        "shape": {name: np.zeros((*own.shape, 2), np.float32)},
        "kind": {name: own.astype(np.int64)},
        "nan": {name: np.full_like(own, np.nan)},
        "huge": {name: np.full_like(own, 1e30)},
        "renamed": {f"{name}x": own},
    }.get(what, {})
    if what in ("other", "none"):
        tensors = {key: tensors[key] for key in tensors if key == what}
    if what in ("fewer", "renamed"):
        del tensors[name]
    weights = safetensors.numpy.save(tensors)
    path.write_bytes(weights)
    if random.random() < 0.7:
        config = json.loads((folder / "config.json").read_text())
        config["sha256"] = hashlib.sha256(weights).hexdigest()
        (folder / "config.json").write_text(json.dumps(with_checksum(config)))
    return f"weights {what} {name}, sealed"  # by whoever made them


def file_replaced(random: Random, folder: Path) -> str:
    """A file that is gone, a folder, a pipe, empty, another's, or that may not be read."""
    path = folder / random.choice(FILES)
    what = random.choice(["gone", "folder", "pipe", "empty", "other", "device", "loop"])
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        pipe(path)
    elif what == "empty":
        path.touch()
    elif what == "other":
        path.write_bytes((folder.parent.parent / "rows.csv").read_bytes())
    elif what in ("device", "loop"):
        path.symlink_to("/dev/zero" if what == "device" else path)
    return f"{path.name} {what}"


def version_newer(random: Random, folder: Path) -> str:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["format"] = random.choice([2, 10, 0, -1, "1", 1.5, None, [1], "2.0"])
    config |= random.choice([{}, {"layers": {}}, {"new": 1}])
    path.write_text(json.dumps(with_checksum(config)))
    return f"format {config['format']!r}, sealed"


def metrics_edited(random: Random, folder: Path) -> str:
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    story = edited(random, lines[-1])
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return f"metrics {story}"


DAMAGES = (
    *[config_edited] * 5, *[file_damaged] * 5, *[file_cut] * 3, *[weights_foreign] * 2,
    *[file_replaced] * 2, version_newer, metrics_edited,
)  # fmt: skip


def arguments(place: Place, program: str, model: Path) -> tuple[str, ...]:
    """What a program is asked of a model."""
    rows = str(place.folder / ("typed.csv" if model.name == "typed" else "rows.csv"))
    out = str(place.work / "out.csv")
    return {
        "sample": ("-n", "3", "--out", out),
        "log-prob": ("--data", rows, "--out", out),
        "plot": (),
        "train": (),
    }.get(program, ("--data", rows, *DATA.get(program, ())))


@cache
def answer(place: Place, program: str, name: str) -> Any:
    """What an undamaged model answers."""
    model = place.folder / name
    came = outcome(program, (str(model), *arguments(place, program, model)), place.folder)
    found = answered(place, came)
    (place.work / "out.csv").unlink(missing_ok=True)
    return found


def answered(place: Place, came: Outcome) -> Any:
    out = place.work / "out.csv"
    return pd.read_csv(out).to_dict("list") if out.exists() else came.out


def resumed(place: Place, random: Random, program: str) -> Case:
    """A run that is to go on from a damaged folder."""
    out = place.work / "out"
    copytree(place.folder / "model", out)
    story = random.choice([file_damaged, file_cut, file_replaced])(random, out)
    if random.random() < 0.5:
        (out / "training.safetensors").unlink(missing_ok=True) if not (
            out / "training.safetensors"
        ).is_dir() else None
        content = (place.folder / "model" / "training.safetensors").read_bytes()
        content, more = bytes_changed(random, content)
        if not (out / "training.safetensors").exists():
            (out / "training.safetensors").write_bytes(content)
            story += f"; state {more}"
    argv = (str(place.folder / "rows.csv"), "--out", str(out), "--resume")
    return Case(program, argv, story, outs=(out,))


def recipe(place: Place, random: Random, program: str) -> Case:
    """A recipe from an edited or damaged config.json, or as --show-recipe prints it."""
    config = json.loads((place.folder / "model" / "config.json").read_text())
    path = place.work / "recipe.json"
    found = config["metadata"]["recipe"]
    story = edited(random, found)
    content = json.dumps(random.choice([config, found])).encode()
    if random.random() < 0.3:
        content, more = bytes_changed(random, content)
        story += more
    path.write_bytes(content)
    argv = (str(place.folder / "rows.csv"), "--show-recipe", "--recipe", str(path))
    return Case(program, argv, f"recipe {story}")


def kinds(place: Place, random: Random, program: str) -> Case:
    """A schema of the typed table, edited or damaged."""
    schema: dict[str, Any] = {
        "x": {
            "kind": random.choice(["real", "positive", "bounded", "circular"]),
            "low": -1,
            "high": 9,
        },
        "n": {"kind": "integer", "low": 0, "high": 20},
        "colour": {"kind": "categorical", "categories": ["r", "g", "b"]},
    }
    story = edited(random, schema)
    content = json.dumps(schema).encode()
    if random.random() < 0.2:
        content, more = bytes_changed(random, content)
        story += more
    path, out = place.work / "schema.json", place.work / "out"
    path.write_bytes(content)
    words = ("--out", str(out), "--steps", "1", "--hidden", "4") if random.random() < 0.05 else ()
    words = words or ("--show-recipe",)
    argv = (str(place.folder / "typed.csv"), *words, "--schema", str(path))
    return Case(program, argv, f"schema {story}", outs=(out,))


TRAINED = (resumed, recipe, kinds, recipe, kinds)


def case(place: Place, program: str, number: int) -> Case:
    """A damaged model for a program."""
    random, work = chance("models", program, number), place.cleared()
    if program == "train":
        made: Callable[[Place, Random, str], Case] = random.choice(
            [resumed, recipe, kinds, recipe, kinds]
        )
        return made(place, random, program)
    name = "model" if program == "plot" else random.choice(["model", "model", "typed"])
    wanted = answer(place, program, name)
    folder = work / name
    copytree(place.folder / name, folder)
    story = random.choice(DAMAGES)(random, folder)

    def check(came: Outcome) -> str:
        same = answered(place, came) == wanted or "as it was written" in came.err
        return "" if same or "sealed" in story or program == "plot" else "another answer, silently"

    argv = (str(folder), *arguments(place, program, folder))
    return Case(program, argv, story, check, (work / "out.csv", folder / "figures"))


CASES = ("train", "evaluate", "sample", "log-prob", "plot", "check")
