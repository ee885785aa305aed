"""The models that answer questions about rows: ours, and a mixture in the same coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cnf.mixtures.normal import NormalMixture
from cnf.scripts.benchmarks.measure import BENCHMARK_CHUNK_ROWS
from cnf.scripts.benchmarks.question_tables import Array, Mask, QuestionSplit
from cnf.storage import load, save
from cnf.tables import RowModel
from cnf.tables.code_training import QUESTIONS
from cnf.tables.coding import Coding
from cnf.tables.masked_training import ValuesRecipe
from cnf.tables.row_training import fit_rows, new_row_model
from cnf.utils.random import seeded

T = TypeVar("T")

ROW_RECIPES = (QUESTIONS, ValuesRecipe())
"""The recipes of the two parts of our models."""


class Conditionals(Protocol):
    """A distribution of rows with conditionals, in the table's units."""

    def log_prob(self, x: Array, given: Mask, asked: Mask) -> Array:
        """Return log p(asked | given) of rows (rows, columns) and masks (columns,): (rows,)."""


class Answers(Conditionals, Protocol):
    """A model of rows that answers questions."""

    def impute(self, x: Array, seed: int) -> Array:
        """Return rows with a joint draw in place of their gaps, NaN."""


@dataclass(frozen=True)
class RowAnswers:
    """The answers of a `RowModel`."""

    model: RowModel

    @staticmethod
    def of(
        parts: QuestionSplit, budget: float, seed: int, folder: Path | None = None
    ) -> RowAnswers:
        """Train a model as where gaps are modelled, unless a folder has it."""
        if folder is not None and (folder / "config.json").exists():
            kept = load(folder)
            assert isinstance(kept, RowModel)
            return RowAnswers(kept)
        model = new_row_model(parts.schema, parts.train, seed=seed, values=True)
        fit_rows(
            model,
            parts.train,
            validation=parts.validation,
            recipe=QUESTIONS,
            budget=budget,
            seed=seed,
            threads=1,
        )
        if folder is not None:
            save(model, folder)
        return RowAnswers(model)

    @torch.no_grad()
    def log_prob(self, x: Array, given: Mask, asked: Mask) -> Array:
        rows = torch.from_numpy(np.where(given | asked, x, np.nan))
        found = self.model.log_prob(
            rows, given=torch.from_numpy(given), max_batch=BENCHMARK_CHUNK_ROWS, seed=0
        )
        return found.numpy()

    def impute(self, x: Array, seed: int) -> Array:
        with seeded(seed):
            found = self.model.impute(torch.from_numpy(x), max_batch=BENCHMARK_CHUNK_ROWS)
        return found.numpy()


@dataclass(frozen=True)
class MixtureAnswers:
    """The answers of a mixture of normal and categorical distributions, exact for all questions.

    Attributes:
        coding: The coordinates, with one bin a column.
        mixture: That of the codes, and of the places within bins.
    """

    coding: Coding
    mixture: NormalMixture

    @staticmethod
    def fit(parts: QuestionSplit, coding: Coding, budget: float, seed: int) -> MixtureAnswers:
        """Choose and fit a mixture by expectation maximisation."""
        (z, codes), (held_z, held_codes) = (
            _coordinates(coding, part)[:2] for part in (parts.train, parts.validation)
        )
        mixture = NormalMixture.choose(
            z, held_z, codes, held_codes, coding.sizes, seconds=budget, seed=seed
        )
        return MixtureAnswers(coding, mixture)

    @torch.no_grad()
    def log_prob(self, x: Array, given: Mask, asked: Mask) -> Array:
        z, codes, log_det = _coordinates(self.coding, x)
        places = self.coding.places
        given_codes, asked_codes = (torch.from_numpy(each[places]) for each in (given, asked))
        present = ~z.isnan()
        columns = [*self.coding.continuous]
        of_given, of_asked = (each[columns] for each in (given_codes, asked_codes))
        if not present.all():
            of_given, of_asked = of_given & present, of_asked & present
        found = self.mixture.log_prob(z, of_given, of_asked, codes, given_codes, asked_codes)
        return (found + torch.from_numpy(log_det) @ asked_codes.double()).numpy()

    def impute(self, x: Array, seed: int) -> Array:
        z, codes, _ = _coordinates(self.coding, x)
        gaps = codes < 0
        columns = [*self.coding.continuous]
        known, absent = ~z.isnan(), gaps[:, columns]
        generator = torch.Generator().manual_seed(seed)
        drawn_z, drawn = self.mixture.sample(
            z, known, absent, codes, ~gaps, gaps, generator=generator
        )
        own = np.random.default_rng(seed).normal(size=codes.shape)  # of bins without a model
        own[:, columns] = drawn_z.nan_to_num(0.0).numpy()
        return np.where(np.isnan(x), self.coding.decode(drawn.numpy(), own), x)


def _coordinates(coding: Coding, x: Array) -> tuple[Tensor, Tensor, Array]:
    """Return places (rows, C), NaN where absent, codes, and what log p of the columns has more.

    That is ln |det| of places in the mixture, and log p of those in bins without a model. Codes and
    log p are (rows, coordinates), −1 and 0 for gaps.
    """
    coded, columns = coding.encode(x), [*coding.continuous]
    modelled = np.zeros(len(coding.sizes), np.bool_)
    modelled[columns] = True
    z = np.where(coded.present, coded.z, np.nan)[:, columns]
    codes = np.where(coding.unseen(x), -1, coded.codes)
    log_det = np.where(modelled, coded.log_det, coded.log_alone)
    return torch.from_numpy(z), torch.from_numpy(codes), log_det


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """Return what a function returns, and its seconds."""
    begin = perf_counter()
    found = run()
    return found, perf_counter() - begin
