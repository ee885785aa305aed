"""The scikit-learn estimator of densities."""

from __future__ import annotations

import copy
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
from cnf.layers.scalings.scaling import constant_columns
from cnf.tables.inputs import (
    PASS_TABLE,
    check_columns,
    check_numbers,
    complete_rows,
    context_table,
    is_frame,
    unmasked,
)
from cnf.tables.schema import Column, Schema, check_single_precision
from cnf.training.callbacks import ProgressBar
from cnf.training.loop import fit
from cnf.training.recipes import Recipe, choose_recipe
from cnf.utils.random import seeded
from cnf.utils.threads import Threads

Array = NDArray[np.float64]
State = int | np.random.RandomState | None

SOLVE_ROWS = 8000  # rows in one solve, many of which share steps
TRACE_PROBES = 16  # for each row, to estimate the error of an estimated trace
NOISE_DRAWS = 8  # for each row, where there are whole numbers or categories
MIN_ROWS = 3


class CNFDensity(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A continuous normalizing flow as a scikit-learn density estimator.

    Fits log p(X), or log p(X | context), by `cnf.fit`, holding out a tenth of the rows to select
    the best weights on. Densities are in the units of X, in float64. X may be an array, or a table
    of pandas, polars or pyarrow, and samples are of the same kind and types.

    Args:
        recipe: A `cnf.training.recipes.Recipe` or the name of one; chosen by the data's size and
            dimension when None. It holds the network, the optimizer and the solver in training.
        schema: The columns of X, a `cnf.tables.schema.Schema` with their names (x0, x1, … where X
            has none); `"infer"` for the kinds that they look like, text for categories; all are
            real numbers when None.
        missing: The treatment of missing values, which are NaN, null or masked: `"refuse"` them, or
            `"drop"` their rows, whose scores are NaN.
        objective: `"hybrid"`, `"mle"` or `"matching"`; the recipe's when None.
        budget: Seconds of training, None for no limit on them.
        max_steps: The most optimizer steps. A fit that they end, and not the budget, depends on
            `random_state` alone, where `threads` is a number.
        random_state: Seed of the held-out rows, the weights and the order of the data.
        device: The device to compute on, such as `"cuda"`; a GPU where there is one when None.
        threads: PyTorch's threads in training: a number, `"auto"` for the fastest by its steps
            unless the caller chose one, or None for PyTorch's number.
        verbose: Whether a progress bar is shown on a terminal.

    Attributes:
        flow_: The fitted `cnf.Flow`, in float64 on the CPU.
        schema_: The schema of X.
        history_: The training's `cnf.History`.
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
        recipe: str | Recipe | None = None,
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
        """Fit the flow to X, given a context where there is one.

        Args:
            X: Shape (n_samples, n_features), finite.
            y: Not used.
            sample_weight: Shape (n_samples,), at least 0: how often each row is repeated. Only
                their ratios matter.
            context: Shape (n_samples, n_context_features) or (n_samples,), finite. A column that
                does not vary is ignored.

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
        self.n_context_features_in_ = len(given.columns)
        self._context_columns = given.columns if is_frame(context) else None
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
        self.schema_ = self._schema(table)
        rows = self.schema_.numbers(table.values, table.categories, table.types)
        self._check(rows)
        contexts = given.values[complete]
        constant = constant_columns(torch.from_numpy(contexts).float()) if contexts.size else []
        self._context_kept = [i for i in range(contexts.shape[1]) if i not in constant]
        self._train(rows, contexts[:, self._context_kept], weight)
        return self

    def _train(self, rows: Array, contexts: Array, weight: Array | None) -> None:
        """Fit the flow to rows, given contexts where these have columns."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        recipe = self.recipe
        if not isinstance(recipe, Recipe):
            known = (len(rows), self.schema_.width, bool(contexts.size), self.objective)
            _, recipe = choose_recipe(recipe, *known, self.schema_.continuous(rows))
        with seeded(seed):
            layers = self.schema_.layers(rows)
            flow = recipe.flow(self.schema_.width, contexts.shape[1], layers)
        flow = flow.to(self._device())
        self.history_ = fit(
            flow,
            torch.tensor(rows),
            context=torch.tensor(contexts) if contexts.size else None,
            weight=None if weight is None else torch.tensor(weight),
            objective=self.objective,
            recipe=recipe,
            budget=self.budget,
            steps=self.max_steps,
            seed=seed,
            threads=self.threads,
            callbacks=[ProgressBar()] if self.verbose else [],
        )
        self.flow_ = flow.cpu().double()

    def score_samples(self, X: Any, context: Any = None) -> Array:
        """Return the log-densities log p(x | context) in nats, shape (n_samples,).

        With whole numbers or categories it is a bound, by several draws of noise that depend on the
        row alone. A row with missing values, where `missing` is `"drop"`, has NaN.

        Raises:
            ValueError: A shape does not fit, or a value is not finite.
            sklearn.exceptions.NotFittedError: There is no fit yet.
            cnf.SolveError: Rows lie where the flow cannot be integrated; the message names them.
        """
        flow, x, given, complete = self._scored(X, context)
        with torch.no_grad():
            found = flow.log_prob(x, given, max_batch=SOLVE_ROWS, seed=0, draws=NOISE_DRAWS)
        return _spread(found, complete)

    def score_samples_uncertainty(self, X: Any, context: Any = None) -> tuple[Array, Array]:
        """Return log-densities in nats and their uncertainty for 95 % of rows, each (n_samples,).

        They are the `log_prob` and `uncertainty` of `cnf.Scores`: NaN for rows that cannot be
        integrated. This takes about three times as long as `score_samples`, with the same noise.

        Raises:
            ValueError: A shape does not fit, or a value is not finite.
            sklearn.exceptions.NotFittedError: There is no fit yet.
        """
        flow, x, given, complete = self._scored(X, context)
        probes = NOISE_DRAWS if flow.noisy else TRACE_PROBES
        scores = flow.score(x, given, probes=probes, seed=0, max_batch=SOLVE_ROWS)
        return _spread(scores.log_prob, complete), _spread(scores.uncertainty, complete)

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
            order of the contexts; an array, or a table of the kind and the types that the flow was
            fitted to.

        Raises:
            ValueError: The number is not whole and positive, or a shape does not fit.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"Expected n_samples, a whole number of at least 1; got {n_samples}")
        given, flow = self._context(context, 1), self._flow()
        complete_rows(given, drop=False)
        contexts = self._contexts(given.values, flow)
        if contexts is not None:
            contexts = contexts.repeat_interleave(n_samples, 0)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        with seeded(seed, flow.like.device):
            shape = n_samples * len(given.values) if contexts is None else ()
            x = flow.sample(shape, contexts, max_batch=SOLVE_ROWS)
        drawn = self.schema_.table(x.cpu().numpy())
        return drawn.values if self._like is None else from_any(self._like)[1](table_frame(drawn))

    def _scored(
        self, X: Any, context: Any
    ) -> tuple[Flow, Tensor, Tensor | None, NDArray[np.bool_]]:
        """Return the flow, the complete rows and contexts as its tensors, and which these are."""
        check_is_fitted(self)
        table, flow = self._table(X, reset=False), self._flow()
        given = self._context(context, len(table.values))
        check_consistent_length(table.values, given.values)
        complete = complete_rows(table, given, drop=self.missing == "drop")
        rows = self.schema_.numbers(table.values[complete], table.categories, table.types)
        contexts = self._contexts(given.values[complete], flow)
        return flow, torch.tensor(rows).to(flow.like), contexts, complete

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

    def _schema(self, table: Table) -> Schema:
        """Return the schema of a table without missing values, as the parameter says."""
        if isinstance(self.schema, str) and self.schema == "infer":
            found = Schema.infer(table)
            return found.without_constants(
                found.numbers(table.values, table.categories, table.types)
            )
        columns = [Column(name, type=table.types.get(name)) for name in table.columns]
        if self.schema is None:
            check_numbers(table, 'pass schema="infer", or leave it out')
            return Schema(tuple(columns))
        if not isinstance(self.schema, Schema):
            raise ValueError(f"Expected a Schema, 'infer' or None for schema; got {self.schema!r}")
        if self.schema.names != table.columns:
            wanted, got = (", ".join(each[:10]) for each in (table.columns, self.schema.names))
            raise ValueError(f"Expected a schema of X's columns, {wanted}; got one of {got}")
        return Schema(tuple(columns)).with_columns(
            {each.name: each for each in self.schema.columns}
        )

    def _check(self, rows: Array) -> None:
        """Refuse rows that have no density, and warn of those that seem to have none."""
        self.schema_.check(rows)
        self.schema_.check_varying(rows)
        self.schema_.check_apart(rows)
        for found in (*degeneracies(*self.schema_.real(rows)), *self.schema_.remarks(rows)):
            warn(str(found), stacklevel=3)

    def _context(self, context: Any, rows: int) -> Table:
        """Return a context as a table, of so many rows without columns for None."""
        count = self.n_context_features_in_
        if (context is None) != (count == 0):
            wanted = f"a context of {count} columns" if count else "no context"
            got = "none" if context is None else "one"
            raise ValueError(f"Expected {wanted}, as in fit; got {got}")
        given, known = context_table(context, rows), self._context_columns
        if len(given.columns) != count:
            raise ValueError(f"Expected a context of {count} columns; got {len(given.columns)}")
        if is_frame(context) and known is not None:
            check_columns(given, known)
        return given

    def _contexts(self, values: Array, flow: Flow) -> Tensor | None:
        """Return the columns of a context that varied in fit as a tensor; None where none did."""
        kept = self._context_kept
        return torch.tensor(values[:, kept]).to(flow.like) if kept else None

    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _flow(self) -> Flow:
        device = self._device()
        return self.flow_ if device.type == "cpu" else copy.deepcopy(self.flow_).to(device)


def _spread(scores: Tensor, complete: NDArray[np.bool_]) -> Array:
    """Return the scores of complete rows at their places among all, NaN for the others."""
    found = np.full(len(complete), np.nan)
    found[complete] = scores.double().cpu().numpy()
    return found
