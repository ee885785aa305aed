"""Evidences by nessai, proposing by its own flow and by a continuous one, against the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from inspect import getsource
from math import log, pi
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
from nessai.flowmodel.config import training
from nessai.flowsampler import FlowSampler
from nessai.model import Model
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

from cnf.adapters import nessai
from cnf.adapters.nessai import sampler_options
from cnf.scripts.benchmarks.measure import TableItem, threads_used
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of

Array = NDArray[np.float64]

PANELS, NODES = 200, 12  # of the quadrature, with which 80 panels agree to 1e-9
MIXTURE_WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
MIXTURE_SCALES = np.array([0.6, 0.8, 1.0, 0.7])
MIXTURE_SIGNS = np.array([[1] * 10, [-1] * 10, [1, -1] * 5, [1, 1, -1, -1, 1, 1, -1, -1, 1, 1]])
MIXTURE_MEANS = 1.5 * MIXTURE_SIGNS
PROPOSALS: dict[str, Callable[[], dict[str, Any]]] = {"nessai's": dict, "ours": sampler_options}
"""Functions that return arguments of nessai's sampler, by the flow that proposes points."""


@dataclass(frozen=True)
class EvidenceProblem:
    """A likelihood over a box with a uniform prior, of known evidence.

    Attributes:
        dim: The number of parameters.
        half_width: The prior is uniform in [−half_width, half_width] for each.
        log_likelihood: A function of points (rows, dim), (rows,).
        log_evidence: A function that returns log ∫ L(x) p(x) dx.
    """

    dim: int
    half_width: float
    log_likelihood: Callable[[Array], Array]
    log_evidence: Callable[[int, float], float]

    @property
    def truth(self) -> float:
        """The log-evidence."""
        return self.log_evidence(self.dim, self.half_width)


def rosenbrock_log_likelihood(x: Array) -> Array:
    """Return −Σ_i [100 (x_{i+1} − x_i²)² + (1 − x_i)²], shapes (rows, dim), (rows,)."""
    head, tail = x[..., :-1], x[..., 1:]
    found: Array = -(100 * (tail - head**2) ** 2 + (1 - head) ** 2).sum(-1)
    return found


def rosenbrock_log_evidence(
    dim: int, half_width: float, panels: int = PANELS, nodes: int = NODES
) -> float:
    """Return the log-evidence of Rosenbrock's function by quadrature of its chain of factors.

    With L(x) = Π_i K(x_i, x_{i+1}) the integral is one over each coordinate in turn,

        g_dim = 1,    g_i(x) = ∫ K(x, y) g_{i+1}(y) dy,    Z = ∫ g_1(x) dx / (2 half_width)^dim,

    by Gauss-Legendre nodes in panels of equal width.

    Example:
        >>> round(rosenbrock_log_evidence(4, 5.0), 4)
        -15.1017
    """
    node, weight = np.polynomial.legendre.leggauss(nodes)
    edges, width = np.linspace(-half_width, half_width, panels + 1, retstep=True)
    x = (edges[:-1, None] + width * (node + 1) / 2).ravel()
    weights = np.tile(weight * width / 2, panels)
    pairs = np.stack(np.broadcast_arrays(x[:, None], x), -1)
    kernel, rest = np.exp(rosenbrock_log_likelihood(pairs)), np.ones_like(x)
    for _ in range(dim - 1):
        rest = kernel @ (weights * rest)
    return float(np.log(weights @ rest) - dim * log(2 * half_width))


def mixture_log_likelihood(x: Array) -> Array:
    """Return the log-density of a mixture of four Gaussians, shapes (rows, 10), (rows,)."""
    standard = (x[..., None, :] - MIXTURE_MEANS) / MIXTURE_SCALES[:, None]
    norm = x.shape[-1] * (np.log(MIXTURE_SCALES) + log(2 * pi) / 2)
    found: Array = logsumexp(np.log(MIXTURE_WEIGHTS) - norm - (standard**2).sum(-1) / 2, axis=-1)
    return found


