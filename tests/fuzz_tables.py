"""Tables with something wrong with them, in the hands of every program."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import torch
from fuzz_files import arrays, damaged, table
from fuzz_readers import LARGEST, csv_truth, loaded, selected
from fuzzing import Case, Outcome, Place, chance
from test_scripts_running import COLUMNS, rows_of_table

import cnf

TINY = ("--steps", "1", "--hidden", "4")
QUICK = (*TINY, "--objective", "mle", "--scaling", "standardize", "--batch-size", "4")


def scores(folder: Path, x: np.ndarray) -> np.ndarray:
    """Log p of rows by the model itself, one by one."""
    flow = cnf.load(folder)
    with torch.no_grad():
        return flow.log_prob(torch.from_numpy(x).to(flow.like)).double().numpy()


def alike(got: np.ndarray, wanted: np.ndarray) -> bool:
    return got.shape == wanted.shape and np.allclose(
        got, wanted, rtol=1e-5, atol=1e-5, equal_nan=False
    )


def log_prob_case(place: Place, random: Random) -> Case:
    """Each row has its own log p, whatever is beside it."""
    file, story, valid, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
    out, model = place.work / "scores.npy", place.folder / "model"

    def check(_: Outcome) -> str:
        x = selected(truth, COLUMNS)
        if x is None:
            return "taken, though it holds no rows of the model's"
        got, wanted = np.load(out)[:, 0], scores(model, x)
        return "" if alike(got, wanted) else f"wrong: {got} for {wanted}"

    argv = (str(model), "--data", str(file), "--out", str(out))
    return Case("log-prob", argv, story, check, (out,), valid)


def evaluate_case(place: Place, random: Random) -> Case:
    """The NLL is minus the mean of what log-prob says, over all rows."""
    file, story, valid, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
    model = place.folder / "model"

    def check(came: Outcome) -> str:
        x = selected(truth, COLUMNS)
        if x is None:
            return "taken, though it holds no rows of the model's"
        said, wanted = json.loads(came.out), -scores(model, x).mean()
        if said["n"] != len(x) or not alike(np.array(said["nll"]), np.array(wanted)):
            return f"wrong: {said} for {len(x)} rows of NLL {wanted}"
        return ""

    return Case("evaluate", (str(model), "--data", str(file), "--json"), story, check, (), valid)


def check_case(place: Place, random: Random) -> Case:
    """Checks on rows that are no rows, most of them; few are made, since they take seconds."""
    for _ in range(20):
        file, story, _, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
        if selected(truth, COLUMNS) is None or random.random() < 0.05:
            break
    argv = (str(place.folder / "model"), "--data", str(file), "--points", "5", "--rows", "5")

    def check(_: Outcome) -> str:
        return "" if selected(truth, COLUMNS) is not None else "taken, though it holds no rows"

    return Case("check", argv, story, check, (), False)


def sample_case(place: Place, random: Random) -> Case:
    """Draws for each context, in their order and with them beside."""
    file, story, valid, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
    out, n, named = place.work / "drawn.csv", random.choice([1, 2]), file.suffix == ".csv"

    def check(_: Outcome) -> str:
        context = selected(truth, COLUMNS[:1])
        if context is None:
            return "taken, though it holds no contexts"
        drawn = pd.read_csv(out)
        right = (
            list(drawn) == list(COLUMNS)
            and len(drawn) == n * len(context)
            and np.isfinite(drawn.to_numpy()).all()
            and np.array_equal(drawn[COLUMNS[0]], np.repeat(context[:, 0], n))
        )
        return "" if right else f"wrong draws: {drawn}"

    argv = (str(place.folder / "given"), "-n", str(n), "--out", str(out))
    return Case(
        "sample", (*argv, "--context-data", str(file)), story, check, (out,), valid and named
    )


def train_case(place: Place, random: Random) -> Case:
    """What is trained on has the file's rows and columns; mostly it is only read."""
    file, story, valid, truth = table(random, place.cleared(), rows_of_table(12, seed=1))
    out = place.work / "out"
    words = (*QUICK, "--out", str(out)) if random.random() < 0.06 else ("--show-recipe",)

    def check(_: Outcome) -> str:
        if truth is None:
            return "taken, though it holds no table"
        for name, column in truth[1].items():
            if not (np.abs(column) <= LARGEST).all():
                return f"taken, though {name} holds {np.abs(column).max()}"
        if not out.exists():
            return ""
        metadata = json.loads((out / "config.json").read_text())["metadata"]
        names = [name for name, kind in metadata["schema"].items() if kind["kind"] != "constant"]
        return "" if set(names) <= set(truth[0]) else f"trained on {names} of {truth[0]}"

    return Case("train", (str(file), *words), story, check, (out,), valid)


