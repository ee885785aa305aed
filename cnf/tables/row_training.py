"""The training of a `RowModel`: its codes by likelihood, then its flow by `cnf.fit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.tables.code_training import CodeRecipe, check_weights, fit_codes
from cnf.tables.row_model import RowModel
from cnf.tables.schema import Schema
from cnf.training.data import Rows, hold_out
from cnf.training.history import History, StepEvent
from cnf.training.loop import fit
from cnf.training.recipes import Recipe
from cnf.utils.random import seeded
from cnf.utils.threads import Threads

Array = NDArray[np.float64]

DEFAULT_BUDGET = 60.0  # seconds
FLOW_SHARE = 0.3  # of the budget, or of the steps
NOISE_COPIES = 4  # of each row in the flow's training, where noise is drawn
CODES_STATE, FLOW_STATE = "codes.safetensors", "flow.safetensors"
# Places within bins are normal already, and each row has its own context.
FLOW_RECIPE = Recipe(
    hidden=(128, 128), field="concat", learning_rate=3e-3, ema_decay=0.99, matching=0.8
)


@dataclass(frozen=True)
class RowHistory:
    """The histories of a row model's two parts.

    Attributes:
        codes: Of the network of codes, whose validation NLL is that of whole rows, −log p(row),
            with independent places within bins.
        flow: Of the flow, whose validation NLL is −log p(z | d) with that of the absent
            coordinates' base; None without a flow.
    """

    codes: History
    flow: History | None


def fit_rows(
    model: RowModel,
    numbers: Array,
    *,
    context: Array | None = None,
    weight: Array | None = None,
    validation: Array | tuple[Array, Array] | None = None,
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callable[[Any], None]] = (),
    state: str | Path | None = None,
    state_seconds: float = 30.0,
    threads: Threads = "auto",
    recipe: CodeRecipe | None = None,
) -> RowHistory:
    """Train a model of rows and leave both parts with their best weights on validation.

    Args:
        model: The model, changed in place.
        numbers: Training rows, shape (rows, columns).
        context: Their context, shape (rows, context_dim), of a conditional model.
        weight: Weights of the rows, at least 0, shape (rows,), of which only the ratios matter;
            equal when None.
        validation: Rows for validation, with their context as a pair; a held-out tenth when None.
        budget: Seconds in all, 60 where neither it nor `steps` is given.
        steps: Number of optimizer steps in all; with a budget too, what is reached first.
        seed: Seed of held-out rows, of the order of the rows and of training's random numbers.
        callbacks: Called with a `cnf.training.StepEvent` after every step of both parts, whose
            `model` is the whole one, with the averaged weights of the part that is trained.
        state: A folder for the states of both runs, which resume from it; created where missing.
        state_seconds: Seconds between two states.
        threads: As in `cnf.fit`.
        recipe: The numbers of training the codes.

    Raises:
        ValueError: A row or its context has a value without a code, a shape does not fit, or a
            number is out of range.
        cnf.training.TrainingError: Every step failed.

    Example:
        >>> from cnf.datasets import Table
        >>> from cnf.tables import Schema
        >>> values = np.random.default_rng(0).integers(0, 3, (300, 2)).astype(float)
        >>> schema = Schema.infer(Table("t", values, ("a", "b")))
        >>> model = RowModel.build(schema, values, hidden=16)
        >>> fit_rows(model, values, steps=5).codes.steps
        5
    """
    if budget is None and steps is None:
        budget = DEFAULT_BUDGET
    recipe = recipe or CodeRecipe()
    train, held_out = (
        _encoded(model, rows, seed)
        for rows in _split(numbers, context, weight, validation, recipe.validation_rows, seed)
    )
    if state is not None:
        Path(state).mkdir(parents=True, exist_ok=True)
    share = 0.0 if model.flow is None else FLOW_SHARE
    options: dict[str, Any] = {"seed": seed, "state_seconds": state_seconds, "threads": threads}
    codes = fit_codes(
        model.network,
        train.codes,
        weight=train.weight,
        validation=held_out.codes,
        validation_weight=held_out.weight,
        within_nll=held_out.within_nll,
        state=None if state is None else Path(state) / CODES_STATE,
        recipe=recipe,
        callbacks=_of_rows(callbacks, lambda network: model.with_parts(network, model.flow)),
        **_length(budget, steps, 1 - share),
        **options,
    )
    if model.flow is None:
        return RowHistory(codes, None)
    return RowHistory(
        codes,
        fit(
            model.flow,
            train.z,
            context=train.flow_context,
            weight=train.flow_weight,
            validation=(held_out.z, held_out.flow_context) if len(held_out.z) else None,
            recipe=FLOW_RECIPE,
            state=None if state is None else Path(state) / FLOW_STATE,
            callbacks=_of_rows(callbacks, lambda flow: model.with_parts(model.network, flow)),
            **_length(budget, steps, share),
            **options,
        ),
    )


def _of_rows(
    callbacks: Sequence[Callable[[Any], None]], whole: Callable[[Any], RowModel]
) -> list[Callable[[Any], None]]:
    """Return callbacks of a part's events that give the whole model to others."""

    def call(event: StepEvent) -> None:
        entries = {name: getattr(event, name) for name in StepEvent.__dataclass_fields__}
        of_rows = StepEvent(**{**entries, "model": whole(event.model)})
        for callback in callbacks:
            callback(of_rows)

    return [call] if callbacks else []


