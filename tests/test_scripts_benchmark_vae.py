"""The benchmark of VAEs: what is trained, what is kept, what its tables say."""

import json
import re
import sys
from dataclasses import replace
from math import log

import numpy as np
import pytest
from test_scripts_running import complaint, done

from cnf.datasets import load_images
from cnf.scripts import train_vae
from cnf.scripts.benchmarks import vae as tables
from cnf.scripts.benchmarks import vae_trials
from cnf.scripts.benchmarks.options import VAE_RESULTS, BenchmarkOptions
from cnf.scripts.benchmarks.vae_trials import (
    VAE_POSTERIORS,
    VAEOutcome,
    VAESetting,
    outcome_of,
    trial_of,
)
from cnf.vae import Architecture, Plan, load

QUICK = VAESetting(2, Plan(epochs=1, batch_size=512), 2)


@pytest.fixture
def quick(monkeypatch):
    """Digits alone, trained for an epoch, with few samples."""
    monkeypatch.setitem(vae_trials.VAE_SETTINGS, "digits", QUICK)
    monkeypatch.setattr(vae_trials, "IWAE_SAMPLES", 5)
    monkeypatch.setattr(train_vae, "MAX_TEST_IMAGES", 60)


def bounds(out, *arguments):
    return done(
        *("benchmark", "vae", "--section", "bounds", "--images", "digits", "--out", out),
        *arguments,
    )


def test_the_table_has_a_row_for_each_posterior_and_is_made_once(tmp_path, quick):
    text = bounds(tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows] == ["posterior", *VAE_POSTERIORS]
    assert len(re.findall(r"^  digits ", text, re.MULTILINE)) == 2 * len(VAE_POSTERIORS)
    assert "60 test images, 2 latents, 1 epochs, seeds: 2; threads: " in text
    cells = [json.loads(line) for line in (tmp_path / VAE_RESULTS).read_text().splitlines()]
    nll = {
        name: np.mean([c["nll"] for c in cells if c["posterior"] == name])
        for name in VAE_POSTERIORS
    }
    for row in rows[1:]:
        assert float(row[2].split()[0]) == pytest.approx(nll[row[0].strip("| ")], abs=1e-3)
    again = bounds(tmp_path)
    assert "  digits" not in again
    assert text.splitlines()[-9:] == again.splitlines()[-9:]
    bound = {name: [c["validation"] for c in cells if c["posterior"] == name] for name in nll}
    best = max((name for name in nll if name.startswith("cnf")), key=lambda n: np.mean(bound[n]))
    assert f"\n{best}, which validates best of this library's, is " in text


def test_a_part_of_it(tmp_path, quick):
    text = bounds(tmp_path, "--posteriors", "gaussian,cnf-bias")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows == ["| posterior", "| gaussian", "| cnf-bias"]
    assert "below planar" not in text
    assert "cnf-bias, which validates best" in text
    alone = bounds(tmp_path, "--posteriors", "cnf-bias")
    assert "ahead" not in alone


def test_an_interrupted_training_goes_on(tmp_path, quick, monkeypatch):
    images = load_images("digits")
    monkeypatch.setitem(vae_trials.VAE_SETTINGS, "digits", replace(QUICK, plan=Plan(3, 512)))
    whole = outcome_of(BenchmarkOptions(), trial_of(images, "gaussian", 0), images)
    options, trial = BenchmarkOptions(out=tmp_path), trial_of(images, "gaussian", 0)
    write, calls = train_vae.write_metrics, []

    def interrupt(path, records):
        calls.append(path)
        write(path, records)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_vae, "write_metrics", interrupt)
    with pytest.raises(KeyboardInterrupt):
        outcome_of(options, trial, images)
    found = outcome_of(options, trial, images)
    assert len(calls) == 4  # two epochs before, one after, and all together at the end
    assert found.nll == whole.nll
    assert found.elbo == whole.elbo
    assert load(trial.folder(tmp_path)).architecture.posterior == "gaussian"
    assert outcome_of(options, trial, images).cached


def test_what_fails_does_not_stop_the_others(tmp_path, quick, monkeypatch):
    monkeypatch.setitem(
        vae_trials.VAE_SETTINGS, "digits", replace(QUICK, plan=Plan(1, 512, learning_rate=1e30))
    )
    text = bounds(tmp_path, "--posteriors", "gaussian,cnf-none")
    assert text.count("NLL failed") == 4
    assert "finite" in text
    assert "| gaussian | failed | failed |" in text
    again = bounds(tmp_path, "--posteriors", "gaussian,cnf-none")
    assert again.splitlines()[-4:] == text.splitlines()[-4:]


def test_what_is_made_otherwise_is_made_anew(monkeypatch):
    images = load_images("digits")
    trial = trial_of(images, "cnf-bias", 0)
    assert trial_of(images, "cnf-bias", 0) == trial
    assert trial_of(images, "cnf-rank", 0).settings != trial.settings
    monkeypatch.setitem(vae_trials.VAE_SETTINGS, "digits", QUICK)
    assert trial_of(images, "cnf-bias", 0).settings != trial.settings


def test_differences_are_taken_image_by_image():
    nll = np.array([[10.0, 30.0, 20.0], [12.0, 32.0, 22.0]])  # two seeds of three images
    found = {
        "gaussian": [VAEOutcome((0.0,) * 3, tuple(row + 1.5), -20.0, 1.0) for row in nll],
        "cnf-bias": [
            VAEOutcome((0.0,) * 3, tuple(row + np.array([0, 0.3, -0.3])), -19.0) for row in nll
        ],
    }
    ahead = tables._ahead(found, "cnf-bias", "gaussian")
    assert ahead.mean == pytest.approx(1.5)
    assert ahead.stderr == pytest.approx(0.3 / 3**0.5)
    (line,) = tables._summary(found)
    assert "is 1.500 ± 0.173 nats ahead of gaussian: 8.7 standard errors" in line
    assert line.endswith("seed by seed 1.500, 1.500")
    found["cnf-bias"][1] = VAEOutcome(reason="The bound was never finite.")
    assert list(tables._summary(found)) == []
    assert str(tables._ahead(found, "cnf-bias", "gaussian")) == "failed"


def test_faces_are_told_in_bits():
    images = replace(load_images("digits"), name="freyfaces")
    nll = 64 * log(2) * 5
    lines = list(tables._table(images, {"gaussian": [VAEOutcome((-nll,) * 2, (nll,) * 2)]}))
    assert "| bits / pixel |" in lines[2]
    assert "| 5.0000 |" in lines[4]


def test_the_cost_is_told_beside_the_gaussians(monkeypatch):
    monkeypatch.setattr(
        tables, "COST_ARCHITECTURE", Architecture((8, 8), 255, network="conv", latent_dim=2)
    )
    monkeypatch.setattr(tables, "COST_BATCH", 4)
    text = done("benchmark", "vae", "--section", "cost", "--repeats", 2)
    rows = [line.split() for line in text.splitlines()[2:] if line]
    assert [row[0] for row in rows] == list(VAE_POSTERIORS)
    assert float(rows[0][2]) == 1
    assert all(float(row[1]) > 0 for row in rows)


def test_without_pyro_or_files_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "outcome_of", None)
    line = complaint("benchmark", "vae", "--data-dir", tmp_path)  # digits come first
    assert "Expected mnist.npz" in line
    assert "--budget" in complaint("benchmark", "vae", "--budget", 3)
    assert "'mnits'" in complaint("benchmark", "vae", "--images", "mnits")
    monkeypatch.setitem(sys.modules, "pyro", None)
    assert "Expected pyro to compare with" in complaint("benchmark", "vae")
