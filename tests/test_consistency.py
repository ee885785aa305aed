"""The consistency gap: 0 of a model with exact conditionals, and known where one is wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from cnf.diagnostics.consistency import consistency

DIM = 4
COVARIANCE = torch.eye(DIM).double() + 0.5
PLACES = (0, 1, 3)  # the third column is constant
GAPS = 3  # the column whose gaps are a value


class ExactModel:
    """A normal distribution of three columns, and a context that adds to log p of all cells."""

    dim = DIM
    coding = SimpleNamespace(
        coordinates=[SimpleNamespace(place=place, gaps=place == GAPS) for place in PLACES]
    )

    def __init__(self, off: float = 0.0) -> None:
        self.off = off  # of log p of every conditional, in nats
        self.masks: list[list[bool]] = []

    def check(self, x: Tensor, context: Tensor | None) -> None:
        if x.shape[-1] != DIM:
            raise ValueError("Expected x of shape (..., 4)")

    def log_prob(
        self, x: Tensor, context: Tensor | None, *, given: Tensor | None = None, **_: Any
    ) -> Tensor:
        none = torch.zeros(DIM, dtype=torch.bool)
        found = self._marginal(x) - self._marginal(
            x.masked_fill(~(none if given is None else given), torch.nan)
        )
        if given is not None:
            self.masks.append(given.tolist())
            found += self.off
        elif context is not None:
            found = torch.where(context[:, 0] > 0, found, -torch.inf)
        return found

    def _marginal(self, x: Tensor) -> Tensor:
        found = []
        for row in x:
            seen = [place for place in PLACES if not row[place].isnan()]
            law = COVARIANCE[seen][:, seen]
            one = MultivariateNormal(torch.zeros(len(seen)).double(), law) if seen else None
            found.append(one.log_prob(row[seen]) if one else torch.zeros(()).double())
        return torch.stack(found)


def _rows(count: int) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(0)).double()


def test_the_gap_is_that_of_the_conditional_in_nats_a_column() -> None:
    x = _rows(12)
    x[:4, 1] = torch.nan
    exact, wrong = ExactModel(), ExactModel(off=-0.3)
    found = consistency(exact, x, splits=12)  # type: ignore[arg-type]
    assert found.gaps.shape == (12, 12)
    assert found.quantile95 < 1e-12
    assert {tuple(mask) for mask in exact.masks} == {
        (False, True, True, True),
        (True, False, True, True),
    }
    found = consistency(wrong, x, splits=12)  # type: ignore[arg-type]
    assert found.mean == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.1)
    assert found.quantile95 == pytest.approx(0.1)
    assert wrong.masks == exact.masks
    consistency(wrong, x, splits=12, seed=1)  # type: ignore[arg-type]
    assert wrong.masks[12:] != exact.masks


def test_rows_are_taken_at_random_and_need_a_log_p() -> None:
    x, context = _rows(30), torch.ones(30, 1)
    context[::2] = -1.0  # −∞
    found = consistency(ExactModel(), x, context, splits=2)  # type: ignore[arg-type]
    assert found.gaps.shape == (15, 2)
    assert consistency(ExactModel(), x, splits=2, rows=7).gaps.shape == (7, 2)  # type: ignore[arg-type]
    none = consistency(ExactModel(), x[:2], -context[1:2].expand(2, 1))  # type: ignore[arg-type]
    assert none.gaps.shape == (0, 20)
    assert none.mean != none.mean
    assert none.quantile95 != none.quantile95


def test_mistakes() -> None:
    for options, message in (
        ({"splits": 0}, "splits of at least 1; got 0"),
        ({"rows": 0}, "rows of at least 1; got 0"),
        ({"x": torch.zeros(3, 2)}, "Expected x of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            consistency(**{"model": ExactModel(), "x": _rows(3), **options})  # type: ignore[arg-type]
