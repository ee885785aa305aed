"""Questions about the cells of a row: how surprising each one is given the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from cnf.flow.batching import chunks
from cnf.tables.code_network import GAP
from cnf.tables.coded_rows import CodedRows
from cnf.tables.coordinates import Coded, Codes, Coordinate, Flags
from cnf.tables.row_model import RowModel
from cnf.utils.random import seeded
from cnf.utils.shapes import as_rows

Array = NDArray[np.float64]

EXPLAINED_ROWS = 1000  # at once


@dataclass(frozen=True, eq=False)
class Explanation:
    """The surprise of each cell of rows given the rest of its row, and what was to be expected.

    Attributes:
        surprise: −log p(cell | the rest) in nats, shape (*batch, dim); ∞ where a cell has no code,
            and NaN for gaps that are no value.
        excess: log p(the rest) − log p(the row), which is the surprise in a consistent model, less
            the mean surprise of draws of the cell given the rest: about 0 for an ordinary cell of
            any column, and large for an error. The same shape.
        expected: The median of a number given the rest, the most probable one of categories, NaN
            where a gap is, as numbers of `Schema.numbers`; for gaps, too.
    """

    surprise: Tensor
    excess: Tensor
    expected: Tensor


@torch.no_grad()
def explain(
    model: RowModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    draws: int = 64,
    seed: int = 0,
) -> Explanation:
    """Return how surprising each cell of rows is given the rest of its row.

    The cell with the largest excess is the first that one should look at: without it the row is
    much more likely. Of two cells that determine one another each is surprising given the other,
    and the rest of the row tells which one is wrong. A cell without a code, as a new category has
    none, is hidden from the others. It takes a log p of the whole row for each column.

    Args:
        model: The model.
        x: Shape (*batch, dim), NaN for gaps.
        context: Shape (*batch, context_dim), whose batch shape broadcasts with that of x.
        draws: Draws of each cell given the rest; in a model of codes, of numbers within a bin.
        seed: Seed of the draws.

    Raises:
        ValueError: A shape does not fit, `draws` is below 1, or the model has a flow within bins.

    Example:
        >>> from cnf.tables import Column, Schema
        >>> flags = np.random.default_rng(0).integers(0, 2, (500, 2)).astype(float)
        >>> schema = Schema((Column("a", "boolean"), Column("b", "boolean")))
        >>> model = RowModel.build(schema, flags, hidden=8)
        >>> explain(model, torch.tensor(flags[:3])).excess.shape
        torch.Size([3, 2])
    """
    if draws < 1:
        raise ValueError(f"Expected draws of at least 1; got {draws}")
    model.check(x, context)
    model.check_questions()
    context = None if context is None else context.detach().double()
    rows, contexts, batch = as_rows(x.detach().double(), context)
    with seeded(seed, rows.device):
        parts = [
            _explain(model, rows[part], None if contexts is None else contexts[part], draws)
            for part in chunks(len(rows), EXPLAINED_ROWS)
        ]
    found = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Explanation(*(torch.from_numpy(each).to(x).reshape(*batch, model.dim) for each in found))


def _explain(
    model: RowModel, x: Tensor, context: Tensor | None, draws: int
) -> tuple[Array, Array, Array]:
    """Return surprise, excess and expected numbers of rows, each (rows, dim)."""
    numbers, coding = x.cpu().numpy(), model.coding
    before, placed = model.encode_context(context, len(x))
    coded, unseen = coding.encode(numbers), coding.unseen(numbers)
    seen = coded.known & ~unseen
    x = x.clone()
    x[:, coding.places] = torch.where(torch.from_numpy(seen).to(x.device), x[:, coding.places], nan)
    cells = _Cells(model, x, context, before, coded, seen, model.coded_rows(x, context))
    cells = replace(cells, rows=cells.without(~seen))
    whole = cells.log_prob(cells.rows)
    surprise = np.where(np.isnan(numbers), np.nan, 0.0)
    excess = surprise.copy()
    expected = np.tile(np.array(coding.filling), (len(numbers), 1))
    log_dets = np.where(model.valued, 0.0, coded.log_alone)
    for k, column in enumerate(coding.places):
        found = (cells.of_value if model.valued[k] else cells.of_code)(k, draws)
        own = np.where(coded.known[:, k], -found.log_prob - log_dets[:, k], np.inf)
        surprise[:, column] = np.where(unseen[:, k], np.nan, own)
        rest = cells.log_prob(cells.without(np.arange(seen.shape[1]) == k))
        gained = np.where(np.isfinite(own), rest - whole, own)
        excess[:, column] = np.where(unseen[:, k], np.nan, gained) - found.mean
        expected[:, column] = found.expected
    lost = np.where(placed, 0.0, np.nan)[:, None]
    return surprise + lost, excess + lost, expected + lost


@dataclass(frozen=True, eq=False)
class _Answer:
    """A cell of each row given the rest: log p of its coordinate, and of draws of it."""

    log_prob: Array  # of the code, or of the number
    mean: Array  # of the surprise of draws
    expected: Array


@dataclass(frozen=True, eq=False)
class _Cells:
    """Rows in coordinates, of which those that are seen have a code."""

    model: RowModel
    x: Tensor  # with gaps for those without a code
    context: Tensor | None
    before: Codes  # of the context
    coded: Coded
    seen: Flags
    rows: CodedRows  # of x

    def log_prob(self, rows: CodedRows) -> Array:
        """Return log p of rows in coordinates."""
        return self.model.parts_of(rows)[0].log_prob.cpu().numpy()

    def without(self, hidden: Flags) -> CodedRows:
        """Return the rows without some cells, (rows, coordinates) or (coordinates,)."""
        return self.rows.without(torch.from_numpy(hidden), self.model.network.inputs)

    def of_code(self, k: int, draws: int) -> _Answer:
        """Return a coordinate's answer by the network of codes."""
        network, coordinate = self.model.network, self.model.coding.coordinates[k]
        own_codes = np.where(self.seen, self.coded.codes, GAP)
        finer = self.model.input_codes(self.x.cpu().numpy())
        codes = np.column_stack([self.before, own_codes, finer])
        place = k + self.before.shape[1]
        visible = torch.arange(codes.shape[1], device=network.bias.device) != place
        given = torch.from_numpy(codes).to(network.bias.device)
        log_p = network.logits(given, visible, place).double().log_softmax(1)
        if self.model.values is not None:
            z, present = (
                torch.from_numpy(each[:, self.model.valued]).to(given.device)
                for each in (self.coded.z, self.seen & self.coded.present)
            )
            prior = self.model.code_prior(z, present)
            assert prior is not None
            for i, column in enumerate(given.T):
                if i != place:
                    prior.reveal(i, column)
            log_p = prior.average(place, slice(None), log_p)
        found: Array = log_p.cpu().numpy()
        within = _mean_surprise(coordinate, draws)
        mean = (np.exp(found) * (within - found)).sum(1)
        own = np.take_along_axis(found, self.coded.codes[:, [k]], 1)[:, 0]
        return _Answer(own, mean, _expected(coordinate, np.exp(found)))

    def of_value(self, k: int, draws: int) -> _Answer:
        """Return a column's answer by draws of it, where values are modelled."""
        model, column = self.model, self.model.coding.places[k]
        given = torch.arange(model.dim, device=self.x.device) != column
        own = model.log_prob(self.x, self.context, given=given)
        context = None if self.context is None else self.context.repeat(draws, 1)
        drawn = model.impute(self.x.repeat(draws, 1), context, given=given)
        numbers = drawn[:, column].reshape(draws, -1).cpu().numpy()
        mean = -model.log_prob(drawn, context, given=given).reshape(draws, -1).mean(0)
        # A gap, which is the last of draws in order, is expected where it has more than half.
        median = np.sort(numbers, 0)[(draws - 1) // 2]
        return _Answer(own.cpu().numpy(), mean.cpu().numpy(), median)


def _mean_surprise(coordinate: Coordinate, draws: int) -> Array:
    """Return the mean of −log p(number | code) of each code, over quantiles of its bin."""
    found = np.zeros(coordinate.size)
    z = ndtri((np.arange(draws) + 0.5) / draws)
    for code in range(coordinate.first_bin, coordinate.size):
        numbers = coordinate.decode(np.full(draws, code), z)
        found[code] = -coordinate.encode(numbers, np.full(draws, 0.5)).log_alone.mean()
    return found


def _expected(coordinate: Coordinate, shares: Array) -> Array:
    """Return the median number of codes with shares (rows, codes), or the category of the most.

    It is a gap where that has more than half, or more than each category.
    """
    codes, z = np.arange(coordinate.size), np.zeros(coordinate.size)
    centers = coordinate.decode(codes, z)
    if not coordinate.scores:
        return np.asarray(centers[shares.argmax(1)])
    order = np.argsort(centers)  # gaps last
    numbers = shares[:, order[: coordinate.size - coordinate.gaps]]
    ends = numbers.cumsum(1)
    half = 0.5 * ends[:, -1:]
    place = np.minimum((ends < half).sum(1), ends.shape[1] - 1)[:, None]
    share = np.take_along_axis(numbers, place, 1)
    level = 1 - (np.take_along_axis(ends, place, 1) - half) / np.maximum(share, 1e-300)
    within = ndtri(np.clip(level, 1e-6, 1 - 1e-6))[:, 0]
    median = coordinate.decode(order[place[:, 0]], within)
    return np.asarray(np.where(ends[:, -1] < 0.5, np.nan, median))
