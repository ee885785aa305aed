"""A run that was stopped goes on from its state as if it had never been, or says why it cannot."""

import dataclasses
import errno
import json
import os
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

import cnf
from cnf.training.checkpoint import TrainingState
from cnf.training.history import Record
from cnf.training.recipes import Recipe

BASE = Recipe(
    hidden=(8,),
    matching_batch=32,
    matching=0.5,
    batch_size=24,
    matching_rate=1e-2,
    learning_rate=5e-3,
    ema_decay=0.9,
    warmup=0.1,
    validations=5,
)
RECIPES = {
    "hybrid": dataclasses.replace(BASE, coupling="optimal_transport"),
    "noisy": dataclasses.replace(
        BASE,
        objective="mle",
        divergence="hutchinson",
        kinetic=0.01,
        steer=0.2,
        activation="softplus",
    ),
    "normalized": dataclasses.replace(BASE, objective="mle", blocks=2, batch_norm=True),
    "matching": dataclasses.replace(BASE, objective="matching", blocks=2, x_features=3),
    "patience": dataclasses.replace(
        BASE, patience=1, matching_rate=3.0, ema_decay=0.0, validations=10, max_grad_norm=1e9
    ),
}
DATA = torch.randn(210, 2, generator=torch.Generator().manual_seed(0)) * 3 + 10
STEPS = 20


class Stop(Exception):  # noqa: N818
    """What the tests stop a run with."""


def stopping(at):
    def stop(event):
        if event.step == at:
            raise Stop

    return stop


def flow_for(recipe, seed=0):
    torch.manual_seed(seed)
    flow = recipe.flow(2)
    if seed:  # other weights from the start, its frequencies too
        for tensor in flow.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
    return flow


def fit(flow, recipe, **options):
    return cnf.fit(flow, **{"data": DATA, "recipe": recipe, "steps": STEPS, **options})


def stopped(recipe, state, at, **options):
    """Train until a step and stop there; the state of every step is kept unless told otherwise."""
    flow = flow_for(recipe)
    with pytest.raises(Stop):
        fit(flow, recipe, **{"state_seconds": 0, **options}, state=state, callbacks=[stopping(at)])
    return flow


def assert_same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def assert_same_run(left, right):
    """Equal but for seconds."""
    left, right = vars(left) | {}, vars(right) | {}
    for seconds in ("seconds", "duration"):
        left.pop(seconds)
        right.pop(seconds)
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.fixture(scope="module")
def whole():
    """Of each recipe, the flow and the history of a run that nothing stops."""
    found = {}
    for name, recipe in RECIPES.items():
        flow = flow_for(recipe)
        found[name] = flow, fit(flow, recipe)
    return found


def assert_whole(flow, history, expected):
    assert_same_weights(flow, expected[0])
    assert_same_run(history, expected[1])


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(("hybrid", at) for at in (1, 3, 9, 10, 11, 19, 20)),
        *(("noisy", at) for at in (1, 7, 20)),
        *(("normalized", at) for at in (1, 2, 13)),
        *(("matching", at) for at in (1, 9, 20)),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(name, at, whole, tmp_path):
    """Also where it stops at the switch to maximum likelihood, after step 10 of 20."""
    recipe, state = RECIPES[name], tmp_path / "state"
    stopped(recipe, state, at)
    flow, steps = flow_for(recipe, seed=5), []
    history = fit(flow, recipe, state=state, callbacks=[lambda event: steps.append(event.step)])
    assert_whole(flow, history, whole[name])
    assert steps == list(range(at, history.steps + 1))  # the state is of the step before


@pytest.mark.parametrize("name", ["hybrid", "noisy"])
def test_a_run_that_is_stopped_time_and_again(name, whole, tmp_path):
    recipe, state = RECIPES[name], tmp_path / "state"
    for at in (2, 3, 3, 10, 11, 15):
        stopped(recipe, state, at)
    flow = flow_for(recipe, seed=5)
    assert_whole(flow, fit(flow, recipe, state=state), whole[name])