def _length(budget: float | None, steps: int | None, share: float) -> dict[str, Any]:
    """Return the part of a run's length that a share of it is."""
    return {
        "budget": None if budget is None else share * budget,
        "steps": None if steps is None else max(1, round(share * steps)),
    }


def _split(
    numbers: Array,
    context: Array | None,
    weight: Array | None,
    validation: Array | tuple[Array, Array] | None,
    most: int,
    seed: int,
) -> tuple[Rows, Rows]:
    """Return rows to train on and at most so many for validation, without those of weight 0."""
    rows = _tensors(numbers, context, weight)
    if rows.weight is not None:
        check_weights(rows.weight, len(rows))
        rows = rows[rows.weight > 0]
    if validation is None:
        train, held_out = hold_out(rows, torch.Generator().manual_seed(seed))
    else:
        pair = validation if isinstance(validation, tuple) else (validation, None)
        train, held_out = rows, _tensors(*pair)
    return train, held_out[:most]


def _tensors(numbers: Array, context: Array | None, weight: Array | None = None) -> Rows:
    given, weights = (
        None if each is None else torch.tensor(each).double() for each in (context, weight)
    )
    return Rows(torch.tensor(numbers).double(), given, weights)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Rows as both parts are trained on them."""

    codes: Tensor
    weight: Tensor | None
    within_nll: float  # the weighted mean of −log p(x | d) with independent places
    z: Tensor  # of the flow's rows, those with a place in a bin, with noise
    flow_context: Tensor
    flow_weight: Tensor | None


def _encoded(model: RowModel, rows: Rows, seed: int) -> _Encoded:
    """Return rows in coordinates.

    Raises:
        ValueError: A row has a value without a code, or a shape does not fit.
    """
    copies = NOISE_COPIES if model.noisy else 1
    rng, numbers = np.random.default_rng(seed), rows.x.numpy()
    model.check(rows.x, rows.context)
    given, placed = model.encode_context(rows.context, len(rows))
    drawn = [model.coding.encode(numbers, rng.random(numbers.shape)) for _ in range(copies)]
    known = drawn[0].known.all(1) & placed
    if not known.all():
        raise ValueError(
            f"Expected rows whose values have codes; got row {int(known.argmin())} "
            "(counted from 0) with another one: fit the coding to all rows"
        )
    places = [model.flow_rows(each, given) for each in drawn]
    z, contexts = (torch.cat(each) for each in zip(*places, strict=True))
    weight = None if rows.weight is None else rows.weight.repeat(copies)
    shares = None if rows.weight is None else rows.weight.numpy()
    some = torch.from_numpy(np.tile(drawn[0].present[:, [*model.coding.continuous]].any(1), copies))
    return _Encoded(
        torch.from_numpy(np.column_stack([given, drawn[0].codes])),
        rows.weight,
        -float(np.average(drawn[0].log_alone.sum(1), weights=shares)),
        z[some],
        contexts[some],
        None if weight is None else weight[some],
    )


def new_row_model(schema: Schema, numbers: Array, seed: int = 0, **options: Any) -> RowModel:
    """Return a new model as `RowModel.build` does, with weights by a seed."""
    with seeded(seed):
        return RowModel.build(schema, numbers, **options)
