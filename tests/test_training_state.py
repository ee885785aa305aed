"""A stopped run resumes from its state as if it had never been stopped, or says why it cannot."""

import errno
import io
import json
import os
from dataclasses import fields, replace

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import Stop, stopping

import cnf
from cnf.training.checkpoint import TrainingState
from cnf.training.history import Record
from cnf.training.recipes import Recipe

MATCHING = {"matching_batch": 32, "matching": 0.5, "matching_rate": 1e-2, "warmup": 0.1}
NUMBERS = {"batch_size": 24, "learning_rate": 5e-3, "ema_decay": 0.9, "validations": 5}
BASE = Recipe(hidden=(8,), **MATCHING, **NUMBERS)
NOISY = {"divergence": "hutchinson", "kinetic": 0.01, "steer": 0.2, "activation": "softplus"}
FAST = {"matching_rate": 3.0, "ema_decay": 0.0, "validations": 10, "max_grad_norm": 1e9}
RECIPES = {
    "hybrid": replace(BASE, coupling="optimal_transport"),
    "noisy": replace(BASE, objective="mle", **NOISY),
    "normalized": replace(BASE, objective="mle", blocks=2, batch_norm=True),
    "matching": replace(BASE, objective="matching", blocks=2, x_features=3),
    "patience": replace(BASE, patience=1, **FAST),
}
DATA = torch.randn(210, 2, generator=torch.Generator().manual_seed(0)) * 3 + 10
STEPS = 10


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


@pytest.fixture(scope="module")
def whole():
    """Of each recipe, the flow and the history of a run that nothing stops."""
    return {name: (flow := flow_for(recipe), fit(flow, recipe)) for name, recipe in RECIPES.items()}


def assert_whole(flow, history, expected):
    """Equal runs but for seconds."""
    torch.testing.assert_close(flow.state_dict(), expected[0].state_dict(), rtol=0, atol=0)
    for name in vars(history).keys() - {"seconds", "duration"}:
        found, wanted = getattr(history, name), getattr(expected[1], name)
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def assert_resumes(name, state, whole, first=None):
    """A run resumed from a state, first with a certain step, is the run that nothing stops."""
    flow, steps = flow_for(RECIPES[name], seed=5), []
    callbacks = [lambda event: steps.append(event.step)]
    history = fit(flow, RECIPES[name], state=state, callbacks=callbacks)
    assert_whole(flow, history, whole[name])
    assert first is None or steps == list(range(first, history.steps + 1))


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        *(("hybrid", [at]) for at in (1, 4, 5, 6, 10)),
        ("hybrid", [2, 3, 3, 5, 8]),
        *(("noisy", [4]), ("normalized", [2]), ("matching", [5])),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(name, stops, whole, tmp_path):
    """Also where it stops at the switch to maximum likelihood, after step 5 of 10."""
    for at in stops:
        stopped(RECIPES[name], tmp_path / "state", at)
    assert_resumes(name, tmp_path / "state", whole, first=at)  # the state is of the step before


def test_a_run_is_the_same_with_a_state_and_from_its_first_and_after_ctrl_c(whole, tmp_path):
    flow, recipe = flow_for(RECIPES["hybrid"]), RECIPES["hybrid"]
    assert_whole(flow, fit(flow, recipe, state=tmp_path / "a", state_seconds=0), whole["hybrid"])
    stopped(recipe, tmp_path / "b", 8, state_seconds=1e9)  # the state is of the start alone
    assert_resumes("hybrid", tmp_path / "b", whole, first=1)
    options = {"state_seconds": 0, "callbacks": [stopping(7, KeyboardInterrupt)]}
    history = fit(flow_for(recipe), recipe, state=tmp_path / "c", **options)
    assert history.reason == "interrupted"
    assert_resumes("hybrid", tmp_path / "c", whole)


def test_a_switch_by_patience_is_survived(whole, tmp_path):
    history = whole["patience"][1]
    last = history.step[history.objective == "flow matching"][-1].item()
    assert last < 5  # where the share would end: otherwise it would test nothing
    assert "maximum likelihood" in history.objective
    for at in (last, last + 1):
        stopped(RECIPES["patience"], tmp_path / str(at), at)
        assert_resumes("patience", tmp_path / str(at), whole)


