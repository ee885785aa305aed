"""Distillation: a flow of few explicit steps, trained without folds from an adaptive one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor

from cnf.flow import Flow
from cnf.flow.folds import DRAWS, MORE, FoldMass, Proposal, fold_mass, propose
from cnf.flow.scores import base_log_prob
from cnf.layers import Steps
from cnf.layers.step_sequence import StepDeterminants
from cnf.layers.steps import Direction
from cnf.ode import SolveError, Stats
from cnf.training.data import BatchSampler, Rows, training_rows
from cnf.training.history import Callback, History
from cnf.training.learner import Learner
from cnf.training.loop import PASS_CHUNK_ROWS, FlowRun
from cnf.training.objectives import Loss
from cnf.training.progress import TrainingBudget
from cnf.training.recipes import Recipe
from cnf.training.run import TrainingError
from cnf.training.schedule import Stage, stages
from cnf.utils.random import seeded
from cnf.utils.threads import Threads, check_threads

BUDGET = 60.0  # seconds
PLANE = 2  # columns, up to which two stages are enough
POOL_ROWS = 20_000  # the flow's own draws, where there is no data

# Rates by two bosh3 steps: 100 steps of 4e-3 left bike 0.14 nats behind the adaptive flow, 150 of
# 1e-2 none; 400 steps of 1e-2 left 8gaussians 0.005, of 3e-3 none. So the peak falls early with the
# number of steps. No patience: the first validations may be of weights that fold.
DISTILLATION = Recipe(
    objective="mle",
    learning_rate=1e-2,
    batch_size=256,
    ema_decay=0.998,
    weight_decay=1e-6,
    warmup=0.05,
    validations=10,
    validation_rows=5000,
    patience=1000,
    horizon=150,
)


@dataclass(frozen=True)
class UnfoldedLikelihood:
    """The negative log-likelihood of explicit steps, with a penalty where they fold or might.

        −(1/n) Σ [log p_base(z_i) + Σ_k ℓ(det_ik)] + λ · mean over wanderers of Σ_k relu(1 − δ_k),

    where det_ik is the determinant of step k at row i, ℓ is the logarithm above `extension`^(D/2)
    and its tangent below, and δ = sign(det) |det|^(2/D) / `least`. Likelihood alone drives
    determinants through zero where there is no data, and a density then counts space twice.
    Wanderers stand there: mixtures of two of the batch's rows as the steps see them, with weights
    from −`reach` to 1 + `reach`, plus noise.

    Attributes:
        penalty: The weight λ.
        least: The (2/D)-th power of the determinant above which a step is not penalised. It bounds
            how sharp an edge can be: with 0.1 checkerboard was 0.011 nats behind the adaptive flow,
            with 0.05 it is 0.002.
        extension: The (2/D)-th power of the determinant below which ℓ is linear, so that rows have
            a finite loss, and a gradient, beyond a fold.
        share: Wanderers for each row.
        reach: How far they go beyond the two rows, relative to their distance.
        noise: Its largest standard deviation, relative to the columns'.
    """

    name: ClassVar[str] = "likelihood without folds"
    penalty: float = 5.0
    least: float = 0.05
    extension: float = 0.01
    share: float = 0.5
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
        value = -(base_log_prob(flow.base, x) + log_det).mean() + self.penalty * penalty
        return Loss(value, Stats(evaluations))

    def check(self, flow: Flow, *, conditional: bool) -> None:
        if not any(isinstance(layer, Steps) for layer in flow.layers):
            raise ValueError("Expected a flow with Steps layers to distil; got one without")

    @torch.no_grad()
    def wanderers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return points between and beyond pairs of rows, and the number of each one's first row.

        Shapes: (rows, dim) → (share · rows, dim), (share · rows,).
        """
        count = int(self.share * len(x))
        first, second = torch.randint(len(x), (2, count), device=x.device)
        weight = x.new_empty(count, 1).uniform_() * (1 + 2 * self.reach) - self.reach
        spread = self.noise * torch.rand_like(weight) * x.std(0, correction=0)
        between = torch.lerp(x[first], x[second], weight)
        return between + spread * torch.randn_like(between), first

    def _determinants(self, layer: Steps, x: Tensor, context: Tensor | None) -> StepDeterminants:
        """Return the steps' determinants at rows and, after them, at wanderers."""
        extra, first = self.wanderers(x)
        given = None if context is None else torch.cat([context, context[first]])
        return layer.determinants(torch.cat([x, extra]), given)

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
        roots = signs * (2 / dim * logs - log(self.least)).exp()
        return (1 - roots).relu().sum(1).mean()


