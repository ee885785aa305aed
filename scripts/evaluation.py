"""The scores of a flow on rows, against a Gaussian's and the truth if known."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import row_groups
from cnf.diagnostics.consistency import consistency
from cnf.diagnostics.similarity import Similarity
from cnf.flow.scores import Scores
from cnf.layers import Steps
from cnf.scripts.data import AnyToy, true_log_prob
from cnf.scripts.rows import Array, ContextRows
from cnf.scripts.trained import TrainedModel, flows_of
from cnf.tables.row_model import RowModel
from cnf.utils.distributed import rank
from cnf.utils.serialization import json_value

CONSISTENCY_ROWS = 100  # whose questions take about as long as the log p of 4000


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a flow on held-out rows, in nats unless stated otherwise.

    Standard errors are None for a single row; those of differences are from the rows' differences.
    Rows that repeat each other count as one observation. Where rows have gaps, all are about the
    cells that are there. Rows where explicit steps fold, and those
    of impossible values, have no density: the NLL is then infinite, and what follows from it
    unknown. Similarity is that of draws to the training rows, where a report has measured it.
    """

    n: int  # number of rows
    nll: float  # mean negative log-density of a row, in the data's units
    stderr: float | None  # of `nll` over the rows, with the scatter of probes or of drawn noise
    nll_standardized: float  # of columns divided by the training rows' standard deviations
    bits_per_dim: float  # nll / (cells of a row · ln 2)
    gaussian_nll: float  # of `GaussianBaseline`, fitted on the training rows; of possible rows
    gain_stderr: float | None  # of gaussian_nll − nll
    nfe: float  # evaluations of the field for each solve; 0 without one
    gaps: float | None = None  # share of the cells that are missing, and marginalised
    # |log p(x) − log p(x_a) − log p(x_b | x_a)| in nats a column, over random parts a and b of some
    # rows, of a model that answers questions about parts: the mean, and what a twentieth exceeds.
    consistency_gap: float | None = None
    consistency_gap95: float | None = None
    draws: int | None = None  # of noise for each row, with which the NLL is an upper bound
    exact: bool | None = None  # whether masses have no noise, in a table of mixed types
    entropy: float | None = None  # minus the mean true log-density of the same rows, where known
    kl: float | None = None  # nll − entropy
    kl_stderr: float | None = None
    probe_stderr: float | None = None  # the part of `stderr` due to probes or draws of noise
    # The excess of the NLL due to the solver's tolerance and rounding: its mean decrease, over at
    # most 1000 random rows, in a solve in double precision by dopri8 at a tenth of the tolerance.
    solver_error: float | None = None
    # At two standard errors: 2 √(stderr² + solver_error² + the variance of solver_error).
    uncertainty: float | None = None
    folded: int | None = None  # number of rows where explicit steps fold; None without steps
    impossible: int | None = None  # number of rows of impossible values; None without any
    nll_unfolded: float | None = None  # of the rows with a density, where there are others
    detection_score: float | None = None  # of a classifier that tells draws from training rows
    detector: str | None = None  # the library of the classifier
    detection_rows: int | None = None  # of training, and of draws
    mean_shape_error: float | None = None  # of the columns' distributions
    mean_pair_error: float | None = None  # of the joint shares of pairs of columns
    chance_pair_error: float | None = None  # of draws of the rows' distribution
    nearer_to_training: float | None = None  # share of draws nearer to training than to held-out

    def json(self) -> str:
        """Return one JSON object of the known values, with null for an infinite NLL."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(json_value(known))

    def lines(self) -> list[str]:
        """Return the numbers as lines of text."""
        gain, ahead = self.gaussian_nll - self.nll, ""
        if isfinite(gain) and self.gain_stderr is not None:
            better = "better" if gain >= 0 else "worse"
            ahead = f" (the model is {better} by {abs(gain):.4f}{_error(self.gain_stderr)})"
        lines = [
            f"  NLL           {self.nll:10.4f}{_error(self.stderr)} nats per row (rows: {self.n})",
            f"                {self.bits_per_dim:10.4f} bits per dimension",
            f"                {self.nll_standardized:10.4f} nats per row in standardised units",
            f"  Gaussian NLL  {self.gaussian_nll:10.4f}{ahead}",
        ]
        if self.draws is not None:
            lines.insert(1, f"                a bound on the log-mass, {self.draws} draws a row")
        if self.exact:
            lines.insert(1, "                exact, of masses where values have one")
        lines[1:1] = self._lost()
        if self.gaps is not None:
            lines.insert(1, f"                of what is there: {self.gaps:.1%} of cells are gaps")
        if self.uncertainty is not None:
            lines.append(
                f"  uncertainty   {self.uncertainty:10.4f} at two standard errors "
                f"(rows {self.stderr:.1e}, of which probes {self.probe_stderr:.1e}; "
                f"solver {self.solver_error:+.1e})"
            )
        if self.entropy is not None:
            lines += [
                f"  true entropy  {self.entropy:10.4f}",
                f"  KL            {self.kl:10.4f}{_error(self.kl_stderr)} from truth to flow",
            ]
        if self.consistency_gap is not None:
            lines.append(
                f"  consistency   {self.consistency_gap:10.4f} nats a column from log p to that of "
                f"a part and of the rest given it ({self.consistency_gap95:.4f} at 95 %)"
            )
        evaluations = [f"  evaluations   {self.nfe:10.1f} per solve"] if self.nfe else []
        return [*lines, *evaluations]

    def _lost(self) -> list[str]:
        """Return lines on the rows without a density."""
        lost = []
        if self.folded:
            lost.append(
                f"  folded        {self.folded:10} rows, where explicit steps fold: log p -inf"
            )
        if self.impossible:
            lost.append(f"  impossible    {self.impossible:10} rows, without a density")
        if self.nll_unfolded is not None:
            lost.append(f"                {self.nll_unfolded:10.4f} is the NLL of the others")
        return lost

    def similarity_lines(self) -> list[str]:
        """Return lines on the similarity of draws, where it is known."""
        if self.detection_score is None:
            return []
        return [
            f"  detection     {self.detection_score:10.4f} by {self.detector}, of "
            f"{self.detection_rows} training rows and as many draws (1: not told apart)",
            f"  shape error   {self.mean_shape_error:10.4f} in the mean over the columns",
            *self._pair_lines(),
            f"  nearer        {self.nearer_to_training:10.4f} of draws to training than to "
            "held-out rows (0.5: no copies)",
        ]

    def _pair_lines(self) -> list[str]:
        if self.mean_pair_error is None:
            return []
        return [
            f"  pair error    {self.mean_pair_error:10.4f} in the mean over pairs of columns "
            f"({self.chance_pair_error:.4f} by chance)"
        ]

    def with_similarity(self, found: Similarity | None) -> EvaluationResult:
        """Return the scores with the similarity of draws, where that is known."""
        if found is None:
            return self
        return replace(
            self,
            detection_score=found.detection.score,
            detector=found.detection.detector,
            detection_rows=found.detection.rows,
            mean_shape_error=found.mean_shape,
            mean_pair_error=found.mean_pair if found.pairs else None,
            chance_pair_error=found.chance_pair if found.pairs else None,
            nearer_to_training=found.nearer_to_training,
        )


def summarize(
    trained: TrainedModel,
    rows: ContextRows,
    toy: AnyToy | None,
    log_prob: Array,
    nfe: float,
    draws: int,
    with_errors: Scores | None = None,
) -> EvaluationResult:
    """Return the scores of rows, given the flow's log p of each.

    With a context every number refers to p(x | c), averaged over the rows' contexts. The parts of
    the NLL's uncertainty come from `with_errors`, the scores of some of the rows.
    """
    lost, folded = ~np.isfinite(log_prob), folded_rows(trained, rows, log_prob)
    nll, groups = np.inf if lost.any() else -float(log_prob.mean()), row_groups(rows.joined())
    known: dict[str, Any] = {}
    if _has_steps(trained):
        known["folded"] = int(folded.sum())
    if impossible := int((lost & ~folded).sum()):
        known["impossible"] = impossible
    if 0 < lost.sum() < len(lost):
        known["nll_unfolded"] = -float(log_prob[~lost].mean())
    gaps = trained.gaps(rows)
    if gaps.any():
        known["gaps"] = float(gaps.mean())
    if toy is not None:
        truth = true_log_prob(toy, rows)
        known |= {
            "entropy": -float(truth.mean()),
            "kl": float((truth - log_prob).mean()),
            "kl_stderr": clustered_stderr(truth - log_prob, groups),
        }
    stderr = clustered_stderr(log_prob, groups)
    gaussian = trained.gaussian_log_prob(rows)
    scored = gaussian > -np.inf
    if with_errors is not None:
        known |= _errors(stderr, with_errors, len(rows))
    return EvaluationResult(
        n=len(rows),
        nll=nll,
        stderr=stderr,
        nll_standardized=nll - _mean_log_scale(trained, gaps),
        bits_per_dim=nll / (max(1e-300, float((~gaps).sum(1).mean())) * float(np.log(2))),
        gaussian_nll=-float(gaussian[scored].mean()) if scored.any() else np.inf,
        gain_stderr=None
        if lost.any() or not scored.all()
        else clustered_stderr(log_prob - gaussian, groups),
        nfe=nfe,
        draws=draws if trained.model.noisy else None,
        exact=not trained.model.noisy if isinstance(trained.model, RowModel) else None,
        **known,
    )


def with_consistency(
    evaluation: EvaluationResult, trained: TrainedModel, rows: ContextRows
) -> EvaluationResult:
    """Return the scores with the consistency of the model's answers about parts of some rows."""
    model, scored = trained.model, trained.scored(rows)
    if not isinstance(model, RowModel) or not scored.any():
        return evaluation
    taken = rows.at(np.flatnonzero(scored)).tensors(model.like)
    found = consistency(model, *taken, rows=CONSISTENCY_ROWS)
    return replace(evaluation, consistency_gap=found.mean, consistency_gap95=found.quantile95)