def test_a_run_is_the_same_with_a_state_and_from_its_first(whole, tmp_path):
    recipe = RECIPES["hybrid"]
    flow = flow_for(recipe)
    assert_whole(flow, fit(flow, recipe, state=tmp_path / "a", state_seconds=0), whole["hybrid"])
    stopped(recipe, tmp_path / "b", 15, state_seconds=1e9)  # the state is of the start alone
    flow, steps = flow_for(recipe, seed=5), []
    history = fit(
        flow, recipe, state=tmp_path / "b", callbacks=[lambda event: steps.append(event.step)]
    )
    assert steps[0] == 1
    assert_whole(flow, history, whole["hybrid"])


def test_a_switch_by_patience_is_survived(whole, tmp_path):
    recipe, history = RECIPES["patience"], whole["patience"][1]
    last = history.step[history.objective == "flow matching"][-1].item()
    assert last < 10  # where the share would end: otherwise it would test nothing
    assert "maximum likelihood" in history.objective
    for at in (last, last + 1, last + 2):
        state = tmp_path / str(at)
        stopped(recipe, state, at)
        flow = flow_for(recipe, seed=5)
        assert_whole(flow, fit(flow, recipe, state=state), whole["patience"])


def test_ctrl_c_can_be_gone_on_from(whole, tmp_path):
    recipe, state = RECIPES["hybrid"], tmp_path / "state"

    def interrupt(event):
        if event.step == 13:
            raise KeyboardInterrupt

    history = fit(flow_for(recipe), recipe, state=state, state_seconds=0, callbacks=[interrupt])
    assert history.reason == "interrupted"
    flow = flow_for(recipe, seed=5)
    assert_whole(flow, fit(flow, recipe, state=state), whole["hybrid"])


def test_a_conditional_run_goes_on(tmp_path):
    recipe = dataclasses.replace(BASE, hidden=(4,))
    context = DATA[:, :1] + 1
    flows = []
    for state, stop in ((None, None), (tmp_path / "state", 12)):
        torch.manual_seed(0)
        flow = recipe.flow(2, 1)
        options = {"context": context, "state_seconds": 0}
        if stop:
            with pytest.raises(Stop):
                fit(flow, recipe, state=state, callbacks=[stopping(stop)], **options)
            torch.manual_seed(5)
            flow = recipe.flow(2, 1)
        fit(flow, recipe, state=state, **options)
        flows.append(flow)
    assert_same_weights(*flows)
    with pytest.raises(ValueError, match="training rows"):
        fit(flows[0], recipe, state=tmp_path / "state", context=context + 1)


def test_fields_of_ones_own_with_weights_in_any_layout(tmp_path):
    """A transposed weight, one that two names share, one that is not trained."""

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Parameter(torch.randn(3, 2).T * 0.1)
            self.second = torch.nn.Parameter(torch.randn(3, 2) * 0.1)
            self.again = self.second
            self.fixed = torch.nn.Parameter(torch.randn(2), requires_grad=False)

        def forward(self, t, x):
            return torch.tanh(x @ self.first + t) @ self.again + 0.01 * self.fixed

    def flow_of(seed):
        torch.manual_seed(seed)
        layers = [cnf.layers.CNF(Field()), cnf.Standardize(2)]
        return cnf.Flow(cnf.ffjord(2).base, layers)

    flow, state = flow_of(0), tmp_path / "state"
    history = fit(flow, BASE)
    with pytest.raises(Stop):
        fit(flow_of(0), BASE, state=state, state_seconds=0, callbacks=[stopping(14)])
    other = flow_of(1)
    assert_same_run(fit(other, BASE, state=state), history)
    assert_same_weights(other, flow)


# What is written, and when.


def test_the_state_is_there_from_the_start_and_in_the_end(tmp_path):
    state, seen = tmp_path / "state", []

    def look(event):
        seen.append(TrainingState.read(state).progress["step"])

    history = fit(flow_for(BASE), BASE, state=state, state_seconds=1e9, callbacks=[look])
    assert seen == [0] * STEPS
    standing = TrainingState.read(state).progress
    assert (standing["step"], standing["reason"]) == (STEPS, "steps")
    assert len(standing["records"]) == len(history.step)
    assert set(standing["records"][0]) == {field.name for field in dataclasses.fields(Record)}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_the_state_is_written_every_state_seconds(tmp_path):
    state, seen = str(tmp_path / "state"), []

    def look(event):
        seen.append((event.seconds, os.stat(state).st_mtime_ns))

    fit(
        flow_for(BASE),
        BASE,
        steps=None,
        budget=1.0,
        state=state,
        state_seconds=0.2,
        callbacks=[look],
    )
    assert 3 <= len({written for _, written in seen}) <= 6
    assert len(seen) > 20


