"""The training of a `RowModel`: its codes by likelihood, then its flow; or its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.tables.code_network import GAP
from cnf.tables.code_prior import fit_share
from cnf.tables.code_training import QUESTIONS, CodeRecipe, check_weights, fit_codes
from cnf.tables.masked_training import ValuesRecipe, fit_values
from cnf.tables.row_model import RowModel
from cnf.tables.schema import Schema
from cnf.training.data import Rows, hold_out
from cnf.training.history import History, Record, StepEvent
from cnf.training.loop import fit
from cnf.training.recipes import Recipe
from cnf.utils.random import seeded
from cnf.utils.threads import Threads

Array = NDArray[np.float64]

DEFAULT_BUDGET = 60.0  # seconds
FLOW_SHARE = 0.3  # of the budget, or of the steps
NOISE_COPIES = 4  # of each row in the flow's training, where noise is drawn
CODES_STATE, FLOW_STATE = "codes.safetensors", "flow.safetensors"
VALUES_STATE = "values.safetensors"
LEAST_SHARE = 0.1  # of a run, for values
SHARE_ROUNDS = 8  # of random questions to each held-out row
# Places within bins are normal already, and each row has its own context.
FLOW_RECIPE = Recipe(
    hidden=(128, 128), field="concat", learning_rate=3e-3, ema_decay=0.99, matching=0.8
)


@dataclass(frozen=True)
class RowHistory:
    """The histories of a row model's two parts.

    Attributes:
        codes: Of the network of codes, whose validation NLL is that of whole rows, −log p(row),
            with independent places within bins and independent values; that of the values where
            there are no others.
        flow: Of the flow, whose validation NLL is −log p(z | d) with that of the absent
            coordinates' base; or of the values next to codes, whose validation NLL is that of whole
            rows, with the mean of their joint and of random questions to them. None without either.
    """

    codes: History
    flow: History | None

    @property
    def whole(self) -> History:
        """The history of both parts, one after the other."""
        return self.codes if self.flow is None else self.codes.followed_by(self.flow)


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
    recipe: CodeRecipe | ValuesRecipe | None = None,
) -> RowHistory:
    """Train a model of rows and leave both parts with their best weights on validation.

    Gaps, NaN, are marginalised, unless they are a value of their column: the likelihood is that of
    the other cells. A flow within bins is trained on rows without gaps.

    Args:
        model: The model, changed in place.
        numbers: Training rows, shape (rows, columns), NaN for gaps.
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
        recipe: The numbers of training the codes, or the values; those of the other part are the
            defaults.

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
    values_recipe = recipe if isinstance(recipe, ValuesRecipe) else None
    if not isinstance(recipe, CodeRecipe):
        recipe = CodeRecipe() if model.values is None else QUESTIONS
    train, held_out = (
        _encoded(model, rows, seed)
        for rows in _split(numbers, context, weight, validation, recipe.validation_rows, seed)
    )
    if state is not None:
        Path(state).mkdir(parents=True, exist_ok=True)
    options = {"seed": seed, "state_seconds": state_seconds, "threads": threads}
    run = _RowRun(model, train, held_out, budget, steps, callbacks, state, values_recipe, options)
    if run.share == 1.0:
        return RowHistory(run.fit_values(held_out.within_nll), None)
    codes = run.fit_codes(recipe)
    if codes.reason == "interrupted" or (model.flow is None and model.values is None):
        return RowHistory(codes, None)
    if model.flow is not None:
        return RowHistory(codes, run.fit_flow())
    values = run.fit_values(float(np.nanmin(codes.validation_nll)))
    with seeded(seed):
        _fit_code_shares(model, held_out)
    return RowHistory(codes, values)


