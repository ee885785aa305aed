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

from cnf.tables.code_training import fit_codes
from cnf.tables.row_model import RowModel
from cnf.tables.schema import Schema
from cnf.training.data import Rows, hold_out
from cnf.training.history import History
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
        codes: Of the network of codes, whose validation NLL is −log p(d).
        flow: Of the flow, whose validation NLL is −log p(z | d) with that of the absent
            coordinates' base; None without a flow.
    """

    codes: History
    flow: History | None


def fit_rows(
    model: RowModel,
    numbers: Array,
    *,
    validation: Array | None = None,
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callable[[Any], None]] = (),
    state: str | Path | None = None,
    threads: Threads = "auto",
) -> RowHistory:
    """Train a model of rows and leave both parts with their best weights on validation.

    Args:
        model: The model, changed in place.
        numbers: Training rows, shape (rows, columns).
        validation: Rows for validation; a held-out tenth when None.
        budget: Seconds in all, 60 where neither it nor `steps` is given.
        steps: Number of optimizer steps in all; with a budget too, what is reached first.
        seed: Seed of held-out rows, of the order of the rows and of training's random numbers.
        callbacks: Called after every step, of both parts.
        state: A folder for the states of both runs, which resume from it.
        threads: As in `cnf.fit`.

    Raises:
        ValueError: A row has a value without a code, or a number is out of range.
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
    if validation is None:
        numbers, validation = _held_out(numbers, seed)
    share = 0.0 if model.flow is None else FLOW_SHARE
    options: dict[str, Any] = {"seed": seed, "callbacks": callbacks, "threads": threads}
    train, held_out = (_encoded(model, rows, seed) for rows in (numbers, validation))
    codes = fit_codes(
        model.network,
        train[0],
        validation=held_out[0],
        state=None if state is None else Path(state) / CODES_STATE,
        **_length(budget, steps, 1 - share),
        **options,
    )
    if model.flow is None:
        return RowHistory(codes, None)
    return RowHistory(
        codes,
        fit(
            model.flow,
            train[1],
            context=train[2],
            validation=(held_out[1], held_out[2]),
            recipe=FLOW_RECIPE,
            state=None if state is None else Path(state) / FLOW_STATE,
            **_length(budget, steps, share),
            **options,
        ),
    )


def _length(budget: float | None, steps: int | None, share: float) -> dict[str, Any]:
    """Return the part of a run's length that a share of it is."""
    return {
        "budget": None if budget is None else share * budget,
        "steps": None if steps is None else max(1, round(share * steps)),
    }


def _held_out(numbers: Array, seed: int) -> tuple[Array, Array]:
    generator = torch.Generator().manual_seed(seed)
    parts = hold_out(Rows(torch.from_numpy(numbers)), generator)
    train, validation = (part.x.numpy() for part in parts)
    return train, validation


def _encoded(model: RowModel, numbers: Array, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes of rows, and their places and contexts where some are present.

    Raises:
        ValueError: A row has a value without a code.
    """
    copies = NOISE_COPIES if model.noisy else 1
    rng = np.random.default_rng(seed)
    drawn = [model.coding.encode(numbers, rng.random(numbers.shape)) for _ in range(copies)]
    if not drawn[0].known.all():
        raise ValueError(
            f"Expected rows whose values have codes; got row {int(drawn[0].known.argmin())} "
            "(counted from 0) with another one: fit the coding to all rows"
        )
    places, contexts = zip(*(model.flow_rows(each) for each in drawn), strict=True)
    z, context = torch.cat(places), torch.cat(contexts)
    some = torch.from_numpy(np.tile(drawn[0].present.any(1), copies))
    return torch.from_numpy(drawn[0].codes), z[some], context[some]


def new_row_model(schema: Schema, numbers: Array, seed: int = 0, **options: Any) -> RowModel:
    """Return a new model as `RowModel.build` does, with weights by a seed."""
    with seeded(seed):
        return RowModel.build(schema, numbers, **options)
