"""Checks of a model of mixed rows: of masses, answers to questions, draws, and its flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import inf, nan, prod

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from cnf.diagnostics.checks import check
from cnf.diagnostics.consistency import DEFAULT_SPLITS, consistency
from cnf.diagnostics.context import MAX_SOLVE_ROWS, seeded_for
from cnf.diagnostics.densities import (
    INTEGRAL_LIMIT,
    MAX_CONTEXTS,
    agreement,
    beside_others,
    by_draws,
    integral_finding,
)
from cnf.diagnostics.integral import Integral, mean_ratio
from cnf.diagnostics.report import FAIL_ERRORS, WARN_ERRORS, Finding, Findings, Limit
from cnf.diagnostics.row_context import RowContext
from cnf.diagnostics.solves import NOISE_LIMIT, ROWS_LIMIT, told_from_data
from cnf.tables.code_network import CodeNetwork
from cnf.tables.coordinates import NORMAL_CONSTANT, Coordinate, Counted, count_without
from cnf.training.data import Rows

Array = NDArray[np.float64]

# Units of a column's spread: the map within bins is in double precision.
BINS_LIMIT = Limit(1e-6, 1e-3)
# Distance from 1 of sums of shares in single precision.
SUM_LIMIT = Limit(1e-4, 1e-2)
MASS_DRAWS = 1000  # where there are too many codes for a sum over all
BIN_NODES = 400  # of an integral over a bin, whose error is below a fifth of the limit
BIN_REACH = 6.0  # of z in these, beyond which is 2e-9 of the mass
CELL_NODES = 4  # of noise on a whole number
# Nats in the mean for each column: every order is a distribution of its own, and drawing and log p
# take one order alone, so that a difference is a matter of the fit and never an error.
ORDER_LIMIT = Limit(0.1, inf)
ANSWER_COLUMNS = 5  # at most, whose conditionals are integrated and drawn from
ANSWER_NODES = 400  # of an integral over all bins of a column
MIN_ANSWER_NODES = 40  # of an integral over one of them
ANSWER_DRAWS = 400
# Kolmogorov and Smirnov's √n max |F_n − F|: by chance above 2.2 in one of 8,000, above 3 never.
ANSWER_LIMIT = Limit(2.2, 3.0)
HIDDEN_SHARE = 0.3  # of the cells that are imputed
# Standard deviations of log p: above a fifth the rows are likelier, or less so, than draws are; at
# three they have hardly anything in common, as with an overfit or a collapsed model.
DRAWS_LIMIT = Limit(0.2, 3.0)
MIN_DEVIATION = 0.1  # nats, of log p where all rows have about the same


def check_precision(ctx: RowContext) -> Findings:
    """Check log p in single precision against double precision."""
    dtype = ctx.model.network.bias.dtype
    if dtype != torch.float32:
        yield f"The model is in {dtype}: single precision is not checked."
        return
    double = ctx.log_prob_by(ctx.model.in_double(), ctx.rows)
    difference = ctx.log_prob_by(ctx.model, ctx.rows) - double
    yield from agreement(ctx, "log p in single precision", difference, "Against double precision.")


def check_batch(ctx: RowContext) -> Findings:
    """Check that the log p of a row does not depend on the other rows."""
    yield beside_others(lambda rows: ctx.log_prob_by(ctx.model, rows), ctx.rows, ctx.draws.x)


def check_round_trip(ctx: RowContext) -> Findings:
    """Check that rows are restored from their codes and places within bins.

    Numbers between those of a grid, and angles of other turns, count as the nearest ones.
    """
    coding, coded = ctx.model.coding, ctx.coded
    x, restored = coding.nearest(ctx.rows.x.cpu().numpy()), coding.decode(coded.codes, coded.z)
    real = np.zeros(x.shape, np.bool_)
    for i, each in enumerate(coding.coordinates):
        real[:, each.place] = coded.present[:, i] & (not isinstance(each, Counted))
    different = torch.from_numpy((restored != x) & ~(np.isnan(restored) & np.isnan(x)) & ~real)
    yield Finding.of(
        "whole numbers, categories, constants",
        float(different.double().mean()),
        NOISE_LIMIT,
        "The share of the entries that are not restored from their codes.",
        ctx.places(different.any(1)),
    )
    spread = np.nanstd(x, 0)
    spread = np.where(spread > 0, spread, 1.0)
    errors = torch.from_numpy(np.abs(np.where(real, restored - x, 0.0)) / spread).amax(1)
    yield Finding.of(
        "round trip of numbers in bins",
        float(errors.max()),
        BINS_LIMIT,
        "The largest error in units of a column's spread.",
        ctx.largest(errors) if errors.any() else [],
    )


def check_total_mass(ctx: RowContext) -> Findings:
    """Check that the masses of all codes sum to 1: of each, or by draws in another way.

    The draws are by softmaxes of `CodeNetwork.logits`, whose masses therefore sum to 1: the mean
    of p(d) over the mass of each draw estimates Σ p(d).
    """
    if ctx.model.values is not None:  # whose conditionals are averages: see `check_answers`
        return
    network = ctx.model.network
    given = ctx.codes[:, : network.given]
    asked = network.sizes[network.given :]
    contexts = given[: MAX_CONTEXTS if network.given else 1]
    if prod(asked) * len(contexts) <= ctx.points:
        every = torch.cartesian_prod(*map(torch.arange, asked)).reshape(-1, len(asked)).to(given)
        masses = [
            network.log_prob(torch.cat([one.expand(len(every), -1), every], 1)).double().exp().sum()
            for one in contexts
        ]
        found = Integral(float(masses[_worst(masses)]), 0.0, inf, len(every) * len(contexts))
        how = f", by the sum over all {len(every)} combinations"
        how += f", the worst of {len(contexts)} contexts" if network.given else ""
    else:
        repeated = torch.arange(min(max(ctx.points, 2), MASS_DRAWS), device=given.device) % len(
            given
        )
        codes, log_mass = _drawn(network, given[repeated], ctx.seed)
        ratios = network.log_prob(codes).double() - log_mass
        found = mean_ratio(ratios.cpu().numpy())
        how = f", {by_draws(found)}"
    yield integral_finding("total mass of the codes", found, how)


def _worst(masses: Sequence[Tensor]) -> int:
    """Return the place of the number that is farthest from 1, NaN before others."""
    return int((torch.stack([*masses]) - 1).abs().argmax())


@torch.no_grad()
def _drawn(network: CodeNetwork, given: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return draws of codes given contexts, (rows, K), and the logs of their masses, (rows,)."""
    generator = torch.Generator(given.device).manual_seed(seed)
    codes = F.pad(given, (0, len(network.sizes) - network.given))
    places = torch.arange(len(network.sizes), device=given.device)
    log_mass = torch.zeros(len(given), dtype=torch.float64, device=given.device)
    for k in range(network.given, len(network.sizes)):
        shares = network.logits(codes, places < k, k).double().softmax(1)
        codes[:, k] = torch.multinomial(shares, 1, generator=generator)[:, 0]
        log_mass += shares.gather(1, codes[:, k : k + 1])[:, 0].log()
    return codes, log_mass


