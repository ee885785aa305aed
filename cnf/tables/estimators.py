"""The scikit-learn estimator of densities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Self
from warnings import warn

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from cnf.datasets import (
    MISSING,
    Missing,
    Table,
    degeneracies,
    frame_table,
    from_any,
    table_frame,
)
from cnf.flow import Flow
from cnf.tables.density_training import AnyRecipe, is_coded, train_flow, train_row_model
from cnf.tables.inputs import (
    PASS_TABLE,
    ContextColumns,
    check_columns,
    chosen_schema,
    complete_rows,
    context_table,
    describe_foreign,
    is_frame,
    unmasked,
)
from cnf.tables.row_model import RowModel
from cnf.tables.schema import Schema, check_single_precision
from cnf.training.callbacks import ProgressBar
from cnf.utils.random import seeded
from cnf.utils.threads import Threads

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Model = Flow | RowModel
State = int | np.random.RandomState | None

SOLVE_ROWS = 8000  # rows in one solve, many of which share steps
TRACE_PROBES = 16  # for each row, to estimate the error of an estimated trace
NOISE_DRAWS = 8  # for each row, where there are whole numbers or categories
MIN_ROWS = 3


class CNFDensity(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A continuous normalizing flow, or a model of mixed rows, as a scikit-learn density estimator.

    Fits log p(X), or log p(X | context), holding out a tenth of the rows to select the best weights
    on. Densities are in the units of X, in float64; of columns such as categories they are masses.
    X may be an array, or a table of pandas, polars and pyarrow, and samples are of the same kind
    and types.

    Columns of real numbers are modelled by a `cnf.Flow`. A schema with categories, booleans, a few
    whole numbers, or values that occur with a mass, such as zeros, or a context with categories,
    needs a `cnf.tables.RowModel`: first the discrete, by a network whose log p is exact, then what
    is continuous given that.

    Args:
        recipe: The model and its training, chosen by the columns, the data's size and dimension
            when None. A `cnf.training.recipes.Recipe`, or the name of one, `"table"` for the data's
            size, is that of a flow, and holds its network, the optimizer and the solver in
            training; such a flow models columns with a mass by adding noise to them, and its log p
            is a bound. A `cnf.tables.CodeRecipe` or `"codes"` is that of a model of rows.
        schema: The columns of X, a `cnf.tables.schema.Schema` with their names (x0, x1, … where X
            has none); `"infer"` for the kinds that they look like, text for categories; all are
            real numbers when None.
        missing: The treatment of missing values, which are NaN, null or masked: `"refuse"` them, or
            `"drop"` their rows, whose scores are NaN.
        objective: `"hybrid"`, `"mle"` or `"matching"`, of a flow; the recipe's when None.
        budget: Seconds of training, None for no limit on them.
        max_steps: The most optimizer steps. A fit that they end, and not the budget, depends on
            `random_state` alone, where `threads` is a number.
        random_state: Seed of the held-out rows, the weights and the order of the data.
        device: The device to compute on, such as `"cuda"`; a GPU where there is one when None.
        threads: PyTorch's threads in training: a number, `"auto"` for the fastest by its steps
            unless the caller chose one, or None for PyTorch's number.
        verbose: Whether a progress bar is shown on a terminal.

    Attributes:
        model_: The fitted `cnf.Flow`, in float64, or `cnf.tables.RowModel`, on the CPU.
        schema_: The schema of X.
        history_: The training's `cnf.History`: of a model of rows that of its codes, whose
            validation NLL is of whole rows.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, where X had any.
        n_context_features_in_: Number of columns of the context, 0 without one.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> density = CNFDensity(max_steps=5, random_state=0).fit(X)
        >>> density.score_samples(X[:3]).shape, density.sample(4).shape
        ((3,), (4, 2))
    """

    def __init__(
        self,
        *,
        recipe: AnyRecipe = None,
        schema: Schema | str | None = None,
        missing: Missing = "refuse",
        objective: str | None = None,
        budget: float | None = 60,
        max_steps: int | None = None,
        random_state: State = None,
        device: str | None = None,
        threads: Threads = "auto",
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.schema = schema
        self.missing = missing
        self.objective = objective
        self.budget = budget
        self.max_steps = max_steps
        self.random_state = random_state
        self.device = device
        self.threads = threads
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        context: Any = None,
    ) -> Self:
        """Fit the model to X, given a context where there is one.

        Args:
            X: Shape (n_samples, n_features), finite.
            y: Not used.
            sample_weight: Shape (n_samples,), at least 0: how often each row is repeated. Only
                their ratios matter.
            context: Shape (n_samples, n_context_features) or (n_samples,), finite. A column that
                does not vary is ignored. With a schema and without a flow's recipe or objective it
                may be a table with text, categories and dates.

        Raises:
            ValueError: A shape does not fit, a value is not finite or not allowed in its column,
                a column of real numbers is constant, or a parameter is out of range.
            cnf.training.TrainingError: Every step failed.

        Warns:
            UserWarning: A column is redundant, looks like an id, or has no density.
        """
        if self.missing not in MISSING:
            raise ValueError(f"Expected missing among {', '.join(MISSING)}; got {self.missing!r}")
        table = self._table(X, reset=True)
        self._like = X[:0] if is_frame(X) else None  # restores the kind and the types of X
        given = context_table(context, len(table.values))
        check_consistent_length(table.values, given.values)
        complete = complete_rows(table, given, drop=self.missing == "drop")
        if complete.sum() < MIN_ROWS:
            gaps = np.isnan(table.values).sum(0)
            raise ValueError(
                f"Expected at least {MIN_ROWS} rows without gaps; got {complete.sum()} of "
                f"{len(complete)}: leave out column {table.columns[gaps.argmax()]!r}, which has "
                f"{gaps.max()} gaps"
            )
        for each in (table, given):
            check_single_precision(each)
        weight = sample_weight
        if weight is not None:
            options = {"dtype": np.float64, "ensure_non_negative": True}
            weight = _check_sample_weight(weight, table.values, **options)[complete]
        table = replace(table, values=table.values[complete])
        self.schema_ = chosen_schema(self.schema, table)
        rows = self.schema_.numbers(table.values, table.categories, table.types)
        schema = None if self.schema is None else self.schema_
        coded = is_coded(self.recipe, self.objective, schema, rows, given)
        self._check(rows, coded)
        given = replace(given, values=given.values[complete])
        self._context = ContextColumns.of(given, is_frame(context), coded)
        self.n_context_features_in_ = len(given.columns)
        self._train(rows, self._context.numbers(given), weight, coded)
        return self

    def _train(self, rows: Array, contexts: Array, weight: Array | None, coded: bool) -> None:
        """Fit a model of rows where `coded`, a flow where not."""
        options: dict[str, Any] = {
            "weight": weight,
            "recipe": self.recipe,
            "seed": int(check_random_state(self.random_state).randint(2**31 - 1)),
            "device": self._device(),
            "budget": self.budget,
            "steps": self.max_steps,
            "threads": self.threads,
            "callbacks": [ProgressBar()] if self.verbose else [],
        }
        self.model_: Model
        if coded:
            found = train_row_model(self.schema_, rows, self._context, contexts, **options)
            self.model_, self.history_ = found
        else:
            options["objective"] = self.objective
            self.model_, self.history_ = train_flow(self.schema_, rows, contexts, **options)

    @property
    def flow_(self) -> Flow:
        """The fitted flow, the same as `model_` where that is one."""
        if isinstance(self.model_, Flow):
            return self.model_
        raise AttributeError("Expected a fitted flow; got a model of rows: use model_")

    def score_samples(self, X: Any, context: Any = None) -> Array:
        """Return the log-densities log p(x | context) in nats, shape (n_samples,).

        Of a flow with whole numbers or categories, it is a bound, by several draws of noise that
        depend on the row alone. A row with missing values, where `missing` is `"drop"`, has NaN,
        and one with a context that the model does not know.

        Raises:
            ValueError: A shape does not fit, or a value is not finite.
            sklearn.exceptions.NotFittedError: There is no fit yet.
            cnf.SolveError: Rows lie where a flow cannot be integrated; the message names them.

        Warns:
            UserWarning: Rows have values that their columns cannot have, such as unknown
                categories: −inf, or NaN where a context has them.
        """

        def log_prob(model: Model, x: Tensor, given: Tensor | None) -> Sequence[Tensor]:
            with torch.no_grad():
                options = {"max_batch": SOLVE_ROWS, "seed": 0, "draws": NOISE_DRAWS}
                return (model.log_prob(x, given, **options),)

        return self._scored(X, context, log_prob)[0]

    def score_samples_uncertainty(self, X: Any, context: Any = None) -> tuple[Array, Array]:
        """Return log-densities in nats and their uncertainty for 95 % of rows, each (n_samples,).

        They are the `log_prob` and `uncertainty` of `cnf.Scores`: NaN for rows that cannot be
        integrated. This takes about three times as long as `score_samples`, with the same noise.
        Where log p is exact, the uncertainty is that of rounding.

        Raises:
            ValueError: A shape does not fit, or a value is not finite.
            sklearn.exceptions.NotFittedError: There is no fit yet.

        Warns:
            UserWarning: As `score_samples`.
        """

        def scores(model: Model, x: Tensor, given: Tensor | None) -> Sequence[Tensor]:
            probes = NOISE_DRAWS if model.noisy else TRACE_PROBES
            found = model.score(x, given, probes=probes, seed=0, max_batch=SOLVE_ROWS)
            return found.log_prob, found.uncertainty

        log_prob, uncertainty = self._scored(X, context, scores)
        return log_prob, uncertainty

    def score(self, X: Any, y: object = None, context: Any = None) -> float:
        """Return the mean log-density of the complete rows, in nats, as `GaussianMixture` does."""
        return float(np.nanmean(self.score_samples(X, context)))

    def sample(
        self,
        n_samples: int = 1,
        random_state: State = None,
        context: Any = None,
    ) -> Any:
        """Draw samples from the density.

        Args:
            n_samples: Number of samples; with a context, for each of its rows.
            random_state: Seed of the samples.
            context: Shape (n_contexts, n_context_features) or (n_contexts,).

        Returns:
            Shape (n_samples, n_features), or (n_contexts · n_samples, n_features) in the
            order of the contexts; an array, or a table of the kind and the types that the model
            was fitted to.

        Raises:
            ValueError: The number is not whole and positive, a shape does not fit, or the model
                does not know a context, such as another category.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"Expected n_samples, a whole number of at least 1; got {n_samples}")
        given, model = self._context.table(context, 1), self._model()
        complete_rows(given, drop=False)
        if (unknown := self._context.unknown(given)) is not None:
            raise ValueError(f"Expected a context as in fit; {unknown}: correct it")
        contexts = _tensor(self._context.numbers(given), model)
        if contexts is not None:
            contexts = contexts.repeat_interleave(n_samples, 0)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        with seeded(seed, model.like.device):
            shape = n_samples * len(given.values) if contexts is None else ()
            x = model.sample(shape, contexts, max_batch=SOLVE_ROWS)
        drawn = self.schema_.table(x.cpu().numpy())
        return drawn.values if self._like is None else from_any(self._like)[1](table_frame(drawn))

    def _scored(
        self,
        X: Any,
        context: Any,
        score: Callable[[Model, Tensor, Tensor | None], Sequence[Tensor]],
    ) -> list[Array]:
        """Return scores of rows, the log-densities first; NaN for incomplete rows."""
        check_is_fitted(self)
        table, model = self._table(X, reset=False), self._model()
        given = self._context.table(context, len(table.values))
        check_consistent_length(table.values, given.values)
        complete = complete_rows(table, given, drop=self.missing == "drop")
        rows = self.schema_.numbers(table.values, table.categories, table.types, unknown="keep")
        contexts = _tensor(self._context.numbers(given)[complete], model)
        scores = score(model, torch.tensor(rows[complete]).to(model.like), contexts)
        found = [_spread(each, complete) for each in scores]
        schema, outside = self.schema_, self.schema_.outside(rows)
        foreign = schema.outside(schema.nearest(rows)) if isinstance(model, RowModel) else outside
        between = (outside & ~foreign) if isinstance(model, RowModel) else np.zeros_like(outside)
        foreign &= np.isneginf(found[0])[:, None]
        for line, meaning in (
            (describe_foreign(table, schema, foreign), "log p is -inf"),
            (describe_foreign(table, schema, between), "it counts as the nearest number"),
            (self._context.unknown(given), "log p is NaN"),
        ):
            if line is not None:
                warn(f"{line}: {meaning}", stacklevel=3)
        return found

    def _table(self, X: Any, reset: bool) -> Table:
        """Return X as a table, after scikit-learn's checks of its shape and names."""
        options: dict[str, Any] = {"dtype": np.float64, "reset": reset, "ensure_all_finite": False}
        options |= {"ensure_min_samples": MIN_ROWS} if reset else {}
        if not is_frame(X):
            rows = self._numbers(X, options)
            names = [f"x{i}" for i in range(rows.shape[1])] if reset else self.schema_.names
            return Table("X", rows, tuple(names))
        frame, _ = from_any(X)
        table = frame_table(frame, "X", None if reset else self.schema_.types)
        labels = X.columns if isinstance(X, pd.DataFrame) else frame.columns
        named = all(isinstance(label, str) for label in labels)  # as scikit-learn demands
        validate_data(self, pd.DataFrame(table.values, None, labels if named else None), **options)
        if not reset and self._like is not None:
            check_columns(table, self.schema_.names)
        return table

    def _numbers(self, X: Any, options: dict[str, Any]) -> Array:
        """Return an array after scikit-learn's checks, whose errors become one line."""
        try:
            return np.asarray(validate_data(self, unmasked(X), **options))
        except ValueError as error:
            first, *others = str(error).splitlines()
            if "could not convert string" in first:
                text = first.partition(": ")[2]
                first = f"Expected numbers in an array; got text, {text}: {PASS_TABLE}"
            advice = (line for line in others if line.startswith("Reshape"))
            raise ValueError(" ".join([first, *advice])) from None

    def _check(self, rows: Array, coded: bool) -> None:
        """Refuse rows that have no density, and warn of those that seem to have none."""
        self.schema_.check(rows)
        self.schema_.check_varying(rows)
        self.schema_.check_apart(rows)
        remarks = self.schema_.remarks(rows, masses=coded)
        for found in (*degeneracies(*self.schema_.real(rows)), *remarks):
            warn(str(found), stacklevel=3)

    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _model(self) -> Model:
        device = self._device()
        return self.model_ if device.type == "cpu" else copy.deepcopy(self.model_).to(device)


def _tensor(contexts: Array, model: Model) -> Tensor | None:
    """Return contexts as a model's tensor, None without columns."""
    return torch.tensor(contexts).to(model.like) if contexts.shape[1] else None


def _spread(scores: Tensor, complete: Flags) -> Array:
    """Return the scores of complete rows at their places among all, NaN for the others."""
    found = np.full(len(complete), np.nan)
    found[complete] = scores.double().cpu().numpy()
    return found
