"""The benchmark of inference: its simulators, its scores and tests, its cache and its page."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import near
from scipy.integrate import solve_ivp
from test_scripts_running import complaint, done

from cnf.scripts.benchmarks import inference, inference_checks, posteriors
from cnf.scripts.benchmarks.compared import INFERENCE_TASK_NAMES
from cnf.scripts.benchmarks.inference import c2st
from cnf.scripts.benchmarks.inference_checks import coverage_levels, rank_levels, score_flow
from cnf.scripts.benchmarks.simulators import INFERENCE_TASKS, TEST_DAYS, infected_shares

# Of sbibm's first observations: the seed, the first true parameters, the first numbers.
STORED = {
    "two_moons": (1000011, [-0.817666, -0.575681], [-0.639671, 0.162347]),
    "slcp": (1000000, [-2.858121, -0.444513], [2.371878, 0.499474, 9.931435]),
    "gaussian_linear": (1000000, [0.271842, 0.676295], [1.047135, 0.556671, -0.236185]),
    "sir": (1000000, [0.614793, 0.191721], None),
    "bernoulli_glm": (1000000, [1.215716, 2.138634], [56.0, 3.32306, 14.356438]),
}
SIR_COUNTS = [0.0, 1.0, 352.0, 40.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # of 1000 people, stored


@pytest.mark.parametrize("name", STORED)
def test_a_stored_seed_draws_the_stored_parameters_and_observation(name):
    seed, parameters, data = STORED[name]
    task = INFERENCE_TASKS[name]
    theta, x = task.draw(1, seed)
    near(theta[0, :2], torch.tensor(parameters), 1e-5)
    if data is not None:  # PyTorch's binomial numbers are others than when sbibm drew them
        near(x[0, :3], torch.tensor(data), 1e-5)
    assert task.prior.support.check(theta).all()
    assert torch.equal(task.draw(1, seed)[1], x)
    assert list(INFERENCE_TASKS) == list(INFERENCE_TASK_NAMES)


def test_epidemics_are_those_of_a_solve_of_their_own_and_explain_the_stored_counts():
    rates = np.array([[0.61479264, 0.19172086], [0.4, 0.125], [2.0, 0.1]])
    shares = infected_shares(rates)

    def slopes(_, state, beta, gamma):
        susceptible, infected = state
        met = beta * susceptible * infected / 1e6
        return [-met, met - gamma * infected]

    for (beta, gamma), found in zip(rates, shares, strict=True):
        options = {"t_eval": TEST_DAYS, "args": (beta, gamma), "rtol": 1e-10, "atol": 1e-8}
        alone = solve_ivp(slopes, (0, TEST_DAYS[-1]), [1e6 - 1, 1.0], "LSODA", **options)
        np.testing.assert_allclose(found, alone.y[1] / 1e6, rtol=1e-4, atol=1e-10)
    expected = 1000 * shares[0]
    spread = np.sqrt(expected * (1 - shares[0])) + 0.1
    assert (np.abs(SIR_COUNTS - expected) < 3 * spread).all()
    counts = INFERENCE_TASKS["sir"].simulate(torch.from_numpy(rates[:1]).float().expand(2000, 2))
    near(counts.mean(0).double(), torch.from_numpy(expected), 1.5)


def test_the_moons_are_where_the_density_says():
    theta, x = INFERENCE_TASKS["two_moons"].draw(4000, 0)
    first, second = theta.T
    inner = x + torch.stack([(first + second).abs(), first - second], 1) / 2**0.5
    radius = (inner - torch.tensor([0.25, 0.0])).norm(dim=1)
    assert abs(radius.mean() - 0.1) < 1e-3
    assert abs(radius.std() - 0.01) < 1e-3
    assert (inner[:, 0] >= 0.25 - 1e-6).all()


def test_the_classifier_tells_what_differs():
    rng = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 150, 1, generator=rng)
    assert abs(c2st(one, two) - 0.5) < 0.1
    assert c2st(one, two + 1.5) > 0.7


def test_scores_by_dop853_are_those_of_the_flow():
    theta, x = INFERENCE_TASKS["two_moons"].draw(200, 0)
    flow = posteriors.simulation_flow(theta, x, support=INFERENCE_TASKS["two_moons"].prior.support)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    scored = score_flow(flow, x[:1])
    near(scored.log_prob(theta[:20], 1e-6).double(), scored.reference(theta[:20]), 2e-4)


def test_ranks_and_coverage_are_uniform_where_draws_are_from_the_posterior():
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(400, 2, generator=rng)
    truths = means + torch.randn(400, 2, generator=rng)
    draws = means + torch.randn(50, 400, 2, generator=rng)
    references = torch.randn(400, 2, generator=rng)

    def p_values(draws):
        levels = [*rank_levels(truths, draws).values(), coverage_levels(truths, draws, references)]
        return [inference_checks.kstest(each, "uniform").pvalue for each in levels]

    assert inference_checks.holm_rejections(p_values(draws), 0.05) == 0
    narrow = means + 0.4 * (draws - means)
    assert inference_checks.holm_rejections(p_values(narrow), 0.05) == 3


@pytest.fixture
def folder(tmp_path):
    """A folder as of sbibm's wheel, with two observations of a task whose posterior is known."""
    for number, seed in enumerate((1000000, 1000001), 1):
        place = tmp_path / f"sbibm/tasks/gaussian_linear/files/num_observation_{number}"
        place.mkdir(parents=True)
        theta, x = INFERENCE_TASKS["gaussian_linear"].draw(1, seed)
        reference = x / 2 + 0.05**0.5 * torch.randn(300, 10)
        pd.DataFrame({"observation_seed": [seed]}).to_csv(place / "observation_seed.csv")
        parts = {"true_parameters": theta, "observation": x}
        for name, values in parts.items():
            pd.DataFrame(values).to_csv(place / f"{name}.csv", index=False)
        pd.DataFrame(reference).to_csv(place / "reference_posterior_samples.csv.bz2", index=False)
    (tmp_path / "sbibm/tasks/two_moons/files").mkdir(parents=True)
    return tmp_path