@torch.no_grad()
def check_conditionals(ctx: RowContext) -> Findings:
    """Check that each column's shares sum to 1, given random other codes of a row."""
    if ctx.model.values is not None:  # whose conditionals are averages: see `check_answers`
        return
    network, generator = ctx.model.network, torch.Generator().manual_seed(ctx.seed)
    sums = []
    for k in range(network.given, len(network.sizes)):
        row = int(torch.randint(len(ctx), (), generator=generator))
        codes = ctx.codes[row].repeat(network.sizes[k], 1)
        codes[:, k] = torch.arange(network.sizes[k])
        visible = torch.rand(len(network.sizes), generator=generator) < 0.5
        visible[k] = False
        costs = network(codes, visible.to(codes.device))[:, k - network.given]
        sums.append(costs.double().neg().exp().sum())
    worst = _worst(sums)
    place = ctx.model.coding.coordinates[worst].place
    yield Finding.of(
        "sums of conditionals",
        float(abs(sums[worst] - 1)),
        SUM_LIMIT,
        f"The largest distance from 1, given random other columns: in column {place}, counted "
        "from 0.",
    )


def check_bins(ctx: RowContext) -> Findings:
    """Check that the density within each bin, where z is standard normal, integrates to 1."""
    binned = [each for each in ctx.model.coding.coordinates if each.first_bin < each.size]
    if not binned:
        yield "No column has bins: there is no density within them to integrate."
        return
    found = [torch.from_numpy(bin_masses(each, ctx.model.noisy and each.noisy)) for each in binned]
    masses = [each[_worst([*each])] for each in found]
    worst = _worst(masses)
    yield Finding.of(
        "integrals over bins",
        float(abs(masses[worst] - 1)),
        INTEGRAL_LIMIT,
        "The largest distance from 1 of the integral of a column's density over one of its bins: "
        f"in column {binned[worst].place}, counted from 0.",
    )


