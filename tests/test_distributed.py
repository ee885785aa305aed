"""Two processes on one run: they are one process with the doubled batch, and none hangs."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from children import both, together
from helpers import Stop, max_difference, stopping
from test_scripts_running import complaint, done, write_csv

import cnf
from cnf.layers import MovingNorm
from cnf.training.objectives import Loss, MaximumLikelihood
from cnf.training.recipes import Recipe
from cnf.utils.distributed import gather, local_slice, mean, process_group, rank, total, world_size

SCRIPTS = Path(__file__).parents[1] / "scripts"
DATA = torch.randn(230, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 10
MATCHED = {"matching_batch": 16, "matching_rate": 1e-2, "matching": 0.5, "validations": 5}
NUMBERS = {"learning_rate": 1e-2, "batch_size": 16, "ema_decay": 0.9}
RECIPE = Recipe(objective="mle", hidden=(8,), **MATCHED, **NUMBERS)
STEPS = 10
HYBRID = dataclasses.replace(RECIPE, objective="hybrid", coupling="optimal_transport")
STATISTICS = {"blocks": 2, "batch_norm": True}
NORMALIZED = dataclasses.replace(RECIPE, kinetic=0.1, **STATISTICS)
EARLY = dataclasses.replace(HYBRID, patience=1, matching_rate=3.0, ema_decay=0.0)
FREQUENCIES = {"x_features": 3, "x_scale": 1.0}
BOTH = ("hybrid", "normalized", "other weights", "patience", "budget", "resumed", "nan", "solve")


def flow_for(seed=0, step_size=0.25, **options):
    torch.manual_seed(seed)
    flow = cnf.ffjord(2, hidden=(8,), zero_last=False, **options).double()
    return flow.with_solver(step_size=step_size)


def trained(recipe=RECIPE, flow=None, **options):
    """The outcome of a run, as tensors."""
    flow, losses = flow or flow_for(), []
    options = {"steps": STEPS, "callbacks": [lambda event: losses.append(event.loss)], **options}
    history = cnf.fit(flow, DATA, recipe=recipe, **options)
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "weights": {name: tensor.clone() for name, tensor in flow.state_dict().items()},
        "validation": torch.from_numpy(history.validation_nll),
        **{name: getattr(history, name).tolist() for name in ("objective", "step")},
        **{name: getattr(history, name) for name in ("skipped", "steps", "reason")},
    }


def failing(flow, how):
    """Have the third, fifth and sixth loss of this process fail."""
    original, calls = MaximumLikelihood.__call__, iter(range(1, 1000))

    def objective(self, flow, *rows):
        fails = next(calls) in (3, 5, 6)
        if fails and how == "solve":
            flow = flow.with_solver(step_size=None, rtol=1e-14, max_steps=1)
        loss = original(self, flow, *rows)
        return Loss(math.nan * loss.value) if fails else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaximumLikelihood, "__call__", objective)
        return trained(flow=flow)


def stop_and_resume(state):
    for at in (2, 5, 7):  # the switch is after 5
        with pytest.raises(Stop):
            trained(HYBRID, callbacks=[stopping(at)], state=state, state_seconds=0)
    return trained(HYBRID, flow_for(seed=5), state=state)


def drawn():
    """What PyTorch's generator gives in training, which leaves this process's own as it was."""
    numbers, recipe = [], dataclasses.replace(RECIPE, objective="matching")
    flow, before = flow_for(), torch.get_rng_state()
    trained(recipe, flow, steps=1, callbacks=[lambda event: numbers.append(torch.rand(3))])
    assert torch.equal(torch.get_rng_state(), before)
    return numbers[0]


def library(folder):
    """All that is asked of each of two processes, in one go: they take long to meet."""
    with process_group():
        layer = MovingNorm(2).double()
        layer.update(total(layer.sums(DATA[local_slice(101)])))
        found = {
            "who": (rank(), world_size()),
            "shares": [list(range(count)[local_slice(count)]) for count in (0, 1, 7, 10)],
            "mean": mean([1.0 + rank(), 5.0], DATA),
            "gather": gather({"rank": rank()}),
            "statistics": torch.stack([layer.mean, layer.variance]),
            "hybrid": trained(HYBRID),
            "normalized": trained(NORMALIZED, flow_for(**STATISTICS)),
            "other weights": trained(flow=flow_for(seed=rank(), field_options=FREQUENCIES)),
            "one row to validate": trained(validation=DATA[:1]),
            "patience": trained(EARLY, steps=20),
            "budget": trained(HYBRID, flow_for(blocks=2), steps=None, budget=0.4),
            "resumed": stop_and_resume(folder.parent / "state"),
            "drawn": drawn(),
        }
        for how in ("nan", "solve"):
            found[how] = failing(flow_for(), how) if rank() == 1 else trained()
    found["threads"] = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes found, and the folder of theirs."""
    folder = tmp_path_factory.mktemp("two")
    assert together(library, folder) == [0, 0]
    return [torch.load(folder / str(process) / "found.pt") for process in range(2)], folder


