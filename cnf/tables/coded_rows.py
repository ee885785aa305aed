"""Rows in coordinates, and the cells of them that are given and asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.tables.code_network import GAP, CodeNetwork
from cnf.tables.coordinates import Coded, Codes

if TYPE_CHECKING:
    from cnf.tables.masked_flow import MaskedFlow

GivenRows = tuple[Tensor, Tensor | None, Tensor | None]  # with their context, and what is given


@dataclass(frozen=True, eq=False)
class CodedRows:
    """Rows in coordinates, and what is asked of them."""

    draws: list[Coded]  # with each draw of noise, which changes no code
    context: Codes  # of the context
    codes: Tensor  # with the context's first, −1 for gaps, (rows, K)
    fixed: Tensor  # whether a code is of the context, or given, (rows, K)
    given: Tensor  # whether a value is given, (rows, coordinates)
    asked: Tensor  # whether it is asked for
    known: Tensor  # whether all values that are asked for have a code, (rows,)
    lost: Tensor  # whether a value that is given or of the context has none

    def sum(self, values: NDArray[np.float64]) -> Tensor:
        """Return the sum of values (rows, coordinates) over those that are asked for."""
        asked = self.asked.cpu().numpy()
        return torch.from_numpy(np.where(asked, values, 0.0).sum(1)).to(self.codes.device)

    def without(self, hidden: Tensor, inputs: Sequence[tuple[int, int]]) -> CodedRows:
        """Return the rows without some of the cells that are asked for.

        Args:
            hidden: Which these are, (rows, coordinates) or (coordinates,).
            inputs: The network's coordinates that are inputs alone, with those of their columns.
        """
        hidden = hidden.to(self.asked.device).expand_as(self.asked)
        before = self.context.shape[1]
        lost = torch.zeros_like(self.fixed)
        lost[:, before : before + hidden.shape[1]] = hidden
        for place, owner in inputs:
            lost[:, place] = lost[:, owner]
        return replace(self, codes=self.codes.masked_fill(lost, GAP), asked=self.asked & ~hidden)

    def masked(self, log_prob: Tensor) -> Tensor:
        """Return log p of rows, −∞ where a value has no code, and NaN where a row is lost."""
        return log_prob.masked_fill(~self.known, -torch.inf).masked_fill(self.lost, torch.nan)


@dataclass(frozen=True, eq=False)
class TighterParts:
    """The parts of a model in double precision, with a tight tolerance."""

    network: CodeNetwork
    values: MaskedFlow | None


def part_of(rows: GivenRows, chunk: slice) -> GivenRows:
    """Return some of the rows."""
    x, *others = rows
    context, given = (None if each is None else each[chunk] for each in others)
    return x[chunk], context, given


def shared_masks(given: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks (rows, C) as those of one row, (C,), where all rows have the same."""
    same = all(len(mask) > 0 and bool((mask == mask[0]).all()) for mask in (given, asked))
    return (given[0], asked[0]) if same else (given, asked)