@dataclass(frozen=True, eq=False)
class _RowRun:
    """A run of `fit_rows`, whose arguments are its attributes; `options` are those of each part."""

    model: RowModel
    train: _Encoded
    held_out: _Encoded
    budget: float | None
    steps: int | None
    callbacks: Sequence[Callable[[Any], None]]
    state: str | Path | None
    values_recipe: ValuesRecipe | None
    options: dict[str, Any]

    @property
    def share(self) -> float:
        """The share of the second part, a flow's or values', in the run's length."""
        if self.model.values is None:
            return 0.0 if self.model.flow is None else FLOW_SHARE
        if not self.model.network.is_asked().any():
            return 1.0
        return min(1 - LEAST_SHARE, max(LEAST_SHARE, float(self.model.valued.mean())))

    def fit_codes(self, recipe: CodeRecipe) -> History:
        """Train the codes."""
        model, train, held_out, whole = self.model, self.train, self.held_out, None
        if model.values is not None:
            numbers = asdict(self.values_recipe or ValuesRecipe())
            whole = {"budget": self.budget, "steps": self.steps, **numbers}
        return fit_codes(
            model.network,
            train.codes,
            weight=train.weight,
            validation=held_out.codes,
            validation_weight=held_out.weight,
            within_nll=held_out.within_nll,
            recipe=recipe,
            whole=whole,
            callbacks=_of_rows(
                self.callbacks, lambda network: model.with_parts(network, model.flow, model.values)
            ),
            **self._part(1 - self.share, CODES_STATE),
        )

    def fit_flow(self) -> History:
        """Train the flow within bins."""
        model, train, held_out = self.model, self.train, self.held_out
        assert model.flow is not None
        return fit(
            model.flow,
            train.z,
            context=train.flow_context,
            weight=train.flow_weight,
            validation=(held_out.z, held_out.flow_context) if len(held_out.z) else None,
            recipe=FLOW_RECIPE,
            callbacks=_of_rows(self.callbacks, lambda flow: model.with_parts(model.network, flow)),
            **self._part(self.share, FLOW_STATE),
        )

    def fit_values(self, nll: float) -> History:
        """Train the values, given codes; the rows had this NLL with independent ones."""
        model, train = self.model, self.train
        assert model.values is not None
        held_out = self.held_out if len(self.held_out.z) else train
        others = nll - self.held_out.alone_nll + self.held_out.log_det_nll
        found = fit_values(
            model.values,
            train.z,
            validation=held_out.z,
            codes=train.value_codes,
            validation_codes=held_out.value_codes,
            weight=train.flow_weight,
            validation_weight=held_out.flow_weight,
            recipe=self.values_recipe,
            callbacks=_of_rows(
                self.callbacks, lambda values: model.with_parts(model.network, None, values), others
            ),
            **self._part(self.share, VALUES_STATE),
        )
        validation_nll, loss = found.validation_nll + others, found.loss + others
        return replace(found, validation_nll=validation_nll, loss=loss)

    def _part(self, share: float, state: str) -> dict[str, Any]:
        """Return the options of a part that has a share of the run's length."""
        return {
            **self.options,
            "budget": None if self.budget is None else share * self.budget,
            "steps": None if self.steps is None else max(1, round(share * self.steps)),
            "state": None if self.state is None else Path(self.state) / state,
        }


@torch.no_grad()
def _fit_code_shares(model: RowModel, rows: _Encoded) -> None:
    """Fit the mixture's shares in the conditionals of codes, by random questions to rows."""
    network, values, device = model.network, model.values, model.like.device
    assert values is not None
    codes, z = rows.codes.to(device), rows.all_z.to(device)
    valued = torch.from_numpy(model.valued)
    asked = network.is_asked().nonzero()[:, 0].tolist()
    found: dict[int, list[Tensor]] = {k: [] for k in asked}
    for _ in range(SHARE_ROUNDS):
        own = torch.rand(len(codes), len(valued)) < torch.rand(len(codes), 1)
        context = torch.ones(len(codes), network.given, dtype=torch.bool)
        visible = torch.cat([context, own, own[:, valued]], 1).to(device)
        prior = model.code_prior(z, own[:, valued].to(device) & ~z.isnan())
        assert prior is not None
        for k, column in enumerate(torch.where(visible, codes, GAP).T):
            prior.reveal(k, column)
        by_network = (-network(codes, visible).double()).exp()
        for k in asked:
            some = (~visible[:, k] & (codes[:, k] >= 0)).nonzero()[:, 0]
            by_mixture = prior.probabilities(k, some).gather(1, codes[some, k][:, None])
            weight = torch.ones(len(some)) if rows.weight is None else rows.weight[some.cpu()]
            columns = (by_network[some, k - network.given], by_mixture[:, 0], weight.to(device))
            found[k].append(torch.stack(columns))
    for k in asked:
        values.code_shares[model.coded.index(k)] = fit_share(*torch.cat(found[k], 1))


