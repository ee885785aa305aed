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
from children import run_program, said, together
from helpers import max_difference
from test_scripts_running import run

import cnf
from cnf.layers import MovingNorm
from cnf.training.objectives import Loss, MaximumLikelihood
from cnf.training.recipes import Recipe
from cnf.utils.distributed import gather, local_slice, mean, process_group, rank, total, world_size

SCRIPTS = Path(__file__).parents[1] / "scripts"
DATA = torch.randn(230, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 10
RECIPE = Recipe(
    objective="mle",
    hidden=(8,),
    matching_batch=16,
    matching_rate=1e-2,
    learning_rate=1e-2,
    batch_size=16,
    matching=0.5,
    ema_decay=0.9,
    validations=5,
)
HYBRID = dataclasses.replace(RECIPE, objective="hybrid", coupling="optimal_transport")


NORMALIZED = dataclasses.replace(RECIPE, blocks=2, batch_norm=True)
EARLY = dataclasses.replace(HYBRID, patience=1, matching_rate=3.0, ema_decay=0.0)
FREQUENCIES = {"x_features": 3, "x_scale": 1.0}


class Stop(Exception):  # noqa: N818
    """What a run is stopped with."""


def flow_for(seed=0, step_size=0.25, **options):
    torch.manual_seed(seed)
    flow = cnf.ffjord(2, hidden=(8,), zero_last=False, **options).double()
    return flow.with_solver(step_size=step_size)


def normalized():
    return flow_for(step_size=0.1, blocks=2, batch_norm=True)


def trained(recipe=RECIPE, flow=None, **options):
    """What a run of 20 steps comes to, as tensors."""
    flow, losses = flow or flow_for(), []
    options = {"steps": 20, **options}
    history = cnf.fit(
        flow, DATA, recipe=recipe, callbacks=[lambda event: losses.append(event.loss)], **options
    )
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "weights": {name: tensor.clone() for name, tensor in flow.state_dict().items()},
        "validation": torch.from_numpy(history.validation_nll),
        "step": torch.from_numpy(history.step),
        "skipped": history.skipped,
        "steps": history.steps,
        "reason": history.reason,
        "objective": history.objective.tolist(),
    }


def statistics(rows):
    """Of all processes' rows together."""
    layer = MovingNorm(2).double()
    layer.update(total(layer.sums(rows)))
    return torch.stack([layer.mean, layer.variance])


def failing(flow, how):
    """Have the third, fifth and sixth loss of this process fail."""
    original, calls = MaximumLikelihood.__call__, iter(range(1, 1000))

    def objective(self, flow, x, context=None):
        if next(calls) not in (3, 5, 6):
            return original(self, flow, x, context)
        if how == "nan":
            return Loss(math.nan * original(self, flow, x, context).value)
        return original(self, flow.with_solver(step_size=None, rtol=1e-14, max_steps=1), x, context)

    MaximumLikelihood.__call__ = objective
    try:
        return trained(flow=flow)
    finally:
        MaximumLikelihood.__call__ = original


def stop_and_go_on(state):
    """Stopped after steps 4, 10 and 15; the switch is after 10."""
    for at in (4, 10, 15):

        def stop(event, at=at):
            if event.step == at:
                raise Stop

        try:
            cnf.fit(
                flow_for(),
                DATA,
                recipe=HYBRID,
                steps=20,
                callbacks=[stop],
                state=state,
                state_seconds=0,
            )
        except Stop:
            continue
        raise AssertionError("no stop")
    return trained(HYBRID, flow_for(seed=5), state=state)


def drawn():
    """What PyTorch's generator gives in training."""
    numbers = []
    recipe = dataclasses.replace(RECIPE, objective="matching")
    callbacks = [lambda event: numbers.append(torch.rand(3))]
    cnf.fit(flow_for(), DATA, recipe=recipe, steps=1, callbacks=callbacks)
    return numbers[0]


def left_alone():
    """Whether training leaves this process's generator as it was."""
    flow = flow_for()
    before = torch.get_rng_state()
    cnf.fit(flow, DATA, recipe=RECIPE, steps=1)
    return torch.equal(torch.get_rng_state(), before)


