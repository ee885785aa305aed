"""The scikit-learn estimator of densities."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import log
from typing import Self
from warnings import warn

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from cnf.datasets import Table, degeneracies, frame_table, table_frame
from cnf.flow import Flow
from cnf.tables.schema import Column, Schema
from cnf.training.callbacks import ProgressBar
from cnf.training.loop import fit
from cnf.training.recipes import Recipe, choose_recipe
from cnf.utils.random import seeded

Array = NDArray[np.float64]
State = int | np.random.RandomState | None

SOLVE_ROWS = 1000  # rows in one solve
TRACE_PROBES = 16  # for each row, to estimate the error of an estimated trace
NOISE_DRAWS = 8  # for each row, where there are whole numbers or categories


class CNFDensity(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A continuous normalizing flow as a scikit-learn density estimator.

    Fits log p(X), or log p(X | context), by `cnf.fit`, holding out a tenth of the rows to select
    the best weights on. Densities are in the units of X, in float64.

    Args:
        recipe: A `cnf.training.recipes.Recipe` or the name of one; chosen by the data's size and
            dimension when None. It holds the network, the optimizer and the solver in training.
        schema: The columns of X, a `cnf.tables.schema.Schema` with their names (x0, x1, … where X
            has none); `"infer"` for the kinds that they look like, text for categories; all are
            real numbers when None.
        objective: `"hybrid"`, `"mle"` or `"matching"`; the recipe's when None.
        budget: Seconds of training, None for no limit on them.
        max_steps: The most optimizer steps. A fit that they end, and not the budget, depends on
            `random_state` alone.
        random_state: Seed of the held-out rows, the weights and the order of the data.
        device: The device to compute on, such as `"cuda"`; a GPU where there is one when None.
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
        objective: str | None = None,
        budget: float | None = 60,
        max_steps: int | None = None,
        random_state: State = None,
        device: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.schema = schema
        self.objective = objective
        self.budget = budget
        self.max_steps = max_steps
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        sample_weight: ArrayLike | None = None,
        context: ArrayLike | None = None,
    ) -> Self:
        """Fit the flow to X, given a context where there is one.

        Args:
            X: Shape (n_samples, n_features), finite; after a DataFrame, samples are one too.
            y: Not used.
            sample_weight: Shape (n_samples,), at least 0: how often each row is repeated. Only
                their ratios matter.
            context: Shape (n_samples, n_context_features) or (n_samples,), finite.

        Raises:
            ValueError: A shape does not fit, a value is not finite or not allowed in its column,
                a column of real numbers is constant, or a parameter is out of range.
            cnf.training.TrainingError: Every step failed.
        """
        self._frames = isinstance(X, pd.DataFrame)
        numbers, texts = self._numbers(X)
        rows: Array = validate_data(self, numbers, dtype=np.float64, ensure_min_samples=3)
        self.schema_ = self._schema(rows, texts)
        rows = self.schema_.numbers(rows, texts)
        self.schema_.check(rows)
        self.schema_.check_apart(rows)
        for found in degeneracies(*self.schema_.real(rows)):
            warn(str(found), stacklevel=2)
        weight = sample_weight
        if weight is not None:
            weight = _check_sample_weight(weight, rows, dtype=np.float64, ensure_non_negative=True)
        given = None if context is None else _matrix(context, len(rows))
        self.n_context_features_in_ = 0 if given is None else given.shape[1]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        recipe = self.recipe
        if not isinstance(recipe, Recipe):
            known = (len(rows), self.schema_.width, given is not None, self.objective)
            _, recipe = choose_recipe(recipe, *known, self.schema_.real(rows)[0])
        with seeded(seed):
            layers = self.schema_.layers(rows)
            flow = recipe.flow(self.schema_.width, self.n_context_features_in_, layers)
        flow = flow.to(self._device())
        self.history_ = fit(
            flow,
            torch.tensor(rows),
            context=None if given is None else torch.tensor(given),
            weight=None if weight is None else torch.tensor(weight),
            objective=self.objective,
            recipe=recipe,
            budget=self.budget,
            steps=self.max_steps,
            seed=seed,
            callbacks=[ProgressBar()] if self.verbose else [],
        )
        self.flow_ = flow.cpu().double()
        return self

    def score_samples(self, X: ArrayLike, context: ArrayLike | None = None) -> Array:
        """Return the log-densities log p(x | context) in nats, shape (n_samples,).

        With whole numbers or categories it is a bound, by several draws of noise.

        Raises:
            ValueError: A shape does not fit, or a value is not finite.
            sklearn.exceptions.NotFittedError: There is no fit yet.
            cnf.SolveError: Rows lie where the flow cannot be integrated; the message names them.
        """
        flow, x, given = self._scored(X, context)
        draws = NOISE_DRAWS if flow.noisy else 1
        with torch.no_grad(), seeded(0, flow.like.device):
            found = [flow.log_prob(x, given, max_batch=SOLVE_ROWS) for _ in range(draws)]
        return np.asarray((torch.stack(found).logsumexp(0) - log(draws)).cpu().numpy())

    def score_samples_uncertainty(
        self, X: ArrayLike, context: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Return log-densities in nats and their uncertainty for 95 % of rows, each (n_samples,).

        They are the `log_prob` and `uncertainty` of `cnf.Scores`: NaN for rows that cannot be
        integrated. This takes about three times as long as `score_samples`, and draws other noise.

        Raises:
            ValueError: A shape does not fit, or a value is not finite.
            sklearn.exceptions.NotFittedError: There is no fit yet.
        """
        flow, x, given = self._scored(X, context)
        generator = torch.Generator().manual_seed(0)
        probes = NOISE_DRAWS if flow.noisy else TRACE_PROBES
        scores = flow.score(x, given, probes=probes, generator=generator, max_batch=SOLVE_ROWS)
        return scores.log_prob.cpu().numpy(), scores.uncertainty.cpu().numpy()

    def score(self, X: ArrayLike, y: object = None, context: ArrayLike | None = None) -> float:
        """Return the mean log-density of the rows, in nats, as `GaussianMixture` does."""
        return float(self.score_samples(X, context).mean())

    def sample(
        self,
        n_samples: int = 1,
        random_state: State = None,
        context: ArrayLike | None = None,
    ) -> Array | pd.DataFrame:
        """Draw samples from the density.

        Args:
            n_samples: Number of samples; with a context, for each of its rows.
            random_state: Seed of the samples.
            context: Shape (n_contexts, n_context_features) or (n_contexts,).

        Returns:
            Shape (n_samples, n_features), or (n_contexts · n_samples, n_features) in the
            order of the contexts; a DataFrame where the flow was fitted to one.

        Raises:
            ValueError: The number is not positive, or a shape does not fit.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Expected n_samples of at least 1; got {n_samples}")
        given = self._context(context, None)
        flow, schema, repeated = self._flow(), self.schema_, None
        if given is not None:
            repeated = torch.tensor(given).to(flow.like).repeat_interleave(n_samples, 0)
        shape = n_samples if given is None else ()
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        with seeded(seed, flow.like.device):
            x = flow.sample(shape, repeated, max_batch=SOLVE_ROWS)
        drawn: Array = schema.tabled(x.cpu().numpy())
        if not self._frames:
            return drawn
        table = Table("draws", drawn, schema.names, categories=schema.texts)
        return table_frame(table, schema.whole).set_axis(self.feature_names_in_, axis=1)

    def _scored(
        self, X: ArrayLike, context: ArrayLike | None
    ) -> tuple[Flow, Tensor, Tensor | None]:
        check_is_fitted(self)
        numbers, texts = self._numbers(X)
        rows: Array = validate_data(self, numbers, dtype=np.float64, reset=False)
        rows = self.schema_.numbers(rows, texts)
        given, flow = self._context(context, len(rows)), self._flow()
        contexts = None if given is None else torch.tensor(given).to(flow.like)
        return flow, torch.tensor(rows).to(flow.like), contexts

    def _numbers(self, X: ArrayLike) -> tuple[ArrayLike, Mapping[str, tuple[str, ...]]]:
        """Return X with text as the numbers of categories, and these."""
        if self.schema is None or not isinstance(X, pd.DataFrame):
            return X, {}
        table = frame_table(X, "X")
        return pd.DataFrame(table.values, X.index, X.columns), table.categories

    def _schema(self, rows: Array, texts: Mapping[str, tuple[str, ...]]) -> Schema:
        default = (f"x{i}" for i in range(rows.shape[1]))
        names = [str(name) for name in getattr(self, "feature_names_in_", default)]
        if self.schema is None:
            return Schema(tuple(Column(name) for name in names))
        if self.schema == "infer":
            return Schema.infer(rows, names, texts)
        if not isinstance(self.schema, Schema):
            raise ValueError(f"Expected a Schema, 'infer' or None for schema; got {self.schema!r}")
        if list(self.schema.names) != names:
            wanted, got = (", ".join(each[:10]) for each in (names, self.schema.names))
            raise ValueError(f"Expected a schema of X's columns, {wanted}; got one of {got}")
        return self.schema

    def _context(self, context: ArrayLike | None, rows: int | None) -> Array | None:
        count = self.n_context_features_in_
        if (context is None) != (count == 0):
            wanted = f"a context of {count} columns" if count else "no context"
            got = "none" if context is None else "one"
            raise ValueError(f"Expected {wanted}, as in fit; got {got}")
        if context is None:
            return None
        matrix = _matrix(context, rows)
        if matrix.shape[1] != count:
            raise ValueError(f"Expected a context of {count} columns; got {matrix.shape[1]}")
        return matrix

    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _flow(self) -> Flow:
        device = self._device()
        return self.flow_ if device.type == "cpu" else copy.deepcopy(self.flow_).to(device)


def _matrix(context: ArrayLike, rows: int | None) -> Array:
    found: Array = check_array(context, dtype=np.float64, ensure_2d=False, input_name="context")
    found = found.reshape(-1, 1) if found.ndim < 2 else found
    if rows is not None:
        check_consistent_length(found, np.empty((rows, 0)))
    return found