def _of_rows(
    callbacks: Sequence[Callable[[Any], None]],
    whole: Callable[[Any], RowModel],
    within_nll: float = 0.0,
) -> list[Callable[[Any], None]]:
    """Return callbacks of a part's events that give the whole model to others.

    `within_nll` is added to the records' losses.
    """

    def shifted(record: Record) -> Record:
        nll = record.validation_nll + within_nll
        return replace(record, loss=record.loss + within_nll, validation_nll=nll)

    def call(event: StepEvent) -> None:
        entries = {name: getattr(event, name) for name in StepEvent.__dataclass_fields__}
        if within_nll:
            entries["record"] = event.record and shifted(event.record)
            entries["records"] = [shifted(each) for each in event.records]
        of_rows = StepEvent(**{**entries, "model": whole(event.model)})
        for callback in callbacks:
            callback(of_rows)

    return [call] if callbacks else []


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

    codes: Tensor  # −1 for gaps
    weight: Tensor | None
    within_nll: float  # the weighted mean of −log p(x | d) with independent places
    alone_nll: float  # the part of it that is of values
    log_det_nll: float  # the weighted mean of −log |det ∂z/∂x| of values
    z: Tensor  # of the flow's rows, those with a place in a bin, with noise; of values with NaN
    flow_context: Tensor
    flow_weight: Tensor | None
    all_z: Tensor  # of values, of all rows, with NaN
    value_codes: Tensor | None  # of other columns than the values'; None where there are none


def _encoded(model: RowModel, rows: Rows, seed: int) -> _Encoded:
    """Return rows in coordinates.

    Raises:
        ValueError: A row has a value without a code, or a shape does not fit.
    """
    copies = NOISE_COPIES if model.flow is not None and model.noisy else 1
    rng, numbers = np.random.default_rng(seed), rows.x.numpy()
    model.check(rows.x, rows.context)
    given, placed = model.encode_context(rows.context, len(rows))
    drawn = [model.coding.encode(numbers, rng.random(numbers.shape)) for _ in range(copies)]
    unseen = model.coding.unseen(numbers)
    known = (drawn[0].known | unseen).all(1) & placed
    if not known.all():
        raise ValueError(
            f"Expected rows whose values have codes; got row {int(known.argmin())} "
            "(counted from 0) with another one, or with a gap in its context alone: fit the coding "
            "to all rows"
        )
    own_codes = np.where(unseen, GAP, drawn[0].codes)
    codes = np.column_stack([given, own_codes, model.input_codes(numbers)])
    alone, log_det, value_codes = drawn[0].log_alone, np.zeros((len(rows), 1)), None
    if model.values is None:
        places = [model.flow_rows(each, given) for each in drawn]
        z, contexts = (torch.cat(each) for each in zip(*places, strict=True))
        inner = drawn[0].present[:, [*model.coding.continuous]].any(1)
        placed = np.asarray(inner & ~unseen.any(1))  # a flow within bins has no gaps
    else:
        own = model.valued
        each = [np.where(coded.present, coded.z, np.nan)[:, own] for coded in drawn]
        z = torch.from_numpy(np.concatenate(each))
        contexts, log_det = z[:, :0], drawn[0].log_det[:, own]
        if model.coded:
            value_codes = torch.from_numpy(np.tile(codes[:, model.coded], (copies, 1)))
        placed = np.asarray(drawn[0].present[:, own].any(1))
    weight = None if rows.weight is None else rows.weight.repeat(copies)
    shares = np.ones(len(rows)) if rows.weight is None else rows.weight.numpy()
    some = torch.from_numpy(np.tile(placed, copies))
    return _Encoded(
        torch.from_numpy(codes),
        rows.weight,
        -float(np.average(alone.sum(1), weights=shares)),
        -float(np.average(alone[:, model.valued].sum(1), weights=shares)),
        -float(np.average(log_det.sum(1), weights=shares)),
        z[some],
        contexts[some],
        None if weight is None else weight[some],
        z[: len(rows)],
        None if value_codes is None else value_codes[some],
    )


def new_row_model(schema: Schema, numbers: Array, seed: int = 0, **options: Any) -> RowModel:
    """Return a new model as `RowModel.build` does, with weights by a seed."""
    with seeded(seed):
        return RowModel.build(schema, numbers, **options)
