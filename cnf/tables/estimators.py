"""The scikit-learn estimator of densities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self
from warnings import warn

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import Tags, check_consistent_length, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from cnf.datasets import (
    MISSING,
    Missing,
    Table,
    degeneracies,
    frame_table,
    from_any,
    like_frame,
    table_frame,
)
from cnf.flow import Flow, FlowMixture
from cnf.tables.density_training import AnyRecipe, is_coded, train_flow, train_row_model
from cnf.tables.inputs import (
    AskedRows,
    ContextColumns,
    check_columns,
    check_count,
    check_names,
    check_seen,
    checked_array,
    chosen_schema,
    column_flags,
    complete_rows,
    context_table,
    describe_foreign,
    given_table,
    is_frame,
    kept_rows,
    untyped_gaps,
)
from cnf.tables.outputs import fill_frame, fill_gaps, given_cells, long_form
from cnf.tables.questions import explain
from cnf.tables.row_model import RowModel
from cnf.tables.schema import Schema, check_single_precision
from cnf.training.callbacks import ProgressBar
from cnf.utils.random import seeded
from cnf.utils.threads import Threads

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Model = Flow | FlowMixture | RowModel
State = int | np.random.RandomState | None

SOLVE_ROWS = 8000  # rows in one solve, many of which share steps
TRACE_PROBES = 16  # for each row, to estimate the error of an estimated trace
NOISE_DRAWS = 8  # for each row, where there are whole numbers or categories
MIN_ROWS = 3
NEAREST = "it counts as the nearest number"


class CNFDensity(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A continuous normalizing flow, or a model of mixed rows, as a scikit-learn density estimator.

    Fits log p(X), or log p(X | context), holding out a tenth of the rows to select the best weights
    on. Densities are in the units of X, in float64; of columns such as categories they are masses.
    X may be an array, or a table of pandas, polars and pyarrow, and samples are of the same kind
    and types.

    Columns of real numbers are modelled by a `cnf.Flow`, or up to 10,000 rows of three or more of
    them by a `cnf.FlowMixture`, the weighted mean of several. A schema with categories, booleans,
    few whole numbers, or values that occur with a mass, such as zeros, or a context with
    categories, needs a `cnf.tables.RowModel`: first the discrete, by a network whose log p is
    exact, then what is continuous given that.

    A model of rows also answers questions about parts of a row: log p(some cells | others), draws
    of what is missing, and why a row is unlikely. With `missing="model"` every table has such a
    model, and it is fitted to rows with gaps.

    Args:
        recipe: The model and its training, chosen by the columns, the data's size and dimension
            when None. A `cnf.training.recipes.Recipe`, or the name of one, `"table"` for the data's
            size, is that of a flow, and holds its network, the optimizer and the solver in
            training; such a flow models columns with a mass by adding noise to them, and its log p
            is a bound. A `cnf.tables.CodeRecipe` or `"codes"` is that of a model of rows.
        schema: The columns of X, a `cnf.tables.schema.Schema` with their names (x0, x1, … where X
            has none); `"infer"` for the kinds that they look like, text for categories; all are
            real numbers when None.
        missing: The treatment of missing values, which are NaN, None, NaT, null or masked:
            `"refuse"` them, `"drop"` their rows, whose scores are NaN, or `"model"` them, which are
            unknown values, or one more value in the columns of a schema whose `gaps` are a
            `"value"`. Those of a context are refused or dropped.
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
        model_: The fitted model, on the CPU: a `cnf.Flow` or, of few rows, a `cnf.FlowMixture`,
            in float64, or a `cnf.tables.RowModel`.
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

        A model of rows with gaps:

        >>> X[::2, 1] = np.nan
        >>> density = CNFDensity(missing="model", max_steps=5, random_state=0).fit(X)
        >>> density.score_samples(X[:3], given=[0]).shape  # 0 where nothing but x0 is there
        (3,)
        >>> bool(np.isfinite(density.impute(X)).all())
        True
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
            X: Shape (n_samples, n_features), finite, or with NaN where gaps are not refused.
            y: Not used.
            sample_weight: Shape (n_samples,), at least 0: how often each row is repeated. Only
                their ratios matter.
            context: Shape (n_samples, n_context_features) or (n_samples,), finite. A column that
                does not vary is ignored. With a schema and without a flow's recipe or objective it
                may be a table, or a column of one, with text, categories and dates.

        Raises:
            ValueError: A shape does not fit, a value is not finite or not allowed in its column,
                a column of real numbers is constant or one has gaps alone, a parameter is out of
                range, or gaps are to be modelled by a flow.
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
        complete = kept_rows(table, given, self.missing)
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
        check_seen(table if weight is None else replace(table, values=table.values[weight > 0]))
        self.schema_ = chosen_schema(self.schema, table)
        rows = self.schema_.numbers(table.values, table.categories, table.types)
        schema = None if self.schema is None else self.schema_
        gaps = self.missing == "model"
        coded = is_coded(self.recipe, self.objective, schema, rows, given, gaps)
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
            options["gaps"] = self.missing == "model"
            found = train_row_model(self.schema_, rows, self._context, contexts, **options)
            self.model_, self.history_ = found
        else:
            options["objective"] = self.objective
            self.model_, self.history_ = train_flow(self.schema_, rows, contexts, **options)

    @property
    def flow_(self) -> Flow | FlowMixture:
        """The fitted flow, or mixture of flows, the same as `model_` where that is one."""
        if isinstance(self.model_, RowModel):
            raise AttributeError("Expected a fitted flow; got a model of rows: use model_")
        return self.model_

    def score_samples(self, X: Any, context: Any = None, given: Any = None) -> Array:
        """Return the log-densities log p(x | context) in nats, shape (n_samples,).

        With `missing="model"` they are those of the cells that are there. With columns that are
        given, log p(the other cells that are there | the cells of these columns, context), where
        the codes d of the others, which are asked, come in the order of the columns, and then
        their values x:

            log p = Σ_i log p(d_i | d_<i, given cells) + log p(x | d, given cells)

        It is 0 where nothing is asked. Of a flow with whole numbers or categories, it is a bound,
        by several draws of noise that depend on the row alone.

        Args:
            X: Shape (n_samples, n_features).
            context: Shape (n_samples, n_context_features) or (n_samples,).
            given: The names or the places, counted from 0, of columns that are given.

        Returns:
            NaN for a row with missing values where `missing` is `"drop"`, and where a given column
            or the context has a category that the model does not know.

        Raises:
            ValueError: A shape does not fit, a value is not finite, there is no such column, or the
                model is a flow and a part of a row is asked for.
            sklearn.exceptions.NotFittedError: There is no fit yet.
            cnf.SolveError: Rows lie where a flow cannot be integrated; the message names them.

        Warns:
            UserWarning: Rows have values that their columns cannot have, such as unknown
                categories: −inf, or NaN where these are given.

        Example:
            >>> X = np.random.default_rng(0).normal(size=(200, 2))
            >>> density = CNFDensity(missing="model", max_steps=2, random_state=0).fit(X)
            >>> joint, one, rest = (
            ...     density.score_samples(rows, given=given)
            ...     for rows, given in ((X, None), (X * [1, np.nan], None), (X, [0]))
            ... )
            >>> np.round(joint - one - rest, 1).tolist() == [0.0] * 200
            True
        """
        check_is_fitted(self)
        flags = column_flags(() if given is None else given, self.schema_.names)

        def log_prob(model: Model, x: Tensor, context: Tensor | None) -> Sequence[Tensor]:
            options: dict[str, Any] = {"max_batch": SOLVE_ROWS, "seed": 0, "draws": NOISE_DRAWS}
            if flags.any():  # else of flows, too
                options["given"] = torch.from_numpy(flags).to(model.like.device)
            with torch.no_grad():
                return (model.log_prob(x, context, **options),)

        return self._scored(X, context, log_prob, flags)[0]

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

        def scores(model: Model, x: Tensor, context: Tensor | None) -> Sequence[Tensor]:
            probes = NOISE_DRAWS if model.noisy else TRACE_PROBES
            found = model.score(x, context, probes=probes, seed=0, max_batch=SOLVE_ROWS)
            return found.log_prob, found.uncertainty

        log_prob, uncertainty = self._scored(X, context, scores)
        return log_prob, uncertainty

    def score(self, X: Any, y: object = None, context: Any = None) -> float:
        """Return the mean log-density of rows, in nats, as `GaussianMixture` does.

        Rows that `missing="drop"` leaves out have no part in it; where gaps are modelled, it is the
        mean of log p of what is there.
        """
        return float(np.nanmean(self.score_samples(X, context)))

    def sample(
        self,
        n_samples: int = 1,
        random_state: State = None,
        context: Any = None,
        given: Any = None,
    ) -> Any:
        """Draw samples from the density, p(x | context) or p(other cells | given cells, context).

        Args:
            n_samples: Number of samples; with a context or given cells, for each of their rows.
            random_state: Seed of the samples.
            context: Shape (n_contexts, n_context_features) or (n_contexts,).
            given: Cells of the samples: an array (n_given, n_features) with NaN for those that are
                to be drawn, or a table of some columns. With a context, n_given is n_contexts.

        Returns:
            Shape (n_samples, n_features), or (n_contexts · n_samples, n_features) in the
            order of the contexts or of the given cells, which are as given; an array, or a table
            of the kind and the types that the model was fitted to.

        Raises:
            ValueError: The number is not whole and positive, a shape does not fit, the model
                does not know a value that is given or in a context, such as another category, there
                is no such column, or the model is a flow and cells are given.
            sklearn.exceptions.NotFittedError: There is no fit yet.

        Warns:
            UserWarning: Given numbers are between those of a grid.

        Example:
            >>> X = np.random.default_rng(0).normal(size=(200, 2))
            >>> density = CNFDensity(missing="model", max_steps=2, random_state=0).fit(X)
            >>> density.sample(2, given=[[0.5, np.nan], [np.nan, -1.0]])[:, 0].tolist()[:2]
            [0.5, 0.5]
        """
        check_is_fitted(self)
        check_count("n_samples", n_samples)
        model = self._model() if given is None else self._answering()
        known = self._context.table(context, 1)
        complete_rows(known, drop=False)
        contexts = self._known_contexts(known, model)
        contexts = None if contexts is None else contexts.repeat_interleave(n_samples, 0)
        if given is None:
            shape = n_samples * len(known.values) if contexts is None else ()
            with self._seeded(random_state, model):
                x = model.sample(shape, contexts, max_batch=SOLVE_ROWS)
            drawn = self.schema_.table(x.cpu().numpy())
        else:
            cells, numbers = self._given(given)
            if context is not None:
                check_consistent_length(known.values, cells)
            drawn = self._completed(cells, numbers, n_samples, contexts, random_state)
        return drawn.values if self._like is None else from_any(self._like)[1](table_frame(drawn))

    def _given(self, given: Any) -> tuple[Array, Array]:
        """Return given cells, as tables have them and as numbers of the schema; NaN for others."""
        table = given_table(given, self.schema_.names, self.schema_.types)
        complete_rows(table, drop=False, gappy=table)
        numbers = self.schema_.numbers(table.values, table.categories, table.types, "keep")
        self._check_known(table, numbers, stacklevel=4)
        return given_cells(table, self.schema_, numbers), numbers

    def _completed(
        self,
        cells: Array,
        numbers: Array,
        n_samples: int,
        contexts: Tensor | None,
        random_state: State,
    ) -> Table:
        """Return so many draws for each row of given cells, which are as given."""
        model, cells = self._answering(), cells.repeat(n_samples, 0)
        x = torch.tensor(numbers).to(model.like).repeat_interleave(n_samples, 0)
        with self._seeded(random_state, model):  # gaps are drawn, where they are a value too
            x = model.impute(x, contexts, given=~x.isnan(), max_batch=SOLVE_ROWS)
        drawn = self.schema_.table(x.cpu().numpy())
        return replace(drawn, values=np.where(np.isnan(cells), drawn.values, cells))

    def impute(
        self, X: Any, draws: int = 1, random_state: State = None, context: Any = None
    ) -> Any:
        """Fill the gaps of rows with joint draws given the other cells of each row.

        Several tables of draws show how uncertain the cells are (multiple imputation; Rubin 1987).
        Gaps that are a value of their column stay.

        Args:
            X: Shape (n_samples, n_features), with NaN, None, NaT or null for gaps, whatever
                `missing` is.
            draws: The number of tables.
            random_state: Seed of the draws.
            context: Shape (n_samples, n_context_features) or (n_samples,).

        Returns:
            X with its gaps filled, of the same kind and types, a masked array without its mask; a
            list of as many tables for more than one draw.

        Raises:
            ValueError: The number is not whole and positive, a shape does not fit, a value is
                infinite, the model does not know one, such as another category, or it is a flow.
            sklearn.exceptions.NotFittedError: There is no fit yet.

        Warns:
            UserWarning: Numbers are between those of a grid.

        Example:
            >>> X = np.random.default_rng(0).normal(size=(200, 2))
            >>> density = CNFDensity(missing="model", max_steps=2, random_state=0).fit(X)
            >>> one, other = density.impute([[0.5, np.nan]], draws=2, random_state=0)
            >>> bool(one[0, 0] == other[0, 0] == 0.5), bool(one[0, 1] == other[0, 1])
            (True, False)
        """
        check_is_fitted(self)
        check_count("draws", draws)
        model, rows = self._answering(), self._rows(X, context, "model")
        contexts = self._known_contexts(rows.context, model)
        self._check_known(rows.table, rows.numbers, stacklevel=3)
        gaps = np.isnan(rows.numbers).any(1)
        x = torch.tensor(rows.numbers[gaps]).to(model.like)
        contexts = None if contexts is None else contexts[torch.from_numpy(gaps)]
        found = []
        with self._seeded(random_state, model):
            for _ in range(draws):
                numbers = rows.numbers.copy()
                if len(x):
                    drawn = model.impute(x, contexts, max_batch=SOLVE_ROWS)
                    numbers[gaps] = drawn.cpu().numpy()
                found.append(self._filled(X, rows.table, numbers))
        return found if draws > 1 else found[0]

    def explain(self, X: Any, context: Any = None) -> Any:
        """Return how unlikely each cell of rows is given the others, and what was expected.

        The surprise of a cell is −log p(cell | the others of the row, context), in nats. Its excess
        says how much likelier the row is without the cell, less the mean surprise of draws of it,
        by which the cells of all columns compare. Expected is the median of these draws, or the
        category that is most frequent among them. See `cnf.tables.questions.explain`.

        Args:
            X: Shape (n_samples, n_features).
            context: Shape (n_samples, n_context_features) or (n_samples,).

        Returns:
            Of an array, the surprise, excess and expected value of each cell, an array of shape
            (3, n_samples, n_features). Of a table one of its kind with an entry for each cell:
            `row`, counted from 0, `column`, `surprise`, `excess` and `expected`, which is text
            unless all columns hold numbers; the cells of a row come by their excess, the largest
            first. Gaps have no surprise, NaN, but an expected value.

        Raises:
            ValueError: A shape does not fit, a value is not finite, or the model is a flow.
            sklearn.exceptions.NotFittedError: There is no fit yet.

        Warns:
            UserWarning: Rows have values that their columns cannot have: they are hidden from the
                other cells, and their surprise is infinite.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> X = rng.normal(size=(500, 1)) + 0.1 * rng.normal(size=(500, 3))
            >>> density = CNFDensity(missing="model", max_steps=2, random_state=0).fit(X)
            >>> surprise, excess, expected = density.explain([[0.0, 0.1, 2.0]])
            >>> int(excess.argmax()), bool(abs(expected[0, 2]) < 0.5)
            (2, True)
        """
        check_is_fitted(self)
        model, rows = self._answering(), self._rows(X, context, self.missing)
        answer = explain(model, *self._tensors(rows, model))
        self._warn(rows, [(np.ones(1, np.bool_), "it is hidden from other cells")], stacklevel=3)
        surprise, excess, expected = (
            _spread(each, rows.complete)
            for each in (answer.surprise, answer.excess, answer.expected)
        )
        if is_frame(X):
            return like_frame(long_form(self.schema_, surprise, excess, expected), X)
        return np.stack([surprise, excess, self.schema_.table(expected).values])

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing != "refuse"
        return tags

    def _scored(
        self,
        X: Any,
        context: Any,
        score: Callable[[Model, Tensor, Tensor | None], Sequence[Tensor]],
        given: Flags | None = None,
    ) -> list[Array]:
        """Return scores of rows, the log-densities first; NaN for rows that are left out."""
        check_is_fitted(self)
        known = np.zeros(1, np.bool_) if given is None else given
        model = self._answering() if known.any() else self._model()
        rows = self._rows(X, context, self.missing)
        if np.isnan(rows.numbers[rows.complete]).any():
            model = self._answering()
        found = [_spread(each, rows.complete) for each in score(model, *self._tensors(rows, model))]
        log_prob = found[0][:, None]
        impossible, lost = ~known & np.isneginf(log_prob), known & np.isnan(log_prob)
        self._warn(rows, [(impossible, "log p is -inf"), (lost, "log p is NaN")], stacklevel=4)
        return found

    def _rows(self, X: Any, context: Any, missing: Missing) -> AskedRows:
        """Return rows and their context as numbers, after checks of shapes, names and gaps."""
        table = self._table(X, reset=False)
        given = self._context.table(context, len(table.values))
        check_consistent_length(table.values, given.values)
        complete = kept_rows(table, given, missing)
        numbers = self.schema_.numbers(table.values, table.categories, table.types, "keep")
        return AskedRows(table, given, complete, numbers)

    def _tensors(self, rows: AskedRows, model: Model) -> tuple[Tensor, Tensor | None]:
        """Return the rows that are not left out, and their context."""
        contexts = _tensor(self._context.numbers(rows.context)[rows.complete], model)
        return torch.tensor(rows.numbers[rows.complete]).to(model.like), contexts

    def _foreign(self, numbers: Array) -> tuple[Flags, Flags]:
        """Return which numbers columns cannot have, and which count as the nearest ones."""
        outside = self.schema_.outside(numbers)
        if not isinstance(self.model_, RowModel):
            return outside, np.zeros_like(outside)
        foreign = self.schema_.outside(self.schema_.nearest(numbers))
        return foreign, outside & ~foreign

    def _warn(self, rows: AskedRows, cases: Sequence[tuple[Flags, str]], stacklevel: int) -> None:
        """Warn of values that columns cannot have, by cases of cells and what becomes of them."""
        foreign, between = self._foreign(rows.numbers)
        every = [(foreign & cells, meaning) for cells, meaning in cases]
        every.append((between, NEAREST))
        lines = [(describe_foreign(rows.table, self.schema_, cells), why) for cells, why in every]
        for line, meaning in (*lines, (self._context.unknown(rows.context), "log p is NaN")):
            if line is not None:
                warn(f"{line}: {meaning}", stacklevel=stacklevel)

    def _check_known(self, table: Table, numbers: Array, stacklevel: int) -> None:
        """Refuse cells that columns cannot have, and warn of those that are between numbers."""
        foreign, between = self._foreign(numbers)
        if (line := describe_foreign(table, self.schema_, foreign)) is not None:
            raise ValueError(f"Expected values as in fit; {line}: correct it")
        if (line := describe_foreign(table, self.schema_, between)) is not None:
            warn(f"{line}: {NEAREST}", stacklevel=stacklevel)

    def _known_contexts(self, table: Table, model: Model) -> Tensor | None:
        """Return contexts as a model's tensor, and refuse those that it does not know."""
        if (unknown := self._context.unknown(table)) is not None:
            raise ValueError(f"Expected a context as in fit; {unknown}: correct it")
        return _tensor(self._context.numbers(table), model)

    def _filled(self, X: Any, table: Table, numbers: Array) -> Any:
        """Return X with its gaps filled by numbers."""
        if is_frame(X):
            return fill_frame(X, table, self.schema_, numbers)
        dtype = getattr(X, "dtype", None)
        floating = isinstance(dtype, np.dtype) and dtype.kind == "f"
        return fill_gaps(table, self.schema_, numbers).values.astype(dtype if floating else float)

    def _table(self, X: Any, reset: bool) -> Table:
        """Return X as a table, after scikit-learn's checks of its shape and names."""
        options: dict[str, Any] = {"dtype": np.float64, "reset": reset, "ensure_all_finite": False}
        options |= {"ensure_min_samples": MIN_ROWS} if reset else {}
        if not is_frame(X):
            rows = checked_array(self, X, **options)
            names = [f"x{i}" for i in range(rows.shape[1])] if reset else self.schema_.names
            return Table("X", rows, tuple(names))
        frame, _ = from_any(X)
        table = frame_table(frame, "X", None if reset else self.schema_.types)
        table = table if reset else untyped_gaps(table)
        check_names(self, X, table, **options)
        if not reset and self._like is not None:
            check_columns(table, self.schema_.names)
        return table

    def _check(self, rows: Array, coded: bool) -> None:
        """Refuse rows that have no density, and warn of those that seem to have none."""
        self.schema_.check(rows, gaps=True)
        self.schema_.check_varying(rows)
        self.schema_.check_apart(rows)
        remarks = self.schema_.remarks(rows, masses=coded)
        whole, names = self.schema_.real(rows[~np.isnan(rows).any(1)])
        seen = len(whole) == len(rows) or len(whole) > len(names)  # not few by gaps alone
        for found in (*(degeneracies(whole, names) if seen else []), *remarks):
            warn(str(found), stacklevel=3)

    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _model(self) -> Model:
        device = self._device()
        return self.model_ if device.type == "cpu" else copy.deepcopy(self.model_).to(device)

    def _answering(self) -> RowModel:
        """Return the model on the device, where it is one of rows.

        Raises:
            ValueError: It is a flow.
        """
        model = self._model()
        if isinstance(model, RowModel):
            return model
        got = "a flow" if isinstance(model, Flow) else "a mixture of flows"
        raise ValueError(
            f"Expected a model that answers questions about parts of a row; got {got}: fit it with "
            'missing="model"'
        )

    @contextmanager
    def _seeded(self, random_state: State, model: Model) -> Iterator[None]:
        """Draw a seed from a random state, and set it in the context."""
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        with seeded(seed, model.like.device):
            yield


def _tensor(contexts: Array, model: Model) -> Tensor | None:
    """Return contexts as a model's tensor, None without columns."""
    return torch.tensor(contexts).to(model.like) if contexts.shape[1] else None


def _spread(scores: Tensor, complete: Flags) -> Array:
    """Return the scores of complete rows at their places among all, NaN for the others."""
    found = np.full((len(complete), *scores.shape[1:]), np.nan)
    found[complete] = scores.double().cpu().numpy()
    return found