def test_a_trial_is_measured_kept_and_put_on_the_page(folder, monkeypatch):
    pytest.importorskip("sbi")
    monkeypatch.setattr(inference, "DRAWS", 300)
    monkeypatch.setattr(inference, "c2st", lambda reference, draws: float(reference.std() > 0) / 2)
    monkeypatch.setattr(inference, "OBSERVATIONS", 2)
    monkeypatch.setattr(posteriors, "FEW_STEPS", 3)
    words = ("--sbibm", folder, "--out", folder / "out", "--simulations", 200)
    chosen = ("--tasks", "gaussian_linear", "--estimators", "ours", "--observations", 2)
    given = ("benchmark", "inference", "--section", "posteriors", *words, *chosen)
    text = done(*given, "--page", folder / "page.md")
    cells = text.strip().splitlines()[-1].split("  ")
    cells = [each.strip() for each in cells if each.strip()]
    assert cells[:3] == ["gaussian_linear", "200", "ours"]
    assert float(cells[3]) == 0.5
    assert float(cells[8]) == pytest.approx(-0.79, abs=1.5)
    assert "## inference: posteriors\n" in (folder / "page.md").read_text()
    assert done(*given).strip().splitlines()[-1].split() == [*text.split()[-12:], "cached"]


def test_more_observations_than_stored_are_refused(folder):
    pytest.importorskip("sbi")
    words = ("--section", "posteriors", "--sbibm", folder, "--observations", 11)
    told = complaint("benchmark", "inference", *words, status=2)
    assert "Expected --observations of at most 10" in told


def test_keys_of_results_change_with_what_they_depend_on(monkeypatch):
    pytest.importorskip("sbi")
    trials = [inference.InferenceTrial(name, "slcp", 1000) for name in ("ours", "mixture", "npe")]
    before = [each.key()["settings"] for each in trials]
    monkeypatch.setattr(posteriors, "FEW_STEPS", 3)
    changed = [each.key()["settings"] != old for each, old in zip(trials, before, strict=True)]
    assert changed == [True, True, False]
    monkeypatch.setattr(inference, "version", lambda name: "0.28")
    assert trials[2].key()["settings"] != before[2]


def test_a_folder_without_the_files_is_named_in_one_line(tmp_path):
    pytest.importorskip("sbi")
    told = complaint("benchmark", "inference", "--sbibm", tmp_path, status=2)
    assert "Expected --sbibm to be the folder of sbibm's unpacked wheel" in told