def test_a_conditional_run_resumes(tmp_path):
    recipe, context, flows = replace(BASE, hidden=(4,)), DATA[:, :1] + 1, []
    options = {"context": context, "state_seconds": 0, "state": tmp_path / "state"}
    for seed in (0, 0, 5):
        torch.manual_seed(seed)
        flows.append(recipe.flow(2, 1))
    history = fit(flows[0], recipe, context=context)
    with pytest.raises(Stop):
        fit(flows[1], recipe, callbacks=[stopping(6)], **options)
    assert_whole(flows[2], fit(flows[2], recipe, **options), (flows[0], history))
    with pytest.raises(ValueError, match="training rows"):
        fit(flows[0], recipe, **options | {"context": context + 1})


def test_user_defined_fields_with_weights_in_any_layout(tmp_path):
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
        return cnf.Flow(cnf.ffjord(2).base, [cnf.layers.CNF(Field()), cnf.Standardize(2)])

    flow, other, state = flow_of(0), flow_of(1), tmp_path / "state"
    history = fit(flow, BASE)
    with pytest.raises(Stop):
        fit(flow_of(0), BASE, state=state, state_seconds=0, callbacks=[stopping(7)])
    assert_whole(other, fit(other, BASE, state=state), (flow, history))


def test_the_state_is_there_from_the_start_and_written_every_state_seconds(tmp_path):
    state, seen, times = tmp_path / "state", [], []
    callbacks = [lambda event: seen.append(TrainingState.read(state).progress["step"])]
    history = fit(flow_for(BASE), BASE, state=state, state_seconds=1e9, callbacks=callbacks)
    assert seen == [0] * STEPS
    standing = TrainingState.read(state).progress
    assert (standing["step"], standing["reason"]) == (STEPS, "steps")
    assert len(standing["records"]) == len(history.step)
    assert set(standing["records"][0]) == {field.name for field in fields(Record)}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    state = str(tmp_path / "other")
    options = {"steps": None, "budget": 0.3, "state": state, "state_seconds": 0.06}
    callbacks = [lambda event: times.append(os.stat(state).st_mtime_ns)]
    fit(flow_for(BASE), BASE, **options, callbacks=callbacks)
    assert 2 <= len(set(times)) <= min(6, len(times) - 1)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (RECIPES["hybrid"], "steps"),
        (replace(RECIPES["patience"], objective="matching"), "early stopping"),
    ],
)
def test_a_finished_run_is_over_at_once(recipe, reason, tmp_path):
    state, first, again, called = tmp_path / "state", flow_for(recipe), flow_for(recipe, seed=5), []
    history = fit(first, recipe, state=state)
    before = state.read_bytes()
    resumed = fit(again, recipe, state=state, callbacks=[called.append])
    assert_whole(again, resumed, (first, history))
    assert history.reason == reason
    np.testing.assert_array_equal(resumed.seconds, history.seconds)
    assert (called, resumed.duration, state.read_bytes()) == ([], history.duration, before)


