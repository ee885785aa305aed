"""A model of a table's rows in two parts: codes, and what is continuous given them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnf.flow import Flow, code_flow
from cnf.flow.batching import chunks
from cnf.flow.scores import RowLogProbs, Scores, concatenate, mean_mass
from cnf.ode import Stats, Status
from cnf.tables.code_network import GAP, PASS_ROWS, CodeNetwork
from cnf.tables.code_prior import CodePrior
from cnf.tables.code_training import dropout_for
from cnf.tables.coded_rows import CodedRows, GivenRows, TighterParts, part_of, shared_masks
from cnf.tables.coding import Coding
from cnf.tables.coordinates import NORMAL_CONSTANT, Coded, Codes, Flags
from cnf.tables.schema import Column, Schema
from cnf.utils.random import RowNoise
from cnf.utils.shapes import Shape, as_rows, check_tensors, per_row, sizes

if TYPE_CHECKING:
    from cnf.tables.masked_flow import MaskedFlow

Array = NDArray[np.float64]

DRAWN_ROWS = 4000  # in one pass
SCORING_TOLERANCE = 1e-8  # of the solve that shows another one's error


@dataclass(frozen=True, eq=False)
class RowLogDensity:
    """The log-density of rows' cells, given those that are given, in its two parts.

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
    follows a CNF given the codes. With `values`, columns of numbers that mostly have a density have
    one bin besides their atoms: their normal scores z follow a `cnf.tables.masked_flow.MaskedFlow`
    given all codes, and enter the conditionals of codes by finer bins, where they are given.

    A gap, NaN, is a cell that is marginalised, unless gaps are one more value of its column.
    Without a CNF given the codes the model answers any question about a row, log p(some cells |
    others), by one factorisation: the asked codes in the columns' order, each given the given codes
    and the asked ones before it, and then the asked values given these codes and the given values.

    Columns of numbers with a step have a mass, the integral of the density over a cell: exact
    without a flow, and with one the mean over draws of noise, whose log is a lower bound on
    average.

    Args:
        coding: The codes of the columns, fitted to training rows.
        network: The network of p(d), of the codings' sizes, the context's first.
        flow: The flow of z, whose context are all codes and which coordinates are present.
        given: The codes of the context's columns; None without a context.
        values: The model of z in columns that mostly have a density; None where these have bins.
        inputs: The codes of these columns with bins, as the network sees them where they are given.

    Raises:
        ValueError: The network's sizes are not the codings', or those of `values` are not.

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
        values: MaskedFlow | None = None,
        inputs: Coding | None = None,
    ) -> None:
        super().__init__()
        before = () if given is None else given.sizes
        wanted = (*before, *coding.sizes, *(() if inputs is None else inputs.sizes))
        if (network.given, *network.sizes) != (len(before), *wanted):
            raise ValueError(
                f"Expected a network of the codings' sizes, {wanted}, of which {len(before)} are "
                f"given; got {tuple(network.sizes)}, {network.given} given"
            )
        self.coding, self.network, self.flow, self.given = coding, network, flow, given
        self.values, self.inputs = values, inputs
        # The coordinates that `values` model, and those of the network whose codes they are given.
        self.valued = np.isin(coding.places, [] if inputs is None else inputs.places)
        self.coded = [k for k, size in enumerate((*before, *coding.sizes)) if size > 1]
        if values is not None:
            sizes = [network.sizes[k] for k in self.coded]
            _check_values(values, sizes, int(self.valued.sum()), flow)

    @classmethod
    def build(
        cls,
        schema: Schema,
        numbers: Array,
        *,
        context: tuple[Schema, Array] | None = None,
        bins: int = 64,
        flow: bool = False,
        values: bool = False,
        **network: Any,
    ) -> Self:
        """Return a new model for training rows, with codes fitted to them and random weights.

        Args:
            schema: The columns' `Schema`.
            numbers: The training rows, shape (rows, columns), NaN for gaps.
            context: The schema of the context's columns and their numbers, (rows, context_dim), of
                a conditional model. Gaps in a column of these are one more value of it.
            bins: The most bins of a column of numbers.
            flow: Whether a flow models the places within bins, which takes a share of training's
                time.
            values: Whether a `MaskedFlow` models the columns of numbers that mostly have a density;
                not with a flow.
            network: Arguments of `CodeNetwork`: its widths and dropout.

        Raises:
            ValueError: A column's kind has no codes, one has gaps alone, or none varies.
        """
        coding = Coding.fit(schema, numbers, bins=bins)
        given = None if context is None else Coding.fit(*_with_gaps(*context), bins=bins)
        inputs, own = None, coding.mostly_binned(numbers) if values else np.zeros(1, np.bool_)
        if own.any():
            inputs, coding = coding.select(own), coding.without_bins(own)
            if max(coding.sizes) == 1:  # the network is of no use
                inputs = coding.select(own)
                network = {"hidden": 1, "blocks": 0, **network}
        both = [each for each in (given, coding, inputs) if each is not None]
        sizes, first_bin, arrays = (
            [each for one in both for each in getattr(one, name)]
            for name in ("sizes", "first_bin", "features")
        )
        features = [None if each is None else each.tolist() for each in arrays]
        options = {"dropout": dropout_for(len(numbers)), **network}
        count = 0 if given is None else len(given.sizes)
        if inputs is not None:
            options["inputs"] = _input_pairs(coding, own, count)
        made = CodeNetwork(sizes, first_bin, features, given=count, **options)
        places = len(coding.continuous)
        tensors = [None if each is None else torch.from_numpy(each) for each in arrays]
        within = code_flow(sizes, tensors, places) if flow and places else None
        if inputs is None:
            return cls(coding, made, within, given)
        masked = _new_values([*sizes[:count], *coding.sizes], len(inputs.sizes))
        return cls(coding, made, within, given, masked, inputs)

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
        return self.coding.noisy if self.flow is not None else self._noisy_values

    @property
    def solves(self) -> int:
        """The number of ODE solves in one pass, 0 without a flow."""
        return int(self.values is not None) if self.flow is None else self.flow.solves

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
        given: Tensor | None = None,
        max_batch: int | None = None,
        seed: int | None = None,
        draws: int = 1,
    ) -> Tensor:
        """Return log p(the other cells | the given cells, context) in nats, shape (*batch).

        Cells that are gaps, NaN, are marginalised, unless gaps are a value of their column. It is 0
        where no cell is asked for, and −∞ where one that is has no code: of a new category, or
        beyond bounds. It is NaN where a given cell has none, or where the context has a new
        category or a gap that training rows had not; other numbers of the context count as the
        nearest ones of the training rows.

        Args:
            x: Shape (*batch, dim), preferably in double precision.
            context: Shape (*batch, context_dim), whose batch shape broadcasts with that of x.
            given: Which cells are given, boolean, shape (*batch, dim), whose batch shape broadcasts
                with that of x; none when None.
            max_batch: The most rows in one pass; all when None.
            seed: Makes the noise of numbers with a step a function of the seed and of each row; it
                comes from PyTorch's generator when None.
            draws: Draws of noise for each row, where there are such numbers. Codes are given the
                first one.

        Raises:
            ValueError: A shape does not fit, `draws` or `max_batch` is below 1, or cells are given
                and the places within bins follow a flow.
            SolveError: The flow cannot be integrated at some rows.
        """
        return self.parts(
            x, context, given=given, max_batch=max_batch, seed=seed, draws=draws
        ).log_prob

    def parts(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        given: Tensor | None = None,
        max_batch: int | None = None,
        seed: int | None = None,
        draws: int = 1,
    ) -> RowLogDensity:
        """Return log p in its two parts; arguments are those of `log_prob`."""
        rows, batch = self._rows(x, context, given, "draws", draws)
        found = [
            self._parts(*part_of(rows, chunk), seed, draws)
            for chunk in chunks(len(rows[0]), max_batch)
        ]
        codes, values = (
            torch.cat(each).reshape(batch).to(x.dtype)
            for each in zip(*((part.codes, part.values) for part, _ in found), strict=True)
        )
        return RowLogDensity(codes, values)

    def score_draws(
        self,
        x: Tensor,
        context: Tensor | None = None,
        seed: int | None = None,
        draws: int = 1,
        given: Tensor | None = None,
    ) -> RowLogProbs:
        """Return log p of rows by the mean mass over draws of noise, and the cost of all draws.

        Shapes: (rows, dim), (rows, context_dim) → (rows,); the arguments are those of `log_prob`.
        """
        rows, _ = self._rows(x, context, given, "draws", draws)
        parts, stats = self._parts(*rows, seed, draws)
        return RowLogProbs(parts.log_prob.to(x.dtype), stats)

    def _rows(
        self, x: Tensor, context: Tensor | None, given: Tensor | None, name: str, draws: int
    ) -> tuple[GivenRows, torch.Size]:
        if draws < 1:
            raise ValueError(f"Expected {name} of at least 1; got {draws}")
        self.check(x, context)
        self.check_given(given)
        if given is not None:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], given.shape[:-1]), -1)
        context = None if context is None else context.detach().double()
        rows, contexts, batch = as_rows(x.detach().double(), context)
        return (rows, contexts, None if given is None else per_row(given, batch)), batch

    def check_given(self, given: Tensor | None) -> None:
        """Check which cells are given, where any are.

        Raises:
            ValueError: It is of another shape or type, or the model answers no questions.
            TypeError: It is no tensor.
        """
        check_tensors(given=given)
        if given is None:
            return
        if given.dtype != torch.bool or given.shape[-1:] != (self.dim,):
            raise ValueError(
                f"Expected given of type bool and shape (..., {self.dim}); got {given.dtype} and "
                f"{tuple(given.shape)}"
            )
        self.check_questions()

    def check_questions(self) -> None:
        """Check that the model answers questions.

        Raises:
            ValueError: The places within bins follow a flow, which answers none.
        """
        if self.flow is not None:
            raise ValueError(
                "Expected a model that answers questions about parts of a row; got one with a flow "
                "within bins: build it with flow=False"
            )

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
        self,
        x: Tensor,
        context: Tensor | None,
        given: Tensor | None,
        seed: int | None,
        draws: int,
    ) -> tuple[RowLogDensity, Stats]:
        return self.parts_of(self.coded_rows(x, context, given, seed, draws))

    def parts_of(self, rows: CodedRows) -> tuple[RowLogDensity, Stats]:
        """Return log p of coded rows in its two parts, and its cost."""
        within = [self._log_values(each, rows) for each in rows.draws]
        values = torch.stack([each.log_prob for each in within]).logsumexp(0) - log(len(within))
        of_codes = rows.masked(self._log_codes(self.network, rows).double())
        stats = sum((each.stats for each in within), start=Stats())
        return RowLogDensity(of_codes, values.masked_fill(~rows.known, 0.0)), stats

    @torch.no_grad()
    def score(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        given: Tensor | None = None,
        probes: int = 16,
        seed: int = 0,
        max_batch: int | None = None,
    ) -> Scores:
        """Return log p(the other cells | the given cells, context) with its errors.

        It never raises for a row. Errors of the solver and of rounding are the difference to a
        second evaluation in double precision; the standard error is that of the draws of noise,
        where there is any. A row of log p −∞ is FINISHED, and one of NaN is NOT_FINITE; see
        `log_prob`.

        Args:
            x: Shape (*batch, dim).
            context: Shape (*batch, context_dim).
            given: As in `log_prob`.
            probes: Draws of noise for each row, where columns have it.
            seed: Noise is a function of it and of each row and its context.
            max_batch: As in `log_prob`.

        Raises:
            ValueError: A shape does not fit, or `probes` or `max_batch` is below 1.
        """
        rows, batch = self._rows(x, context, given, "probes", probes)
        double = self._tighter()
        scores = concatenate(
            [
                self._score(double, *part_of(rows, chunk), probes, seed)
                for chunk in chunks(len(rows[0]), max_batch)
            ]
        )
        return scores.reshape(batch).to(x.dtype)

    def _tighter(self) -> TighterParts:
        network = copy.deepcopy(self.network).double()
        if self.values is None:
            return TighterParts(network, None)
        options = {"rtol": SCORING_TOLERANCE, "atol": SCORING_TOLERANCE}
        return TighterParts(network, self.values.in_double().with_solver(**options))

    def _score(
        self,
        double: TighterParts,
        x: Tensor,
        context: Tensor | None,
        given: Tensor | None,
        probes: int,
        seed: int,
    ) -> Scores:
        rows = self.coded_rows(x, context, given, seed, probes)
        within = [self._score_values(double, each, rows) for each in rows.draws]
        values, tighter = within[0].log_prob, within[0].tighter
        variance = torch.zeros_like(values)
        if self.noisy:
            values, variance = mean_mass(torch.stack([each.log_prob for each in within]))
            tighter, _ = mean_mass(torch.stack([each.tighter for each in within]))
        log_prob, tighter = (
            rows.masked(self._log_codes(network, rows) + part)
            for network, part in ((self.network, values), (double.network, tighter))
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

    def _score_values(self, double: TighterParts, coded: Coded, rows: CodedRows) -> Scores:
        """Return the scores of x given the codes, of one draw of noise."""
        finished = np.full(len(rows.codes), Status.FINISHED)
        if self.flow is not None:
            shift = self._shift(coded)
            scores = self.flow.score(*self.flow_rows(coded, rows.context), probes=1, seed=0)
            found, tighter = scores.log_prob + shift, scores.tighter + shift
            return replace(scores, log_prob=found, tighter=tighter)
        if self.values is not None and double.values is not None:
            shift, asked = self._values_shift(coded, rows), self._values_rows(coded, rows)
            found, status = self.values.score(*asked)
            tighter, again = double.values.score(*asked)
            status = np.where(status == Status.FINISHED, again, status)
            found, tighter = found + shift, tighter + shift
        else:
            found, status = rows.sum(coded.log_alone), finished
            tighter = found
        nothing = torch.zeros_like(found)
        return Scores(found, nothing, nothing, status, Stats(), tighter, 1)

    def coded_rows(
        self,
        x: Tensor,
        context: Tensor | None,
        given: Tensor | None = None,
        seed: int | None = None,
        draws: int = 1,
    ) -> CodedRows:
        """Return rows (n, dim) in coordinates, with draws of noise where the model has any."""
        numbers = x.cpu()
        before, placed = self.encode_context(context, len(x))
        noise = None if seed is None else RowNoise(seed, numbers, _on_cpu(context))
        found = []
        for _ in range(draws if self.noisy else 1):
            drawn = None
            if self.noisy:
                like = torch.empty_like(numbers)
                drawn = (like.uniform_() if noise is None else noise.uniform(like.shape)).numpy()
            found.append(self.coding.encode(numbers.numpy(), drawn))
        unseen = self.coding.unseen(numbers.numpy())
        visible = np.zeros_like(unseen)
        if given is not None:
            visible = given.cpu().numpy()[:, self.coding.places] & ~unseen
        asked = ~visible & ~unseen
        lost = (visible & ~found[0].known).any(1) | ~placed
        if self.flow is not None:
            lost |= unseen.any(1)
        known = (found[0].known | ~asked).all(1) & ~lost
        own = np.where(unseen, GAP, found[0].codes)
        codes = np.column_stack([before, own, self.input_codes(numbers.numpy())])
        seen = np.column_stack([np.ones_like(before, np.bool_), visible, visible[:, self.valued]])
        arrays = (codes, seen, visible, asked, known, lost)
        return CodedRows(
            found, before, *(torch.from_numpy(each).to(self.like.device) for each in arrays)
        )

    def encode_context(self, context: Tensor | None, rows: int) -> tuple[Codes, Flags]:
        """Return the codes of contexts, and whether all of a context's values have one.

        Shapes: (rows, context_dim) → (rows, coordinates of the context), (rows,).
        """
        if self.given is None or context is None:
            return np.zeros((rows, 0), np.int64), np.ones(rows, np.bool_)
        numbers = context.detach().double().cpu().numpy()
        coded = self.given.encode(self.given.nearest(numbers))
        return coded.codes, np.asarray(coded.known.all(1))

    def input_codes(self, numbers: Array) -> Codes:
        """Return the codes of values with bins, −1 for gaps, (rows, coordinates of `values`)."""
        if self.inputs is None:
            return np.zeros((len(numbers), 0), np.int64)
        gaps = self.inputs.unseen(numbers)
        return np.where(gaps, GAP, self.inputs.encode(numbers).codes)

    def _log_codes(self, network: CodeNetwork, rows: CodedRows) -> Tensor:
        """Return log p(d) of coded rows."""
        if self.values is None:
            return network.log_prob(rows.codes, rows.fixed if rows.given.any() else None)
        z, given, *_ = self._values_rows(rows.draws[0], rows)
        found = [
            network.log_prob(
                rows.codes[part],
                rows.fixed[part],
                self.code_prior(z[part], given[part] if given.ndim == 2 else given),
            )
            for part in chunks(len(z), PASS_ROWS)
        ]
        return torch.cat(found)

    def code_prior(self, z: Tensor, given: Tensor) -> CodePrior | None:
        """Return the prior of the codes of rows with values z, some of which are given.

        Shapes: (rows, C), booleans (rows, C) or (C,). A model without values has no prior: None.
        """
        if self.values is None:
            return None
        places = [-1] * len(self.network.sizes)
        for place, k in enumerate(self.coded):
            places[k] = place
        return CodePrior(self.values.base, self.values.code_shares, places, z, given)

    def _log_values(self, coded: Coded, rows: CodedRows) -> RowLogProbs:
        """Return log p(x | d) of coded rows."""
        if self.values is not None:
            found = self.values.log_prob(*self._values_rows(coded, rows))
            return RowLogProbs(found + self._values_shift(coded, rows), Stats())
        if self.flow is None:
            return RowLogProbs(rows.sum(coded.log_alone), Stats())
        scores = self.flow.score_draws(*self.flow_rows(coded, rows.context))
        return replace(scores, log_prob=scores.log_prob + self._shift(coded))

    def _values_rows(self, coded: Coded, rows: CodedRows) -> tuple[Tensor, ...]:
        """Return rows as `values` take them: z, masks of given and asked z, and the codes."""
        z, own, present = (
            torch.from_numpy(each).to(self.like.device)
            for each in (coded.z[:, self.valued], self.valued, coded.present[:, self.valued])
        )
        masks = shared_masks(rows.given[:, own] & present, rows.asked[:, own] & present)
        return z, *masks, rows.codes[:, self.coded]

    def _values_shift(self, coded: Coded, rows: CodedRows) -> Tensor:
        """Return log |det ∂z/∂x| of the asked values, with log p(x | d) of the other columns."""
        return rows.sum(np.where(self.valued, coded.log_det, coded.log_alone))

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
        contexts = None if context is None else per_row(context.double(), batch)
        gaps = torch.full((prod(batch), self.dim), torch.nan, dtype=torch.float64)
        rows = (gaps, contexts, torch.zeros_like(gaps, dtype=torch.bool))
        parts = [self._draw(*part_of(rows, chunk)) for chunk in chunks(prod(batch), max_batch)]
        dtype = self.like.dtype if context is None else context.dtype
        return torch.cat(parts).to(self.like.device, dtype).reshape(*batch, self.dim)

    @torch.no_grad()
    def impute(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        given: Tensor | None = None,
        max_batch: int | None = DRAWN_ROWS,
    ) -> Tensor:
        """Return rows with a joint draw of each row's gaps, given its other cells.

        Gaps stay where they are a value of their column. Gaps also stay in rows where a given cell
        has no code, or the context has none.

        Args:
            x: Shape (*batch, dim), NaN for gaps.
            context: Shape (*batch, context_dim), whose batch shape broadcasts with that of x.
            given: Which cells are given; others are drawn, whatever they are, and so are gaps that
                are a value. All cells that are there when None. Shape as in `log_prob`.
            max_batch: The most rows in one pass; all when None.

        Returns:
            Shape (*batch, dim), in which cells that are not drawn are those of x.

        Raises:
            ValueError: A shape does not fit, `max_batch` is below 1, or the places within bins
                follow a flow.
        """
        self.check_questions()
        rows, batch = self._rows(x, context, given, "draws", 1)
        parts = [self._draw(*part_of(rows, chunk)) for chunk in chunks(len(rows[0]), max_batch)]
        drawn = torch.cat(parts).to(rows[0]).reshape(*batch, self.dim)
        hidden = x.isnan() & ~drawn.isnan()
        return torch.where(hidden if given is None else hidden | ~given, drawn.to(x.dtype), x)

    def _draw(self, x: Tensor, context: Tensor | None, given: Tensor | None) -> Tensor:
        """Return rows (n, dim) with the cells that are not given drawn, and gaps but as values."""
        numbers, n = x.cpu().numpy(), len(x)
        before, placed = self.encode_context(context, n)
        noise = torch.rand(x.shape, dtype=torch.float64).numpy() if self._noisy_values else None
        coded, unseen = self.coding.encode(numbers, noise), self.coding.unseen(numbers)
        fixed = ~unseen
        if given is not None:
            fixed &= given.cpu().numpy()[:, self.coding.places]
        placed = placed & (coded.known | ~fixed).all(1)
        fixed &= placed[:, None]
        own = np.where(fixed, coded.codes, GAP)
        finer = np.where(fixed[:, self.valued], self.input_codes(numbers), GAP)
        codes = np.column_stack([before, own, finer])
        codes = self._complete(codes, coded.z, fixed & coded.present)
        own = codes[:, before.shape[1] : codes.shape[1] - finer.shape[1]]
        own = np.maximum(own, 0)  # the code of columns that have one alone
        z = torch.randn(own.shape, dtype=torch.float64).numpy()
        if self.values is not None and n:
            z[:, self.valued] = self._draw_values(coded.z, fixed, own, codes)
        if self.flow is not None and n:
            places = self.flow.sample((), self._flow_context(codes, self.coding.present(own)))
            z[:, [*self.coding.continuous]] = places.double().cpu().numpy()
        return torch.from_numpy(np.where(placed[:, None], self.coding.decode(own, z), np.nan))

    def _draw_values(self, z: Array, fixed: Flags, own: Codes, codes: Codes) -> Array:
        """Return z (rows, C) of the columns of `values`, drawn but for those that are fixed."""
        assert self.values is not None
        present = self.coding.present(own)
        values, given, asked, others = (
            torch.from_numpy(each).to(self.like.device)
            for each in (
                z[:, self.valued],
                (fixed & present)[:, self.valued],
                (~fixed & present)[:, self.valued],
                codes[:, self.coded],
            )
        )
        drawn = self.values.sample(values, *shared_masks(given, asked), others)
        return drawn.double().cpu().numpy()

    @property
    def _noisy_values(self) -> bool:
        pairs = zip(self.valued, self.coding.coordinates, strict=True)
        return any(own and each.noisy for own, each in pairs)

    def _complete(self, codes: Codes, z: Array, fixed: Flags) -> Codes:
        """Return codes (rows, K) whose gaps are drawn, but for those of `values`."""
        found, own, given = (
            torch.from_numpy(each).to(self.like.device)
            for each in (codes, z[:, self.valued], fixed[:, self.valued])
        )
        if self.values is None:
            return self.network.complete(found).cpu().numpy()
        drawn = [
            self.network.complete(found[part], prior=self.code_prior(own[part], given[part]))
            for part in chunks(len(found), PASS_ROWS)
        ]
        return torch.cat(drawn).cpu().numpy()

    def with_solver(self, **changes: Any) -> Self:
        """Return a model that shares the parameters, with some of the flow's settings changed."""
        return self.with_parts(
            self.network,
            None if self.flow is None else self.flow.with_solver(**changes),
            None if self.values is None else self.values.with_solver(**changes),
        )

    def with_parts(
        self, network: CodeNetwork, flow: Flow | None, values: MaskedFlow | None = None
    ) -> Self:
        """Return a model of the same codes with other parts."""
        return type(self)(self.coding, network, flow, self.given, values, self.inputs)

    def in_double(self) -> Self:
        """Return a copy in double precision."""
        return self.with_parts(
            copy.deepcopy(self.network).double(),
            None if self.flow is None else self.flow.in_double(),
            None if self.values is None else self.values.in_double(),
        )

    def inner_flows(self) -> dict[str, Flow]:
        """Return the flow within bins, where there is one."""
        return {} if self.flow is None else {"flow": self.flow}

    def config(self) -> dict[str, Any]:
        """Return the codings and the arguments of network and values, ready for JSON."""
        return {
            "coding": self.coding.json(),
            "given": None if self.given is None else self.given.json(),
            "network": self.network.config(),
            "values": None if self.values is None else self.values.config(),
            "inputs": None if self.inputs is None else self.inputs.json(),
        }

    @classmethod
    def of(cls, config: Mapping[str, Any], parts: Mapping[str, Flow]) -> Self:
        """Return the model of a configuration, with random weights of the network."""
        # Entries that earlier versions lack are those of parts that their models have not.
        given, entries, inputs = (config.get(name) for name in ("given", "values", "inputs"))
        network, values = CodeNetwork(**config["network"]), None
        if entries is not None:
            from cnf.tables.masked_flow import MaskedFlow

            values = MaskedFlow.of(entries)
        return cls(
            Coding.of(config["coding"]),
            network,
            parts.get("flow"),
            given and Coding.of(given),
            values,
            inputs and Coding.of(inputs),
        )


def _new_values(sizes: Sequence[int], columns: int) -> MaskedFlow:
    """Return a new model of values given codes, whose mixture and field are trained later."""
    from cnf.mixtures.normal import NormalMixture
    from cnf.tables.masked_flow import MaskedFlow

    return MaskedFlow(NormalMixture(1, columns, [size for size in sizes if size > 1]))


def _input_pairs(coding: Coding, valued: Flags, before: int) -> list[tuple[int, int]]:
    """Return the network's coordinates that are inputs alone, with those of the same columns.

    Coordinates of one code are such, and the bins of values, which come last.
    """
    single = [before + k for k, size in enumerate(coding.sizes) if size == 1]
    owners = [before + int(k) for k in np.flatnonzero(valued)]
    last = before + len(coding.sizes)
    return [*((k, k) for k in single), *((last + i, owner) for i, owner in enumerate(owners))]


def _check_values(values: MaskedFlow, sizes: Sequence[int], dim: int, flow: Flow | None) -> None:
    """Raise a ValueError unless values are of so many columns, given codes of these sizes."""
    if flow is not None:
        raise ValueError("Expected values without a flow within bins; got both: leave one out")
    if values.dim != dim or [*values.base.sizes] != [*sizes]:
        raise ValueError(
            f"Expected values of {dim} columns given codes of sizes {(*sizes,)}; got {values.dim} "
            f"given {(*values.base.sizes,)}"
        )


def _with_gaps(schema: Schema, numbers: Array) -> tuple[Schema, Array]:
    """Return a context whose gaps are a value in each column that has any."""
    changes: dict[str, Column] = {
        column.name: replace(column, gaps="value")
        for column, each in zip(schema.columns, numbers.T, strict=True)
        if np.isnan(each).any()
    }
    return schema.with_columns(changes), numbers


def _on_cpu(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.cpu()
