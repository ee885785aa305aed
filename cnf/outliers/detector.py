"""The model of an outlier detector, and its fit, robust where training rows are contaminated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from cnf.outliers.noise_flow import NoiseFlow
from cnf.outliers.noisy_mixture import NoisyMixture
from cnf.outliers.training import train_network
from cnf.training.progress import TrainingBudget
from cnf.utils.random import seeded
from cnf.utils.threads import Threads, check_threads

# Of the mixture at most, and rows for each at least. On 3000 rows of each of 33 sets the mean AUROC
# is 0.871 with 256 components, 0.867 with 64, 0.857 with 16; of k-nearest neighbours 0.863.
COMPONENTS, COMPONENT_ROWS = 256, 4
HIDDEN = (128, 128)
HELD_OUT = 0.1  # share of the rows
SCORED_ROWS = 4096  # at once
FAR = 1e6  # deviations, beyond which all rows are as far: squares stay finite
BATCH_MULTIPLE = 8  # rows: products of such batches round alike
MIXTURE_ROWS = 20_000  # that the mixtures are fitted to at most
MIXTURE_SHARE = 0.5  # of the seconds, at most
# Of contaminated rows thrice the share is trimmed, half of them at most: outliers that are left in
# a group get components of their own, and a group of normal rows that is trimmed is lost.
TRIMMED, LEAST_CORE = 3.0, 0.5
HALVES = (LEAST_CORE, LEAST_CORE)  # the first cores
CORE_COMPONENTS, CORE_COMPONENT_ROWS, CORE_SIGMA = 4, 8, 1.0
CORE_PASSES = 5
CORE_FAR = 30.0  # deviations, beyond which all rows are as far
ROBUST_CUT = 100.0  # robust deviations that values are cut at
LEAST_SCALE = 0.1  # of a column's deviation in the core, in that of all rows but for far values
NORMAL_DISTANCE = 1.4826  # deviations of a normal law for each median distance from its median

Frame = tuple[Tensor, Tensor, Tensor]  # columns' means and deviations, and principal axes


class OutlierModel(nn.Module):
    """A score of rows, by a mixture with a little noise and a denoising network over it.

        score(x) = NoiseFlow.score(z),   z = Rᵀ ((x − m) / d)

    with the means m and deviations d of the rows that were learned from, of the columns that vary
    in them, and their principal axes R. The noise of σ₀ = 0.2 deviations lets values that repeat
    have a density. No differential equation is solved for a score.

    Args:
        varying: Which columns vary, booleans (columns,).
        flow: The flow of z.

    Example:
        >>> model = fit_detector(torch.randn(100, 3), steps=2)
        >>> model.score(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    varying: Tensor
    loc: Tensor
    scale: Tensor
    axes: Tensor

    def __init__(self, varying: Tensor, flow: NoiseFlow) -> None:
        super().__init__()
        self.flow, dim = flow, int(varying.sum())
        self.register_buffer("varying", varying)
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("axes", torch.eye(dim))

    def standardized(self, rows: Tensor) -> Tensor:
        """Return z of rows, shape (rows, dim)."""
        x = (rows[:, self.varying].to(self.loc) - self.loc) / self.scale
        return x.clamp(-FAR, FAR) @ self.axes

    @torch.no_grad()
    def score(self, rows: Tensor) -> Tensor:
        """Return the scores of rows, the larger the more normal, whatever rows are beside them.

        Values beyond ±10⁶ deviations count as these, so that far rows may tie.

        Shapes: (rows, columns) → (rows,), in float64.
        """
        if not len(rows):
            return rows.new_zeros(0, dtype=torch.float64)
        padded = torch.cat([rows, rows[-1:].expand(-len(rows) % BATCH_MULTIPLE, -1)])
        parts = padded.split(SCORED_ROWS)
        found = torch.cat([self.flow.score(self.standardized(part)) for part in parts])
        return found[: len(rows)].double()


def fit_detector(
    rows: Tensor,
    *,
    contamination: float = 0.0,
    budget: float | None = 20.0,
    steps: int | None = None,
    seed: int = 0,
    threads: Threads = "auto",
    callbacks: Sequence[Callable[[Any], None]] = (),
) -> OutlierModel:
    """Return a model of rows, fitted by a mixture's likelihood and then by flow matching.

    A tenth of the rows are held out, to stop the network where it no longer gains, and to leave it
    out where it does not. Where rows are contaminated, the likelihood is trimmed: a mixture of few
    components is fitted to the rows but for those that the mixture before it found least likely,
    thrice the share of outliers and half of all at most, and the model to the last such rows.

    Args:
        rows: Shape (rows, columns), finite, of which some column varies.
        contamination: The share of rows that are outliers, below 1.
        budget: Seconds of training, None for no limit on them. The mixture takes half of them at
            most.
        steps: The most optimizer steps of the network.
        seed: Seed of the held-out rows, the mixture and the network.
        threads: As in `cnf.fit`.
        callbacks: As in `cnf.fit`.

    Raises:
        ValueError: No column varies, or a number is out of range.
        TrainingError: Too many steps failed in a row.

    Source: trimmed likelihood by Neykov and Neytchev (1990), A robust alternative of the maximum
    likelihood estimators; Rousseeuw and Van Driessen (1999), A fast algorithm for the minimum
    covariance determinant estimator, for its half and its rounds.

    Example:
        >>> model = fit_detector(torch.randn(200, 2), contamination=0.1, steps=2)
        >>> bool((model.score(torch.tensor([[0.0, 0.0], [9.0, 9.0]])).diff() < 0).all())
        True
    """
    length, begin = TrainingBudget.of(budget, steps), perf_counter()
    threads = check_threads(threads)
    if not 0 <= contamination < 1:
        raise ValueError(f"Expected contamination from 0 to below 1; got {contamination}")
    varying = (rows != rows[:1]).any(0)
    if not varying.any():
        raise ValueError(f"Expected columns that vary; got {len(rows)} equal rows: pass others")
    with seeded(seed, rows.device):
        x = rows[:, varying].double()
        frame, z = _core_frame(x, contamination) if contamination else _frame(x)
        z = z[torch.randperm(len(z)).to(z.device)].float()
        held_out, train = z.tensor_split([round(HELD_OUT * len(z))])
        components = max(1, min(COMPONENTS, len(train) // COMPONENT_ROWS))
        known = train[:MIXTURE_ROWS]
        mixture = NoisyMixture.fit(known, components, seconds=MIXTURE_SHARE * length.budget)
        flow = NoiseFlow(mixture, train.var(0, correction=0), HIDDEN)
    left = length.without(perf_counter() - begin)
    options: dict[str, Any] = {"seed": seed, "threads": threads, "callbacks": callbacks}
    train_network(flow, train, held_out, left, **options)
    model = OutlierModel(varying, flow).to(rows.device).double()
    model.loc, model.scale, model.axes = frame
    return model


def _frame(x: Tensor, least: Tensor | float = 0.0) -> tuple[Frame, Tensor]:
    """Return means, deviations of some size at least and principal axes of rows, and their z."""
    start = x[:1]
    reach = (x - start).abs().amax(0).clamp(min=torch.finfo(x.dtype).tiny)
    unit = (x - start) / reach  # whose squares are neither infinite nor all zero
    loc, scale = start[0] + reach * unit.mean(0), reach * unit.std(0, correction=0)
    scale = scale.maximum(torch.as_tensor(least).to(x))
    z = (x - loc) / scale
    _, axes = torch.linalg.eigh(z.mT @ z / len(z))
    return (loc, scale, axes), z @ axes


def _core_frame(x: Tensor, contamination: float) -> tuple[Frame, Tensor]:
    """Return the same of the rows that are left where the least likely ones are trimmed."""
    _, spread = robust_units(x)
    kept = core(x, max(LEAST_CORE, 1 - TRIMMED * contamination))
    return _frame(x[kept], LEAST_SCALE * spread)


def robust_units(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return columns' means and deviations, of values that are cut at 100 robust deviations.

    The robust deviation is the median distance from the median, as that of a normal law, or the
    median of the distances above 0 where most are 0.

    Args:
        x: Shape (rows, dim), all columns varying.

    Source: Hampel (1974), The influence curve and its role in robust estimation.

    Example:
        >>> x = torch.cat([torch.randn(1000, 1), torch.tensor([[1e9]])])
        >>> bool(robust_units(x)[1] < 4)
        True
    """
    center = x.median(0).values
    away = (x - center).abs()
    spread = NORMAL_DISTANCE * away.median(0).values
    others = away.masked_fill(away == 0, torch.nan).nanmedian(0).values
    spread = torch.where(spread > 0, spread, others)
    cut = ((x - center) / spread).clamp(-ROBUST_CUT, ROBUST_CUT)
    return center + spread * cut.mean(0), spread * cut.std(0, correction=0)


def core(x: Tensor, share: float) -> Tensor:
    """Return the indices of the share of rows that a mixture fitted to them finds most likely.

    Each of several rounds fits a mixture of few components to the core of the one before; the first
    cores are half of the rows.

    Example:
        >>> x = torch.cat([torch.randn(90, 2), 50 * torch.randn(10, 2)]).double()
        >>> bool((core(x, 0.8) < 90).all())
        True
    """
    loc, scale = robust_units(x)
    z = ((x - loc) / scale).clamp(-CORE_FAR, CORE_FAR)
    (_, _, axes), _ = _frame(z)
    z, sigma = (z @ axes).float(), torch.tensor(CORE_SIGMA)
    kept = torch.arange(len(z)).to(z.device)
    for part in (*HALVES, share, share, share):
        known = z[kept[torch.randperm(len(kept))[:MIXTURE_ROWS].to(kept)]]
        components = max(1, min(CORE_COMPONENTS, len(known) // CORE_COMPONENT_ROWS))
        mixture = NoisyMixture.fit(known, components, CORE_PASSES)
        found = torch.cat([mixture.log_prob(rows, sigma.to(z)) for rows in z.split(SCORED_ROWS)])
        kept = found.argsort(descending=True)[: max(1, round(part * len(z)))]
    return kept
