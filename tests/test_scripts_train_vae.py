"""`cnf train-vae`: what it writes and says, going on, and mistakes."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from children import program
from test_scripts_running import complaint, done

from cnf.scripts import vae_training
from cnf.vae import load

FIGURES = {"reconstructions.png", "samples.png", "traversal.png", "learning_curve.png"}
SMALL = ("--hidden", "16", "--epochs", "2", "--samples", "20")


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(vae_training, "MAX_TEST_IMAGES", 60)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(vae_training, "_figures", lambda *_: {})


def numbers(text):
    """What the scores' lines say, by their names."""
    lines = re.findall(r"^  (ELBO|NLL, IWAE-\d+) +(-?[\d.]+) ± ([\d.]+) nats", text, re.MULTILINE)
    return {name.split(",")[0]: float(value) for name, value, _ in lines}


@pytest.mark.parametrize(
    ("latents", "posterior"),
    [(3, ("gaussian",)), (3, ("planar", "--flows", 2)), (2, ("cnf", "--amortize", "rank"))],
)
def test_digits_need_no_file(tmp_path, latents, posterior):
    """With two latents their posteriors are drawn."""
    out, words = tmp_path / "out", ("--latent-dim", latents, "--posterior", *posterior)
    text = done("train-vae", "--out", out, *SMALL, *words)
    assert text.startswith(f"digits: 1097 training images of 8 x 8; mlp of {latents} latents")
    found = numbers(text)
    assert -60 < found["ELBO"] < -found["NLL"] < -20
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == FIGURES | ({"posterior.png"} if latents == 2 else set())
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    assert load(out).architecture.posterior == posterior[0]


def test_a_file_by_convolutions(tmp_path, undrawn):
    rows = np.random.default_rng(0).integers(256, size=(60, 8, 12), dtype=np.uint8)
    np.savez(path := tmp_path / "some.npz", pictures=rows, flat=rows.reshape(60, -1))
    text = done(
        *("train-vae", f"{path}:pictures", "--out", tmp_path / "out", "--network", "conv"),
        *("--epochs", 1, "--samples", 2, "--latent-dim", 3, "--batch-size", 16),
    )
    assert "48 training images of 8 x 12; conv of 3 latents, likelihood levels" in text
    assert load(tmp_path / "out").architecture.size == (8, 12)


def test_the_scores_are_those_of_the_saved_weights(tmp_path, undrawn):
    out = tmp_path / "out"
    arguments = ("--hidden", "16", "--epochs", "3", "--posterior", "gaussian")
    found = numbers(done("train-vae", "--out", out, *arguments, "--samples", 100))
    vae = load(out)
    x = vae_training.observed(vae, vae_training.load_images("digits"))
    torch.manual_seed(1)
    again = vae_training.score(vae, x, 100)
    assert found["NLL"] == pytest.approx(again.nll.mean().item(), abs=0.4)
    assert found["ELBO"] == pytest.approx(again.elbo.mean().item(), abs=0.4)
    torch.nn.init.normal_(vae.head.weight)
    assert found["ELBO"] > vae_training.score(vae, x, 100).elbo.mean() + 5


def test_a_run_that_is_killed_resumes(tmp_path, undrawn):
    arguments = [*SMALL[:2], "--epochs", "12", "--samples", "5", "--posterior", "gaussian"]
    whole = done("train-vae", "--out", tmp_path / "whole", *arguments)
    out = tmp_path / "out"
    process = program(tmp_path / "said", "train-vae", "--out", out, *arguments)
    metrics = out / "metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        process.join(0.02)
    process.kill()
    process.join()
    assert 2 <= len(metrics.read_text().splitlines()) < 12
    for _ in range(2):
        assert numbers(done("train-vae", "--out", out, *arguments, "--resume")) == numbers(whole)
        assert metrics.read_text().count("\n") == 12
    line = complaint("train-vae", "--out", out, *arguments, "--resume", "--learning-rate", "0.1")
    assert "its learning_rate was 0.001, and now is 0.1" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mnits",), "such as mnist, "),
        (("own.npy",), "own.npy; got no such file"),
        (("mnist", "--data-dir", "/nowhere"), "Expected mnist.npz or"),
        (("--posterior", "iaf"), "posterior to be one of gaussian, planar, cnf; got 'iaf'"),
        (("--network", "vit"), "network to be one of mlp, conv"),
        (("--likelihood", "normal"), "likelihood to be one of bernoulli, levels"),
        (("--amortize", "all"), "amortize to be one of none, bias, rank, hyper"),
        (("--posterior", "gaussian", "--amortize", "bias"), "--amortize with posterior gaussian"),
        (("--posterior", "gaussian", "--features", "4"), "no --features with a posterior"),
        (("--amortize", "none", "--features", "4"), "no --features with a posterior"),
        (("--flows", "3"), "no --flows with posterior cnf"),
        (("--network", "conv", "--hidden", "8"), "no --hidden with network conv"),
        (("--latent-dim", "0"), "latent_dim to be finite and at least 1; got 0"),
        (("--latent-dim", "two"), "--latent-dim to be like 32; got 'two'"),
        (("--epochs", "0"), "epochs to be finite and above 0; got 0"),
        (("--max-grad-norm", "inf"), "max_grad_norm to be finite and above 0; got inf"),
        (("--annealing", "2"), "annealing to be finite and at least 0 and below 1"),
        (("--samples", "0"), "expected a whole number above 0"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in complaint("train-vae", *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty (or --resume)" in complaint("train-vae", "--out", tmp_path)
    assert "no training.safetensors" in complaint("train-vae", "--out", tmp_path, "--resume")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_training_that_breaks_or_lacks_pyro_says_why(tmp_path, monkeypatch):
    words = ("train-vae", *SMALL, "--out")
    line = complaint(*words, tmp_path / "out", "--learning-rate", "1e20")
    assert "finite" in line
    assert "earning rate" in line
    monkeypatch.setitem(sys.modules, "pyro.distributions.transforms", None)
    line = complaint(*words, tmp_path / "planar", "--posterior", "planar")
    assert re.search(r"Expected Pyro for planar flows.*cnf-flows\[bench\]", line)
