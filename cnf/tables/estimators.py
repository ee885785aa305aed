"""The scikit-learn face: a density estimator among others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

Array = NDArray[np.float64]
State = int | np.random.RandomState | None

CHUNK = 1000  # rows solved at once
PROBES = 16  # for each row, where the trace is estimated and its error is asked for
DRAWS = 8  # of noise for each row, where there are whole numbers or categories


class CNFDensity(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A continuous normalizing flow as a scikit-learn density estimator.

    Fits log p(X), or log p(X | context), by `cnf.fit`, holding out a tenth of the rows to select
    the best weights on. Densities are in X's own units; they are computed in float64, so that a
    row's does not depend on the rows beside it.

    Args:
        recipe: A `cnf.training.recipes.Recipe` or the name of one; by the data's size and dimension when
            None. It holds the network, the optimizer and the solver in training.
        schema: What kinds X's columns are, a `cnf.tables.schema.Schema` with their names (x0, x1, … where
            X has none); `"infer"` to take them for what they look like, text for categories; all
            for real numbers when None.
        objective: `"hybrid"`, `"mle"` or `"matching"`; the recipe's when None.
        budget: Seconds of training; None where only steps count.
        max_steps: The most optimizer steps. A fit that they end, and not the budget, depends on
            `random_state` alone.
        random_state: Of the held-out rows, the weights and the order of the data.
        device: Where to compute, such as `"cuda"`; a GPU where there is one when None.
        verbose: Whether a progress bar is shown, on a terminal.

    Attributes:
        flow_: The fitted `cnf.Flow`, in float64 on the CPU.
        schema_: The columns' kinds.
        history_: The training's `cnf.History`.
        n_features_in_: Number of X's columns.
        feature_names_in_: Their names, where X had any.
        n_context_features_in_: Number of the context's columns, 0 without one.

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
            X: Shape (n_samples, n_features), finite; a DataFrame's rows are drawn as one again.
            y: Not used.
            sample_weight: Shape (n_samples,), at least 0: as if rows were repeated so often. Only
                their ratios matter.
            context: Shape (n_samples, n_context_features) or (n_samples,), finite.

        Raises:
            ValueError: A shape does not fit, a value is not finite or not one of its column,
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
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(
                sample_weight, rows, dtype=np.float64, ensure_non_negative=True
            )
        given = None if context is None else _matrix(context, len(rows))
        self.n_context_features_in_ = 0 if given is None else given.shape[1]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        recipe = self.recipe
        if not isinstance(recipe, Recipe):
            known = (len(rows), self.schema_.width, given is not None, self.objective)
            _, recipe = choose_recipe(recipe, *known, self.schema_.real(rows)[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = self.schema_.layers(rows)
            flow = recipe.flow(self.schema_.width, self.n_context_features_in_, layers)
        flow = flow.to(self._device())
        self.history_ = fit(
            flow,
            _tensor(rows),
            context=None if given is None else _tensor(given),
            weight=None if weight is None else _tensor(weight),
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
        """Log-densities log p(x | context) in nats, shape (n_samples,).

        Raises:
            ValueError: A shape does not fit, or a value is not finite.
            sklearn.exceptions.NotFittedError: There is no fit yet.
            cnf.SolveError: Rows lie where the flow cannot be integrated; the message names them.
        """
        flow, x, given = self._scored(X, context)
        with torch.no_grad(), _drawing(flow, 0):
            return np.asarray(_bound(flow, x, given).cpu().numpy())

    def score_samples_uncertainty(
        self, X: ArrayLike, context: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Log-densities in nats and how far they may be off for 95 of 100 rows, each (n_samples,).

        They are `cnf.Scores`' `log_prob` and `uncertainty`: NaN for rows that cannot be integrated.
        Of whole numbers and categories the densities are of other draws than `score_samples`'.
        Takes about three times as long.

        Raises:
            ValueError: A shape does not fit, or a value is not finite.
            sklearn.exceptions.NotFittedError: There is no fit yet.
        """
        flow, x, given = self._scored(X, context)
        generator = torch.Generator().manual_seed(0)
        probes = DRAWS if flow.noisy else PROBES
        scores = flow.score(x, given, probes=probes, generator=generator, max_batch=CHUNK)
        return scores.log_prob.cpu().numpy(), scores.uncertainty.cpu().numpy()

    def score(self, X: ArrayLike, y: object = None, context: ArrayLike | None = None) -> float:
        """The mean log-density of the rows, in nats, as `GaussianMixture` has it."""
        return float(self.score_samples(X, context).mean())

    def sample(
        self,
        n_samples: int = 1,
        random_state: State = None,
        context: ArrayLike | None = None,
    ) -> Array | pd.DataFrame:
        """Draws from the density.

        Args:
            n_samples: How many; with a context, for each of its rows.
            random_state: Of the draws.
            context: Shape (n_contexts, n_context_features) or (n_contexts,).

        Returns:
            Shape (n_samples, n_features), or (n_contexts · n_samples, n_features), one context's
            after the other's; a DataFrame where the flow was fitted to one.

        Raises:
            ValueError: The number is not positive, or a shape does not fit.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Expected n_samples of at least 1; got {n_samples}")
        given = self._context(context, None)
        if given is not None:
            given = np.repeat(given, n_samples, axis=0)
        total = n_samples if given is None else len(given)
        flow = self._flow()
        parts = []
        with _drawing(flow, int(check_random_state(random_state).randint(2**31 - 1))):
            for i in range(0, total, CHUNK):
                if given is None:
                    parts.append(flow.sample(min(CHUNK, total - i)))
                else:
                    parts.append(flow.sample((), _as(flow, given[i : i + CHUNK])))
        schema = self.schema_
        drawn: Array = schema.tabled(torch.cat(parts).cpu().numpy())
        if not self._frames:
            return drawn
        table = Table("draws", drawn, schema.names, categories=schema.texts)
        return table_frame(table, schema.whole).set_axis(self.feature_names_in_, axis=1)

    def _scored(
        self, X: ArrayLike, context: ArrayLike | None
    ) -> tuple[Flow, Tensor, Tensor | None]:
        """The flow, and rows to score as it takes them."""
        check_is_fitted(self)
        numbers, texts = self._numbers(X)
        rows: Array = validate_data(self, numbers, dtype=np.float64, reset=False)
        rows = self.schema_.numbers(rows, texts)
        given = self._context(context, len(rows))
        flow = self._flow()
        return flow, _as(flow, rows), None if given is None else _as(flow, given)

    def _numbers(self, X: ArrayLike) -> tuple[ArrayLike, Mapping[str, tuple[str, ...]]]:
        """X with the numbers of categories for text, where there may be any; and the categories."""
        if self.schema is None or not isinstance(X, pd.DataFrame):
            return X, {}
        table = frame_table(X, "X")
        return pd.DataFrame(table.values, X.index, X.columns), table.categories

    def _schema(self, rows: Array, texts: Mapping[str, tuple[str, ...]]) -> Schema:
        """What kinds of columns X has."""
        default = [f"x{i}" for i in range(rows.shape[1])]
        names = [str(name) for name in getattr(self, "feature_names_in_", default)]
        if self.schema is None:
            return Schema(tuple(Column(name) for name in names))
        if self.schema == "infer":
            return Schema.infer(rows, names, texts)
        if not isinstance(self.schema, Schema):
            raise ValueError(f"Expected a Schema, 'infer' or None for schema; got {self.schema!r}")
        if list(self.schema.names) != names:
            raise ValueError(
                f"Expected a schema of X's columns, {', '.join(names[:10])}; got one of "
                f"{', '.join(self.schema.names[:10])}"
            )
        return self.schema

    def _context(self, context: ArrayLike | None, rows: int | None) -> Array | None:
        """The context as a matrix, checked to be there where the fit had one, and only there."""
        count = self.n_context_features_in_
        if (context is None) != (count == 0):
            wanted = f"a context of {count} columns" if count else "no context"
            got = "none" if context is None else "one"
            raise ValueError(f"Expected {wanted}, as in fit; got {got}")
        if context is None:
            return None
        found = _matrix(context, rows)
        if found.shape[1] != count:
            raise ValueError(f"Expected a context of {count} columns; got {found.shape[1]}")
        return found

    def _device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def _flow(self) -> Flow:
        """The flow where it is to be computed."""
        device = torch.device(self._device())
        return self.flow_ if device.type == "cpu" else copy.deepcopy(self.flow_).to(device)


def _bound(flow: Flow, x: Tensor, context: Tensor | None) -> Tensor:
    """Log p of rows; of whole numbers and categories its bound, by several draws of noise."""
    draws = DRAWS if flow.noisy else 1
    found = torch.stack([flow.log_prob(x, context, max_batch=CHUNK) for _ in range(draws)])
    return found.logsumexp(0) - log(draws)


@contextmanager
def _drawing(flow: Flow, seed: int) -> Iterator[None]:
    """PyTorch's generators seeded, and put back afterwards."""
    with torch.random.fork_rng(devices=[] if flow.like.device.type == "cpu" else None):
        torch.manual_seed(seed)
        yield


def _as(flow: Flow, values: Array) -> Tensor:
    """Values in the flow's dtype, on its device."""
    return _tensor(values).to(flow.like)


def _tensor(values: Array) -> Tensor:
    """A copy, since PyTorch takes no array that cannot be written to."""
    return torch.tensor(values)


def _matrix(context: ArrayLike, rows: int | None) -> Array:
    """A context as finite numbers of shape (rows, columns)."""
    found: Array = check_array(context, dtype=np.float64, ensure_2d=False, input_name="context")
    found = found.reshape(-1, 1) if found.ndim < 2 else found
    if rows is not None:
        check_consistent_length(found, np.empty((rows, 0)))
    return found
