"""The training loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from cnf.flow import Flow
from cnf.flow.base_config import describe, map_tensors, rebuild
from cnf.flow.mixture_base import is_unfitted, mixture_base
from cnf.layers import ConditionalAffine, FieldLayer, Scaling, Standardize, Steps
from cnf.layers.context import ContextEncoder
from cnf.mixtures import NormalMixture
from cnf.training.checkpoint import Checkpointer, TrainingState, run_identity
from cnf.training.data import BatchSampler, Rows, training_rows
from cnf.training.flow_run import BASE, PASS_CHUNK_ROWS, FlowRun
from cnf.training.history import Callback, History
from cnf.training.learner import Learner
from cnf.training.progress import TrainingBudget
from cnf.training.recipes import Recipe, choose_recipe
from cnf.training.schedule import stages
from cnf.training.unfolded_likelihood import unfolded
from cnf.training.unfolded_run import UnfoldedRun
from cnf.utils.distributed import gather, mean
from cnf.utils.random import seeded
from cnf.utils.threads import Threads, check_threads

# Scalings are fitted on as many random rows: means are then known to two thousandths of a
# deviation, and the field learns the rest.
MAX_SCALING_ROWS = 200_000
# A mixture as a base is fitted to as many rows, and has as many components, which take seconds.
MAX_BASE_ROWS, MAX_BASE_COMPONENTS = 5000, 50
BASE_SHARE = 0.25  # of a budget, that this takes at most


def fit(
    flow: Flow,
    data: Tensor,
    *,
    context: Tensor | None = None,
    weight: Tensor | None = None,
    objective: str | None = None,
    recipe: str | Recipe | None = None,
    budget: float | None = None,
    steps: int | None = None,
    validation: Tensor | tuple[Tensor, Tensor] | Rows | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    state: str | Path | None = None,
    state_seconds: float = 30.0,
    threads: Threads = "auto",
) -> History:
    """Train `flow` on `data` and leave it with its best weights on validation.

    Scaling layers next to the data that are not fitted yet are first fitted on the training rows,
    and so is a base of `cnf.ffjord(base="mixture")`, which the hybrid objective trains by
    likelihood alone.
    Modules such as dropout train in training mode, and validate and end in evaluation mode.
    The loop takes AdamW steps by the recipe's schedule, solves at the recipe's loose tolerance, and
    validates a moving average of the weights. A flow of explicit steps (`cnf.layers.Steps`) is
    trained by likelihood with a penalty on folds, and weights that fold are not kept. Ctrl-C ends
    it cleanly. Its random numbers depend on
    `seed` alone, and PyTorch's generator is left as it was.

    Rows on a line, a curve or a surface have no density, and their likelihood is unbounded: `cnf
    train` and `CNFDensity` check for that; `fit` does not (see `cnf.datasets.degeneracies`).

    With `torch.distributed` initialised, each process is given all data, and takes its part of
    every batch and of the validation rows.

    Args:
        flow: The flow, changed in place.
        data: Rows (n, dim).
        context: Their context (n, context_dim), for a conditional flow.
        weight: Weights of the rows, at least 0, shape (n,), of which only the ratios matter; equal
            when None.
        objective: A name in `cnf.training.OBJECTIVES`; the recipe's when None.
        recipe: A recipe or its name, of which the architecture is ignored; chosen by the data's
            size and dimension when None.
        budget: Seconds from this call to the loop's end; 60 where neither it nor steps is given.
        steps: Number of steps; with a budget too, whichever is reached first ends the run.
        validation: Rows for validation, with their context as a pair; a held-out tenth when None.
            `cnf.training.data.Rows`, as the flow takes them, may have weights too.
        seed: Seed of the held-out rows, of the order of the data, and of training's random numbers.
        callbacks: Called after every step.
        state: A file for the run's state. Where it exists, its run resumes, bit for bit as if it
            had never stopped (with `steps` and a number of `threads`).
        state_seconds: Seconds between two states.
        threads: The number of PyTorch's threads while training, at most one for each core. "auto"
            finds the fastest by its steps, and looks again every few seconds, unless the caller
            chose (by `OMP_NUM_THREADS`, `MKL_NUM_THREADS` or `torch.set_num_threads`), a GPU or
            several processes train, or the flow is compiled; a run that resumes keeps a number that
            was given. None leaves PyTorch's number. The caller's is restored at the end.

    Returns:
        The run's history.

    Raises:
        ValueError: The data does not fit the flow, a number or name is out of range, the objective
            cannot train the flow, or the state belongs to another run.
        TypeError: Data, a context or weights are no tensors, or a mixture is given as the flow.
        TrainingError: Too many steps failed in a row, no validation could be scored, or explicit
            steps fold in all of them.

    Example:
        >>> from cnf.flow import ffjord
        >>> data = 3 + 2 * torch.randn(200, 2)
        >>> history = fit(ffjord(2, hidden=(8,)), data, steps=5)
        >>> history.steps, history.reason
        (5, 'steps')
    """
    length, start = TrainingBudget.of(budget, steps), perf_counter()
    threads = check_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = training_rows(flow, data, context, weight, validation, generator)
    explicit = any(isinstance(layer, Steps) for layer in flow.layers)
    if not isinstance(recipe, Recipe):
        recipe = choose_recipe(recipe, len(train), flow.dim, context is not None, objective)[1]
        if explicit:  # along which there is nothing to regularize
            recipe = replace(recipe, regularizers={})
    objective = objective or recipe.objective
    if is_unfitted(flow.base) and objective == "hybrid":
        objective = "mle"  # matching of independent points would lose what the base is
    recipe = replace(recipe, objective=objective)
    plan = unfolded(stages(recipe)) if explicit else stages(recipe)
    for stage in plan:
        stage.objective.check(flow, conditional=context is not None)
    flow.train()
    with seeded(seed, flow.like.device):  # the same noise in every process
        fit_scalings(flow, train)
        new_base = fit_base(flow, train, held_out, seed, BASE_SHARE * length.budget, state)
    (spent,) = mean([perf_counter() - start], held_out.x)
    checkpointer = None
    if state is not None:
        identity = run_identity(
            recipe.entries(),
            length,
            seed,
            held_out.x.device,
            train.fingerprint(),
            held_out.fingerprint(),
            **{"shapes of weights": {n: [*w.shape] for n, w in flow.state_dict().items()}},
        )
        defaults = json.loads(json.dumps(Recipe().entries()))
        checkpointer = Checkpointer(Path(state), state_seconds, identity, defaults)
    run = (UnfoldedRun if explicit else FlowRun)(
        Learner(flow, recipe),
        plan,
        length.without(spent),
        BatchSampler(train, generator),
        held_out[: recipe.validation_rows],
        checkpointer,
        threads,
    )
    if new_base:  # of which the field starts, and which may be better than what it becomes
        with seeded(seed, flow.like.device):
            run.validate_start()
    run.run(callbacks, seed)
    flow.load_state_dict(run.finish())
    flow.eval()
    return History.of(run.progress)


def fit_scalings(flow: Flow, rows: Rows) -> None:
    """Fit the scalings of the context, and those between the data and the first field.

    Those that are fitted already stay as they are.
    """
    if rows.weight is None and len(rows) > MAX_SCALING_ROWS:
        rows = rows[torch.randint(len(rows), (MAX_SCALING_ROWS,)).to(rows.x.device)]
    scaling = flow.context
    if isinstance(scaling, ContextEncoder) and rows.context is not None:
        scaling.fit(rows.context, rows.weight)
    if isinstance(scaling, Standardize) and rows.context is not None and not scaling.fitted:
        scaling.fit(rows.context, rows.weight)
    x = rows.x
    for layer in reversed(flow.layers):
        if isinstance(layer, ConditionalAffine):
            layer.fit(x, _encoded(flow, rows.context), rows.weight)
        if isinstance(layer, FieldLayer | ConditionalAffine):
            return
        if isinstance(layer, Scaling) and not layer.fitted:
            layer.fit(x, rows.weight)
        x = torch.cat([layer.pull(part).value for part in x.split(PASS_CHUNK_ROWS)])


@torch.no_grad()
def fit_base(
    flow: Flow,
    train: Rows,
    held_out: Rows,
    seed: int,
    seconds: float = inf,
    state: str | Path | None = None,
) -> bool:
    """Fit a base that is an unfitted mixture by expectation maximisation on rows at the base.

    The number of components is the best one on held-out rows that is found in some seconds. A base
    that a run's state holds is taken from there. Other bases stay as they are. Return whether the
    base is a new one.
    """
    if not is_unfitted(flow.base):
        return False
    if state is not None and Path(state).exists():
        description, _ = describe(flow.base, BASE)
        base = rebuild(description, BASE, dict(TrainingState.read(Path(state)).tensors))
        flow.base = map_tensors(base, lambda tensor: tensor.to(flow.like))
        return True
    train = train[torch.randperm(len(train))[:MAX_BASE_ROWS].to(train.x.device)]
    z, other_z = (
        torch.cat([flow.pull(part.x, part.context).value for part in rows.split(PASS_CHUNK_ROWS)])
        for rows in (train, held_out[:MAX_BASE_ROWS])
    )
    mixture = NormalMixture.choose(
        z.double().cpu(),
        other_z.double().cpu(),
        weight=None if train.weight is None else train.weight.double().cpu(),
        seconds=seconds,
        max_components=MAX_BASE_COMPONENTS,
        seed=seed,
    )
    mixture = gather(mixture)[0]  # processes may have had time for others
    numbers = (mixture.log_weights.exp(), mixture.means, mixture.covariances)
    flow.base = map_tensors(mixture_base(*numbers), lambda tensor: tensor.to(flow.like))
    return True


@torch.no_grad()
def _encoded(flow: Flow, context: Tensor | None) -> Tensor | None:
    """Return contexts as the flow's layers receive them, without a gradient."""
    if context is None:
        return None
    parts = (flow.standardized(part) for part in context.split(PASS_CHUNK_ROWS))
    return torch.cat([part for part in parts if part is not None])