def folded_rows(trained: TrainedModel, rows: ContextRows, log_prob: Array) -> NDArray[np.bool_]:
    """Return whether rows have no density where explicit steps fold."""
    folded = log_prob == -np.inf
    return folded & trained.possible(rows) if _has_steps(trained) else np.zeros_like(folded)


def _has_steps(trained: TrainedModel) -> bool:
    model = trained.model
    if isinstance(model, RowModel):
        return False
    return any(isinstance(layer, Steps) for flow in flows_of(model) for layer in flow.layers)


def warn_of_rows(trained: TrainedModel, rows: ContextRows, log_prob: Array) -> None:
    """Warn, in the first process, of rows without a density, and of those without a known one."""
    unknown = np.isnan(log_prob)
    impossible = (log_prob == -np.inf) & ~folded_rows(trained, rows, log_prob)
    foreign = "unknown categories, or values that their columns cannot have"
    _warn(impossible, foreign, "log p is -inf")
    _warn(unknown, "gaps, or a context or given cells of unknown categories", "log p is NaN")
    warn_between(trained, rows)


def warn_between(trained: TrainedModel, rows: ContextRows) -> None:
    """Warn, in the first process, of rows with numbers between those of a grid."""
    _warn(trained.between(rows), "numbers between those of a grid", "the nearest ones count")


