"""The benchmark of VAEs: what is trained, what is cached, and what its tables say."""

import json
from dataclasses import replace
from math import log, nan
from unittest.mock import Mock, patch

import numpy as np
import pytest
from test_scripts_running import done

from cnf.datasets import load_images
from cnf.scripts import training, vae_training
from cnf.scripts.benchmarks import vae
from cnf.scripts.benchmarks.compared import VAE_POSTERIORS, VAE_SETTINGS, VAESetting
from cnf.scripts.benchmarks.options import BenchmarkOptions, ResultCache
from cnf.vae import Architecture, load


@pytest.fixture
def quick(monkeypatch):
    """Digits alone, trained for an epoch, with few samples; a function changes the setting."""

    def change(latents: int = 2, seeds: int = 1, **plan: float) -> None:
        plan = {"epochs": 1, "batch_size": 512} | plan
        monkeypatch.setitem(VAE_SETTINGS, "digits", VAESetting(latents, seeds, plan))

    change()
    monkeypatch.setattr(vae, "IWAE_SAMPLES", 5)
    monkeypatch.setattr(vae_training, "MAX_TEST_IMAGES", 60)
    return change


def bounds(out, posteriors):
    given = ("benchmark", "vae", "--section", "bounds", "--images", "digits", "--out", out)
    return done(*given, "--posteriors", posteriors)


def test_table_has_a_row_for_each_posterior_and_is_made_once(tmp_path, quick):
    names = ("gaussian", "planar", "cnf-none", "cnf-bias")
    text = bounds(tmp_path, ",".join(names))
    assert "60 test images, 2 latents, 1 epochs, seeds: 1; threads: " in text
    rows = [line.split() for line in text.splitlines() if line.startswith(names)]
    assert [row[0] for row in rows[:4]] == list(names)
    lines = map(json.loads, (tmp_path / "vae.jsonl").read_text().splitlines())
    found = {line["key"]["posterior"]: line["result"] for line in lines}
    for row in rows[4:8]:
        assert float(row[4]) == pytest.approx(np.mean(found[row[0]]["nll"]), abs=1e-3)
    best = max((name for name in found if "cnf" in name), key=lambda n: found[n]["validation"])
    assert f"\n{best}, which validates best of this library's, is " in text
    again = bounds(tmp_path, ",".join(names))
    assert again.count("cached") == 2 * len(names)
    assert again.replace("cached", "").split() == text.split()
    part = bounds(tmp_path, "gaussian,cnf-bias")
    assert "below planar" not in part
    assert "cnf-bias, which validates best" in part
    assert "ahead" not in bounds(tmp_path, "cnf-bias")


def test_interrupted_training_resumes(tmp_path, quick, monkeypatch):
    quick(epochs=3)
    given = (load_images("digits"), "gaussian", 0)
    whole = vae.bounds_of(BenchmarkOptions("vae"), *given)
    options, write = BenchmarkOptions("vae", out=tmp_path), training.write_records

    def interrupt(path, records):
        write(path, records)
        if spy.call_count == 2:
            raise KeyboardInterrupt

    spy = Mock(side_effect=interrupt)
    monkeypatch.setattr(training, "write_records", spy)
    with pytest.raises(KeyboardInterrupt):
        vae.bounds_of(options, *given)
    assert vae.bounds_of(options, *given) | {"seconds": 0} == whole | {"seconds": 0}
    assert spy.call_count == 4  # two epochs; the second again and the third
    (folder,) = (tmp_path / "models").iterdir()
    assert load(folder).architecture.posterior == "gaussian"
    assert vae.bounds_of(options, *given)["note"] == "cached"


def test_failure_does_not_stop_the_others(tmp_path, quick):
    quick(seeds=2, learning_rate=1e30)
    text, again = (bounds(tmp_path, "gaussian,cnf-none") for _ in range(2))
    assert (text.count("finite"), text.count("ahead"), again.count("cached")) == (4, 0, 4)


def test_another_posterior_or_setting_is_another_result(quick, monkeypatch):
    images, keys = load_images("digits"), []
    monkeypatch.setattr(ResultCache, "recall", lambda _, key, __: keys.append(str(key)))
    for posterior, latents in (("cnf-bias", 2), ("cnf-bias", 2), ("cnf-rank", 2), ("cnf-bias", 3)):
        quick(latents)
        vae.bounds_of(BenchmarkOptions("vae"), images, posterior, 0)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_differences_are_taken_image_by_image():
    def row(nll, validation=nan):
        return {"nll": nll, "elbo": nll, "validation": validation, "seconds": 1.0, "note": ""}

    nll = np.array([[10.0, 30.0, 20.0], [12.0, 32.0, 22.0]])  # two seeds of three images
    found = {
        "gaussian": [row(list(each + 1.5)) for each in nll],
        "cnf-bias": [row(list(each + np.array([0, 0.3, -0.3])), -19.0) for each in nll],
    }
    images = replace(load_images("digits"), name="freyfaces")
    *rows, line = vae.compare(images, found)
    assert str(rows[1]["below gaussian"]) == "1.5000 ± 0.1732"
    assert "is 1.5000 ± 0.1732 nats ahead of gaussian: 8.7 standard errors" in line
    assert line.endswith("seed by seed 1.500, 1.500")
    assert rows[0]["bits / pixel"] == f"{22.5 / (64 * log(2)):.4f}"
    found["cnf-bias"][1] = row([])
    _, failed = vae.compare(images, found)
    assert str(failed["below gaussian"]) == "failed"


def test_cost_is_relative_to_the_gaussians():
    small = Architecture((8, 8), 255, network="conv", latent_dim=2)
    with patch.multiple(vae, COST_ARCHITECTURE=small, COST_BATCH=4):
        _, *rows = vae.cost_lines(BenchmarkOptions("vae", repeats=1))
    assert [row["posterior"] for row in rows] == list(VAE_POSTERIORS)
    assert (rows[0]["to gaussian"], min(row["seconds"] for row in rows) > 0) == (1, True)
