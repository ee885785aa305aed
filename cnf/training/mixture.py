"""The training of a mixture of flows: one flow after the other, and then their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any, cast
from warnings import warn

import torch
from torch import Tensor

from cnf.flow import Flow, FlowMixture
from cnf.training.data import Rows, training_rows
from cnf.training.history import Callback, Event, History, Record
from cnf.training.loop import fit
from cnf.training.progress import TrainingBudget
from cnf.training.recipes import Recipe, choose_recipe
from cnf.training.run import TrainingError


def fit_mixture(
    mixture: FlowMixture,
    data: Tensor,
    *,
    context: Tensor | None = None,
    weight: Tensor | None = None,
    validation: Tensor | tuple[Tensor, Tensor] | None = None,
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    state: str | Path | None = None,
    objective: str | None = None,
    recipe: str | Recipe | None = None,
    **options: Any,
) -> History:
    """Train the flows of a mixture on data, and then find their weights on the validation rows.

    Each flow has an equal part of the budget, or of the steps, and a seed of its own; all share
    the training rows and those for validation. A flow whose training fails has weight 0.

    Args:
        mixture: The mixture, changed in place.
        data: Rows (n, dim).
        context: Their context (n, context_dim), for conditional flows.
        weight: Weights of the rows, shape (n,).
        validation: Rows for validation, with their context as a pair; a held-out tenth when None.
        budget: Seconds in all; 60 where neither it nor steps is given.
        steps: Number of steps of all flows together, at least one for each.
        seed: Seed of the held-out rows, and of the first flow's training; the next ones follow it.
        callbacks: Called after every step with an event whose `model` is the mixture of the flows
            so far, with equal weights, and whose steps, seconds and progress are of all flows.
        state: A file for the state of the first flow's run; a number is added to its name for
            those of the others. Where they exist, the run resumes.
        objective: As for `cnf.fit`.
        recipe: A recipe or its name, as for `cnf.fit`; each flow has its own by `Recipe.of_flow`.
        options: Further arguments of `cnf.fit`.

    Returns:
        The histories of all flows, one after the other.

    Raises:
        ValueError: As `cnf.fit`.
        TrainingError: The training of every flow failed.

    Example:
        >>> from cnf.flow import ffjord
        >>> mixture = FlowMixture([ffjord(2, hidden=(8,)), ffjord(2, hidden=(8,))])
        >>> history = fit_mixture(mixture, 3 + 2 * torch.randn(200, 2), steps=6)
        >>> history.steps, mixture.weights.shape
        (6, torch.Size([2]))
    """
    length, count = TrainingBudget.of(budget, steps), len(mixture.flows)
    generator = torch.Generator().manual_seed(seed)
    given = (context, weight, validation)
    train, held_out = training_rows(mixture.flows[0], data, *given, generator)
    if not isinstance(recipe, Recipe):
        recipe = choose_recipe(recipe, len(train), mixture.dim, context is not None, objective)[1]
    recipe = replace(recipe, objective=objective or recipe.objective)
    done = _TrainedFlows(mixture, held_out[: recipe.validation_rows], seed)
    for k, flow in enumerate(mixture.flows):
        try:
            history = fit(
                flow,
                train.x,
                context=train.context,
                weight=train.weight,
                validation=held_out,
                recipe=recipe.of_flow(k),
                budget=None if length.budget == inf else length.budget / count,
                steps=None if length.steps == inf else max(1, round(length.steps / count)),
                seed=seed + k,
                callbacks=[done.whole(each) for each in callbacks],
                state=None if state is None else _numbered(Path(state), k),
                **options,
            )
        except TrainingError as error:
            done.fail(error)
            continue
        done.add(flow, history)
        if history.reason == "interrupted":
            break
    return done.finish()


def fit_model(model: Flow | FlowMixture, data: Tensor, **options: Any) -> History:
    """Train a flow by `cnf.fit`, or a mixture of flows by `fit_mixture`, with arguments of both.

    Example:
        >>> from cnf.flow import ffjord
        >>> fit_model(ffjord(2, hidden=(8,)), torch.randn(50, 2), steps=3).steps
        3
    """
    if isinstance(model, FlowMixture):
        return fit_mixture(model, data, **options)
    return fit(model, data, **options)


class _TrainedFlows:
    """The flows of a mixture whose training has ended, with their scores of held-out rows."""

    def __init__(self, mixture: FlowMixture, held_out: Rows, seed: int) -> None:
        self.mixture, self.held_out, self.seed = mixture, held_out, seed
        self.flows: list[Flow] = []
        self.log_probs: list[Tensor] = []  # NaN of a flow whose training failed
        self.history: History | None = None
        self.failure: TrainingError | None = None

    def add(self, flow: Flow, history: History) -> None:
        """Count a flow whose training has ended."""
        self.flows.append(flow)
        scores = flow.score(self.held_out.x, self.held_out.context, seed=self.seed)
        self.log_probs.append(scores.log_prob)
        self.history = history if self.history is None else self.history.followed_by(history)

    def fail(self, error: TrainingError) -> None:
        """Count a flow whose training has failed."""
        self.failure = error
        self.log_probs.append(self.held_out.x.new_full((len(self.held_out),), nan))

    def finish(self) -> History:
        """Set the mixture's weights, and return the histories of its flows, one after the other."""
        lost = len(self.log_probs) - len(self.flows)
        if self.history is None:
            raise self.failure or TrainingError("Training ended with nothing to keep: no flow")
        if lost:
            text = f"{lost} flows of {len(self.log_probs)} have no weight: {self.failure}"
            warn(text, stacklevel=3)
        self.mixture.fit_weights(torch.stack(self.log_probs), self.held_out.weight)
        return self.history

    def whole(self, callback: Callback) -> Callback:
        """Return a callback of a flow's events that gives those of the mixture to another."""
        earlier = self.history
        steps, seconds, records = 0, 0.0, list[Record]()
        if earlier is not None:
            steps, seconds, records = earlier.steps, earlier.duration, earlier.records
        flows, begun = [*self.flows], len(self.log_probs)

        def moved(record: Record) -> Record:
            return replace(record, step=record.step + steps, seconds=record.seconds + seconds)

        def call(event: Event) -> None:
            callback(
                replace(
                    event,
                    step=event.step + steps,
                    seconds=event.seconds + seconds,
                    progress=(begun + event.progress) / len(self.mixture.flows),
                    record=event.record and moved(event.record),
                    records=[*records, *map(moved, event.records)],
                    model=cast("Any", FlowMixture([*flows, event.flow])),
                )
            )

        return call


def _numbered(path: Path, k: int) -> Path:
    """Return the file of the state of the run of flow k."""
    return path.with_stem(f"{path.stem}-{k}") if k else path