def bin_masses(coordinate: Coordinate, by_noise: bool = False) -> Array:
    """Return the integrals of a column's density over its bins, shape (bins,).

    Args:
        coordinate: The column's coordinate, whose places within bins are standard normal.
        by_noise: Whether numbers on a grid have the mean density over noise, and not their mass.

    Example:
        >>> from cnf.tables import Column, Schema
        >>> from cnf.tables.coding import Coding
        >>> rng = np.random.default_rng(0)
        >>> schema = Schema((Column("x", "real"),))
        >>> coding = Coding.fit(schema, rng.normal(size=(1000, 1)), bins=4)
        >>> bin_masses(coding.coordinates[0]).round(2).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    bins = np.arange(coordinate.first_bin, coordinate.size)
    numbers, widths = bin_cells(coordinate, BIN_NODES)
    masses = np.zeros(coordinate.size)
    nodes = (np.arange(CELL_NODES) + 0.5) / CELL_NODES
    for node in nodes:
        coded = coordinate.encode(numbers, np.full(len(numbers), node))
        noisy = coded.log_det - 0.5 * coded.z**2 - NORMAL_CONSTANT
        density = np.where(coded.present, np.exp(noisy if by_noise else coded.log_alone), 0.0)
        masses += np.bincount(coded.codes, density * widths, coordinate.size) / CELL_NODES
    return masses[bins]


def bin_cells(coordinate: Coordinate, nodes: int) -> tuple[Array, Array]:
    """Return numbers in a column's bins, and the widths of the cells around them, (numbers,).

    With a step the cells' ends are between the numbers.

    Args:
        coordinate: The column's coordinate.
        nodes: The number of cells in each bin, twice as many at most with a step.
    """
    bins = np.arange(coordinate.first_bin, coordinate.size)
    z = np.linspace(-BIN_REACH, BIN_REACH, 2 * nodes + 1)
    reached = coordinate.decode(np.repeat(bins, len(z)), np.tile(z, len(bins)))
    rows = reached.reshape(len(bins), len(z))
    cells = [(row[1::2], np.diff(row[::2])) for row in rows]
    if isinstance(coordinate, Counted):
        cells = [_whole_cells(np.unique(row), np.array(coordinate.values)) for row in rows]
    empty = np.zeros(0)
    found = zip((empty, empty), *cells, strict=True)
    numbers, widths = (np.concatenate(each) for each in found)
    return numbers, widths


def _whole_cells(numbers: Array, masses: Array) -> tuple[Array, Array]:
    """Return whole numbers, and how many others without a mass are nearest to each."""
    half = np.diff(count_without(numbers, masses)) / 2
    return numbers, np.concatenate([[0.5], half]) + np.concatenate([half, [0.5]])


@torch.no_grad()
def check_orders(ctx: RowContext) -> Findings:
    """Check the log-mass of codes, taken in the columns' order, against random orders."""
    if ctx.model.values is not None:  # whose conditionals are averages: see `check_answers`
        return
    network, codes = ctx.model.network, ctx.codes
    shape = (len(codes), len(network.sizes) - network.given)
    order = torch.rand(shape, generator=torch.Generator().manual_seed(ctx.seed)).argsort(1)
    ranks = F.pad(order, (network.given, 0), value=-1).to(codes.device)
    found = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
    for step in range(shape[1]):
        costs = network(codes, ranks < step)
        found -= costs[(ranks == step)[:, network.given :]]
    difference = (network.log_prob(codes) - found).cpu()
    mean, deviation = float(difference.mean()), float(difference.std(correction=0))
    yield Finding.of(
        "log p in other orders",
        abs(mean) / shape[1],
        ORDER_LIMIT,
        f"In nats for each column, in the mean. A row's log p is {mean:+.2g} nats from that in "
        f"random orders, with a standard deviation of {deviation:.2g}. Log p and draws take the "
        "columns' order, and are exact in it; longer training brings the others closer.",
        ctx.largest(difference.abs()),
    )