def plot_case(place: Place, random: Random) -> Case:
    """The table that was trained on has changed, mostly; what is drawn is of the very values."""
    values = rows_of_table(12, seed=1)
    random_file, story, _, truth = table(random, place.cleared(), values)
    content = random_file.read_bytes()
    random_file.unlink()
    (place.work / "source.csv").write_bytes(content)
    model, original = place.folder / "sourced", csv_truth((place.folder / "rows.csv").read_bytes())
    truth = csv_truth(content)

    def check(_: Outcome) -> str:
        found, drawn = (selected(each, original[0]) for each in (truth, original))
        return "" if np.array_equal(found, drawn) else "drawn of a table that has changed"

    return Case("plot", (str(model),), story, check, (model / "figures",))


def images_case(place: Place, random: Random) -> Case:
    """Images are whole numbers from 0 to 255, three-dimensional."""
    grey = np.random.default_rng(0).integers(0, 256, (20, 3, 3)).astype(np.uint8)
    flat = grey.reshape(20, 9)
    odd = {
        "as it is": grey, "flat": flat, "4-d": grey[..., None], "floats": grey / 1.0,
        "ones": grey / 255, "negative": grey.astype(int) - 1, "large": grey.astype(int) + 1,
        "nan": np.where(grey > 250, np.nan, grey / 1.0), "infinite": np.full((20, 3, 3), np.inf),
        "few": grey[:9],
        "none": grey[:0], "text": grey.astype(str), "objects": grey.astype(object),
        "dates": grey.astype("datetime64[s]"), "truths": grey > 9, "complex": grey + 0j,
        "0-d": np.array(1), "thin": grey[:, :0], "structured": np.zeros((20, 3, 3), "u1,u1"),
        "black": grey * 0, "huge": grey * 1e300,
    }  # fmt: skip
    name = random.choice([*odd])
    ending, stream = random.choice([".npy", ".npz"]), io.BytesIO()
    if ending == ".npy":
        np.save(stream, odd[name], allow_pickle=True)
    else:
        np.savez(stream, images=odd[name], other=flat)
    content, story, _ = damaged(random, stream.getvalue(), name, 128 * (ending == ".npy"))
    file = place.cleared() / f"images{ending}"
    file.write_bytes(content)
    data = str(file) if ending == ".npy" else f"{file}:{random.choice(['images'] * 5 + ['no', ''])}"
    out = place.work / "out"
    words = ("--epochs", "1", "--hidden", "4", "--latent-dim", "1", "--samples", "1")
    argv = (data, "--out", str(out), *words, "--posterior", "gaussian")
    return Case("train-vae", argv, f"{ending}: {story}", _vae_check(content, data), (out,))


def _vae_check(content: bytes, data: str) -> Callable[[Outcome], str]:
    def check(came: Outcome) -> str:
        try:
            found = loaded(content)
            found = found if isinstance(found, np.ndarray) else found[data.rpartition(":")[2]]
        except Exception as error:
            return f"taken, though it cannot be read: {error}"
        right = found.ndim == 3 and f"of {found.shape[1]} x {found.shape[2]}" in came.out
        return "" if right and found.min() >= 0 and found.max() <= 255 else "taken for images"

    return check


def uci_case(place: Place, random: Random) -> Case:
    """The file of the UCI's tables, damaged."""
    array, story = arrays(random, rows_of_table(60, seed=1)[:12])
    stream = io.BytesIO()
    np.savez(stream, wine=array, housing=rows_of_table(12))
    content, story, _ = damaged(random, stream.getvalue(), story)
    (place.cleared() / "uci_small.npz").write_bytes(content)
    argv = ("tables", "--section", "nll", "--tables", "wine", "--methods", "gaussian")
    argv = (*argv, "--splits", "1", "--budget", "0.1", "--data-dir", str(place.work))
    return Case("benchmark", argv, story)


CASES: dict[str, Callable[[Place, Random], Case]] = {
    "train": train_case,
    "train-vae": images_case,
    "evaluate": evaluate_case,
    "sample": sample_case,
    "log-prob": log_prob_case,
    "plot": plot_case,
    "check": check_case,
    "benchmark": uci_case,
}


def case(place: Place, program: str, number: int) -> Case:
    """A table for a program."""
    return CASES[program](place, chance("tables", program, number))