def test_the_callers_generator_is_left_alone_and_does_not_matter(whole, tmp_path):
    again, state = flow_for(RECIPES["noisy"], seed=5), tmp_path / "state"
    flow, callbacks = flow_for(RECIPES["noisy"]), [stopping(4)]
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    with pytest.raises(Stop):
        fit(flow, RECIPES["noisy"], state=state, state_seconds=0, callbacks=callbacks)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4321)
    before = torch.get_rng_state()
    assert_whole(again, fit(again, RECIPES["noisy"], state=state), whole["noisy"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def third(tmp_path_factory):
    """The state before the third step."""
    state = tmp_path_factory.mktemp("third") / "state"
    stopped(BASE, state, 3)
    return state.read_bytes()


def assert_refused(state, content, message, flow=None, **options):
    """The run is refused in one line, and the file is left alone."""
    state.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        fit(flow or flow_for(BASE), **{"recipe": BASE, **options}, state=state)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 2000
    assert state.read_bytes() == content
    return str(refused.value)


def changed(**changes):
    return {"recipe": replace(BASE, **changes)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (changed(matching_rate=2e-2), "matching_rate was 0.01, and now is 0.02"),
        (changed(coupling="optimal_transport"), "coupling was 'independent'"),
        (changed(steer=0.1), "steer was 0.0"),
        (changed(kinetic=0.1), "kinetic was 0.0"),
        (changed(validations=6), "validations"),
        ({"objective": "mle"}, "objective was 'hybrid', and now is 'mle'"),
        ({"steps": STEPS + 1}, f"steps was {STEPS}, and now is {STEPS + 1}"),
        ({"steps": None, "budget": 60.0}, "budget was None, and now is 60.0"),
        ({"seed": 1}, "seed was 0, and now is 1"),
        *(({"data": rows}, "training rows") for rows in (DATA + 1, DATA[:-1], DATA.flip(0))),
        ({"validation": DATA[:20]}, "training rows"),
        ({"flow": changed(hidden=(9,))["recipe"].flow(2)}, "shapes of weights"),
        ({"flow": changed(blocks=2)["recipe"].flow(2)}, "shapes of weights"),
        ({"flow": BASE.flow(2).double()}, "training state|Expected the run"),
    ],
)
def test_the_state_of_another_run_is_refused(options, message, third, tmp_path):
    assert_refused(tmp_path / "state", third, message, **options)


def test_other_validation_rows_are_refused(tmp_path):
    stopped(BASE, tmp_path / "state", 3, validation=DATA[:20])
    content, others = (tmp_path / "state").read_bytes(), DATA[1:21]
    assert_refused(tmp_path / "state", content, "validation rows", validation=others)


def test_a_damaged_or_foreign_state_is_refused(third, tmp_path):
    tensors, length = safetensors.torch.load(third), int.from_bytes(third[:8], "little")
    texts = json.loads(third[8 : 8 + length])["__metadata__"]
    del tensors["order.position"]
    damaged = [b"", b"no state at all\n" * 20, third[:-1], third[: len(third) // 2]]
    damaged += [third.replace(b"training state 1", b"training state 0")]
    damaged += [safetensors.torch.save(tensors, texts)]
    for place in (0.0, 0.02, 0.9):
        damaged.append(bytearray(third))
        damaged[-1][int(place * (len(third) - 1))] ^= 1
    for texts in (None, *({"format": text} for text in ("pt", '"pt"', "[1]"))):
        damaged.append(safetensors.torch.save({"a": torch.zeros(3)}, texts))
    for content in damaged:
        message = assert_refused(tmp_path / "state", content, "Expected a training state")
        assert "NoneType" not in message
        assert str(tmp_path / "state") in message


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class HalfWritten(io.FileIO):
    """A file that takes half of what it is given before the disk is full."""

    def write(self, content):
        super().write(content[: len(content) // 2])
        full()


@pytest.mark.parametrize(
    ("name", "failing"), [("open", HalfWritten), ("os.fsync", full), ("os.replace", full)]
)
def test_a_full_disk_ends_no_run_and_spoils_no_state(name, failing, monkeypatch, whole, tmp_path):
    """From step 3 on nothing can be written: the run ends well, and the older state is whole."""
    recipe, state = RECIPES["hybrid"], tmp_path / "state"

    def fill(event):
        if event.step == 3:
            monkeypatch.setattr(f"cnf.utils.serialization.{name}", failing, raising=False)

    flow = flow_for(recipe)
    with pytest.warns(UserWarning, match="could not be written.*No space left") as warned:
        history = fit(flow, recipe, state=state, state_seconds=0, callbacks=[fill])
    assert all("\n" not in str(warning.message) for warning in warned)
    assert_whole(flow, history, whole["hybrid"])
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert TrainingState.read(state).progress["step"] == 2
    assert_resumes("hybrid", state, whole)


def test_a_disk_that_has_room_again_has_the_state_again(monkeypatch, tmp_path):
    """And a folder that is not there is a warning."""

    def fill(event):
        if event.step == 3:
            monkeypatch.setattr("cnf.utils.serialization.os.replace", full)
        if event.step == 8:
            monkeypatch.undo()

    for state, message in ((tmp_path / "state", "No space"), (tmp_path / "none" / "state", "such")):
        with pytest.warns(UserWarning, match=f"could not be written.*{message}"):
            history = fit(flow_for(BASE), BASE, state=state, state_seconds=0, callbacks=[fill])
        assert history.reason == "steps"
    assert TrainingState.read(tmp_path / "state").progress["reason"] == "steps"
