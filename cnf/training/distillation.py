"""Distillation: a flow of few explicit steps, trained without folds from an adaptive one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from cnf.flow import Flow
from cnf.flow.proposals import PLANE
from cnf.layers.steps import Direction
from cnf.training.data import BatchSampler, Rows, training_rows
from cnf.training.flow_run import PASS_CHUNK_ROWS
from cnf.training.history import Callback, History
from cnf.training.learner import Learner
from cnf.training.progress import TrainingBudget
from cnf.training.recipes import Recipe
from cnf.training.schedule import stages
from cnf.training.unfolded_likelihood import UNFOLDED, UnfoldedLikelihood
from cnf.training.unfolded_run import UnfoldedRun
from cnf.utils.random import seeded
from cnf.utils.threads import Threads, check_threads

BUDGET = 60.0  # seconds
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
# Beyond the plane few points are near a fold. On bike, of 16 columns, two midpoint steps by
# `UNFOLDED` left 7 in 100,000 points beside rows beyond a fold and, in every other run, one of 1737
# test rows; by this 1 and, in four runs of as many seconds, none.
UNFOLDED_BEYOND_PLANE = UnfoldedLikelihood(penalty=20.0, share=0.25, candidates=16)


def distil(
    flow: Flow,
    data: Tensor | None = None,
    *,
    context: Tensor | None = None,
    steps: int = 2,
    method: str = "midpoint",
    learnt: bool = True,
    towards: Direction = "base",
    budget: float | None = None,
    updates: int | None = None,
    validation: Tensor | tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    threads: Threads = "auto",
    recipe: Recipe = DISTILLATION,
    objective: UnfoldedLikelihood | None = None,
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
        method: Name of a tableau in `cnf.ode.TABLEAUS` of at least two stages.
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
        objective: The loss, with the numbers of its penalty; `UNFOLDED` in one or two columns and
            `UNFOLDED_BEYOND_PLANE` in more when None.

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
    method: str,
    learnt: bool = True,
    towards: Direction = "base",
    budget: float | None,
    updates: int | None,
    validation: Tensor | tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback],
    threads: Threads = "auto",
    recipe: Recipe = DISTILLATION,
    objective: UnfoldedLikelihood | None = None,
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
    if objective is None:
        objective = UNFOLDED if flow.dim <= PLANE else UNFOLDED_BEYOND_PLANE
    student = copy.deepcopy(flow).discretized(steps, method, learnt=learnt, towards=towards)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = _rows(flow, data, context, validation, generator)
    plan = [replace(stages(recipe)[0], objective=objective)]
    objective.check(student, conditional=context is not None)
    run = UnfoldedRun(
        Learner(student, recipe),
        plan,
        length.without(perf_counter() - begin),
        BatchSampler(train, generator),
        held_out[: recipe.validation_rows],
        None,
        threads,
        teacher=flow,
    )
    run.run(callbacks, seed)
    student.load_state_dict(run.finish())
    return student, History.of(run.progress)


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