def library(folder):
    """All that is asked of each of two processes, in one go: they take long to meet."""
    with process_group():
        found = {
            "who": (rank(), world_size()),
            "shares": [list(range(count)[local_slice(count)]) for count in (0, 1, 7, 10)],
            "mean": mean([1.0 + rank(), 5.0], DATA),
            "gather": gather({"rank": rank()}),
            "statistics": statistics(DATA[local_slice(101)]),
            "mle": trained(flow=flow_for(step_size=0.1)),
            "hybrid": trained(HYBRID),
            "regularized": trained(dataclasses.replace(RECIPE, kinetic=0.1)),
            "stack": trained(HYBRID, flow_for(blocks=2)),
            "normalized": trained(NORMALIZED, normalized()),
            "other weights": trained(flow=flow_for(seed=rank())),
            "other frequencies": trained(flow=flow_for(seed=rank(), field_options=FREQUENCIES)),
            "one row to validate": trained(validation=DATA[:1]),
            "patience": trained(EARLY),
            "budget": trained(HYBRID, steps=None, budget=0.7),
            "resumed": stop_and_go_on(folder.parent / "state"),
            "drawn": drawn(),
            "left alone": left_alone(),
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


def doubled(recipe):
    return dataclasses.replace(
        recipe, matching_batch=2 * recipe.matching_batch, batch_size=2 * recipe.batch_size
    )


def assert_close(left, right, losses=1e-8, weights=1e-10):
    assert left["losses"].shape == right["losses"].shape
    assert max_difference(left["losses"], right["losses"]) <= losses
    assert left["weights"].keys() == right["weights"].keys()
    for name, tensor in left["weights"].items():
        difference = (tensor.double() - right["weights"][name].double()).abs().max().item()
        assert difference <= weights, name
    assert max_difference(left["validation"], right["validation"]) <= weights
    for name in ("step", "skipped", "steps", "reason"):
        assert str(left[name]) == str(right[name])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mle", {"flow": flow_for(step_size=0.1)}),
        ("regularized", {"recipe": dataclasses.replace(RECIPE, kinetic=0.1)}),
        ("one row to validate", {"validation": DATA[:1]}),
        ("normalized", {"flow": normalized(), "recipe": NORMALIZED}),
    ],
)
def test_two_processes_are_one_with_the_doubled_batch(name, options, two):
    """Loss curve, weights and validations: gradients and losses are means over the whole batch."""
    one = trained(**{**options, "recipe": doubled(options.get("recipe", RECIPE))})
    for found in two[0]:
        assert_close(found[name], one)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "mle",
            "hybrid",
            "regularized",
            "stack",
            "normalized",
            "other weights",
            "other frequencies",
        ),
        *("patience", "budget", "resumed", "nan", "solve"),
    ],
)
def test_both_processes_come_to_the_same(name, two):
    left, right = (found[name] | {"losses": found[name]["losses"].nan_to_num()} for found in two[0])
    assert_close(left, right, losses=0, weights=0)


@pytest.mark.parametrize("name", ["other weights", "other frequencies"])
def test_the_weights_of_the_first_process_are_begun_with(name, two):
    """Each process made a flow of its own."""
    options = {"field_options": FREQUENCIES} if name == "other frequencies" else {}
    one = trained(doubled(RECIPE), flow_for(**options))
    assert_close(two[0][0][name], one)


@pytest.mark.parametrize("name", ["nan", "solve"])
def test_a_step_that_fails_on_one_process_is_skipped_on_both(name, two):
    for found in two[0]:
        assert found[name]["skipped"] == 3
        assert found[name]["losses"].isnan().nonzero().flatten().tolist() == [2, 4, 5]
        assert (found[name]["steps"], found[name]["reason"]) == (20, "steps")
        assert all(tensor.isfinite().all() for tensor in found[name]["weights"].values())


def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(two):
    for found in two[0]:
        whole, resumed = dict(found["hybrid"]), dict(found["resumed"])
        whole["losses"] = whole["losses"][-len(resumed["losses"]) :]
        assert_close(resumed, whole, losses=1e-12, weights=1e-12)


def test_the_state_of_two_processes_is_not_ones_own(two):
    with pytest.raises(ValueError, match="number of processes was 2, and now is 1"):
        trained(HYBRID, state=two[1] / "state")


def test_patience_ends_matching_on_both_at_once(two):
    for found in two[0]:
        steps = dict(zip(found["patience"]["objective"], found["patience"]["step"], strict=True))
        assert steps["flow matching"] < 10  # where its share would end
        assert "maximum likelihood" in steps


def test_processes_share_their_work_and_draw_on_their_own(two):
    left, right = two[0]
    assert (left["who"], right["who"]) == ((0, 2), (1, 2))
    for whole, a, b in zip((0, 1, 7, 10), left["shares"], right["shares"], strict=True):
        assert a + b == list(range(whole))
        assert abs(len(a) - len(b)) <= 1
    for found in (left, right):
        assert found["mean"] == [1.5, 5.0]
        assert found["gather"] == [{"rank": 0}, {"rank": 1}]
        assert found["left alone"]
    assert (left["drawn"] != right["drawn"]).all()


def test_moving_statistics_are_of_the_whole_batch(two):
    """Also where the processes' shares differ."""
    rows = DATA[:101]
    expected = torch.stack([rows.mean(0), rows.var(0, correction=0)])
    for found in two[0]:
        torch.testing.assert_close(found["statistics"], expected, rtol=1e-12, atol=0)