def check_consistency(ctx: RowContext) -> Findings:
    """Check log p of rows against that of two parts, of the second given the first."""
    if ctx.model.flow is not None:
        yield "A flow within bins answers no questions about parts of rows: these are not checked."
        return
    found = consistency(ctx.model, ctx.rows.x, ctx.rows.context, seed=ctx.seed)
    yield Finding.of(
        "consistency gap",
        found.mean,
        ORDER_LIMIT,
        "How far log p of a row is from that of a part and of the rest given it, in nats for each "
        f"column: the mean over {DEFAULT_SPLITS} splits of the columns. Its 95th percentile is "
        f"{found.quantile95:.2g}, and the mean with its sign {found.bias:+.2g}. Each of the three "
        "is a density, exact in its stated order; longer training brings them closer.",
    )


@torch.no_grad()
def check_answers(ctx: RowContext) -> Findings:
    """Check that the density of a cell given another one integrates to 1, and draws given all."""
    if ctx.model.flow is not None:
        return
    rng, coordinates = np.random.default_rng(ctx.seed), ctx.model.coding.coordinates
    masses, distances, places = [], [], []
    for k in rng.permutation(len(coordinates))[:ANSWER_COLUMNS]:
        row = int(rng.integers(len(ctx)))
        others = [each.place for each in coordinates if each is not coordinates[k]]
        # Gaps that are a value cannot be marginalised: they are given.
        some = [*others[:1], *(each.place for each in coordinates if each.gaps)]
        masses.append(float(_Answer(ctx, row, coordinates[k], some).masses.sum()))
        distances.append(_Answer(ctx, row, coordinates[k], others).distance())
        places.append(coordinates[k].place)
    worst = _worst([*map(torch.tensor, masses)])
    yield Finding.of(
        "integrals of conditionals",
        abs(masses[worst] - 1),
        INTEGRAL_LIMIT,
        "The largest distance from 1 of the integral of a cell's density given another cell: in "
        f"column {places[worst]}, counted from 0.",
    )
    worst = int(np.argmax(distances))
    yield Finding.of(
        "draws of conditionals",
        distances[worst],
        ANSWER_LIMIT,
        f"The distance of {ANSWER_DRAWS} draws of a cell given all others from its density, by "
        f"Kolmogorov and Smirnov, as a multiple of 1/√n: the largest, in column {places[worst]}, "
        "counted from 0.",
    )