def mixture_log_evidence(dim: int, half_width: float) -> float:
    """Return log Σ_k w_k Π_j P(|x_j| < half_width) − dim log(2 half_width), in closed form.

    Example:
        >>> round(mixture_log_evidence(10, 10.0), 4)
        -29.9573
    """
    upper = log_ndtr((half_width - MIXTURE_MEANS) / MIXTURE_SCALES[:, None])
    lower = log_ndtr((-half_width - MIXTURE_MEANS) / MIXTURE_SCALES[:, None])
    masses = (upper + np.log1p(-np.exp(lower - upper))).sum(1)
    return float(logsumexp(np.log(MIXTURE_WEIGHTS) + masses) - dim * log(2 * half_width))


EVIDENCE_PROBLEMS = {
    "rosenbrock": EvidenceProblem(4, 5.0, rosenbrock_log_likelihood, rosenbrock_log_evidence),
    "mixture": EvidenceProblem(10, 10.0, mixture_log_likelihood, mixture_log_evidence),
}


class BoxModel(Model):  # type: ignore[misc]  # a class of a library without types
    """A problem as nessai takes it.

    Args:
        problem: The likelihood, and the box.
    """

    def __init__(self, problem: EvidenceProblem) -> None:
        self.problem = problem
        self.names = [f"x{i}" for i in range(problem.dim)]
        self.bounds = {name: [-problem.half_width, problem.half_width] for name in self.names}

    def log_prior(self, x: Any) -> Array:
        inside = np.log(self.in_bounds(x), dtype=float)
        found: Array = inside - self.dims * log(2 * self.problem.half_width)
        return found

    def log_likelihood(self, x: Any) -> Array:
        return self.problem.log_likelihood(self.unstructured_view(x))


def lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each problem, seed and proposal, each kept as it ends."""
    yield (
        f"Evidence in nats by nessai, live points: {options.live}, stopped as it does by itself; "
        f"nessai's flow at its defaults ({_plan({})}), ours at the adapter's "
        f"({_plan(sampler_options()['training_config'])}); seconds of the processor, "
        f"{threads_used()}"
    )
    for name, problem in EVIDENCE_PROBLEMS.items():
        truth = problem.truth
        for seed in range(options.seeds):
            for proposal in PROPOSALS:
                names = {"problem": name, "flow": proposal, "seed": seed, "live": options.live}
                measure = partial(run_sampler, problem, proposal, seed, options.live)
                found = options.results.recall(key_of(names, settings_of(proposal)), measure)
                yield {
                    "problem": name,
                    "seed": seed,
                    "flow": proposal,
                    "log Z": found["log Z"],
                    "± log Z": found["± log Z"],
                    "truth": truth,
                    "errors off": (found["log Z"] - truth) / found["± log Z"],
                    **{key: found[key] for key in ("calls", "trainings", "seconds", "note")},
                }


def _plan(changes: dict[str, Any]) -> str:
    """Return how nessai trains with some of its training settings changed."""
    plan = training.asdict() | changes
    return f"learning rate {plan['lr']:g}, epochs: {plan['max_epochs']} at most"


def settings_of(proposal: str) -> list[Any]:
    """Return what tells a proposal's results from those of other options, code and versions."""
    parts = PROPOSALS[proposal]().values()
    options = [{key: each for key, each in part.items() if not callable(each)} for part in parts]
    code = [getsource(each) for each in (run_sampler, *((nessai,) if options else ()))]
    return [options, code, version("nessai")]


def run_sampler(
    problem: EvidenceProblem, proposal: str, seed: int, live: int, **options: Any
) -> Row:
    """Sample a problem by nessai, and return its evidence and costs.

    Args:
        problem: What to sample.
        proposal: A name in `PROPOSALS`.
        seed: nessai's seed.
        live: The number of live points.
        options: Other arguments of nessai's `FlowSampler`.
    """
    model, begin = BoxModel(problem), process_time()
    quiet = {"plot": False, "resume": False, "signal_handling": False, "checkpointing": False}
    with TemporaryDirectory() as folder, catch_warnings():
        filterwarnings("ignore", "The `nessai.gw`", FutureWarning)  # of nessai to itself
        given = quiet | PROPOSALS[proposal]() | options
        sampler = FlowSampler(model, output=folder, nlive=live, seed=seed, **given)
        sampler.run(plot=False, save=False)
    return {
        "log Z": float(sampler.log_evidence),
        "± log Z": float(sampler.log_evidence_error),
        "calls": int(model.likelihood_evaluations),
        "trainings": int(sampler.ns.proposal.training_count),
        "seconds": process_time() - begin,
        "note": "",
    }
