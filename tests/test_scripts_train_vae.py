"""`cnf train-vae`: what it writes and says, going on, and mistakes."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from test_scripts_running import complaint, done

from cnf.scripts import train_vae
from cnf.vae import load

FIGURES = {"reconstructions.png", "samples.png", "traversal.png", "learning_curve.png"}
SMALL = ("--hidden", "16", "--epochs", "2", "--samples", "20")


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Fewer images are scored than by the program itself."""
    monkeypatch.setattr(train_vae, "MAX_TEST_IMAGES", 60)


@pytest.fixture
def pictures(tmp_path):
    """A file of pictures of 8 x 12."""
    path = tmp_path / "pictures.npz"
    rows = np.random.default_rng(0).integers(256, size=(60, 8, 12), dtype=np.uint8)
    np.savez(path, pictures=rows, flat=rows.reshape(60, -1))
    return path


def numbers(text):
    """What the scores' lines say, by their names."""
    lines = re.findall(r"^  (ELBO|NLL, IWAE-\d+) +(-?[\d.]+) ± ([\d.]+) nats", text, re.MULTILINE)
    return {name.split(",")[0]: float(value) for name, value, _ in lines}


@pytest.mark.parametrize(
    "posterior", [("gaussian",), ("planar", "--flows", 2), ("cnf", "--amortize", "rank")]
)
def test_digits_need_no_file(tmp_path, posterior):
    out = tmp_path / "out"
    text = done("train-vae", "--out", out, *SMALL, "--latent-dim", 3, "--posterior", *posterior)
    assert text.startswith("digits: 1097 training images of 8 x 8; mlp of 3 latents, likelihood")
    found = numbers(text)
    assert -60 < found["ELBO"] < -found["NLL"] < -20
    assert {path.name for path in (out / "figures").iterdir()} == FIGURES
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    vae = load(out)
    assert vae.architecture.posterior == posterior[0]


def test_two_latents_have_their_posteriors_drawn(tmp_path):
    done("train-vae", "--out", tmp_path / "out", *SMALL, "--latent-dim", 2)
    assert (tmp_path / "out" / "figures" / "posterior.png").stat().st_size > 10_000


def test_a_file_by_convolutions(tmp_path, pictures):
    text = done(
        *("train-vae", f"{pictures}:pictures", "--out", tmp_path / "out", "--network", "conv"),
        *("--epochs", 1, "--samples", 2, "--latent-dim", 3, "--batch-size", 16),
    )
    assert "48 training images of 8 x 12; conv of 3 latents, likelihood levels" in text
    assert load(tmp_path / "out").architecture.size == (8, 12)


def test_the_scores_are_those_of_the_saved_weights(tmp_path):
    out = tmp_path / "out"
    arguments = ("--hidden", "16", "--epochs", "10", "--posterior", "gaussian")
    found = numbers(done("train-vae", "--out", out, *arguments, "--samples", 500))
    vae = load(out)
    x = train_vae.observed(vae, train_vae.load_images("digits"))
    torch.manual_seed(1)
    again = train_vae.score(vae, x, 500)
    assert found["NLL"] == pytest.approx(again.nll.mean().item(), abs=0.3)
    assert found["ELBO"] == pytest.approx(again.elbo.mean().item(), abs=0.3)
    torch.nn.init.normal_(vae.head.weight)
    assert found["ELBO"] > train_vae.score(vae, x, 100).elbo.mean() + 5


def test_a_run_that_is_killed_goes_on(tmp_path):
    """Once killed on its way, and once begun again after its end: the same numbers."""
    arguments = [*SMALL[:2], "--epochs", "40", "--samples", "20", "--posterior", "gaussian"]
    whole = done("train-vae", "--out", tmp_path / "whole", *arguments)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cnf.scripts", "train-vae", "--out", str(out), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = out / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(metrics.read_text().splitlines()) < 40
    resumed = done("train-vae", "--out", out, *arguments, "--resume")
    assert numbers(resumed) == numbers(whole)
    again = done("train-vae", "--out", out, *arguments, "--resume")
    assert numbers(again) == numbers(whole)
    line = complaint("train-vae", "--out", out, *arguments, "--resume", "--learning-rate", "0.1")
    assert "its learning_rate was 0.001, and now is 0.1" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mnits",), "such as mnist, "),
        (("own.npy",), "own.npy; got no such file"),
        (("mnist", "--data-dir", "/nowhere"), "Expected mnist.npz or"),
        (("--posterior", "iaf"), "the posterior to be one of gaussian, planar, cnf; got 'iaf'"),
        (("--network", "vit"), "the network to be one of mlp, conv"),
        (("--likelihood", "normal"), "the likelihood to be one of bernoulli, levels"),
        (("--amortize", "all"), "amortize to be one of none, bias, rank, hyper"),
        (
            ("--posterior", "gaussian", "--amortize", "bias"),
            "no --amortize with posterior gaussian",
        ),
        (("--posterior", "gaussian", "--features", "4"), "no --features with a posterior"),
        (("--amortize", "none", "--features", "4"), "no --features with a posterior"),
        (("--flows", "3"), "no --flows with posterior cnf"),
        (("--network", "conv", "--hidden", "8"), "no --hidden with network conv"),
        (("--latent-dim", "0"), "latent_dim of at least 1; got 0"),
        (("--latent-dim", "two"), "--latent-dim to be like 32; got 'two'"),
        (("--epochs", "0"), "epochs above 0, and finite; got 0"),
        (("--max-grad-norm", "inf"), "max_grad_norm above 0, and finite; got inf"),
        (("--annealing", "2"), "annealing of at least 0 and below 1"),
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


def test_training_that_breaks_says_why(tmp_path):
    line = complaint("train-vae", "--out", tmp_path / "out", *SMALL, "--learning-rate", "1e20")
    assert "finite" in line
    assert "earning rate" in line


def test_planar_flows_without_pyro(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyro.distributions.transforms", None)
    line = complaint("train-vae", "--out", tmp_path / "out", "--posterior", "planar")
    assert "Expected Pyro for planar flows" in line
    assert "cnf-flows[bench]" in line