def test_a_finished_run_is_over_at_once(whole, tmp_path):
    recipe, state = RECIPES["hybrid"], tmp_path / "state"
    first = fit(flow_for(recipe), recipe, state=state)
    before = state.read_bytes()
    flow, called = flow_for(recipe, seed=5), []
    again = fit(flow, recipe, state=state, callbacks=[called.append])
    assert called == []
    assert_whole(flow, again, whole["hybrid"])
    np.testing.assert_array_equal(again.seconds, first.seconds)
    assert again.duration == first.duration
    assert state.read_bytes() == before


def test_a_run_that_ended_early_is_over_too(tmp_path):
    recipe = dataclasses.replace(BASE, objective="mle", patience=1, learning_rate=1.0)
    state = tmp_path / "state"
    first = fit(flow_for(recipe), recipe, state=state, steps=200)
    assert first.reason == "early stopping"
    flow = flow_for(recipe, seed=5)
    assert_same_run(fit(flow, recipe, state=state, steps=200), first)


# Randomness.


@pytest.mark.parametrize("name", ["hybrid", "noisy"])
def test_the_callers_generator_is_left_alone_and_does_not_matter(name, whole, tmp_path):
    recipe, state = RECIPES[name], tmp_path / "state"
    flow = flow_for(recipe)
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    with pytest.raises(Stop):
        fit(flow, recipe, state=state, state_seconds=0, callbacks=[stopping(7)])
    assert torch.equal(torch.get_rng_state(), before)
    flow = flow_for(recipe, seed=5)
    torch.manual_seed(4321)
    before = torch.get_rng_state()
    history = fit(flow, recipe, state=state)
    assert torch.equal(torch.get_rng_state(), before)
    assert_whole(flow, history, whole[name])


@pytest.mark.parametrize("name", ["hybrid", "noisy", "matching"])
def test_seeds_are_runs_of_their_own(name, whole):
    flow = flow_for(RECIPES[name])
    fit(flow, RECIPES[name], seed=1)
    pairs = zip(flow.parameters(), whole[name][0].parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)


# States of other runs, and what is no state.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"recipe": dataclasses.replace(BASE, **{name: value})}, name)
            for name, value in {
                "matching_rate": 2e-2,
                "learning_rate": 1e-3,
                "matching_batch": 33,
                "matching": 0.25,
                "coupling": "optimal_transport",
                "steer": 0.1,
                "validations": 6,
                "ema_decay": 0.8,
                "rtol": 1e-2,
                "horizon": 100,
                "initial_tolerance_factor": 2.0,
            }.items()
        ),
        ({"objective": "mle"}, "objective was 'hybrid', and now is 'mle'"),
        ({"steps": STEPS + 1}, f"steps was {STEPS}, and now is {STEPS + 1}"),
        ({"steps": None, "budget": 60.0}, "budget was None, and now is 60.0"),
        ({"seed": 1}, "seed was 0, and now is 1"),
        ({"data": DATA + 1}, "training rows"),
        ({"data": DATA[:-1]}, "training rows"),
        ({"data": DATA.flip(0)}, "training rows"),
        ({"validation": DATA[:20]}, "training rows"),
    ],
)
def test_the_state_of_another_run_is_refused(options, message, tmp_path):
    state = tmp_path / "state"
    stopped(BASE, state, 3)
    before, flow = state.read_bytes(), flow_for(BASE)
    with pytest.raises(ValueError, match=message) as refused:
        fit(flow, **{"recipe": BASE, **options}, state=state)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert state.read_bytes() == before


def test_other_validation_rows_are_refused(tmp_path):
    state = tmp_path / "state"
    stopped(BASE, state, 3, validation=DATA[:20])
    with pytest.raises(ValueError, match="validation rows"):
        fit(flow_for(BASE), BASE, state=state, validation=DATA[1:21])


@pytest.mark.parametrize("other", [{"hidden": (9,)}, {"hidden": (8, 8)}, {"blocks": 2}])
def test_another_architecture_is_refused(other, tmp_path):
    """That of the flow, which the recipe does not see here."""
    state = tmp_path / "state"
    stopped(BASE, state, 3)
    flow = dataclasses.replace(BASE, **other).flow(2)
    with pytest.raises(ValueError, match="shapes of weights") as refused:
        fit(flow, BASE, state=state)
    assert "\n" not in str(refused.value)