def _warn(found: NDArray[np.bool_], what: str, meaning: str) -> None:
    if found.any() and rank() == 0:
        warnings.warn(
            f"{found.sum()} of {len(found)} rows have {what}; the first is row "
            f"{found.argmax() + 1} (counting from 1): {meaning}",
            stacklevel=3,
        )


def _errors(stderr: float | None, with_errors: Scores, n: int) -> dict[str, float]:
    probes = float(with_errors.stderr.double().square().mean().sqrt()) / np.sqrt(n)
    change = (with_errors.tighter - with_errors.log_prob).double()
    each = np.arange(len(change))
    solver, spread = float(change.mean()), clustered_stderr(change.cpu().numpy(), each) or 0.0
    found = {"probe_stderr": probes, "solver_error": solver}
    found = {name: value for name, value in found.items() if np.isfinite(value)}
    if stderr is not None and len(found) == 2:
        found["uncertainty"] = 2 * float(np.sqrt(stderr**2 + solver**2 + spread**2))
    return found


def _mean_log_scale(trained: TrainedModel, gaps: NDArray[np.bool_]) -> float:
    """Return the mean over rows of Σ log s, over the cells that are there.

    Each s is the standard deviation of a training rows' column, where that has a scale.
    """
    variances = np.diag(trained.gaussian.covariance)[-trained.schema.width :]
    places = [i for i, column in enumerate(trained.schema.columns) for _ in range(column.width)]
    scaled = [not trained.schema.columns[i].categories for i in places]
    log_scales = 0.5 * np.log(variances[scaled])
    return float(((~gaps)[:, np.array(places)[scaled]] @ log_scales).mean())


def clustered_stderr(values: Array, groups: NDArray[np.intp]) -> float | None:
    """Return the standard error of a mean of values that are independent between groups alone.

        √(G / (G − 1) · Σ_g (Σ_{i in g} (vᵢ − v̄))²) / n

    for n values in G groups; None for a single group, or where a value is not finite.

    Args:
        values: Shape (rows,).
        groups: Numbers of the rows' groups, shape (rows,).

    Source: Liang and Zeger (1986), Longitudinal data analysis using generalized linear models.

    Example:
        >>> values, each = np.array([1.0, 2.0, 6.0]), np.arange(3)
        >>> twice = clustered_stderr(np.tile(values, 2), np.tile(each, 2))
        >>> np.isclose(twice, clustered_stderr(values, each))
        np.True_
    """
    if not np.isfinite(values).all():
        return None
    _, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, values - values.mean())
    count = len(sums)
    if count < 2:
        return None
    return float(np.sqrt(count / (count - 1) * (sums @ sums)) / len(values))


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {stderr:.4f}"
