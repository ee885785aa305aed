"""A model of a table's rows in two parts: codes, and what is continuous given them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log, prod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnf.flow import Flow, code_flow
from cnf.flow.batching import chunks
from cnf.flow.scores import RowLogProbs, Scores, concatenate, mean_mass
from cnf.ode import Stats, Status
from cnf.tables.code_network import CodeNetwork
from cnf.tables.code_training import dropout_for
from cnf.tables.coding import Coding
from cnf.tables.coordinates import NORMAL_CONSTANT, Coded, Codes, Flags
from cnf.tables.schema import Schema
from cnf.utils.random import RowNoise
from cnf.utils.shapes import Shape, as_rows, check_tensors, per_row, sizes

Array = NDArray[np.float64]

DRAWN_ROWS = 4000  # in one pass


@dataclass(frozen=True, eq=False)
class RowLogDensity:
    """The log-density of rows, in its two parts.

    Attributes:
        codes: log p(d) in nats, shape (*batch); −∞ or NaN as in `RowModel.log_prob`.
        values: log p(x | d), shape (*batch): of the mean mass over the draws of noise.
    """

    codes: Tensor
    values: Tensor

    @property
    def log_prob(self) -> Tensor:
        """The sum, log p(row), shape (*batch)."""
        return self.codes + self.values


class RowModel(nn.Module):
    """The distribution of a table's rows, the discrete first: p(row) = p(d) p(x | d).

        log p(row) = log p(d) + log p(z | d) + log |det ∂z/∂x|,

    each given a context where there is one, whose columns have codes, too.

    The codes d say the category, the atom or the bin of every column (`Coding`), and are modelled
    by an any-order network, whose log-mass is exact. What is continuous given them, the places z
    within bins, is N(0, I), so that within its bin each column has its own distribution; or it
    follows a CNF given the codes.

    Columns of numbers with a step have a mass, the integral of the density over a cell: exact
    without a flow, and with one the mean over draws of noise, whose log is a lower bound on
    average.

    Args:
        coding: The codes of the columns, fitted to training rows.
        network: The network of p(d), of the codings' sizes, the context's first.
        flow: The flow of z, whose context are all codes and which coordinates are present.
        given: The codes of the context's columns; None without a context.

    Raises:
        ValueError: The network's sizes are not the codings'.

    Shapes: x is (*batch, dim) and a context (*batch, context_dim), numbers as `Schema.numbers`
        returns them; their batch shapes broadcast.

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

    def __init__(
        self,
        coding: Coding,
        network: CodeNetwork,
        flow: Flow | None = None,
        given: Coding | None = None,
    ) -> None:
        super().__init__()
        before = () if given is None else given.sizes
        if (network.given, *network.sizes) != (len(before), *before, *coding.sizes):
            raise ValueError(
                f"Expected a network of the codings' sizes, {(*before, *coding.sizes)}, of which "
                f"{len(before)} are given; got {tuple(network.sizes)}, {network.given} given"
            )
        self.coding, self.network, self.flow, self.given = coding, network, flow, given

    @classmethod
    def build(
        cls,
        schema: Schema,
        numbers: Array,
        *,
        context: tuple[Schema, Array] | None = None,
        bins: int = 64,
        flow: bool = False,
        **network: Any,
    ) -> Self:
        """Return a new model for training rows, with codes fitted to them and random weights.

        Args:
            schema: The columns' `Schema`.
            numbers: The training rows, shape (rows, columns).
            context: The schema of the context's columns and their numbers, (rows, context_dim), of
                a conditional model.
            bins: The most bins of a column of numbers.
            flow: Whether a flow models the places within bins, which takes a share of training's
                time.
            network: Arguments of `CodeNetwork`: its widths and dropout.

        Raises:
            ValueError: A column's kind has no codes, or none varies.
        """
        coding = Coding.fit(schema, numbers, bins=bins)
        given = None if context is None else Coding.fit(*context, bins=bins)
        both = [coding] if given is None else [given, coding]
        sizes, first_bin, arrays = (
            [each for one in both for each in getattr(one, name)]
            for name in ("sizes", "first_bin", "features")
        )
        features = [None if each is None else each.tolist() for each in arrays]
        options = {"dropout": dropout_for(len(numbers)), **network}
        count = 0 if given is None else len(given.sizes)
        made = CodeNetwork(sizes, first_bin, features, given=count, **options)
        places = len(coding.continuous)
        tensors = [None if each is None else torch.from_numpy(each) for each in arrays]
        within = code_flow(sizes, tensors, places) if flow and places else None
        return cls(coding, made, within, given)

    @property
    def dim(self) -> int:
        """The number of the table's columns."""
        return self.coding.dim

    @property
    def context_dim(self) -> int:
        """The number of the context's columns, 0 without one."""
        return 0 if self.given is None else self.given.dim

    @property
    def noisy(self) -> bool:
        """A flag for noise that is drawn for each row: log p is then a lower bound on average."""
        return self.flow is not None and self.coding.noisy

    @property
    def solves(self) -> int:
        """The number of ODE solves in one pass, 0 without a flow."""
        return 0 if self.flow is None else self.flow.solves

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype that rows are best given in, double, on the model's device.

        Single precision rounds large numbers, which then are other values.
        """
        return self.network.bias.new_empty(0, dtype=torch.float64)

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        max_batch: int | None = None,
        seed: int | None = None,
        draws: int = 1,
    ) -> Tensor:
        """Return log p(x | context) in nats, shape (*batch).

        It is −∞ where a value has no code: of a new category, or beyond bounds. It is NaN where a
        value is missing, NaN, or where the context has a new category or a gap; other numbers of
        the context count as the nearest ones of the training rows.

        Args:
            x: Shape (*batch, dim), preferably in double precision.
            context: Shape (*batch, context_dim), whose batch shape broadcasts with that of x.
            max_batch: The most rows in one pass; all when None.
            seed: Makes the noise of numbers with a step a function of the seed and of each row; it
                comes from PyTorch's generator when None.
            draws: Draws of noise for each row, where there are such numbers.

        Raises:
            ValueError: A shape does not fit, or `draws` or `max_batch` is below 1.
            SolveError: The flow cannot be integrated at some rows.
        """
        return self.parts(x, context, max_batch=max_batch, seed=seed, draws=draws).log_prob

    def parts(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        max_batch: int | None = None,
        seed: int | None = None,
        draws: int = 1,
    ) -> RowLogDensity:
        """Return log p in its two parts; arguments are those of `log_prob`."""
        rows, given, batch = self._rows(x, context, "draws", draws)
        found = [
            self._parts(*_part(rows, given, chunk), seed, draws)
            for chunk in chunks(len(rows), max_batch)
        ]
        codes, values = (
            torch.cat(each).reshape(batch).to(x.dtype)
            for each in zip(*((part.codes, part.values) for part, _ in found), strict=True)
        )
        return RowLogDensity(codes, values)

    def score_draws(
        self, x: Tensor, context: Tensor | None = None, seed: int | None = None, draws: int = 1
    ) -> RowLogProbs:
        """Return log p of rows by the mean mass over draws of noise, and the cost of all draws.

        Shapes: (rows, dim), (rows, context_dim) → (rows,); the arguments are those of `log_prob`.
        """
        rows, given, _ = self._rows(x, context, "draws", draws)
        parts, stats = self._parts(rows, given, seed, draws)
        return RowLogProbs(parts.log_prob.to(x.dtype), stats)

    def _rows(
        self, x: Tensor, context: Tensor | None, name: str, draws: int
    ) -> tuple[Tensor, Tensor | None, torch.Size]:
        if draws < 1:
            raise ValueError(f"Expected {name} of at least 1; got {draws}")
        self.check(x, context)
        return as_rows(x.detach().double(), None if context is None else context.detach().double())

    def check(self, x: Tensor, context: Tensor | None) -> None:
        """Check the types and shapes of rows and of their context.

        Raises:
            ValueError: A shape does not fit.
            TypeError: An argument is no tensor.
        """
        check_tensors(x=x)
        if x.ndim < 1 or x.shape[-1] != self.dim:
            raise ValueError(f"Expected x of shape (..., {self.dim}); got {tuple(x.shape)}")
        self._check_context(context)

    def _check_context(self, context: Tensor | None) -> None:
        check_tensors(context=context)
        size = self.context_dim
        if (context is None) != (size == 0) or (
            context is not None and context.shape[-1:] != (size,)
        ):
            wanted = f"a context of shape (..., {size})" if size else "no context"
            got = "none" if context is None else str(tuple(context.shape))
            raise ValueError(f"Expected {wanted}; got {got}")

    def _parts(
        self, x: Tensor, context: Tensor | None, seed: int | None, draws: int
    ) -> tuple[RowLogDensity, Stats]:
        rows = self._coded(x, context, seed, draws if self.noisy else 1)
        within = [self._log_values(each, rows.given) for each in rows.draws]
        values = torch.stack([each.log_prob for each in within]).logsumexp(0) - log(len(within))
        of_codes = rows.masked(self.network.log_prob(rows.codes).double())
        stats = sum((each.stats for each in within), start=Stats())
        return RowLogDensity(of_codes, values.masked_fill(~rows.known, 0.0)), stats

    @torch.no_grad()
    def score(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        probes: int = 16,
        seed: int = 0,
        max_batch: int | None = None,
    ) -> Scores:
        """Return log p(x | context) with its errors; never raises for a row.

        Those of the solver and of rounding are the difference to a second evaluation in double
        precision; the standard error is that of the draws of noise, where there is any. A row of
        log p −∞ is FINISHED, and one of NaN is NOT_FINITE; see `log_prob`.

        Args:
            x: Shape (*batch, dim).
            context: Shape (*batch, context_dim).
            probes: Draws of noise for each row, where columns have it.
            seed: Noise is a function of it and of each row and its context.
            max_batch: As in `log_prob`.

        Raises:
            ValueError: A shape does not fit, or `probes` or `max_batch` is below 1.
        """
        rows, given, batch = self._rows(x, context, "probes", probes)
        double = copy.deepcopy(self.network).double()
        scores = concatenate(
            [
                self._score(double, *_part(rows, given, chunk), probes, seed)
                for chunk in chunks(len(rows), max_batch)
            ]
        )
        return scores.reshape(batch).to(x.dtype)

    def _score(
        self, double: CodeNetwork, x: Tensor, context: Tensor | None, probes: int, seed: int
    ) -> Scores:
        rows = self._coded(x, context, seed, probes if self.noisy else 1)
        within = [self._score_values(each, rows.given) for each in rows.draws]
        values, tighter = within[0].log_prob, within[0].tighter
        variance = torch.zeros_like(values)
        if self.noisy:
            values, variance = mean_mass(torch.stack([each.log_prob for each in within]))
            tighter, _ = mean_mass(torch.stack([each.tighter for each in within]))
        log_prob, tighter = (
            rows.masked(network.log_prob(rows.codes) + part)
            for network, part in ((self.network, values), (double, tighter))
        )
        change = (log_prob - tighter).abs().masked_fill(log_prob == tighter, 0.0)
        variance = variance.masked_fill(~rows.known, 0.0)
        stats, status = within[0].stats, within[0].status
        for each in within[1:]:
            status = np.where(status == Status.FINISHED, each.status, status)
            stats = stats + each.stats
        status[~rows.known.cpu().numpy()] = Status.FINISHED
        status[rows.lost.cpu().numpy()] = Status.NOT_FINITE
        return Scores(log_prob, variance.sqrt(), change, status, stats, tighter, probes)

    def _score_values(self, coded: Coded, given: Codes) -> Scores:
        """Return the scores of x given the codes, of one draw of noise."""
        if self.flow is not None:
            shift = self._shift(coded)
            scores = self.flow.score(*self.flow_rows(coded, given), probes=1, seed=0)
            found, tighter = scores.log_prob + shift, scores.tighter + shift
            return replace(scores, log_prob=found, tighter=tighter)
        found = self._log_values(coded, given).log_prob
        finished = np.full(len(found), Status.FINISHED)
        nothing = torch.zeros_like(found)
        return Scores(found, nothing, nothing, finished, Stats(), found, 1)

    def _coded(self, x: Tensor, context: Tensor | None, seed: int | None, draws: int) -> _CodedRows:
        """Return rows with each draw of noise in coordinates."""
        numbers = x.cpu()
        given, placed = self.encode_context(context, len(x))
        noise = None if seed is None else RowNoise(seed, numbers, _on_cpu(context))
        found = []
        for _ in range(draws):
            drawn = None
            if self.noisy:
                like = torch.empty_like(numbers)
                drawn = (like.uniform_() if noise is None else noise.uniform(like.shape)).numpy()
            found.append(self.coding.encode(numbers.numpy(), drawn))
        gaps = self.coding.gaps(numbers.numpy())
        tensors = (np.column_stack([given, found[0].codes]), found[0].known.all(1), gaps | ~placed)
        codes, known, lost = (torch.from_numpy(each).to(self.like.device) for each in tensors)
        return _CodedRows(found, given, codes, known & ~lost, lost)

    def encode_context(self, context: Tensor | None, rows: int) -> tuple[Codes, Flags]:
        """Return the codes of contexts, and whether all of a context's values have one.

        Shapes: (rows, context_dim) → (rows, coordinates of the context), (rows,).
        """
        if self.given is None or context is None:
            return np.zeros((rows, 0), np.int64), np.ones(rows, np.bool_)
        numbers = context.detach().double().cpu().numpy()
        coded = self.given.encode(self.given.nearest(numbers))
        return coded.codes, np.asarray(coded.known.all(1))

    def _log_values(self, coded: Coded, given: Codes) -> RowLogProbs:
        """Return log p(x | d) of coded rows."""
        if self.flow is None:
            alone = torch.from_numpy(coded.log_alone.sum(1)).to(self.like.device)
            return RowLogProbs(alone, Stats())
        found = self.flow.score_draws(*self.flow_rows(coded, given))
        return replace(found, log_prob=found.log_prob + self._shift(coded))

    def _shift(self, coded: Coded) -> Tensor:
        """Return log p(x | d) less the flow's log p: log |det ∂z/∂x|, of places that it models."""
        modelled = np.zeros(len(self.coding.sizes), np.bool_)
        modelled[[*self.coding.continuous]] = True
        shift = np.where(modelled, coded.log_det, coded.log_alone).sum(1)
        absent = (~coded.present[:, modelled]).sum(1)
        return torch.from_numpy(shift + NORMAL_CONSTANT * absent).to(self.like.device)

    def flow_rows(self, coded: Coded, given: Codes) -> tuple[Tensor, Tensor]:
        """Return the flow's places z (rows, C) of coded rows, and their context (rows, K + C).

        The codes of the rows' contexts come before their own.
        """
        z = torch.from_numpy(coded.z[:, [*self.coding.continuous]])
        codes = np.column_stack([given, coded.codes])
        return z.to(self.network.bias), self._flow_context(codes, coded.present)

    def _flow_context(self, codes: Codes, present: Flags) -> Tensor:
        """Return the flow's context, all codes followed by the mask, (rows, K + C)."""
        found = np.column_stack([codes, present[:, [*self.coding.continuous]]])
        return torch.from_numpy(found.astype(np.float64)).to(self.network.bias)

    @torch.no_grad()
    def sample(
        self,
        shape: Shape = (),
        context: Tensor | None = None,
        *,
        max_batch: int | None = DRAWN_ROWS,
    ) -> Tensor:
        """Return draws of rows as numbers, shape (*shape, *context's batch, dim).

        They are in double precision, or in the context's; NaN where the context has a new category
        or a gap.

        Args:
            shape: A number of draws, or a shape.
            context: Shape (*batch, context_dim).
            max_batch: The most rows in one pass; all when None.

        Raises:
            ValueError: A size is below 0, `max_batch` below 1, or a shape does not fit.
        """
        self._check_context(context)
        lead = sizes(shape)
        if min(lead, default=0) < 0:
            raise ValueError(f"Expected numbers of rows of at least 0; got {tuple(lead)}")
        batch = torch.Size((*lead, *(() if context is None else context.shape[:-1])))
        given = None if context is None else per_row(context.double(), batch)
        parts = [
            self._draw(None if given is None else given[chunk], chunk.stop - chunk.start)
            for chunk in chunks(prod(batch), max_batch)
        ]
        dtype = self.like.dtype if context is None else context.dtype
        return torch.cat(parts).to(self.like.device, dtype).reshape(*batch, self.dim)

    def _draw(self, context: Tensor | None, n: int) -> Tensor:
        given, placed = self.encode_context(context, n)
        asked = torch.from_numpy(given).to(self.like.device) if self.given else n
        codes = self.network.sample(asked).cpu().numpy()
        own = codes[:, given.shape[1] :]
        z = torch.randn(own.shape, dtype=torch.float64).numpy()
        if self.flow is not None and n:
            places = self.flow.sample((), self._flow_context(codes, self.coding.present(own)))
            z[:, [*self.coding.continuous]] = places.double().cpu().numpy()
        return torch.from_numpy(np.where(placed[:, None], self.coding.decode(own, z), np.nan))

    def with_solver(self, **changes: Any) -> Self:
        """Return a model that shares the parameters, with some of the flow's settings changed."""
        flow = None if self.flow is None else self.flow.with_solver(**changes)
        return self.with_parts(self.network, flow)

    def with_parts(self, network: CodeNetwork, flow: Flow | None) -> Self:
        """Return a model of the same codes with other parts."""
        return type(self)(self.coding, network, flow, self.given)

    def in_double(self) -> Self:
        """Return a copy in double precision."""
        flow = None if self.flow is None else self.flow.in_double()
        return self.with_parts(copy.deepcopy(self.network).double(), flow)

    def config(self) -> dict[str, Any]:
        """Return the codings and the network's arguments, ready for JSON."""
        given = None if self.given is None else self.given.json()
        return {"coding": self.coding.json(), "given": given, "network": self.network.config()}

    @classmethod
    def of(cls, config: Mapping[str, Any], flow: Flow | None) -> Self:
        """Return the model of a configuration, with random weights of the network."""
        given = config.get("given")  # an entry that earlier versions lack
        network = CodeNetwork(**config["network"])
        return cls(Coding.of(config["coding"]), network, flow, given and Coding.of(given))


@dataclass(frozen=True, eq=False)
class _CodedRows:
    """Rows in coordinates."""

    draws: list[Coded]  # with each draw of noise, which changes no code
    given: Codes  # of the context
    codes: Tensor  # with the context's first, (rows, K)
    known: Tensor  # whether all values have a code, (rows,)
    lost: Tensor  # whether a row has a gap, or its context a value without a code

    def masked(self, log_prob: Tensor) -> Tensor:
        """Return log p of rows, −∞ where a value has no code, and NaN where a row is lost."""
        return log_prob.masked_fill(~self.known, -torch.inf).masked_fill(self.lost, torch.nan)


def _part(x: Tensor, context: Tensor | None, chunk: slice) -> tuple[Tensor, Tensor | None]:
    return x[chunk], None if context is None else context[chunk]


def _on_cpu(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.cpu()
