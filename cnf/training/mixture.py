"""The training of a mixture of flows: one flow after the other, and then their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from math import inf, nan
from pathlib import Path
from typing import Any, cast
from warnings import warn

import torch
from torch import Tensor

from cnf.flow import Flow, FlowMixture
from cnf.training.data import Rows, training_rows
from cnf.training.distillation import BUDGET, distil_run
from cnf.training.history import Callback, Event, History, Record
from cnf.training.loop import fit
from cnf.training.progress import TrainingBudget
from cnf.training.recipes import Recipe, choose_recipe
from cnf.training.run import TrainingError
from cnf.utils.distributed import world_size


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
        steps: Number of steps of all flows together, at most, but one for each.
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
    if not isinstance(mixture, FlowMixture):
        raise TypeError(f"Expected a mixture of flows; got {type(mixture).__name__}: use cnf.fit")
    length, count = TrainingBudget.of(budget, steps), len(mixture.flows)
    generator = torch.Generator().manual_seed(seed)
    given = (context, weight, validation)
    train, held_out = training_rows(mixture.flows[0], data, *given, generator)
    if not isinstance(recipe, Recipe):
        recipe = choose_recipe(recipe, len(train), mixture.dim, context is not None, objective)[1]
    recipe = replace(recipe, objective=objective or recipe.objective)
    held_out = held_out[: recipe.validation_rows]
    options |= {"context": train.context, "weight": train.weight, "validation": held_out}
    options["budget"] = None if length.budget == inf else length.budget / count
    options["steps"] = None if length.steps == inf else _part(length.steps, count)
    events, found = _WholeEvents(callbacks, count), _TrainedFlows(mixture, held_out, seed)
    options["callbacks"] = [events] if callbacks else []
    for k, flow in enumerate(mixture.flows):
        own: dict[str, Any] = {
            "recipe": recipe.of_flow(k),
            "seed": seed + k,
            "state": _numbered(state, k),
        }
        try:
            history = fit(flow, train.x, **own, **options)
            found.add(flow, history)
        except TrainingError as error:
            found.fail(error)
            events.end()
            continue
        except KeyboardInterrupt:  # between two runs, each of which ends cleanly
            if not found.is_kept():
                raise
            break
        events.end(flow, history)
        if history.reason == "interrupted":
            break
    return found.finish()


class _TrainedFlows:
    """The flows of a mixture whose training has ended, by their scores of held-out rows."""

    def __init__(self, mixture: FlowMixture, held_out: Rows, seed: int) -> None:
        self.mixture, self.held_out, self.seed = mixture, held_out, seed
        self.histories: list[History] = []
        self.log_probs: list[Tensor] = []  # NaN of a flow whose training failed
        self.failure = TrainingError("Training ended with nothing to keep: there was no flow")

    def add(self, flow: Flow, history: History) -> None:
        """Count a flow whose training has ended."""
        scores = flow.score(self.held_out.x, self.held_out.context, seed=self.seed)
        self.log_probs.append(scores.log_prob)
        self.histories.append(history)

    def fail(self, error: TrainingError) -> None:
        """Count a flow whose training has failed."""
        self.failure = error
        self.log_probs.append(self.held_out.x.new_full((len(self.held_out),), nan))

    def is_kept(self) -> bool:
        """Return whether the flows so far are worth keeping, and if so count them as interrupted.

        They are not where there are none, or where another process waits for this one.
        """
        if not self.histories or world_size() > 1:
            return False
        self.histories[-1] = replace(self.histories[-1], reason="interrupted")
        return True

    def finish(self) -> History:
        """Set the mixture's weights, and return the histories, one after the other."""
        if not self.histories:
            raise self.failure
        if lost := len(self.log_probs) - len(self.histories):
            text = f"{lost} flows of {len(self.log_probs)} have no weight: {self.failure}"
            warn(text, stacklevel=3)
        self.mixture.fit_weights(torch.stack(self.log_probs), self.held_out.weight)
        return reduce(History.followed_by, self.histories)


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
    steps: int = 2,
    method: str = "midpoint",
    budget: float | None = None,
    updates: int | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> tuple[Flow | FlowMixture, History]:
    """Return what `cnf.distil` makes of a flow, or of each flow of a mixture, and its history.

    The flows of a mixture keep their weights, and each has an equal part of the budget or of the
    updates. Arguments are those of `distil`; events are as in `fit_mixture`.

    Example:
        >>> from cnf.flow import ffjord
        >>> mixture = FlowMixture([ffjord(2, hidden=(8,)), ffjord(2, hidden=(8,))])
        >>> fast, history = distil_flows(mixture, 2 * torch.randn(300, 2), updates=4)
        >>> history.steps, fast.log_prob(torch.zeros(3, 2)).shape
        (4, torch.Size([3]))
    """
    flows = [model] if isinstance(model, Flow) else model.weighted
    budget = BUDGET if budget is None and updates is None else budget
    options |= {"steps": steps, "method": method}
    options["budget"] = None if budget is None else budget / len(flows)
    options["updates"] = None if updates is None else _part(updates, len(flows))
    events, histories = _WholeEvents(callbacks, len(flows)), list[History]()
    for flow in flows:
        found, history = distil_run(flow, data, callbacks=[events], **options)
        events.end(found, history)
        histories.append(history)
        if history.reason == "interrupted":
            break
    whole = reduce(History.followed_by, histories)
    if isinstance(model, Flow):
        return events.flows[0], whole
    return FlowMixture(events.flows, model.weights[model.weights > 0][: len(events.flows)]), whole


def _part(steps: float, count: int) -> int:
    """Return the steps of each of several flows, at least one."""
    return max(1, int(steps) // count)


class _WholeEvents:
    """A callback of a mixture's flows, one after the other, which gives others whole events.

    The model of an event is the mixture of the flows so far, with equal weights.
    """

    def __init__(self, callbacks: Sequence[Callback], count: int) -> None:
        self.callbacks, self.count = callbacks, count
        self.flows: list[Flow] = []
        self.ended, self.steps, self.seconds = 0, 0, 0.0
        self.records: list[Record] = []

    def __call__(self, event: Event) -> None:
        """Call the others with a flow's event as one of the mixture."""
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

    def end(self, flow: Flow | None = None, history: History | None = None) -> None:
        """Go on to the next flow, from one that is kept with its history, or from a failed one."""
        self.ended += 1
        if flow is not None and history is not None:
            self.flows.append(flow)
            self.records += map(self._moved, history.records)
            self.steps, self.seconds = self.steps + history.steps, self.seconds + history.duration

    def _moved(self, record: Record) -> Record:
        seconds = record.seconds + self.seconds
        return replace(record, step=record.step + self.steps, seconds=seconds)


def _numbered(state: str | Path | None, k: int) -> Path | None:
    """Return the file of the state of the run of flow k."""
    if state is None:
        return None
    path = Path(state)
    return path.with_stem(f"{path.stem}-{k}") if k else path
