"""The benchmark of evidences: its true values, its rows, and its cache."""

from math import log

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.stats import multivariate_normal
from test_scripts_running import done

pytest.importorskip("nessai")
from cnf.scripts.benchmarks import evidence


def test_rosenbrocks_evidence_is_that_of_another_quadrature():
    """In two dimensions, by SciPy along the valley, which the box cuts off at its top."""

    def likelihood(y: float, x: float) -> float:
        return float(np.exp(evidence.rosenbrock_log_likelihood(np.array([x, y]))))

    box = (lambda x: min(max(-2.0, x * x - 1), 1.9), lambda x: min(2.0, x * x + 1))
    mass, _ = dblquad(likelihood, -2, 2, *box, epsabs=1e-8)
    found = evidence.rosenbrock_log_evidence(2, 2.0)
    assert found == pytest.approx(log(mass) - 2 * log(4), abs=1e-7)


def test_rosenbrocks_quadrature_has_converged():
    coarse = evidence.rosenbrock_log_evidence(4, 5.0, panels=80)
    assert coarse == pytest.approx(evidence.EVIDENCE_PROBLEMS["rosenbrock"].truth, abs=1e-9)


def test_rosenbrocks_likelihood_peaks_at_one():
    x = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 2, 4, 16]])
    assert evidence.rosenbrock_log_likelihood(x) == pytest.approx([0, -3, -(100 + 0 + 0 + 1 + 9)])


def test_the_mixtures_likelihood_is_scipys():
    x = np.random.default_rng(0).normal(0, 2, (5, 10))
    parts = zip(
        *(evidence.MIXTURE_WEIGHTS, evidence.MIXTURE_MEANS, evidence.MIXTURE_SCALES), strict=True
    )
    density = sum(w * multivariate_normal.pdf(x, mean, sd**2 * np.eye(10)) for w, mean, sd in parts)
    assert evidence.mixture_log_likelihood(x) == pytest.approx(np.log(density))


@pytest.mark.parametrize("half_width", [1.0, 2.0, 10.0])
def test_the_mixtures_evidence_is_the_mass_in_the_box(half_width):
    parts = zip(
        *(evidence.MIXTURE_WEIGHTS, evidence.MIXTURE_MEANS, evidence.MIXTURE_SCALES), strict=True
    )
    mass = 0.0
    for weight, mean, scale in parts:
        normal = [multivariate_normal(each, scale**2) for each in mean]
        mass += weight * np.prod([each.cdf(half_width) - each.cdf(-half_width) for each in normal])
    found = evidence.mixture_log_evidence(10, half_width)
    assert found == pytest.approx(log(mass) - 10 * log(2 * half_width), abs=1e-10)


def test_rows_are_printed_and_cached(tmp_path, monkeypatch):
    def log_likelihood(x: np.ndarray) -> np.ndarray:
        return -(x**2).sum(-1) / 2 - log(2 * np.pi)

    def box(dim: int, half_width: float) -> float:
        return -dim * log(2 * half_width)

    problem = evidence.EvidenceProblem(2, 8.0, log_likelihood, box)
    proposals = {"nessai's": lambda: {"training_config": {"max_epochs": 10}}}
    monkeypatch.setattr(evidence, "EVIDENCE_PROBLEMS", {"normal": problem})
    monkeypatch.setattr(evidence, "PROPOSALS", proposals)
    given = ("benchmark", "evidence", "--seeds", 1, "--live", 50, "--out", tmp_path)
    header, cells = (line.split() for line in done(*given).strip().splitlines()[-2:])
    assert (header[0], cells[:3]) == ("problem", ["normal", "0", "nessai's"])
    found, error, truth = map(float, cells[3:6])
    assert truth == pytest.approx(-2 * log(16), abs=1e-3)
    assert abs(found - truth) < 4 * error < 2
    assert done(*given).strip().splitlines()[-1].split() == [*cells, "cached"]
