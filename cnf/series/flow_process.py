"""A flow process: a flow given time over a Gaussian process, with exact densities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from cnf.datasets import ColumnType
from cnf.fields import ConcatSquash
from cnf.flow import Flow
from cnf.flow.batching import chunks
from cnf.layers import CNF
from cnf.series.base_process import BaseProcess
from cnf.series.batch import SeriesBatch
from cnf.series.checks import check_apart
from cnf.series.encoders.encoder import TimeFeatures
from cnf.series.prediction import (
    Prediction,
    SeriesScores,
    asked_times,
    check_draws,
    checked_levels,
    frame_names,
)
from cnf.series.recipe import SeriesRecipe
from cnf.series.scaling import SeriesScaling
from cnf.series.series import Series
from cnf.series.summaries import traits
from cnf.series.task import Task
from cnf.series.training import fit_series
from cnf.training.history import History
from cnf.utils.random import RowNoise, seeded

MAX_CELLS = 2**20  # of times and columns that are filtered together
MAX_ROWS = 2**14  # that are solved together
NODES = 7  # of the Gauss-Hermite rule for means
START_SERIES, START_ROWS = 256, 200  # and consecutive rows of each, that the base starts from

Array = NDArray[np.float64]


class FlowProcess(nn.Module):
    """A flow of time over Ornstein-Uhlenbeck or Wiener processes, x(t) = F(z(t) + ε; t).

    The coordinates of z are independent, of learned rates, and ε is white noise of learned scales
    (`cnf.series.base_process.BaseProcess`). With y_i = F⁻¹(x_i; t_i) and a scalar Kalman filter
    for each coordinate the likelihood of a series is exact,

        log p(x) = Σ_i log N(y_i; m_i, S_i) + log |det ∂y_i / ∂x_i|,

    m_i and S_i the mean and variance given what was observed before. F starts at the identity,
    where the model is the Gaussian process, fitted by likelihood. Predictions are draws of the
    exact conditional of z given the observations, by the Kalman smoother, carried through F.

    Args:
        columns: Names of the D columns.
        base: `"ou"`, a stationary base; or `"wiener"`, whose variance grows from the start.
        together: Whether one flow transforms all columns, which are then observed at once, and may
            depend on one another; else each column has a one-dimensional flow, with weights that
            all share but for its context, and columns may be observed at different times.
        hidden: Widths of the field's hidden layers.
        time_features: The number of features of time that condition the flow.
        flow: A flow to use, of 1 or D columns, given the features of time and, one by one, a
            one-hot vector of the column; made of the other arguments when None.
        solver: Any of `cnf.layers.SolverSettings`' attributes.

    Raises:
        ValueError: An argument is out of range. From a method: a row observes some columns alone
            though `together` is set, so that the density of a part is not to be had; a time is
            before the start; or columns differ from those of the model.
        cnf.ode.SolveError: From any method: a solve failed.

    Source: Deng et al. (2020), Modeling continuous stochastic processes with dynamic normalizing
    flows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> series = Series(("x",), np.arange(20), np.arange(0, 201, 10),
        ...                 np.tile(np.arange(10.0), 20), rng.normal(size=(200, 1)))
        >>> process = FlowProcess(["x"], hidden=(8,))
        >>> history = process.fit(series, steps=2)
        >>> process.log_prob(series).log_prob.shape
        (20,)
        >>> process.predict(series, [3.5, 12.0]).quantiles.shape
        (3, 20, 2, 1)
        >>> len(process.sample([0.0, 1.0], n=5))
        5
    """

    kind: ClassVar[str] = "flow_process"

    def __init__(
        self,
        columns: Sequence[str],
        base: str = "ou",
        together: bool = False,
        hidden: Sequence[int] = (32, 32),
        time_features: int = 16,
        flow: Flow | None = None,
        **solver: Any,
    ) -> None:
        super().__init__()
        self.columns, self.together, self.task = tuple(columns), together, Task()
        count = len(self.columns)
        if not count or time_features < 1:
            raise ValueError(
                "Expected at least one column and one feature of time; got "
                f"{count} and {time_features}"
            )
        self.scaling = SeriesScaling(self.columns)
        self.times = TimeFeatures(time_features)
        self.base = BaseProcess(base, count)
        dim, context = (count, time_features) if together else (1, time_features + count)
        if flow is None:
            field = ConcatSquash(dim, hidden, context_dim=context, zero_last=True)
            normal = Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1)
            flow = Flow(normal, [CNF(field, **solver)])
        if (flow.dim, flow.context_dim) != (dim, context):
            raise ValueError(
                f"Expected a flow of {dim} columns and a context of {context}; got {flow.dim} and "
                f"{flow.context_dim}"
            )
        self.flow = flow
        for part in (self.base, self.times):
            part.to(flow.like)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the weights' dtype and device."""
        return self.base.log_rate.new_empty(0)

    def inner_flows(self) -> dict[str, Flow]:
        """Return the flow."""
        return {"flow": self.flow}

    def config(self) -> dict[str, Any]:
        """Return the arguments but for the flow, the task and the clock, ready for JSON."""
        clock = self.scaling.clock
        return {
            "columns": [*self.columns],
            "process": self.base.name,
            "together": self.together,
            "time_features": self.times.linear.out_features,
            "task": asdict(self.task),
            "clock": None if clock is None else asdict(clock),
        }

    @classmethod
    def of(cls, config: Mapping[str, Any], parts: Mapping[str, Flow]) -> Self:
        """Return the model of a configuration, with weights to be loaded."""
        names = ("columns", "together", "time_features")
        options = {name: config[name] for name in names}
        model = cls(base=config["process"], flow=parts["flow"], **options)
        model.task, clock = Task(**config["task"]), config["clock"]
        model.scaling.clock = None if clock is None else ColumnType(**clock)
        return model

    def fit(self, series: Series, **options: Any) -> History:
        """Fit by maximum likelihood, from the Gaussian process of the base.

        Options, errors and the history are those of `cnf.series.fit_series`.
        """
        return fit_series(self, series, **options)

    def prepare(self, series: Series, task: Task) -> None:
        """Fit the scales and the base to training series, and keep the task.

        Raises:
            ValueError: Though `together` is set, columns are observed in parts, entries are to be
                hidden one by one, or a column has one value; or as `SeriesScaling.fit`.
        """
        series = self._whole(self.scaling.aligned(series))
        self.scaling.fit(series)
        self.task = task
        if self.together and (task.hide or not bool(self.scaling.varying.all())):
            got = f"hide={task.hide:g}" if task.hide else "a column of one value"
            raise ValueError(
                "Expected columns that vary, and none hidden, with together=True, where the "
                f"density of a part is not to be had; got {got}: leave it out, or make the model "
                "with together=False"
            )
        rng = np.random.default_rng(0)
        part = self.scaled(series[np.sort(rng.permutation(len(series))[:START_SERIES])])
        first = rng.integers(np.maximum(part.lengths - START_ROWS, 0) + 1)[part.owners]
        place = np.arange(len(part.times)) - part.offsets[part.owners]
        part = part.rows((first <= place) & (place < first + START_ROWS))
        batch = SeriesBatch.of(part, np.arange(len(part)), self.like.double())
        self.base.fit(batch.times, batch.values, batch.mask * self.scaling.varying)

    def scaled(self, series: Series) -> Series:
        """Return series in the model's units.

        Raises:
            ValueError: A row has a part of the columns though `together` is set; or as
                `SeriesScaling.scaled`.
        """
        return self.scaling.scaled(self._whole(self.scaling.aligned(series)))

    def _whole(self, series: Series) -> Series:
        """Return series, checked to have all columns at once where that is needed."""
        seen = series.observed
        part = seen.any(1) & ~seen.all(1)
        if self.together and part.any():
            row = int(part.argmax())
            missing = [name for name, each in zip(self.columns, seen[row], strict=True) if not each]
            owner = int(np.searchsorted(series.offsets, row, side="right")) - 1
            raise ValueError(
                "Expected all columns at once, since together=True transforms them together: the "
                f"density of a part is not to be had; got no {', '.join(missing)} at "
                f"{series.time_column} {series.times[row]:g} in series {series.name(owner)} "
                f"({part.sum()} such rows): fill them, leave the rows out, or make the model with "
                "together=False"
            )
        return series

    def loss(
        self, seen: SeriesBatch, wanted: SeriesBatch, done: float, recipe: SeriesRecipe
    ) -> Tensor:
        """Return −log p(wanted | seen but not wanted), the mean over entries, in nats.

        Where all that is seen is wanted as well it is that of the joint density, which has no
        weights: those of the mask count as 1 unless they are 0, so that of the recipe's
        `shown_weight` only 0 has an effect.
        """
        union = _Union.of(seen, wanted)
        log_prob = self._log_prob(union, self.flow.for_training())
        return -log_prob.sum() / (union.wanted * self.scaling.varying).sum().clamp(min=1)

    @torch.no_grad()
    def log_prob(self, series: Series, *, given: Series | None = None) -> SeriesScores:
        """Return log p of each series, exact, in nats and the data's own units.

        After the task `extrap` it is that of what follows the cut given what comes before. A column
        that had one value in all training series does not count.

        Args:
            series: Series to score.
            given: Other observations of the same series, to condition on.

        Raises:
            ValueError: The ids of `given` are others, an observation is given and scored, or an
                error of `scaled`.

        Example:
            >>> series = Series(("x",), np.array([7]), np.array([0, 2]), np.array([0.0, 1.0]),
            ...                 np.array([[1.0], [0.5]]))
            >>> process = FlowProcess(["x"])
            >>> process.prepare(series, Task())  # as a fit does first
            >>> process.log_prob(series).stderr
            array([0.])
        """
        series, cut = self.scaling.aligned(series), self.task.cut
        if cut is not None:
            given, series = (series, series.cut(cut)[1]) if given is None else (given, series)
            given = self.scaling.aligned(given).cut(cut)[0]
        wanted = self.scaled(series)
        seen = wanted if given is None else self.scaled(given)
        if given is not None:
            check_apart(seen, wanted)
        log_det, log_prob = self.scaling.log_det(), np.zeros(len(series))
        for places in self._parts(len(series), _longest(series) + _longest(seen)):
            batch = self._batch(wanted, places)
            union = _Union.of(batch if given is None else self._batch(seen, places), batch)
            units = (batch.mask * log_det).sum((1, 2))
            log_prob[places] = (self._log_prob(union, self.flow) + units).cpu().numpy()
        return SeriesScores(log_prob, np.zeros(len(series)))

    @torch.no_grad()
    def predict(
        self,
        series: Series,
        times: Series | ArrayLike,
        *,
        draws: int = 100,
        quantiles: Sequence[float] = (0.05, 0.5, 0.95),
        paths: bool = False,
        seed: int = 0,
    ) -> Prediction:
        """Predict the columns at times, given what is seen of series.

        After the task `extrap`, what comes before the cut is seen; else all of the series. Where
        each column has a flow, means are by a Gauss-Hermite rule and quantiles exact, since such
        flows are monotone; together, both are those of draws.

        Args:
            series: The series.
            times: Times of all series (T,), of each (n, T) in any order, or series of the same ids.
            draws: Number of joint draws of all times.
            quantiles: Levels of the quantiles of observations, with their noise.
            paths: Whether to keep the draws of the curves F(z(t); t).
            seed: Seed of the draws, which depend on a series and not on the others.

        Raises:
            ValueError: A time is before the start or not finite, the columns or ids are others, a
                level is not between 0 and 1, or there is no draw.
        """
        check_draws(draws)
        levels = checked_levels(quantiles)
        series = self.scaling.aligned(series)
        if isinstance(times, Series):
            times = times if self.scaling.clock is None else times.with_clock(self.scaling.clock)
        own, lengths = asked_times(times, series)
        asked = torch.from_numpy(self.scaling.times(own, series))
        self.scaling.warn_far(asked.numpy())
        cut = self.task.cut
        seen = self.scaled(series if cut is None else series.cut(cut)[0])
        shape = (len(series), asked.shape[1], len(self.columns))
        mean, bands = np.empty(shape), np.empty((len(levels), *shape))
        curves = np.empty((draws, *shape)) if paths else None
        copies = 1 + draws if paths or self.together else 1 + len(levels) + NODES
        for places in self._parts(len(series), _longest(seen) + asked.shape[1], copies):
            batch = self._batch(seen, places)
            source = RowNoise(seed, torch.from_numpy(traits(seen[places])))
            noise = _Noise(source, draws, torch.from_numpy(lengths[places]))
            at = asked[places].to(batch.times)
            found = self._predicted(batch, at, noise, torch.from_numpy(levels).to(at), paths)
            mean[places], bands[:, places], drawn = (self._own_units(each) for each in found)
            if curves is not None:
                curves[:, places] = drawn
        return Prediction(
            self.columns,
            series.ids,
            own,
            lengths,
            mean,
            bands,
            levels,
            curves,
            **frame_names(series),
        )

    @torch.no_grad()
    def sample(self, times: ArrayLike, n: int = 1, seed: int = 0) -> Series:
        """Return n new series of observations at times (T,), which increase.

        Raises:
            ValueError: The times are none, do not increase, or begin before the start, or n is
                below 1.
        """
        own, scaled = self.scaling.sample_times(times, n)
        self.scaling.warn_far(scaled)
        at = torch.from_numpy(scaled).to(self.like.device).unsqueeze(0)
        chain = self.base.chain(at)
        none = torch.zeros_like(chain.spread)
        kernel = chain.backward_kernel(chain.filter(none, none))
        with seeded(seed, self.like.device):
            noise, measured = torch.randn(2, n, *none.shape, dtype=at.dtype, device=at.device)
        states = kernel.draws(noise) + chain.noise.sqrt() * measured
        values = self._own_units(self._pushed(states, at))[:, 0]
        return Series(
            self.columns,
            np.arange(n),
            np.arange(n + 1) * len(own),
            np.tile(own, n),
            values.reshape(n * len(own), -1),
            clock=self.scaling.clock or ColumnType(),
        )

    def _batch(self, scaled: Series, places: NDArray[np.int64]) -> SeriesBatch:
        """Return some series, in double precision, without columns of one value."""
        batch = SeriesBatch.of(scaled, places, self.like.double())
        return replace(batch, mask=batch.mask * self.scaling.varying)

    def _parts(self, count: int, times: int, copies: int = 1) -> Iterator[NDArray[np.int64]]:
        """Yield the places of series, of so many times, that are computed at once."""
        size = max(1, MAX_CELLS // (times * len(self.columns) * copies))
        for begin in range(0, count, size):
            yield np.arange(begin, min(begin + size, count))

    def _log_prob(self, union: _Union, flow: Flow) -> Tensor:
        """Return log p of what is wanted given the rest, (B,), in the model's units."""
        wanted, given = (each * self.scaling.varying for each in (union.wanted, union.given))
        both = wanted + given
        y, log_det = self._pulled(flow, union.times, union.values, both)
        chain = self.base.chain(union.times)
        log_prob = chain.filter(y, both.double()).log_prob + log_det * wanted
        if given.any():
            log_prob = log_prob - chain.filter(y, given.double()).log_prob
        return log_prob.sum((1, 2))

    def _pulled(
        self, flow: Flow, times: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return y = F⁻¹(x; t) and the log-determinant of each entry, 0 without one.

        Together, the log-determinant stands in the first column. Both are (B, T, D), double.
        """
        y, log_det = torch.zeros((2, *values.shape), dtype=torch.float64, device=values.device)
        place = (mask[..., 0] if self.together else mask).nonzero(as_tuple=True)
        if not len(place[0]):
            return y, log_det
        context = self.times(times.to(self.like))[place[:2]]
        rows = values[place].to(self.like)
        if not self.together:
            rows, context = rows.unsqueeze(1), self._with_columns(context, place[2])
        pulled = flow.pull(rows, context)
        value = pulled.value if self.together else pulled.value.squeeze(1)
        entry = (*place[:2], torch.zeros_like(place[0])) if self.together else place
        determinants = log_det.index_put(entry, pulled.log_det.double())
        return y.index_put(place, value.double()), determinants

    def _pushed(self, y: Tensor, times: Tensor) -> Tensor:
        """Return x = F(y; t), (K, B, T, D) at times (B, T), in double precision."""
        width = len(self.columns)
        rows = y.reshape(-1, width if self.together else 1).to(self.like)
        features = self.times(times.to(self.like)).flatten(0, 1)
        found = []
        for part in chunks(len(rows), MAX_ROWS):
            number = torch.arange(part.start, part.stop, device=rows.device)
            if self.together:
                context = features[number % len(features)]
            else:
                context = features[number // width % len(features)]
                context = self._with_columns(context, number % width)
            found.append(self.flow.transport(rows[part], context))
        return torch.cat(found).view(y.shape).double() * self.scaling.varying

    def _with_columns(self, context: Tensor, column: Tensor) -> Tensor:
        """Return features of time with a one-hot vector of the column."""
        return torch.cat([context, torch.eye(len(self.columns)).to(context)[column]], 1)

    def _predicted(
        self, batch: SeriesBatch, at: Tensor, noise: _Noise, levels: Tensor, paths: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return means, quantiles and draws of curves at times (B, T), in the model's units."""
        empty = torch.zeros(*at.shape, len(self.columns)).to(at)
        union = _Union.of(batch, replace(batch, times=at, values=empty, mask=empty))
        chain = self.base.chain(union.times)
        y, _ = self._pulled(self.flow, union.times, union.values, union.given)
        kernel = chain.backward_kernel(chain.filter(y, union.given))
        curves = empty
        if paths or self.together:
            states = union.of_wanted(kernel.draws(noise.of_union(batch, union)))
            curves = self._pushed(states, at) if paths else empty
        if self.together:
            measured = states + chain.noise.sqrt() * noise.of_wanted(states[0])
            x = self._pushed(measured, at)
            return x.mean(0), x.quantile(levels, 0), curves
        mean, variance = (union.of_wanted(each) for each in kernel.moments())
        nodes, weights = (
            torch.from_numpy(each).to(at) for each in np.polynomial.hermite_e.hermegauss(NODES)
        )
        points = torch.cat([torch.special.ndtri(levels), nodes]).view(-1, 1, 1, 1)
        x = self._pushed(mean + (variance + chain.noise).sqrt() * points, at)
        values, rest = x.split([len(levels), NODES])
        return torch.tensordot(weights / weights.sum(), rest, 1), values, curves

    def _own_units(self, scaled: Tensor) -> Array:
        return self.scaling.values(scaled.cpu().numpy())


@dataclass(frozen=True, eq=False)
class _Union:
    """The observations that are seen and those that are wanted, in order of time.

    Attributes:
        times: Times of both, (B, T).
        values: Observations, (B, T, D).
        wanted: 1 where an entry is wanted, 0 elsewhere, (B, T, D).
        given: 1 where one is seen but not wanted, (B, T, D).
        places: The places of the times of what is wanted, (B, times).
        shown: Those of what is seen.
    """

    times: Tensor
    values: Tensor
    wanted: Tensor
    given: Tensor
    places: Tensor
    shown: Tensor

    @staticmethod
    def of(seen: SeriesBatch, wanted: SeriesBatch) -> _Union:
        """Return the union of two batches of the same series."""
        asked = (wanted.mask > 0).to(seen.mask)  # which may have weights
        if seen.times.shape == wanted.times.shape and torch.equal(seen.times, wanted.times):
            values = torch.where(asked > 0, wanted.values, seen.values)
            given = seen.mask * (1 - asked)
            places = torch.arange(seen.times.shape[1], device=asked.device).expand_as(seen.times)
            return _Union(seen.times, values, asked, given, places, places)
        same = (seen.times.unsqueeze(2) == wanted.times.unsqueeze(1)).to(asked)
        given = seen.mask * (same @ asked == 0)
        times, order = torch.cat([seen.times, wanted.times], 1).sort(dim=1, stable=True)
        index = order.unsqueeze(-1).expand(-1, -1, asked.shape[-1])
        none, missing = torch.zeros_like(asked), torch.zeros_like(given)
        pairs = (seen.values, wanted.values), (missing, asked), (given, none)
        values, asked, given = (torch.cat(pair, 1).gather(1, index) for pair in pairs)
        shown, places = order.argsort(1).tensor_split([seen.times.shape[1]], 1)
        return _Union(times, values, asked, given, places, shown)

    def of_wanted(self, states: Tensor) -> Tensor:
        """Return the states (…, B, T, D) at the times of what is wanted."""
        index = self.places.unsqueeze(-1).expand(*states.shape[:-2], -1, states.shape[-1])
        return states.gather(-2, index)


@dataclass(frozen=True, eq=False)
class _Noise:
    """Normal noise of draws, a function of each series: rows of padding have that of the last.

    Attributes:
        source: The source, whose rows are the series.
        draws: The number K of draws.
        lengths: The numbers of times that are wanted of each, (B,).
    """

    source: RowNoise
    draws: int
    lengths: Tensor

    def of_union(self, seen: SeriesBatch, union: _Union) -> Tensor:
        """Return noise of all times, (K, B, T, D)."""
        noise = union.values.new_zeros(*union.times.shape, self.draws, union.values.shape[-1])
        for places, lengths in ((union.shown, seen.lengths), (union.places, self.lengths)):
            own = self._rows(places.shape[1], noise, lengths)
            noise.scatter_(1, places[..., None, None].expand_as(own), own)
        return noise.permute(2, 0, 1, 3)

    def of_wanted(self, like: Tensor) -> Tensor:
        """Return noise of the times that are wanted, (K, B, times, D), for states (B, times, D)."""
        noise = self._rows(like.shape[1], like[:, :, None], self.lengths)
        return noise.permute(2, 0, 1, 3)

    def _rows(self, count: int, like: Tensor, lengths: Tensor) -> Tensor:
        shape = (len(like), count, self.draws, like.shape[-1])
        row = torch.arange(count).minimum((lengths.cpu() - 1).clamp(min=0)[:, None])
        return self.source.normal(shape).take_along_dim(row[..., None, None], 1).to(like)


def _longest(series: Series) -> int:
    return max(1, int(series.lengths.max(initial=1)))