def distil(
    flow: Flow,
    data: Tensor | None = None,
    *,
    context: Tensor | None = None,
    steps: int = 2,
    method: str | None = None,
    learnt: bool = True,
    towards: Direction = "base",
    budget: float | None = None,
    updates: int | None = None,
    validation: Tensor | tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    threads: Threads = "auto",
    recipe: Recipe = DISTILLATION,
    objective: UnfoldedLikelihood = UnfoldedLikelihood(),
) -> Flow:
    """Return a flow of few explicit steps with an exact density, tuned from an adaptive flow.

    Each CNF layer becomes `steps` explicit steps on a copy of its field (`Flow.discretized`), and
    the weights are tuned by maximum likelihood with a penalty on folds (`UnfoldedLikelihood`), by
    the same loop as `fit`'s. Validations score held-out rows by the exact log p, infinite where a
    row's step folds, and refuse weights whose folds have a mass above 1e-3, or an unknown one
    (`cnf.flow.folds.fold_mass`). The given flow is not changed, nor is PyTorch's generator.

    Args:
        flow: A trained flow over real numbers.
        data: Rows (n, dim) to tune on, in the flow's units; the flow's own draws when None.
        context: Their context (n, context_dim), for a conditional flow, which needs data.
        steps: Steps in place of each CNF layer.
        method: Name of a tableau in `cnf.ode.TABLEAUS` of at least two stages; `default_method`'s
            when None.
        learnt: Whether the steps' coefficients and sizes are tuned too.
        towards: `"base"`, so that log p is explicit and draws are found by Newton's method; or
            `"data"`, the other way round, for posteriors.
        budget: Seconds from this call on; 60 where neither it nor updates is given.
        updates: Number of optimizer steps; with a budget too, whichever is reached first ends it.
        validation: Rows for validation, with their context as a pair; a held-out tenth when None.
        seed: Seed of draws, held-out rows, order and random numbers.
        callbacks: Called after every optimizer step, with an `Event`.
        threads: The number of PyTorch's threads, as in `cnf.fit`.
        recipe: Rates, batch, average and validations.
        objective: The loss, with the numbers of its penalty.

    Raises:
        ValueError: As `Flow.discretized`; a budget is not above 0; data does not fit the flow; or a
            conditional flow has no data and context.
        TypeError: Data or context are no tensors.
        SolveError: A draw of the given flow fails.
        TrainingError: No validation found weights without folds.

    Source: Onken et al. (2021), OT-Flow, and Shaul et al. (2024), Bespoke solvers, for training
    the discrete map and its coefficients.

    Example:
        >>> from cnf.flow import ffjord
        >>> flow = ffjord(2, hidden=(8,))
        >>> fast = distil(flow, 2 * torch.randn(300, 2), updates=5)
        >>> fast.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    return distil_run(
        flow,
        data,
        context=context,
        steps=steps,
        method=method,
        learnt=learnt,
        towards=towards,
        budget=budget,
        updates=updates,
        validation=validation,
        seed=seed,
        callbacks=callbacks,
        threads=threads,
        recipe=recipe,
        objective=objective,
    )[0]


def distil_run(
    flow: Flow,
    data: Tensor | None,
    *,
    context: Tensor | None = None,
    steps: int,
    method: str | None,
    learnt: bool = True,
    towards: Direction = "base",
    budget: float | None,
    updates: int | None,
    validation: Tensor | tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback],
    threads: Threads = "auto",
    recipe: Recipe = DISTILLATION,
    objective: UnfoldedLikelihood = UnfoldedLikelihood(),
) -> tuple[Flow, History]:
    """Return what `distil` does, with the history of its run; arguments are its own."""
    begin, threads = perf_counter(), check_threads(threads)
    if not isinstance(flow, Flow):
        raise TypeError(
            f"Expected a flow; got {type(flow).__name__}: distil a mixture of flows by "
            "cnf.training.distil_flows"
        )
    if updates is not None and not updates > 0:
        raise ValueError(f"Expected updates to be above 0; got {updates}")
    length = TrainingBudget.of(BUDGET if budget is None and updates is None else budget, updates)
    method = method or default_method(flow)
    student = copy.deepcopy(flow).discretized(steps, method, learnt=learnt, towards=towards)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = _rows(flow, data, context, validation, generator)
    proposal = propose(flow, DRAWS, held_out.context, seed)
    plan = [replace(stages(recipe)[0], objective=objective)]
    objective.check(student, conditional=context is not None)
    run = _Distillation(
        Learner(student, recipe),
        plan,
        length.without(perf_counter() - begin),
        BatchSampler(train, generator),
        held_out[: recipe.validation_rows],
        threads,
        proposal,
    )
    run.run(callbacks, seed)
    student.load_state_dict(run.finish())
    return student, History.of(run.progress)


def default_method(flow: Flow) -> str:
    """Return the method of a flow's steps: midpoint for one or two columns, bosh3 for more.

    In the plane two midpoint steps came as near the truth as two of bosh3 by two thirds of their
    stages; on tables they had folds at test rows.

    Example:
        >>> from cnf.flow import ffjord
        >>> default_method(ffjord(2)), default_method(ffjord(3))
        ('midpoint', 'bosh3')
    """
    return "midpoint" if flow.base.event_shape[0] <= PLANE else "bosh3"


def _rows(
    flow: Flow,
    data: Tensor | None,
    context: Tensor | None,
    validation: Tensor | tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
) -> tuple[Rows, Rows]:
    """Return rows to tune on and held-out rows; the flow's own draws without data."""
    if (flow.context_dim and (data is None or context is None)) or (
        data is None and context is not None
    ):
        raise ValueError(
            "Expected data and context, of the same rows, to distil a conditional flow; got "
            f"{'no data' if data is None else 'no context'}: pass both"
            if flow.context_dim
            else "Expected data with a context; got a context alone: leave it out"
        )
    if data is None:
        seed = int(torch.randint(2**31, (), generator=generator))
        with seeded(seed, flow.like.device):
            data = flow.with_solver(step="joint", rtol=1e-4, atol=1e-4).sample(
                POOL_ROWS, max_batch=PASS_CHUNK_ROWS
            )
    if flow.context_dim and isinstance(validation, Tensor):
        raise ValueError(
            "Expected validation with its context, to distil a conditional flow; got rows alone: "
            "pass the pair (rows, context)"
        )
    return training_rows(flow, data, context, None, validation, generator)


