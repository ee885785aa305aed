"""The training of a mixture of flows: one flow after the other, and then their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from math import inf, nan
from pathlib import Path
from time import perf_counter
from typing import Any, cast
from warnings import warn

import torch
from torch import Tensor

from cnf.flow import Flow, FlowMixture
from cnf.training.data import training_rows
from cnf.training.distillation import BUDGET, distil
from cnf.training.history import Callback, Event, History, Record
from cnf.training.loop import fit
from cnf.training.progress import TrainingBudget
from cnf.training.recipes import Recipe, choose_recipe
from cnf.training.run import TrainingError

ENDED_SHARE = 0.9  # of a budget, after which no interruption is told from the end


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

    Each flow has an equal part of the budget, or of the steps, and another seed; all share
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
    held_out = held_out[: recipe.validation_rows]
    events = _WholeEvents(callbacks, count)
    histories: list[History] = []
    log_probs: list[Tensor] = []  # NaN of a flow whose training failed
    failure = TrainingError("Training ended with nothing to keep: there was no flow")
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
                callbacks=[events] if callbacks else [],
                state=None if state is None else _numbered(Path(state), k),
                **options,
            )
        except TrainingError as error:
            failure = error
            events.end(None)
            log_probs.append(held_out.x.new_full((len(held_out),), nan))
            continue
        events.end(flow, history)
        histories.append(history)
        log_probs.append(flow.score(held_out.x, held_out.context, seed=seed).log_prob)
        if history.reason == "interrupted":
            break
    if not histories:
        raise failure
    if lost := len(log_probs) - len(histories):
        warn(f"{lost} flows of {len(log_probs)} have no weight: {failure}", stacklevel=2)
    mixture.fit_weights(torch.stack(log_probs), held_out.weight)
    return reduce(History.followed_by, histories)


def fit_flows(model: Flow | FlowMixture, data: Tensor, **options: Any) -> History:
    """Train a flow by `cnf.fit`, or a mixture of flows by `fit_mixture`, with arguments of both.

    Example:
        >>> from cnf.flow import ffjord
        >>> fit_flows(ffjord(2, hidden=(8,)), torch.randn(50, 2), steps=3).steps
        3
    """
    if isinstance(model, FlowMixture):
        return fit_mixture(model, data, **options)
    return fit(model, data, **options)


def distil_flows(
    model: Flow | FlowMixture,
    data: Tensor | None = None,
    *,
    budget: float | None = None,
    updates: int | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Flow | FlowMixture:
    """Return what `cnf.distil` makes of a flow, or of each flow of a mixture, with their weights.

    Each flow has an equal part of the budget, or of the updates. Arguments are those of `distil`;
    events are as in `fit_mixture`.

    Example:
        >>> from cnf.flow import ffjord
        >>> mixture = FlowMixture([ffjord(2, hidden=(8,)), ffjord(2, hidden=(8,))])
        >>> fast = distil_flows(mixture, 2 * torch.randn(300, 2), updates=4)
        >>> fast.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    if isinstance(model, Flow):
        limits: dict[str, Any] = {"budget": budget, "updates": updates}
        return distil(model, data, callbacks=callbacks, **limits, **options)
    flows = model.weighted
    events = _WholeEvents(callbacks, len(flows))
    limits = {
        "budget": None if budget is None else budget / len(flows),
        "updates": None if updates is None else max(1, round(updates / len(flows))),
    }
    if budget is updates is None:
        limits["budget"] = BUDGET / len(flows)
    for flow in flows:
        begin = perf_counter()
        events.end(distil(flow, data, callbacks=[events], **limits, **options))
        seconds, limit = perf_counter() - begin, limits["budget"]
        if not is_over(events.last, seconds, inf if limit is None else limit):  # but interrupted
            break
    return FlowMixture(events.flows, model.weights[model.weights > 0][: len(events.flows)])


def is_over(last: Event | None, seconds: float, budget: float) -> bool:
    """Return whether a distillation has ended by itself, by its last event and its time.

    One that a budget ends does so before a step that would exceed it.
    """
    return (last is not None and last.progress >= 1) or seconds >= ENDED_SHARE * budget


class _WholeEvents:
    """A callback of a mixture's flows, one after the other, which gives others whole events.

    The model of an event is the mixture of the flows so far, with equal weights.
    """

    def __init__(self, callbacks: Sequence[Callback], count: int) -> None:
        self.callbacks, self.count = callbacks, count
        self.flows: list[Flow] = []
        self.ended, self.steps, self.seconds = 0, 0, 0.0
        self.records: list[Record] = []
        self.last: Event | None = None  # of the flow that is trained now

    def __call__(self, event: Event) -> None:
        """Call the others with a flow's event as one of the mixture."""
        self.last = event
        if not self.callbacks:
            return
        whole = replace(
            event,
            step=event.step + self.steps,
            seconds=event.seconds + self.seconds,
            progress=(self.ended + event.progress) / self.count,
            record=event.record and self._moved(event.record),
            records=[*self.records, *map(self._moved, event.records)],
            model=cast("Any", FlowMixture([*self.flows, event.flow])),
        )
        for callback in self.callbacks:
            callback(whole)

    def end(self, flow: Flow | None, history: History | None = None) -> None:
        """Go on to the next flow, from one that is kept unless None, with its history if known."""
        self.ended += 1
        if flow is not None:
            self.flows.append(flow)
        if history is not None:
            self._add(history.steps, history.duration, history.records)
        elif self.last is not None:
            self._add(self.last.step, self.last.seconds, self.last.records)

    def _add(self, steps: int, seconds: float, records: Sequence[Record]) -> None:
        self.records += map(self._moved, records)
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds

    def _moved(self, record: Record) -> Record:
        seconds = record.seconds + self.seconds
        return replace(record, step=record.step + self.steps, seconds=seconds)


def _numbered(path: Path, k: int) -> Path:
    """Return the file of the state of the run of flow k."""
    return path.with_stem(f"{path.stem}-{k}") if k else path
