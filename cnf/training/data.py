"""Rows to train and validate on: data, context and weights, checked, on the flow's device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnf.datasets.splitting import divide, row_groups
from cnf.flow import Flow
from cnf.layers.scalings.quantiles import curve_gains
from cnf.training.checkpoint import sha256
from cnf.utils.distributed import local_slice, world_size
from cnf.utils.shapes import check_tensors

MAX_INSPECTED_ROWS = 100_000  # rows from which the columns' distributions are judged
MIN_INSPECTED_ROWS = 40  # fewer rows do not show them
UNEVEN_GAIN = 0.5  # nats over a normal distribution. The toys' columns have up to 0.42
FLAT_EIGENVALUE = 1e-3  # of the columns' correlations, below which they lie on a line


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows x (n, dim), their context (n, context_dim), and weights (n,) above 0 unless equal."""

    x: Tensor
    context: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        context, weight = (
            None if part is None else part[index] for part in (self.context, self.weight)
        )
        return Rows(self.x[index], context, weight)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the values, which identifies the rows."""
        return sha256(*(part for part in (self.x, self.context, self.weight) if part is not None))

    def split(self, size: int) -> Iterator[Rows]:
        """Yield consecutive parts of `size` rows, the last of which may be shorter."""
        for i in range(0, len(self), size):
            yield self[i : i + size]


class BatchSampler:
    """A sampler of batches from epochs of shuffled rows, whose state can be saved and restored.

    An epoch has as many rows as there are, each row once; with weights a row w n / Σ w times,
    rounded up or down at random. The generator, on the CPU, draws one order for each epoch.

    Example:
        >>> rows = Rows(torch.arange(3.0).unsqueeze(1))
        >>> sampler = BatchSampler(rows, torch.Generator().manual_seed(0))
        >>> sorted(sampler.batch(1).x.item() for _ in range(3))
        [0.0, 1.0, 2.0]
    """

    def __init__(self, rows: Rows, generator: torch.Generator) -> None:
        self.rows = rows
        self.generator = generator
        self._shuffle()

    def batch(self, size: int) -> Rows:
        """Return this process's part of the next batch, `size` rows for each process.

        A batch has all rows where there are fewer. An epoch's rest that makes no batch is left out.
        """
        size = min(size * world_size(), len(self.rows))
        if self.position + size > len(self.rows):
            self._shuffle()
        chosen = self.order[self.position : self.position + size]
        self.position += size
        return self.rows[chosen[local_slice(size)].to(self.rows.x.device)]

    def state(self) -> dict[str, Tensor]:
        """Return the generator's state at the start of the epoch, and the position in it."""
        return {"generator": self.epoch_start, "position": torch.tensor(self.position)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.generator.set_state(state["generator"])
        self._shuffle()
        self.position = int(state["position"])

    def _shuffle(self) -> None:
        self.epoch_start = self.generator.get_state()
        self.order = torch.randperm(len(self.rows), generator=self.generator)
        if self.rows.weight is not None:
            # Systematic resampling: row i ⌊n wᵢ / Σ w⌋ times, or once more.
            ends = self.rows.weight.double().cpu().cumsum(0)
            shift = torch.rand((), generator=self.generator)
            points = torch.arange(len(ends), dtype=ends.dtype) + shift
            found = torch.searchsorted(ends, points * ends[-1] / len(ends), right=True)
            self.order = found.clamp_(max=len(ends) - 1)[self.order]
        self.position = 0


class RowDensity(Protocol):
    """A density of rows."""

    @property
    def dim(self) -> int:
        """The number of columns."""

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that rows are wanted in."""


def rows_for(
    flow: RowDensity, name: str, x: Tensor, context: Tensor | None, weight: Tensor | None = None
) -> Rows:
    """Return rows in the flow's dtype and on its device, without those of weight 0.

    Raises:
        ValueError: A shape does not fit, a value is not finite, a weight is below 0, or no weight
            is above 0; the message begins with `name`.
        TypeError: An argument is not a tensor.
    """
    check_tensors(**{name: x, "context": context, "weight": weight})
    if x.ndim != 2 or x.shape[1] != flow.dim or not len(x):
        raise ValueError(
            f"Expected {name} of shape (rows, {flow.dim}) with at least one row; "
            f"got {tuple(x.shape)}"
        )
    if context is not None and (context.ndim != 2 or len(context) != len(x)):
        raise ValueError(
            f"Expected a context of shape ({len(x)}, context_dim) for {name}; "
            f"got {tuple(context.shape)}"
        )
    rows = Rows(x.to(flow.like), None if context is None else context.to(flow.like))
    _check_finite(name, rows.x)
    if rows.context is not None:
        _check_finite(f"the context of {name}", rows.context)
    return rows if weight is None else _weighted(rows, name, weight)


def _weighted(rows: Rows, name: str, weight: Tensor) -> Rows:
    if weight.shape != (len(rows),):
        raise ValueError(
            f"Expected weights of shape ({len(rows)},) for {name}; got {tuple(weight.shape)}"
        )
    weight = weight.to(rows.x)
    if not ((weight >= 0) & weight.isfinite()).all():
        raise ValueError(f"Expected finite weights of at least 0 for {name}; got others")
    positive = weight > 0
    if not positive.any():
        raise ValueError(f"Expected a weight above zero for {name}; got zeros alone")
    return Rows(rows.x, rows.context, weight)[positive]


def training_rows(
    flow: Flow,
    data: Tensor,
    context: Tensor | None,
    weight: Tensor | None,
    validation: Tensor | tuple[Tensor, Tensor] | Rows | None,
    generator: torch.Generator,
) -> tuple[Rows, Rows]:
    """Return rows to train on and rows for validation, a held-out tenth where none are given.

    Arguments and errors are those of `cnf.fit`.
    """
    if not isinstance(flow, Flow):
        raise TypeError(
            f"Expected a flow; got {type(flow).__name__}: train a mixture of flows by "
            "cnf.fit_mixture"
        )
    train = rows_for(flow, "data", data, context, weight)
    if validation is None:
        return hold_out(train, generator)
    if isinstance(validation, Rows):
        return train, validation
    pair = validation if isinstance(validation, tuple) else (validation, None)
    return train, rows_for(flow, "validation", *pair)


def hold_out(rows: Rows, generator: torch.Generator) -> tuple[Rows, Rows]:
    """Split rows at random into nine tenths and one tenth; raise a ValueError below three rows.

    Rows that repeat each other, in the sense of `cnf.datasets.row_groups`, stay together.
    """
    if len(rows) < 3:
        raise ValueError(
            "Expected at least 3 rows, two to train on and one that is held out for validation; "
            f"got {len(rows)}"
        )
    joined = rows.x if rows.context is None else torch.cat([rows.x, rows.context], 1)
    groups = row_groups(joined.double().cpu().numpy())
    order = torch.randperm(len(rows), generator=generator).numpy()
    held_out, rest = divide(order, [max(1, len(rows) // 10)], groups)
    train, validation = (torch.from_numpy(part).to(rows.x.device) for part in (rest, held_out))
    return rows[train], rows[validation]


def _check_finite(name: str, values: Tensor) -> None:
    if values.isfinite().all():
        return
    row, column = (~values.isfinite()).nonzero()[0].tolist()
    raise ValueError(
        f"Expected finite numbers in {name}; got {values[row, column].item()} in row {row}, "
        f"column {column} (counted from 0)"
    )


def uneven_columns(values: NDArray[np.float64]) -> bool:
    """Return whether columns (rows, columns) are far from normal, or nearly on a line.

    The field would have to learn such a distribution at a small scale: most rows of a Cauchy
    column lie within a hundredth of a standard deviation, two clusters far apart are as narrow,
    and so is a column given another one that determines it.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> uneven_columns(rng.normal(size=(500, 2))), uneven_columns(rng.standard_cauchy((500, 1)))
        (False, True)
    """
    values = values[:MAX_INSPECTED_ROWS, np.ptp(values, 0) > 0]
    if len(values) < MIN_INSPECTED_ROWS or not values.shape[1]:
        return False
    correlation = np.atleast_2d(np.corrcoef(values.T))
    flat = np.linalg.eigvalsh(correlation)[0] < FLAT_EIGENVALUE
    return bool(flat) or any(curve_gains(column).normal > UNEVEN_GAIN for column in values.T)