def test_another_precision_is_refused(tmp_path):
    state = tmp_path / "state"
    stopped(BASE, state, 3)
    with pytest.raises(ValueError, match="training state|Expected the run"):
        fit(flow_for(BASE).double(), BASE, state=state)


def cut(content):
    return content[: len(content) // 2]


def flipped(place):
    def flip(content):
        i = int(place * (len(content) - 1))
        return content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]

    return flip


def without_a_tensor(content):
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    texts = json.loads(content[8 : 8 + length])["__metadata__"]
    tensors.pop("order.position")
    return safetensors.torch.save(tensors, texts)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no state at all\n" * 20,
        lambda content: content[:-1],
        cut,
        without_a_tensor,
        *(flipped(place) for place in (0.0, 0.02, 0.3, 0.9, 1.0)),
        lambda content: content.replace(b"training state 1", b"training state 0"),
        lambda content: safetensors.torch.save({"a": torch.zeros(3)}),
        lambda content: safetensors.torch.save({"a": torch.zeros(3)}, {"format": "pt"}),
        lambda content: safetensors.torch.save({"a": torch.zeros(3)}, {"format": '"pt"'}),
        lambda content: safetensors.torch.save({"a": torch.zeros(3)}, {"format": "[1]"}),
    ],
)
def test_a_damaged_or_foreign_state_is_refused(damage, tmp_path):
    state = tmp_path / "state"
    stopped(BASE, state, 3)
    content = damage(state.read_bytes())
    state.write_bytes(content)
    with pytest.raises(ValueError, match="Expected a training state") as refused:
        fit(flow_for(BASE), BASE, state=state)
    assert "\n" not in str(refused.value)
    assert "NoneType" not in str(refused.value)
    assert str(state) in str(refused.value)
    assert state.read_bytes() == content


def test_a_models_file_is_no_state(tmp_path):
    cnf.save(flow_for(BASE), tmp_path)
    with pytest.raises(ValueError, match="Expected a training state.*model.safetensors") as refused:
        fit(flow_for(BASE), BASE, state=tmp_path / "model.safetensors")
    assert "\n" not in str(refused.value)


# Disks that fail.


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class HalfWritten:
    """A file that takes half of what it is given before the disk is full."""

    def __init__(self, path, mode):
        self.file = open(path, mode)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        full()


@pytest.mark.parametrize(
    ("name", "failing"),
    [("open", full), ("open", HalfWritten), ("os.fsync", full), ("os.replace", full)],
)
def test_a_full_disk_ends_no_run_and_spoils_no_state(name, failing, monkeypatch, whole, tmp_path):
    """From step 5 on nothing can be written: the run ends well, and the older state is whole."""
    recipe, state = RECIPES["hybrid"], tmp_path / "state"

    def fill(event):
        if event.step == 5:
            monkeypatch.setattr(f"cnf.utils.serialization.{name}", failing, raising=False)

    flow = flow_for(recipe)
    with pytest.warns(UserWarning, match="could not be written.*No space left") as warned:
        history = fit(flow, recipe, state=state, state_seconds=0, callbacks=[fill])
    assert all("\n" not in str(warning.message) for warning in warned)
    assert_whole(flow, history, whole["hybrid"])
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert TrainingState.read(state).progress["step"] == 4
    flow = flow_for(recipe, seed=5)
    assert_whole(flow, fit(flow, recipe, state=state), whole["hybrid"])


def test_a_disk_that_has_room_again_has_the_state_again(monkeypatch, tmp_path):
    state = tmp_path / "state"

    def fill(event):
        if event.step == 5:
            monkeypatch.setattr("cnf.utils.serialization.os.replace", full)
        if event.step == 15:
            monkeypatch.undo()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(flow_for(BASE), BASE, state=state, state_seconds=0, callbacks=[fill])
    assert TrainingState.read(state).progress["reason"] == "steps"


def test_a_folder_that_is_not_there_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="could not be written.*No such file"):
        history = fit(flow_for(BASE), BASE, state=tmp_path / "none" / "state")
    assert history.reason == "steps"
