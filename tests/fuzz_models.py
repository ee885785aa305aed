"""Trained folders, recipes and schemas: damaged, cut off, foreign, edited by hand."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
from fuzzing import Case, Draw, Outcome, Place, changed_bytes, outcome
from hypothesis import strategies as st

from cnf.storage import with_checksum

special = st.sampled_from([
    "os.system", 10**9, 10**18, 10**30, 10**400, -0.0, float("nan"), float("inf"), "\ud800", "\0",
    "x" * 5000, [1] * 1000, ["height"], [[1, 2], [3]], "float64", "../rows.csv", "moons", "dopri8",
    "euler", "mle", [4, 4], [0], [-4], [4.0], ["4"], "NaN",
])  # fmt: skip
junk = special | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
FILES = ("config.json", "model.safetensors", "metrics.jsonl", "training.safetensors")


def entries(config: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and key of each entry of a configuration, at every depth."""
    if isinstance(config, dict | list):
        for key in list(config) if isinstance(config, dict) else range(len(config)):
            yield config, key
            yield from entries(config[key])


def edit(draw: Draw, config: dict[str, Any]) -> None:
    """Replace, remove, add or slightly change an entry."""
    container, key = draw(st.sampled_from(list(entries(config))))
    old = container[key]
    near: list[Any] = [[old], str(old)]
    if isinstance(old, int | float):
        near += [old + 1, old - 1, old * 2, -old, float(old), old / 2]
    elif isinstance(old, str):
        near += [old + " ", old.upper(), old[:-1]]
    elif isinstance(old, list):
        near += [[*old, *old], old[::-1], old[:-1], [*old, "a"]]
    what = draw(st.sampled_from(["junk", "junk", "near", "gone", "new"]))
    if what == "gone":
        del container[key]
    elif what == "new" and isinstance(container, dict):
        container["bogus"] = draw(junk)
    else:
        container[key] = draw(st.sampled_from(near) if what == "near" else junk)


def config_edited(draw: Draw, folder: Path) -> bool:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for _ in range(draw(st.integers(0, 2))):
        edit(draw, config)
    config["format"] = draw(st.sampled_from([config.get("format")] * 4 + [2, -1, "1", 1.5, None]))
    seal = draw(st.booleans())
    path.write_text(json.dumps(with_checksum(config) if seal else config, indent=2))
    return seal


def metrics_edited(draw: Draw, folder: Path) -> bool:
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(draw, lines[-1])
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return False