class _Distillation(FlowRun):
    """A run whose validations refuse weights that fold."""

    def __init__(
        self,
        learner: Learner,
        plan: Sequence[Stage],
        budget: TrainingBudget,
        sampler: BatchSampler,
        held_out: Rows,
        threads: Threads,
        proposal: Proposal,
    ) -> None:
        super().__init__(learner, plan, budget, sampler, held_out, None, threads)
        self.proposal = proposal
        self.folds: FoldMass | None = None  # of the last weights that were weighed

    def validate(self) -> float:
        """Return the NLL of held-out rows; infinite where it is the best, but of weights that fold.

        Draws serve for all validations, from the given flow at first, until too few of them count.
        """
        nll = super().validate()
        if not nll < self.progress.best_nll:
            return nll
        flow = self.learner.validated
        self.folds = fold_mass(flow, proposal=self.proposal)
        if not self.folds.known:
            try:
                self.proposal = propose(flow, MORE * DRAWS, self.proposal.context)
            except SolveError:  # of weights that no solver can follow
                return inf
            self.folds = fold_mass(flow, proposal=self.proposal)
        return nll if self.folds.accepted else inf

    def finish(self) -> Mapping[str, Tensor]:
        """Return the best weights.

        Raises:
            TrainingError: All weights that were validated fold.
        """
        if not self.progress.records:  # interrupted
            self._validate()
        if self.progress.best_nll == inf and not self.progress.failures:
            got = "held-out rows where a step folds" if self.folds is None else str(self.folds)
            raise TrainingError(
                f"Expected weights without folds after {self.progress.step} steps; got {got} in "
                "every validation: take more steps or a method of more stages, or tune for longer"
            )
        return super().finish()
