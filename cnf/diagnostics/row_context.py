"""The context of checks of a model of mixed rows, and the check that every value has a code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.diagnostics.context import MAX_SOLVE_ROWS, CheckedRows, random_rows, seeded_for
from cnf.diagnostics.report import Findings
from cnf.diagnostics.solves import rows_finding
from cnf.tables.coding import Coding
from cnf.tables.coordinates import Coded
from cnf.tables.row_model import RowModel
from cnf.training.data import Rows
from cnf.utils.shapes import check_tensors

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RowContext(CheckedRows):
    """A model of mixed rows, and rows of data that it is checked on."""

    model: RowModel
    gaps: int  # cells of the data that are draws

    @staticmethod
    def of(
        model: RowModel, data: Tensor, context: Tensor | None, rows: int, seed: int, points: int
    ) -> RowContext:
        """Return the context of a model and random rows of the data, scored once.

        Gaps are filled with draws, unless they are values.

        Raises:
            ValueError: A shape does not fit, a value is infinite, or a number is not above 0.
        """
        check_tensors(data=data)
        there = data.nan_to_num(0.0, inf, -inf)
        every, index = random_rows(model, there, context, rows, seed, points)
        gaps = data.isnan()
        if gaps.any():
            with seeded_for(model, seed):
                x = model.impute(data.to(model.like), every.context, max_batch=MAX_SOLVE_ROWS)
            every, gaps = replace(every, x=x), gaps.to(x.device) & ~x.isnan()
        taken = every[index.to(every.x.device)]
        with seeded_for(model, seed):
            scores = model.score(
                taken.x, taken.context, probes=2, seed=seed, max_batch=MAX_SOLVE_ROWS
            )
        solves = pd.DataFrame({"status": scores.status}, index=index.numpy())
        number = int(gaps.sum())
        return RowContext(every, seed, points, taken, scores.log_prob, solves, model, number)

    def log_prob_by(self, model: RowModel, rows: Rows) -> Tensor:
        """Return log p of rows by a model, with the same noise for the same rows, on the CPU."""
        with torch.no_grad(), seeded_for(model, self.seed):
            found = model.log_prob(rows.x, rows.context, max_batch=MAX_SOLVE_ROWS, seed=self.seed)
        return found.cpu()

    def draw(self, rows: Rows) -> Tensor:
        """Return draws, one given the context of each row where there are contexts."""
        with seeded_for(self.model, self.seed):
            return self.model.sample(len(rows) if rows.context is None else (), rows.context)

    @cached_property
    def draws(self) -> Rows:
        """Draws, as many as rows, given the same contexts."""
        return replace(self.rows, x=self.draw(self.rows))

    @cached_property
    def coded(self) -> Coded:
        """The coordinates of the rows, (rows, coordinates)."""
        return self.model.coding.encode(self.rows.x.cpu().numpy())

    @cached_property
    def codes(self) -> Tensor:
        """The codes of the contexts and of the rows, as the network takes them."""
        given, _ = self.model.encode_context(self.rows.context, len(self))
        return torch.from_numpy(np.column_stack([given, self.coded.codes])).to(self.rows.x.device)


def check_codes(ctx: RowContext) -> Findings:
    """Check that every row has a log p, and name the columns whose values have no code."""
    coding, given = ctx.model.coding, ctx.model.given
    if ctx.gaps:
        yield f"{ctx.gaps} cells of the data are missing, and have draws given the others instead."
    reasons = [*_unknown(coding, "column", ctx.rows.x)]
    if given is not None and ctx.rows.context is not None:
        nearest = torch.from_numpy(given.nearest(ctx.rows.context.cpu().numpy()))
        reasons += _unknown(given, "column of the context", nearest)
    if reasons:
        reasons.append("Name such values in the schema, and train anew.")
    yield rows_finding(ctx, reasons)


def _unknown(coding: Coding, name: str, x: Tensor) -> Iterator[str]:
    """Yield a sentence for each column with values without a code."""
    known = coding.encode(x.cpu().numpy()).known
    for each, count in zip(coding.coordinates, (~known).sum(0), strict=True):
        if count:
            what = "out of bounds" if each.scores else "new categories"
            yield f"In {name} {each.place}, counted from 0, {count} have no code: {what}."