def assert_close(left, right, losses=1e-8, weights=1e-10):
    assert left["losses"].shape == right["losses"].shape
    assert max_difference(left["losses"], right["losses"]) <= losses
    torch.testing.assert_close(left["weights"], right["weights"], rtol=0, atol=weights)
    assert max_difference(left["validation"], right["validation"]) <= weights
    for name in ("step", "skipped", "steps", "reason"):
        assert left[name] == right[name]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one row to validate", {"validation": DATA[:1]}),
        # With a regulariser too.
        ("normalized", {"flow": flow_for(**STATISTICS), "recipe": NORMALIZED}),
        # Each process made another flow: training begins with the first's weights and frequencies.
        ("other weights", {"flow": flow_for(field_options=FREQUENCIES)}),
    ],
)
def test_two_processes_are_one_with_the_doubled_batch(name, options, two):
    """Loss curve, weights and validations: gradients and losses are means over the whole batch."""
    doubled = dataclasses.replace(options.get("recipe", RECIPE), matching_batch=32, batch_size=32)
    one = trained(**{**options, "recipe": doubled})
    for found in two[0]:
        assert_close(found[name], one)


@pytest.mark.parametrize("name", BOTH)
def test_both_processes_have_the_same_run(name, two):
    """A step that fails on one of them is skipped on both."""
    left, right = (found[name] | {"losses": found[name]["losses"].nan_to_num()} for found in two[0])
    assert_close(left, right, losses=0, weights=0)
    if name in ("nan", "solve"):
        assert (left["skipped"], left["steps"], left["reason"]) == (3, STEPS, "steps")
        for found in two[0]:
            assert found[name]["losses"].isnan().nonzero().flatten().tolist() == [2, 4, 5]
        assert all(tensor.isfinite().all() for tensor in left["weights"].values())


def test_a_resumed_run_is_the_uninterrupted_one_and_patience_ends_matching_on_both(two):
    for found in two[0]:
        whole, resumed = dict(found["hybrid"]), found["resumed"]
        whole["losses"] = whole["losses"][-len(resumed["losses"]) :]
        assert_close(resumed, whole, losses=1e-12, weights=1e-12)
        steps = dict(zip(found["patience"]["objective"], found["patience"]["step"], strict=True))
        assert steps["flow matching"] < 10  # where its share would end
        assert "maximum likelihood" in steps
    with pytest.raises(ValueError, match="number of processes was 2, and now is 1"):
        trained(HYBRID, state=two[1] / "state")


def test_processes_share_their_work_and_draw_on_their_own(two):
    """Moving statistics are of the whole batch, also where the processes' shares differ."""
    left, right = two[0]
    assert (left["who"], right["who"]) == ((0, 2), (1, 2))
    for whole, a, b in zip((0, 1, 7, 10), left["shares"], right["shares"], strict=True):
        assert a + b == list(range(whole))
        assert abs(len(a) - len(b)) <= 1
    statistics = torch.stack([DATA[:101].mean(0), DATA[:101].var(0, correction=0)])
    for found in (left, right):
        assert found["mean"] == [1.5, 5.0]
        assert found["gather"] == [{"rank": 0}, {"rank": 1}]
        torch.testing.assert_close(found["statistics"], statistics, rtol=1e-12, atol=0)
        # At the interpreter's end, a thread that still holds a tensor would abort the process.
        assert not [name for name in found["threads"] if "gloo" in name]
    assert (left["drawn"] != right["drawn"]).all()


def test_one_process_alone_is_the_identity():
    assert (rank(), world_size(), local_slice(7)) == (0, 1, slice(0, 7))
    assert (mean([1.0, math.inf], DATA), gather("a")) == ([1.0, math.inf], ["a"])


WORDS = ("--hidden", "8", "--matching-batch", "32", "--batch-size", "32", "--steps", "10")
WORDS += ("--flows", "1")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    mixing = [[2.0, 1.0, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 1.0]]
    numbers = np.random.default_rng(0).normal(size=(3003, 3)) @ mixing
    return write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", numbers, ("a", "b", "c"))


