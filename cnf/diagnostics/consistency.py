"""The consistency of a model's answers: two ways to one log p, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import nan

import torch
from torch import Tensor

from cnf.diagnostics import MAX_CHECK_ROWS
from cnf.diagnostics.context import MAX_SOLVE_ROWS
from cnf.tables.row_model import RowModel

DEFAULT_SPLITS = 20  # of the columns, each in two parts


@dataclass(frozen=True, eq=False)
class Consistency:
    """The differences between log p of rows and that of their two parts.

        log p(x) − log p(x_a) − log p(x_b | x_a)

    Attributes:
        differences: These, in nats a column, shape (rows, splits): of the rows with a log p.
    """

    differences: Tensor

    @cached_property
    def gaps(self) -> Tensor:
        """The sizes of the differences, in nats a column, shape (rows, splits)."""
        return self.differences.abs()

    @property
    def mean(self) -> float:
        """The mean gap in nats a column; NaN without rows."""
        return float(self.gaps.mean())

    @property
    def quantile95(self) -> float:
        """The gap in nats a column that a twentieth of the rows and splits exceed."""
        return float(self.gaps.flatten().quantile(0.95)) if self.gaps.numel() else nan

    @property
    def bias(self) -> float:
        """The mean difference in nats a column: above 0 where the row's log p is the larger."""
        return float(self.differences.mean())


@torch.no_grad()
def consistency(
    model: RowModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    splits: int = DEFAULT_SPLITS,
    seed: int = 0,
    rows: int = MAX_CHECK_ROWS,
) -> Consistency:
    """Return how far a model's answers about parts of rows are from its log p of the whole rows.

    A split divides the columns at random in two parts, a and b, neither of them empty. All three
    log p are in the factorisation that `RowModel.log_prob` states. Each one is normalised, so that
    a difference is no error of any of them: a model that answers all questions by one network is as
    consistent as it is well fitted. Missing cells are in neither part. Columns whose gaps are a
    value are in the first one, since these cannot be marginalised.

    Args:
        model: The model.
        x: Rows that it was not trained on, shape (n, dim); NaN where a cell is missing.
        context: Shape (n, context_dim).
        splits: Number of splits.
        seed: Seed of the splits, of the rows that are taken, and of noise.
        rows: The most rows that are taken.

    Raises:
        ValueError: A shape does not fit, `splits` or `rows` is below 1, or the model answers no
            questions.

    Example:
        >>> from cnf.tables import Column, Schema
        >>> numbers = torch.randint(3, (90, 2)).double()
        >>> schema = Schema(tuple(Column(name, "integer", 0, high=2) for name in "ab"))
        >>> model = RowModel.build(schema, numbers.numpy(), hidden=8)
        >>> found = consistency(model, numbers, splits=5, rows=50)
        >>> tuple(found.gaps.shape), 0 <= found.mean <= found.quantile95
        ((50, 5), True)
    """
    for name, number in {"splits": splits, "rows": rows}.items():
        if number < 1:
            raise ValueError(f"Expected {name} of at least 1; got {number}")
    model.check(x, context)
    generator = torch.Generator().manual_seed(seed)
    taken = torch.randperm(len(x), generator=generator)[:rows].sort().values.to(x.device)
    x, context = x[taken].double(), None if context is None else context[taken]

    def log_prob(x: Tensor, given: Tensor | None = None) -> Tensor:
        found = model.log_prob(x, context, given=given, max_batch=MAX_SOLVE_ROWS, seed=seed)
        return found.double().cpu()

    whole = log_prob(x)
    coordinates = model.coding.coordinates
    places = torch.tensor([each.place for each in coordinates if not each.gaps], dtype=torch.int64)
    differences = []
    for _ in range(splits):
        rest = _some(places, generator).to(x.device)
        given = torch.ones(model.dim, dtype=torch.bool, device=x.device).index_fill(0, rest, False)
        parts = log_prob(x.index_fill(1, rest, nan)) + log_prob(x, given)
        differences.append((whole - parts) / len(coordinates))
    return Consistency(torch.stack(differences, 1)[whole.isfinite()])


def _some(places: Tensor, generator: torch.Generator) -> Tensor:
    """Return some of the places at random, but not all of them."""
    order = places[torch.randperm(len(places), generator=generator)]
    return order[: int(torch.randint(1, max(2, len(places)), (), generator=generator))]