def file_damaged(draw: Draw, folder: Path) -> bool:
    """Change bytes of a file, or cut it at a KiB or a byte next to it."""
    path = folder / draw(st.sampled_from(FILES))
    content = path.read_bytes()
    at = 1024 * draw(st.integers(0, len(content) // 1024)) + draw(st.integers(-1, 1))
    cut = draw(st.booleans())
    path.write_bytes(content[: max(at, 0)] if cut else changed_bytes(draw, content))
    return False


def weights_foreign(draw: Draw, folder: Path) -> bool:
    """Write other weights, most often with their right checksum."""
    path = folder / "model.safetensors"
    tensors = dict(safetensors.numpy.load(path.read_bytes()))
    name = draw(st.sampled_from(sorted(tensors)))
    own = tensors.pop(name)
    others = (own[..., None], own.astype(np.int64), own * np.nan, np.full_like(own, 1e30))
    added = [{}, {f"{name}x": own}, {name: own, "bogus": np.zeros(3)}, *({name: o} for o in others)]
    weights = [{}, {"other": np.zeros(3)}, *(tensors | each for each in added)]
    path.write_bytes(safetensors.numpy.save(draw(st.sampled_from(weights))))
    if draw(st.booleans()):
        config = json.loads((folder / "config.json").read_text())
        config["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "config.json").write_text(json.dumps(with_checksum(config)))
    return True


def file_replaced(draw: Draw, folder: Path) -> bool:
    """Replace a file by nothing, a folder, a pipe, an empty file, a table, a device, a loop."""
    path = folder / draw(st.sampled_from(FILES))
    path.unlink()
    makers = (path.mkdir, partial(os.mkfifo, path), path.touch, lambda: None,
              partial(path.write_bytes, b"x,y\n1,2\n"), partial(path.symlink_to, "/dev/zero"),
              partial(path.symlink_to, path))  # fmt: skip
    draw(st.sampled_from(makers))()
    return False


MODELS = {"predict": ("series",), "check": ("model", "model", "typed")}
DAMAGES = (config_edited, file_damaged, config_edited, file_damaged, weights_foreign, file_replaced,
           metrics_edited)  # fmt: skip


def arguments(place: Place, program: str, model: Path) -> tuple[Any, ...]:
    if model.name == "series" and program in ("evaluate", "log-prob", "predict"):
        words = ("--data", place.folder / "series.csv")
        if program == "evaluate":
            return (*words, "--json")
        times = ("--times", place.folder / "times.csv") if program == "predict" else ()
        return (*words, *times, "--out", place.work / "out.csv")
    data = ("--data", place.folder / ("typed.csv" if model.name == "typed" else "rows.csv"))
    out = ("--out", place.work / "out.csv")
    return {
        "evaluate": (*data, "--json"),
        "check": (*data, "--rows", 5, "--points", 5, "--json"),
        "sample": ("-n", 3, *out),
        "log-prob": (*data, *out),
    }.get(program, ())


@cache
def answer(place: Place, program: str, name: str) -> Any:
    """Return the answer of the undamaged model."""
    model = place.folder / name
    case = Case(program, (model, *arguments(place, program, model)))
    return answered(place, outcome(case, place))


def answered(place: Place, came: Outcome) -> Any:
    out = place.work / "out.csv"
    return pd.read_csv(out).to_dict("list") if out.exists() else came.out


def model_case(draw: Draw, place: Place, program: str) -> Case:
    """A damaged model answers as before, refuses, or says so, unless its checksum is right."""
    name = draw(st.sampled_from(MODELS.get(program, ("model", "model", "typed", "series"))))
    place.cleared()
    wanted = answer(place, program, name)
    folder = copytree(place.folder / name, place.cleared() / name)
    sealed = draw(st.sampled_from(DAMAGES))(draw, folder)

    def check(came: Outcome) -> str:
        same = answered(place, came) == wanted or "as it was written" in came.err
        return "" if same or sealed or program == "plot" else "another answer, silently"

    argv = (folder, *arguments(place, program, folder))
    return Case(program, argv, check, (place.work / "out.csv", folder / "figures"))


def train_case(draw: Draw, place: Place) -> Case:
    """Resume from a damaged folder, or train by a damaged recipe or schema."""
    work, rows = place.cleared(), place.folder / "rows.csv"
    path, out = work / "it.json", work / "out"
    what = draw(st.sampled_from(["resume", "recipe", "schema"]))
    words: tuple[Any, ...] = ("--show-recipe",)
    if what == "resume":
        copytree(place.folder / "model", out)
        draw(st.sampled_from([file_damaged, file_replaced]))(draw, out)
        return Case("train", (rows, "--out", out, "--resume"), outs=(out,))
    if what == "recipe":
        whole = json.loads((place.folder / "model" / "config.json").read_text())
        config = whole["metadata"]["recipe"]
    else:
        rows = place.folder / "typed.csv"
        real = draw(st.sampled_from(["real", "positive", "bounded", "circular"]))
        whole = config = {
            "x": {"kind": real, "low": -1, "high": 9},
            "n": {"kind": "integer", "low": 0, "high": 20},
            "colour": {"kind": "categorical", "categories": ["r", "g", "b"]},
        }
        if draw(st.integers(0, 19)) == 7:
            words = ("--out", out, "--steps", 1, "--hidden", 4)
    edit(draw, config)
    content = json.dumps(draw(st.sampled_from([config, whole]))).encode()
    path.write_bytes(changed_bytes(draw, content) if draw(st.booleans()) else content)
    return Case("train", (rows, *words, f"--{what}", path), outs=(out,))


CASES = {"train": train_case} | {
    program: partial(model_case, program=program)
    for program in ("evaluate", "sample", "log-prob", "plot", "check", "predict")
}
