"""Maximum likelihood of flows of explicit steps, with a penalty where they fold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from cnf.flow import Flow
from cnf.flow.scores import base_log_prob
from cnf.layers import MovingNorm, Steps
from cnf.layers.step_sequence import StepDeterminants
from cnf.ode import Stats
from cnf.training.objectives import Loss, MaximumLikelihood
from cnf.training.schedule import Stage


@dataclass(frozen=True)
class UnfoldedLikelihood:
    """The negative log-likelihood of explicit steps, with a penalty where they fold or might.

        −(1/n) Σ [log p_base(z_i) + Σ_k ℓ(det_ik)]
            + λ · max(1, D/2) · mean over wanderers of Σ_k relu(1 − δ_k),

    where det_ik is the determinant of step k at row i, ℓ is the logarithm above `extension`^(D/2)
    and its tangent below, and δ = sign(det) |det|^(2/D) / `least`. Likelihood alone drives
    determinants through zero where there is no data, and a density then counts space twice.
    Wanderers stand there: mixtures of two of the batch's rows as the steps see them, with weights
    from −`reach` to 1 + `reach`, plus noise. Of several `candidates` for each they are the nearest
    to a fold, of the least δ.

    Attributes:
        penalty: The weight λ. The factor D/2 makes up for the (2/D)-th power, of which the slope in
            log |det| is as much smaller: on bike, of 16 columns, the fold mass was 7e-4
            without it, and at most 2.5e-4 with it.
        least: The (2/D)-th power of the determinant above which a step is not penalised. It bounds
            how sharp an edge can be: with 0.1 checkerboard was 0.011 nats behind the adaptive flow,
            with 0.05 it is 0.002.
        extension: The (2/D)-th power of the determinant below which ℓ is linear, so that rows have
            a finite loss, and a gradient, beyond a fold.
        share: Wanderers for each row.
        candidates: Candidates for each wanderer, which take no gradient.
        reach: How far they go beyond the two rows, relative to their distance.
        noise: Its largest standard deviation, relative to the columns'.
    """

    name: ClassVar[str] = "likelihood without folds"
    penalty: float = 5.0
    least: float = 0.05
    extension: float = 0.01
    share: float = 0.5
    candidates: int = 1
    reach: float = 0.2
    noise: float = 0.3

    def __call__(self, flow: Flow, x: Tensor, context: Tensor | None = None) -> Loss:
        context = flow.standardized(context)
        log_det, penalty, evaluations = x.new_zeros(len(x)), x.new_zeros(()), 0
        for layer in reversed(flow.layers):
            if not isinstance(layer, Steps):
                pulled = layer.pull(x, context)
                x, log_det = pulled.value, log_det + pulled.log_det
                continue
            start = x if layer.towards == "base" else layer.preimage(x, context)
            found = self._determinants(layer, start, context)
            sign = 1 if layer.towards == "base" else -1
            log_det = log_det + sign * self._extended(found, slice(0, len(x)), x.shape[1])
            penalty = penalty + self._penalties(found, slice(len(x), None), x.shape[1])
            x = found.value[: len(x)] if layer.towards == "base" else start
            evaluations += layer.count * layer.tableau.solution_stages
        weight = self.penalty * max(1.0, 0.5 * x.shape[1])
        value = -(base_log_prob(flow.base, x) + log_det).mean() + weight * penalty
        return Loss(value, Stats(evaluations))

    def check(self, flow: Flow, *, conditional: bool) -> None:
        if not any(isinstance(layer, Steps) for layer in flow.layers):
            raise ValueError("Expected a flow with Steps layers; got one without")
        if any(isinstance(layer, MovingNorm) for layer in flow.layers):
            raise ValueError(
                "Expected no batch normalisation with explicit steps, whose likelihood does not "
                "update its statistics; got MovingNorm: train a flow of CNF layers"
            )

    @torch.no_grad()
    def wanderers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return points between and beyond pairs of rows, and the number of each one's first row.

        Shapes: (rows, dim) → (n, dim), (n,) of n = candidates · share · rows.
        """
        count = self.candidates * int(self.share * len(x))
        first, second = torch.randint(len(x), (2, count), device=x.device)
        weight = x.new_empty(count, 1).uniform_() * (1 + 2 * self.reach) - self.reach
        spread = self.noise * torch.rand_like(weight) * x.std(0, correction=0)
        between = torch.lerp(x[first], x[second], weight)
        return between + spread * torch.randn_like(between), first

    def _determinants(self, layer: Steps, x: Tensor, context: Tensor | None) -> StepDeterminants:
        """Return the steps' determinants at rows and, after them, at wanderers."""
        extra, first = self.wanderers(x)
        if self.candidates > 1:
            nearest = self._nearest_to_folds(
                layer, extra, None if context is None else context[first]
            )
            extra, first = extra[nearest], first[nearest]
        given = None if context is None else torch.cat([context, context[first]])
        return layer.determinants(torch.cat([x, extra]), given)

    @torch.no_grad()
    def _nearest_to_folds(self, layer: Steps, x: Tensor, context: Tensor | None) -> Tensor:
        """Return the places of one candidate in `candidates`, those of the least δ."""
        found = layer.determinants(x, context)
        least = self._roots(found.signs, found.logs, x.shape[1]).amin(1)
        return least.argsort()[: len(x) // self.candidates]

    def _extended(self, found: StepDeterminants, rows: slice, dim: int) -> Tensor:
        """Return Σ_k log det_k of rows, linear in the determinant below a threshold."""
        signs, logs = found.signs[rows], found.logs[rows]
        edge = 0.5 * dim * log(self.extension)
        beyond = edge - 1 + signs * (logs - edge).clamp(max=50.0).exp()
        return torch.where((signs > 0) & (logs > edge), logs, beyond).sum(1)

    def _penalties(self, found: StepDeterminants, rows: slice, dim: int) -> Tensor:
        """Return the mean over wanderers of Σ_k relu(1 − δ_k)."""
        signs, logs = found.signs[rows], found.logs[rows]
        if not len(signs):
            return logs.new_zeros(())
        return (1 - self._roots(signs, logs, dim)).relu().sum(1).mean()

    def _roots(self, signs: Tensor, logs: Tensor, dim: int) -> Tensor:
        """Return δ, the (2/D)-th powers of determinants with their signs, over `least`."""
        return signs * (2 / dim * logs - log(self.least)).exp()


UNFOLDED = UnfoldedLikelihood()


def unfolded(plan: Iterable[Stage]) -> list[Stage]:
    """Return the stages of a run for a flow of explicit steps: likelihood is that without folds.

    Raises:
        ValueError: The likelihood has regularizers, or no stage is of likelihood.

    Example:
        >>> from cnf.training.recipes import Recipe
        >>> from cnf.training.schedule import stages
        >>> [stage.objective.name for stage in unfolded(stages(Recipe()))]
        ['flow matching', 'likelihood without folds']
    """
    found = []
    for stage in plan:
        if isinstance(stage.objective, MaximumLikelihood):
            if regularization := stage.objective.regularization:
                raise ValueError(
                    "Expected no regularizers of a flow of explicit steps, which has no path to "
                    f"integrate them along; got {', '.join(regularization.active) or 'steer'}: "
                    "leave them out, or train a flow of CNF layers"
                )
            stage = replace(stage, objective=UNFOLDED)
        found.append(stage)
    if not any(isinstance(stage.objective, UnfoldedLikelihood) for stage in found):
        raise ValueError(
            "Expected objective mle or hybrid for a flow of explicit steps, which matching knows "
            "nothing of; got matching alone: change it, or train a flow of CNF layers"
        )
    return found