class _Answer:
    """The distribution of a cell given others of a row, by the masses of the cells of a grid."""

    def __init__(
        self, ctx: RowContext, row: int, coordinate: Coordinate, given: Sequence[int]
    ) -> None:
        self.ctx, self.coordinate = ctx, coordinate
        self.row = ctx.rows[row : row + 1]
        self.given = torch.zeros(ctx.model.dim, dtype=torch.bool, device=self.row.x.device)
        self.given[[*given]] = True
        self.given[coordinate.place] = False
        nodes = max(ANSWER_NODES // coordinate.size, MIN_ANSWER_NODES)
        numbers, widths = bin_cells(coordinate, nodes)
        single = np.array([*coordinate.values, *[nan] * coordinate.gaps], np.float64)
        numbers, widths = (
            np.concatenate(each) for each in ((single, numbers), (np.ones(len(single)), widths))
        )
        order = np.argsort(numbers, kind="stable")
        self.numbers, self.widths = numbers[order], widths[order]

    def _rows(self, numbers: Array) -> Rows:
        """Return rows with numbers in the cell, and no others than those given."""
        index = torch.zeros(len(numbers), dtype=torch.int64, device=self.row.x.device)
        rows = self.row[index]
        x = rows.x.masked_fill(~self.given, nan)
        x[:, self.coordinate.place] = torch.from_numpy(numbers).to(x)
        return replace(rows, x=x)

    @cached_property
    def masses(self) -> Array:
        """The masses of the cells, which are at increasing numbers."""
        rows = self._rows(self.numbers)
        found = self.ctx.model.log_prob(
            rows.x,
            rows.context,
            given=self.given,
            max_batch=MAX_SOLVE_ROWS,
            seed=self.ctx.seed,
            draws=CELL_NODES,
        )
        return np.asarray(found.exp().double().cpu().numpy() * self.widths)

    def distance(self) -> float:
        """Return the Kolmogorov-Smirnov distance of draws from the masses, times √n."""
        rows = self._rows(np.full(ANSWER_DRAWS, nan))
        with seeded_for(self.ctx.model, self.ctx.seed):
            x = self.ctx.model.impute(rows.x, rows.context, given=self.given)
        drawn = np.sort(x[:, self.coordinate.place].double().cpu().numpy())
        below, to = (
            np.searchsorted(drawn, self.numbers, side=side) / len(drawn)
            for side in ("left", "right")
        )
        ends = np.cumsum(self.masses)
        # A cell is around its number, and so are the draws in it: their share up to the number is
        # between the masses below the cell and up to its end.
        beyond = np.maximum(to - ends, ends - self.masses - below)
        return float(np.sqrt(len(drawn)) * beyond.max())


@torch.no_grad()
def check_imputation(ctx: RowContext) -> Findings:
    """Check that imputing keeps the cells that are there and fills the others."""
    if ctx.model.flow is not None:
        return
    rows, model = ctx.rows, ctx.model
    generator = torch.Generator().manual_seed(ctx.seed)
    hidden = torch.rand(rows.x.shape, generator=generator) < HIDDEN_SHARE
    hidden = hidden.to(rows.x.device)
    with seeded_for(model, ctx.seed):
        found = model.impute(rows.x.masked_fill(hidden, nan), rows.context)
    possible = ctx.log_prob_by(model, replace(rows, x=found)).isfinite()
    kept = (found == rows.x) | (found.isnan() & rows.x.isnan()) | hidden
    wrong = ~kept.all(1).cpu() | ~possible
    yield Finding.of(
        "rows that imputing does not complete",
        float(wrong.double().mean()),
        ROWS_LIMIT,
        f"The share of rows, with {HIDDEN_SHARE:.0%} of their cells hidden, in which a cell that "
        "is there changes or what is drawn has no log p.",
        ctx.places(wrong),
    )


def check_draws(ctx: RowContext) -> Findings:
    """Check the mean log p of draws against that of the data."""
    data, draws = (ctx.log_prob_by(ctx.model, each) for each in (ctx.rows, ctx.draws))
    without = ~draws.isfinite()
    yield Finding.of(
        "draws without a log p",
        float(without.double().mean()),
        ROWS_LIMIT,
        "The share of draws whose own log p is no number.",
    )
    if without.all():
        return
    draws = draws[~without]
    both = torch.stack([each.var(correction=0) for each in (data, draws)])
    deviation = max(float(both.mean().sqrt()), MIN_DEVIATION)
    difference = float(data.mean() - draws.mean())
    share = (2 / len(data)) ** 0.5  # the standard error as a share of the deviation
    error = share * deviation
    limit = Limit(
        max(DRAWS_LIMIT.good, WARN_ERRORS * share), max(DRAWS_LIMIT.bad, FAIL_ERRORS * share)
    )
    yield Finding.of(
        "log p of data against draws",
        abs(difference) / deviation,
        limit,
        f"In standard deviations of log p: in the mean, the data's is {difference:+.2g} ± "
        f"{error:.2g} nats from that of draws, z = {difference / error:+.1f}. Below: draws are too "
        "narrow, as after overfitting: train for less, or on more rows. Above: they are too broad: "
        "train for longer.",
    )


def check_two_samples(ctx: RowContext) -> Findings:
    """Check whether a classifier can tell draws from data."""
    yield from told_from_data(ctx, ctx.draw)


def check_flow(ctx: RowContext) -> Findings:
    """Put the flow within bins, given the codes, through all checks of a flow."""
    model, data = ctx.model, ctx.data
    if model.flow is None:
        return
    noise = np.random.default_rng(ctx.seed).random(data.x.shape)
    coded = model.coding.encode(data.x.cpu().numpy(), noise)
    given, placed = model.encode_context(data.context, len(data))
    z, context = model.flow_rows(coded, given)
    present = context[:, -z.shape[1] :].bool()
    used = present.any(1) & torch.from_numpy(coded.known.all(1) & placed).to(z.device)
    if not used.any():
        yield "No row has a value within a bin: the flow is not checked."
        return
    # Absent places are 0 in the data, and drawn from the base as all others.
    with seeded_for(model, ctx.seed):
        z = torch.where(present, z, torch.randn_like(z))
    numbers = {"rows": len(ctx), "points": ctx.points, "seed": ctx.seed}
    report = check(model.flow, z[used], context[used], **numbers)
    places = used.nonzero()[:, 0].tolist()
    for found in report.findings:
        rows = tuple(places[row] for row in found.rows)
        yield replace(found, name=f"flow: {found.name}", rows=rows)
    for note in report.notes:
        yield f"Of the flow: {note}"
