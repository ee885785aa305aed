"""A model of a table's rows in two parts: codes, and what is continuous given them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import log, pi
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnf.flow import Flow, code_flow
from cnf.flow.batching import chunks
from cnf.flow.scores import Scores, concatenate, mean_mass
from cnf.ode import Stats, Status
from cnf.tables.code_network import CodeNetwork
from cnf.tables.code_training import dropout_for
from cnf.tables.coordinates import Coded, Codes, Coding, Flags
from cnf.tables.schema import Schema
from cnf.utils.random import RowNoise

Array = NDArray[np.float64]

NORMAL_CONSTANT = 0.5 * log(2 * pi)  # of −log N(0; 0, 1), which an absent coordinate has
DRAWN_ROWS = 4000  # in one pass


@dataclass(frozen=True, eq=False)
class RowLogDensity:
    """The log-density of rows, in its two parts.

    Attributes:
        codes: log p(d) in nats, shape (rows,); −∞ where a value has no code.
        values: log p(x | d), shape (rows,): of the mean mass over the draws of noise.
    """

    codes: Tensor
    values: Tensor

    @property
    def log_prob(self) -> Tensor:
        """The sum, log p(row), shape (rows,)."""
        return self.codes + self.values


class RowModel(nn.Module):
    """The distribution of a table's rows, the discrete first: p(row) = p(d) p(x | d).

        log p(row) = log p(d) + log p(z | d) + log |det ∂z/∂x|

    The codes d say the category, the atom or the bin of every column (`Coding`), and are modelled
    by an any-order network, whose log-mass is exact. What is continuous given them, the places z
    within bins, is N(0, I), so that within its bin each column has its own distribution; or it
    follows a CNF given the codes.

    Columns of numbers with a step have a mass, the integral of the density over a cell: exact
    without a flow, and with one the mean over draws of noise, whose log is a lower bound on
    average.

    Args:
        coding: The codes of the columns, fitted to training rows.
        network: The network of p(d), of the coding's sizes.
        flow: The flow of z, whose context are the codes and which coordinates are present.

    Raises:
        ValueError: The network's sizes are not the coding's.

    Shapes: rows are numbers (rows, columns) as `Schema.numbers` returns them.

    Example:
        >>> from cnf.datasets import Table
        >>> from cnf.tables import Schema
        >>> values = np.random.default_rng(0).normal(size=(500, 2))
        >>> values[:, 1] = values[:, 1] > 0
        >>> table = Table("t", values, ("x", "flag"))
        >>> schema = Schema.infer(table)
        >>> model = RowModel.build(schema, schema.numbers(table.values))
        >>> model.log_prob(torch.tensor(values[:3])).shape, model.sample(4).shape
        (torch.Size([3]), torch.Size([4, 2]))
    """

    kind: ClassVar[str] = "rows"

    def __init__(self, coding: Coding, network: CodeNetwork, flow: Flow | None = None) -> None:
        super().__init__()
        if tuple(network.sizes) != tuple(coding.sizes):
            raise ValueError(
                f"Expected a network of the coding's sizes, {tuple(coding.sizes)}; got "
                f"{tuple(network.sizes)}"
            )
        self.coding, self.network, self.flow = coding, network, flow

    @classmethod
    def build(
        cls, schema: Schema, numbers: Array, *, bins: int = 64, flow: bool = False, **network: Any
    ) -> Self:
        """Return a new model for training rows, with codes fitted to them and random weights.

        Args:
            schema: The columns' `Schema`.
            numbers: The training rows, shape (rows, columns).
            bins: The most bins of a column of numbers.
            flow: Whether a flow models the places within bins, which takes a share of training's
                time.
            network: Arguments of `CodeNetwork`: its widths and dropout.

        Raises:
            ValueError: A column's kind has no codes.
        """
        coding = Coding.fit(schema, numbers, bins=bins)
        network = {"dropout": dropout_for(len(numbers)), **network}
        features = [None if each is None else each.tolist() for each in coding.features]
        made = CodeNetwork(coding.sizes, coding.first_bin, features, **network)
        count = len(coding.continuous)
        tensors = [None if each is None else torch.from_numpy(each) for each in coding.features]
        within = code_flow(coding.sizes, tensors, count) if flow and count else None
        return cls(coding, made, within)

    @property
    def dim(self) -> int:
        """The number of the table's columns."""
        return self.coding.dim

    @property
    def noisy(self) -> bool:
        """A flag for noise that is drawn for each row: log p is then a lower bound on average."""
        return self.flow is not None and self.coding.noisy

    @property
    def like(self) -> Tensor:
        """An empty tensor of the weights' dtype on their device."""
        return next(self.network.parameters()).new_empty(0)

    def log_prob(
        self, x: Tensor, *, max_batch: int | None = None, seed: int | None = None, draws: int = 1
    ) -> Tensor:
        """Return log p of rows in nats, shape (rows,); −∞ where a value has no code.

        Args:
            x: Shape (rows, columns), preferably in double precision.
            max_batch: The most rows in one pass; all when None.
            seed: Makes the noise of numbers with a step a function of the seed and of each row; it
                comes from PyTorch's generator when None.
            draws: Draws of noise for each row, where there are such numbers.

        Raises:
            ValueError: A shape does not fit, or `draws` or `max_batch` is below 1.
            SolveError: The flow cannot be integrated at some rows.
        """
        return self.parts(x, max_batch=max_batch, seed=seed, draws=draws).log_prob

    def parts(
        self, x: Tensor, *, max_batch: int | None = None, seed: int | None = None, draws: int = 1
    ) -> RowLogDensity:
        """Return log p of rows in its two parts; arguments are those of `log_prob`."""
        self._check(x, "draws", draws)
        found = [self._parts(x[chunk], seed, draws) for chunk in chunks(len(x), max_batch)]
        codes, values = (torch.cat(each) for each in zip(*found, strict=True))
        return RowLogDensity(codes, values)

    def _check(self, x: Tensor, name: str, draws: int) -> None:
        if draws < 1:
            raise ValueError(f"Expected {name} of at least 1; got {draws}")
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"Expected x of shape (rows, {self.dim}); got {tuple(x.shape)}")

    def _parts(self, x: Tensor, seed: int | None, draws: int) -> tuple[Tensor, Tensor]:
        coded = [*self._coded(x, seed, draws if self.noisy else 1)]
        codes = self._to_codes(coded[0])
        known = torch.from_numpy(coded[0].known).to(codes.device)
        of_codes = self.network.log_prob(codes).masked_fill(~known, -torch.inf)
        values = torch.stack([self._log_values(each) for each in coded]).logsumexp(0)
        values = (values - log(len(coded))).masked_fill(~known, 0.0)
        return of_codes, values

    @torch.no_grad()
    def score(
        self,
        x: Tensor,
        *,
        probes: int = 16,
        seed: int = 0,
        max_batch: int | None = None,
    ) -> Scores:
        """Return log p of rows with its errors; never raises for a row.

        Those of the solver and of rounding are the difference to a second evaluation in double
        precision; the standard error is that of the draws of noise, where there is any.

        Args:
            x: Shape (rows, columns).
            probes: Draws of noise for each row, where columns have it.
            seed: Noise is a function of it and of each row itself.
            max_batch: As in `log_prob`.

        Raises:
            ValueError: A shape does not fit, or `probes` or `max_batch` is below 1.
        """
        self._check(x, "probes", probes)
        double = self.in_double()
        return concatenate(
            [self._score(double, x[chunk], probes, seed) for chunk in chunks(len(x), max_batch)]
        )

    def _score(self, double: RowModel, x: Tensor, probes: int, seed: int) -> Scores:
        coded = [*self._coded(x, seed, probes if self.noisy else 1)]
        codes = self._to_codes(coded[0])
        known = torch.from_numpy(coded[0].known).to(codes.device)
        within = [self._score_values(double, each) for each in coded]
        values, tighter = within[0].log_prob, within[0].tighter
        variance = torch.zeros_like(values)
        if self.noisy:
            values, variance = mean_mass(torch.stack([each.log_prob for each in within]))
            tighter, _ = mean_mass(torch.stack([each.tighter for each in within]))
        log_prob, tighter = (
            (network.log_prob(codes) + part).masked_fill(~known, -torch.inf)
            for network, part in ((self.network, values), (double.network, tighter))
        )
        change = (log_prob - tighter).abs().masked_fill(log_prob == tighter, 0.0)
        variance = variance.masked_fill(~known, 0.0)
        stats, status = within[0].stats, within[0].status
        for each in within[1:]:
            status = np.where(status == Status.FINISHED, each.status, status)
            stats = stats + each.stats
        status[~coded[0].known] = Status.FINISHED
        return Scores(
            log_prob, variance.sqrt(), change.to(log_prob), status, stats, tighter, probes
        )

    def _score_values(self, double: RowModel, coded: Coded) -> Scores:
        """Return the scores of x given the codes, of one draw of noise."""
        if self.flow is not None:
            shift = self._shift(coded)
            scores = self.flow.score(*self.flow_rows(coded), probes=1, seed=0)
            return replace(
                scores,
                log_prob=scores.log_prob + shift.to(scores.log_prob),
                tighter=scores.tighter + shift,
            )
        found, tighter = self._log_values(coded), double._log_values(coded)
        finished = np.full(len(found), Status.FINISHED)
        nothing = torch.zeros_like(found)
        return Scores(found, nothing, nothing, finished, Stats(), tighter, 1)

    def _coded(self, x: Tensor, seed: int | None, draws: int) -> Iterator[Coded]:
        """Yield the coded rows with each draw of noise; the codes are those of the first."""
        numbers = x.detach().double().cpu()
        noise = None if seed is None else RowNoise(seed, numbers)
        for _ in range(draws):
            shape = numbers.shape
            drawn = (
                torch.rand(shape, dtype=torch.float64) if noise is None else noise.uniform(shape)
            )
            yield self.coding.encode(numbers.numpy(), drawn.numpy() if self.noisy else None)

    def _to_codes(self, coded: Coded) -> Tensor:
        return torch.from_numpy(coded.codes).to(self.like.device)

    def _log_values(self, coded: Coded) -> Tensor:
        """Return log p(x | d) of coded rows."""
        if self.flow is None:
            return torch.from_numpy(coded.log_alone).to(self.like)
        found = self.flow.log_prob(*self.flow_rows(coded))
        return found + self._shift(coded).to(found)

    def _shift(self, coded: Coded) -> Tensor:
        """Return log |det ∂z/∂x| less the flow's log p of the absent places."""
        absent = torch.from_numpy((~coded.present).sum(1))
        return torch.from_numpy(coded.log_det) + NORMAL_CONSTANT * absent

    def flow_rows(self, coded: Coded) -> tuple[Tensor, Tensor]:
        """Return the places z (rows, C) of coded rows, and their context (rows, K + C)."""
        return torch.from_numpy(coded.z).to(self.like), self._context(coded.codes, coded.present)

    def _context(self, codes: Codes, present: Flags) -> Tensor:
        """Return the flow's context, the codes followed by the mask, (rows, K + C)."""
        return torch.from_numpy(np.column_stack([codes, present]).astype(np.float64)).to(self.like)

    @torch.no_grad()
    def sample(self, n: int = 1, *, max_batch: int | None = DRAWN_ROWS) -> Tensor:
        """Return draws of rows as numbers, shape (n, columns), in double precision.

        Raises:
            ValueError: `n` is below 0, or `max_batch` below 1.
        """
        if n < 0:
            raise ValueError(f"Expected a number of rows of at least 0; got {n}")
        parts = [self._draw(chunk.stop - chunk.start) for chunk in chunks(n, max_batch)]
        return torch.cat(parts)

    def _draw(self, n: int) -> Tensor:
        codes = self.network.sample(n).cpu().numpy()
        present = self.coding.present(codes)
        z = torch.randn(n, present.shape[1]).to(self.like)
        if self.flow is not None and n:
            z = self.flow.sample((), self._context(codes, present))
        return torch.from_numpy(self.coding.decode(codes, z.double().cpu().numpy()))

    def with_solver(self, **changes: Any) -> Self:
        """Return a model that shares the parameters, with some of the flow's settings changed."""
        flow = None if self.flow is None else self.flow.with_solver(**changes)
        return type(self)(self.coding, self.network, flow)

    def in_double(self) -> Self:
        """Return a copy in double precision."""
        flow = None if self.flow is None else self.flow.in_double()
        return type(self)(self.coding, copy.deepcopy(self.network).double(), flow)

    def config(self) -> dict[str, Any]:
        """Return the coding and the network's arguments, ready for JSON."""
        return {"coding": self.coding.json(), "network": self.network.config()}

    @classmethod
    def of(cls, config: Mapping[str, Any], flow: Flow | None) -> Self:
        """Return the model of a configuration, with random weights of the network."""
        return cls(Coding.of(config["coding"]), CodeNetwork(**config["network"]), flow)
