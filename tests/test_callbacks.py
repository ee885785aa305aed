"""Callbacks: what TensorBoard is given, and that a full disk does not end a run."""

import errno
import os

import pytest
import torch

import cnf
from cnf.training.callbacks import TensorBoard
from cnf.training.recipes import Recipe

pytest.importorskip("tensorboard")

RECIPE = Recipe(hidden=(8,), batch_size=16, matching_batch=16, matching=0.5, validations=2)


def trained(callback):
    torch.manual_seed(0)
    data = torch.randn(60, 2)
    return cnf.fit(cnf.ffjord(2, hidden=(8,)), data, recipe=RECIPE, steps=6, callbacks=[callback])


def test_tensorboard_has_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = TensorBoard(tmp_path / "curves")
    assert not (tmp_path / "curves").exists()  # before the first step
    history = trained(callback)
    found = EventAccumulator(str(tmp_path / "curves")).Reload()
    lengths = {"loss/flow matching": 3, "loss/maximum likelihood": 3, "evaluations": 6}
    assert {name: len(found.Scalars(name)) for name in lengths} == lengths
    validated = [(point.step, point.value) for point in found.Scalars("validation NLL")]
    assert [step for step, _ in validated] == history.step.tolist()
    assert [nll for _, nll in validated] == pytest.approx(history.validation_nll.tolist())


def test_a_full_disk_ends_the_curves_and_not_the_run(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    calls = []

    def full(*arguments, **options):
        calls.append(arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with pytest.warns(UserWarning, match="No space left on device.*without curves"):
        history = trained(TensorBoard(tmp_path))
    assert history.reason == "steps"
    assert len(calls) == 1