WELL = ("train", "resume", "auto", "hutchinson", "codes", "codes scored")
MISTAKES = ("not empty", "no data", "other number")


@pytest.fixture(scope="module")
def programs(rows, tmp_path_factory):
    """The folder of a run of two processes, and the outcomes of commands by both."""
    place = tmp_path_factory.mktemp("programs")
    train, score = ("train", rows, "--out", place / "run"), ("evaluate", place / "run", "--json")
    mixed = place / "mixed.csv"
    table = pd.read_csv(rows).head(300)
    table.assign(b=table.b > 0, c=table.c.round()).to_csv(mixed, index=False)
    found = both(
        place / "two",
        (*train, *WORDS),
        (*train, "--resume"),
        (*score, "--divergence", "auto", "--data", rows),
        (*score, "--divergence", "hutchinson"),
        ("train", mixed, "--out", place / "codes", "--steps", "3"),
        ("evaluate", place / "codes", "--json"),
        train,
        ("train", rows.with_name("none.csv"), "--out", place / "new"),
        (*train, "--resume", "--learning-rate", "0.5"),
    )
    return place / "run", dict(zip((*WELL, *MISTAKES), found, strict=True))


def assert_one_run(out, text):
    """One folder, each line once, and a model that one process can score."""
    lines = text.splitlines()
    assert len(set(lines)) == len(lines)
    assert (text.count("10 steps"), text.count("evaluations")) == (1, 1)
    files = ["config.json", "figures", "metrics.jsonl", "model.safetensors", "training.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == files
    drawn = ["learning_curve.png", "pairs.png"]
    assert sorted(path.name for path in (out / "figures").iterdir()) == drawn
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records]
    assert (steps, steps[-1]) == (sorted(set(steps)), 10)
    scores = done("evaluate", out).splitlines()
    scores = [line for line in scores if "uncertainty" not in line]  # which evaluate alone finds
    assert lines[-len(scores) - 2 : -2] == scores  # then come the figures


def test_training_by_two_processes_is_one_run(rows, programs):
    """A finished run is over at once; one process cannot resume it."""
    out, found = programs
    for name in WELL:
        (status, _, errors), silent = found[name]
        assert (status, errors, silent) == (0, "", [0, "", ""]), name
    assert_one_run(out, found["train"][0][1])
    assert "10 steps" in found["resume"][0][1]
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert "number of processes was 2, and now is 1" in complaint(
        "train", rows, "--out", out, "--resume"
    )
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_two_processes_are_one_line(mistake, programs):
    (status, _, errors), silent = programs[1][mistake]
    assert (status, errors.count("\n"), silent) == (2, 1, [2, "", ""])


@pytest.mark.slow
def test_scripts_run_under_torchrun(rows, tmp_path):
    out = tmp_path / "run"

    def torchrun(*words):
        command = [sys.executable, *["-m", "torch.distributed.run", "--standalone"]]
        command += ["--nproc-per-node=2", *map(str, words)]
        options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "timeout": 180, "text": True}
        ended = subprocess.run(command, capture_output=True, check=False, **options)
        assert ended.returncode == 0, ended.stderr
        assert "FutureWarning" not in ended.stderr
        return ended.stdout

    assert_one_run(out, torchrun(SCRIPTS / "train.py", rows, "--out", out, *WORDS))
    found = torchrun(SCRIPTS / "evaluate.py", out, "--json")
    assert_same_numbers(found, done("evaluate", out, "--json"))


def assert_same_numbers(found, expected):
    assert found.count("\n") == 1
    assert json.loads(found) == pytest.approx(json.loads(expected), rel=1e-10)


def test_a_model_of_codes_by_two_processes_has_the_numbers_of_one(programs):
    out, found = programs
    assert "3 steps" in found["codes"][0][1]
    expected = done("evaluate", out.with_name("codes"), "--json")
    assert_same_numbers(found["codes scored"][0][1], expected)


@pytest.mark.parametrize(("divergence", "many"), [("auto", True), ("hutchinson", False)])
def test_evaluation_by_two_processes_has_the_numbers_of_one(divergence, many, rows, programs):
    """Also of rows that take several solves."""
    words = ["evaluate", programs[0], "--json", "--divergence", divergence]
    alone = done(*words, "--data", rows) if many else done(*words)
    assert_same_numbers(programs[1][divergence][0][1], alone)
