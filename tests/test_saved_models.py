"""Models that version 0.1.0 wrote, before classes were renamed: they must load for ever.

Each folder of `saved_models` is a saved model, `run_*` a folder of `cnf train` or `cnf train-vae`
with the training state of a run that was killed half-way. Its `expected.json` has rows and what
version 0.1.0 made of them in double precision. No folder is ever written anew: a format that
changes gets folders of its own.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from helpers import DOUBLE, near
from test_scripts_running import done

import cnf
from cnf import vae
from cnf.utils.random import RowNoise

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("saved_models/*/config.json"))
PROBES, SEED = 4, 0  # with which noise and estimates of the trace were drawn


class OldNoise(RowNoise):
    """The noise of version 0.1.0, for up to 64 rows, which followed a row's number in its batch."""

    def _draw(self, shape, sample):
        key = np.array([self.seed, self.draws], dtype=np.uint64)
        self.draws += 1
        rng = np.random.Generator(np.random.Philox(counter=np.zeros(4, np.uint64), key=key))
        return torch.from_numpy(sample(rng, (64, *shape[1:])))[: shape[0]]

    def rademacher(self, shape):
        return self._draw(shape, lambda rng, size: 2.0 * rng.integers(0, 2, size) - 1)

    def uniform(self, shape):
        return self._draw(shape, lambda rng, size: rng.random(size))


def expected(folder):
    return json.loads((folder / "expected.json").read_text())


def named(key):
    """The folders whose expectations have an entry of this name."""
    found = [folder for folder in FOLDERS if key in expected(folder)]
    return pytest.mark.parametrize("folder", found, ids=lambda folder: folder.name)


def test_every_folder_is_tested():
    assert len(FOLDERS) > 90
    for folder in FOLDERS:
        assert len({"log_prob", "bound", "nll"} & expected(folder).keys()) == 1, folder


@named("log_prob")
def test_log_prob_is_what_it_was(folder, monkeypatch):
    monkeypatch.setattr("cnf.flow.flow.RowNoise", OldNoise)
    told = expected(folder)
    rows = torch.tensor(told["x"], dtype=DOUBLE)
    context = told["context"] and torch.tensor(told["context"], dtype=DOUBLE)
    flow = cnf.load(folder).double().with_solver(**told["solver"])
    if told["method"] == "score":
        generator = torch.Generator().manual_seed(SEED)
        # Half as many by Hutch++, whose products were counted then, and its estimates are now.
        options = {"probes": told.get("probes", PROBES), "generator": generator}
        found = flow.score(rows, context, **options).log_prob
    else:
        found = flow.log_prob(rows, context)
    near(found, torch.tensor(told["log_prob"], dtype=DOUBLE), 1e-6)


@named("bound")
def test_evidence_lower_bound_of_a_vae_is_what_it_was(folder):
    images, bound = (torch.tensor(expected(folder)[each], dtype=DOUBLE) for each in ("x", "bound"))
    torch.manual_seed(SEED)
    near(vae.load(folder).double().accurate().bound(images).value, bound, 1e-6)


@named("nll")
def test_evaluation_of_a_run_is_what_it_was(folder, tmp_path):
    run = shutil.copytree(folder, tmp_path / "run")
    found = json.loads(done("evaluate", run, "--json"))
    for name in ("n", "nll", "nll_standardized", "gaussian_nll"):
        assert found[name] == pytest.approx(expected(folder)[name], abs=1e-5), name


def test_a_run_resumes_from_its_training_state(tmp_path):
    """Its three steps are kept, and three more lead to the same weights but for rounding."""
    run = shutil.copytree(FOLDERS[0].parent / "run_iris", tmp_path / "run")
    before = cnf.load(run).state_dict()
    with safetensors.safe_open(run / "training.safetensors", "pt") as file:
        kept = json.loads(file.metadata()["standing"])["records"]
    assert "6 steps" in done("train", "iris", "--out", run, "--resume")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(kept) == 3
    assert [record["seconds"] for record in records[:3]] == [step["seconds"] for step in kept]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(cnf.load(run).state_dict(), before, rtol=0, atol=1e-3)


def test_a_vae_resumes_from_its_training_state(tmp_path):
    run = shutil.copytree(FOLDERS[0].parent / "run_vae", tmp_path / "run")
    before = vae.load(run).state_dict()
    options = expected(run)["options"]
    assert "2 epochs" in done("train-vae", run / "images.npy", "--out", run, "--resume", *options)
    torch.testing.assert_close(vae.load(run).state_dict(), before, rtol=0, atol=1e-3)