def test_the_groups_threads_end_with_it(two):
    """At the interpreter's end, a thread that still holds a tensor would abort the process."""
    for found in two[0]:
        assert not [name for name in found["threads"] if "gloo" in name]


def test_one_process_alone_is_the_identity():
    assert (rank(), world_size(), local_slice(7)) == (0, 1, slice(0, 7))
    assert mean([1.0, math.inf], DATA) == [1.0, math.inf]
    assert gather("a") == ["a"]


# The programs.

NUMBERS = ("--hidden", "8", "--matching-batch", "32", "--batch-size", "32", "--steps", "20")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    numbers = np.random.default_rng(0).normal(size=(5003, 2))
    pd.DataFrame(numbers @ [[2.0, 1.0], [0.0, 0.5]], columns=["a", "b"]).to_csv(path, index=False)
    return path


def torchrun(*words):
    """A script under two processes; its standard output, where it ends well."""
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ended = subprocess.run(
        [*command, *map(str, words)],
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "FutureWarning" not in ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    """What `torchrun scripts/train.py` left, and what it said."""
    out = tmp_path_factory.mktemp("torchrun") / "run"
    return out, torchrun(SCRIPTS / "train.py", rows, "--out", out, *NUMBERS)


def test_training_under_torchrun_is_one_run(folder):
    """One folder, each line once, and a model that one process can score."""
    out, text = folder
    lines = text.splitlines()
    assert len(set(lines)) == len(lines)
    assert sum("20 steps" in line for line in lines) == 1
    assert sum("evaluations" in line for line in lines) == 1
    assert sorted(path.name for path in out.iterdir()) == [
        *("config.json", "figures", "metrics.jsonl", "model.safetensors", "training.safetensors")
    ]
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        *("density.png", "learning_curve.png", "strip.png")
    ]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    assert steps[-1] == 20
    scores = run("evaluate", out).out.splitlines()
    scores = [line for line in scores if "uncertainty" not in line]  # which evaluate alone finds
    assert lines[-len(scores) - 3 : -3] == scores  # then come the figures


def numbers_of(text):
    (line,) = text.splitlines()
    return json.loads(line)


def assert_same_numbers(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-10), name


def both(place, *words):
    """What a program says in two processes: statuses, and each one's output and errors."""
    statuses = together(run_program, place, [str(word) for word in words])
    return statuses, [said(place / str(process)) for process in range(2)]


@pytest.mark.parametrize("divergence", ["auto", "hutchinson"])
@pytest.mark.parametrize("many", [False, True])
def test_evaluation_by_two_processes_has_the_numbers_of_one(
    divergence, many, rows, folder, tmp_path
):
    """Also of rows that take several solves."""
    words = ["evaluate", folder[0], "--json", "--divergence", divergence]
    words += ["--data", rows] if many else []
    statuses, ((text, errors), silent) = both(tmp_path / "two", *words)
    assert (statuses, errors, silent) == ([0, 0], "", ("", ""))
    assert_same_numbers(numbers_of(text), numbers_of(run(*words).out))


@pytest.mark.slow
def test_evaluation_under_torchrun_has_the_numbers_of_one_process(folder):
    found = numbers_of(torchrun(SCRIPTS / "evaluate.py", folder[0], "--json"))
    assert_same_numbers(found, numbers_of(run("evaluate", folder[0], "--json").out))


def test_training_by_two_processes_goes_on(rows, folder, tmp_path):
    """A finished run is over at once; one process cannot go on with it."""
    out = folder[0]
    before = {name: (out / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")}
    statuses, ((text, errors), silent) = both(
        tmp_path / "two", "train", rows, "--out", out, "--resume"
    )
    assert (statuses, errors, silent) == ([0, 0], "", ("", ""))
    assert "20 steps" in text
    assert {name: (out / name).read_bytes() for name in before} == before
    alone = run("train", rows, "--out", out, "--resume")
    assert alone.status == 2
    assert "number of processes was 2, and now is 1" in alone.err


@pytest.mark.parametrize("mistake", ["not empty", "no data", "another number"])
def test_a_mistake_ends_both_processes_with_one_line(mistake, rows, folder, tmp_path):
    words = {
        "not empty": (rows, "--out", folder[0]),
        "no data": (rows.with_name("none.csv"), "--out", tmp_path / "new"),
        "another number": (rows, "--out", folder[0], "--resume", "--learning-rate", "0.5"),
    }[mistake]
    before = {path: path.read_bytes() for path in folder[0].iterdir() if path.is_file()}
    statuses, outputs = both(tmp_path / "two", "train", *words)
    assert statuses == [2, 2]
    assert outputs[0][1].count("\n") == 1
    assert outputs[1][1] == ""
    assert {path: path.read_bytes() for path in before} == before
