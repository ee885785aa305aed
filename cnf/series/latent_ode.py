"""A latent ODE: series of irregular times as noisy views of a path of latent states."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import ceil, log, pi
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cnf.datasets import ColumnType
from cnf.flow import Flow
from cnf.ode import Dynamics, solve
from cnf.ode.tableaus import find_tableau
from cnf.series import EVENTS
from cnf.series.batch import SeriesBatch
from cnf.series.checks import check_apart, check_from
from cnf.series.decoder import DECODER_BASELINES, Decoder, OwnMean
from cnf.series.encoders import ENCODERS
from cnf.series.laplace import laplace
from cnf.series.latent_field import LatentField
from cnf.series.likelihoods import NOISES
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
from cnf.series.summaries import Classifier, traits
from cnf.series.task import Task
from cnf.series.training import fit_series
from cnf.training.history import History
from cnf.utils.random import RowNoise, seeded
from cnf.variational import FlowPosterior

POSTERIORS = ("gaussian", "flow")
MAX_CELLS = 2**22  # of draws, times and columns that are predicted at once
SEEN_WEIGHT = 0.1  # of entries that the baseline sees, where others are hidden
STEPS_OF_A_TURN = 4.0  # of the solver, of the fastest latents at the start
PASS_SERIES = 1000  # series in a pass
Array = NDArray[np.float64]
Label = str | int | float


class LatentODE(nn.Module):
    """A model of series whose latent state follows an ODE, observed at any times with noise.

        z₀ ~ N(0, I),   dz/dt = f(z),   x_d(t) = decoder_d(z(t)) + σ_d ε

    An encoder of what is seen gives an approximate posterior q(z₀ | seen). Entries that were not
    observed have no likelihood, which is that of the observed ones: they are independent given the
    path. The state starts at the start of the training series' times.

    Args:
        columns: Names of the columns.
        latent_dim: Size of z.
        encoder: Name in `cnf.series.ENCODERS`.
        posterior: `"gaussian"`, or `"flow"` for a `cnf.FlowPosterior`.
        likelihood: Name in `cnf.series.likelihoods.NOISES`: `"normal"` or `"student"`.
        baseline: What the decoder corrects: `"mean"`, the mean of each column as far as it is seen;
            `"last"`, the last value seen, which decays to that mean; `"local"`, a mean of what is
            seen near a time, for tasks that hide or cut; `"none"`. All are the training mean where
            nothing is seen. With a baseline `log_prob` needs `given`, and intervals are too narrow
            after a task that neither hides nor cuts, since a baseline sees what it is scored by.
        state_noise: Whether σ depends on the state too.
        events: Name in `cnf.series.EVENTS` of a likelihood of the times at which columns are
            observed, given the path, or None. A window for events ends at the last time of a
            series. They are left out where the entries that are scored were hidden, in validation
            too.
        labels: Classes of the series, for `classify`.
        static: Names of the static columns, which the encoder sees and the decoder's means depend
            on.
        hidden: Width of the encoder, the decoder and the heads.
        field: Widths of the field's hidden layers.
        timed: Whether the field depends on time.
        solver: Settings of `with_solver`.

    Raises:
        ValueError: A name is unknown, a number out of range, or a column is named twice.

    Source: Chen et al. (2018), Neural ordinary differential equations, section 5; Rubanova et al.
    (2019), Latent ODEs for irregularly-sampled time series.

    Example:
        >>> import pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> t = np.sort(rng.uniform(0, 6, (40, 9)), axis=1)
        >>> frame = pd.DataFrame({"id": np.arange(40).repeat(9), "time": t.ravel()})
        >>> frame["x"] = np.sin(frame.time + frame.id)
        >>> series = Series.from_frame(frame, id="id", time="time")
        >>> model = LatentODE(("x",), latent_dim=4, hidden=16, field=(16,))
        >>> history = model.fit(series, steps=3)
        >>> prediction = model.predict(series[:2], [1.0, 7.0], draws=10)
        >>> prediction.mean.shape, prediction.quantiles.shape
        ((2, 2, 1), (3, 2, 2, 1))
    """

    kind: ClassVar[str] = "latent_ode"

    def __init__(
        self,
        columns: Sequence[str],
        latent_dim: int = 16,
        *,
        encoder: str = "set",
        posterior: str = "gaussian",
        likelihood: str = "normal",
        baseline: str = "mean",
        state_noise: bool = False,
        events: str | None = None,
        labels: Sequence[Label] | None = None,
        static: Sequence[str] = (),
        hidden: int = 64,
        field: Sequence[int] = (64, 64),
        timed: bool = False,
        solver: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_names(encoder, posterior, likelihood, baseline, events)
        if not columns or len({*columns, *static}) < len(columns) + len(static):
            raise ValueError(
                f"Expected columns, each with a name of its own; got {[*columns, *static]}: rename"
            )
        if latent_dim < 1 or hidden < 1 or not all(width >= 1 for width in field):
            raise ValueError(
                "Expected latent_dim, hidden and the widths of field to be at least 1; got "
                f"{latent_dim}, {hidden} and {[*field]}"
            )
        if labels is not None and len({*labels}) < 2:
            raise ValueError(
                f"Expected labels of at least two classes; got {[*labels]}: leave labels out, or "
                "add series of another class"
            )
        self.architecture: dict[str, Any] = {
            "latent_dim": latent_dim,
            **{"encoder": encoder, "posterior": posterior, "likelihood": likelihood},
            **{"baseline": baseline, "state_noise": state_noise, "events": events},
            "labels": None if labels is None else [*labels],
            **{"hidden": hidden, "field": [*field], "timed": timed},
        }
        self.columns, self.static_columns = tuple(columns), tuple(static)
        self.latent_dim, self.baseline = latent_dim, baseline
        self.labels = None if labels is None else tuple(labels)
        self.solver = _checked_solver({**DEFAULT_SOLVER, **(solver or {})})
        self.task = Task()
        self.scaling = SeriesScaling(self.columns, self.static_columns)
        self.encoder = ENCODERS[encoder](len(columns), hidden, len(static))
        size = self.encoder.size
        self.head = nn.Sequential(
            nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent_dim)
        )
        self.posterior = (
            FlowPosterior(latent_dim, size, hidden=(32, 32)) if posterior == "flow" else None
        )
        turns = (self.solver["steps"] or DEFAULT_SOLVER["steps"]) / STEPS_OF_A_TURN
        self.field = LatentField(latent_dim, field, timed, turns)
        self.decoder = Decoder(len(columns), latent_dim, hidden, len(static), baseline, state_noise)
        self.noise = NOISES[likelihood](len(columns))
        self.events = None if events is None else EVENTS[events](len(columns), latent_dim)
        self.classifier = (
            Classifier(len(columns), size, latent_dim, hidden, len(labels)) if labels else None
        )

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the weights."""
        return self.decoder.log_scale

    # Training

    def fit(self, series: Series, **options: Any) -> History:
        """Train by `cnf.series.fit_series`, whose options and errors these are."""
        return fit_series(self, series, **options)

    def prepare(self, series: Series, task: Task) -> None:
        """Fit the scales to training series, and keep the task.

        Raises:
            ValueError: The series or the task do not fit the model, or there are labels of one
                class alone.
        """
        if self.baseline == "local" and task.kind == "interp" and not task.hide:
            raise ValueError(
                "Expected a share of entries to hide with the baseline 'local', which has what is "
                "seen; got none: train with Task(hide=0.2), or on another baseline"
            )
        self.scaling.fit(self.scaling.aligned(series))
        self.task = task
        if isinstance(self.decoder.baseline, OwnMean):
            self.decoder.baseline.start(self.scaling.scaled(series))
        if self.events is not None:
            counts = torch.from_numpy(series.observed.sum(0) / len(series))
            self.events.start(counts.to(self.like), 1.0)
        if self.labels is not None:
            classes = np.unique(self._targets(series))
            if (classes >= 0).sum() < 2:
                raise ValueError(
                    "Expected training series of at least two classes; got one: leave labels out, "
                    "or add series of another class"
                )
        if self.classifier is not None:
            seen, _ = task.split(series, seed=0)
            self.classifier.fit(self._batches(self.scaling.scaled(seen)))

    def scaled(self, series: Series) -> Series:
        """Return series in the model's units, their labels as places in `labels` or −1."""
        scaled = self.scaling.scaled(series)
        labels = None if self.labels is None else self._targets(series).astype(np.float64)
        return replace(scaled, labels=labels)

    def _targets(self, series: Series) -> NDArray[np.int64]:
        """Return the labels as places in `labels`, −1 where unknown."""
        assert self.labels is not None
        if series.labels is None:
            return np.full(len(series), -1)
        found = np.full(len(series), -1)
        names: Sequence[Label] = series.classes or [*np.unique(series.labels).tolist()]
        for place, name in enumerate(names):
            value = float(place) if series.classes else name
            same = series.labels == value
            if not same.any():
                continue
            if name not in self.labels:
                raise ValueError(
                    f"Expected labels among {', '.join(map(str, self.labels))}; got {name!r}: "
                    "correct it, or name all classes in labels"
                )
            found[same] = self.labels.index(name)
        return found

    def loss(
        self, seen: SeriesBatch, wanted: SeriesBatch, done: float, recipe: SeriesRecipe
    ) -> Tensor:
        """Return the negative bound of wanted entries, in nats an entry, of scaled batches.

            −(1/N) Σ_series log 1/K Σ_k p(wanted | z_k) (p(z_k) / q(z_k | seen))^β

        With labels their cross-entropy, its mean over series times the recipe's weight, is added,
        and so is the mean squared error of loc relative to each column's largest value. Where
        entries are hidden, those that a baseline sees count a tenth: they say little of its error,
        but enough for columns seen once.

        A posterior's flow, which starts as the identity, joins later: until then the encoder's
        Gaussian is trained alone, by faster steps, with its KL term in closed form for one draw.

        Args:
            seen: What the encoder sees.
            wanted: What has a likelihood; its mask may have other weights than 1.
            done: Fraction of the run that is done, for β and for the flow.
            recipe: The numbers of training: β, and the number K of draws.
        """
        if self.baseline != "none" and self.task.kind == "interp" and self.task.hide:
            wanted = replace(wanted, mask=wanted.mask * (1 - (1 - SEEN_WEIGHT) * seen.mask))
        beta = recipe.kl(done)
        h, loc, scale = self._encoded(seen)
        flow = self.posterior is not None and done >= recipe.flow_start
        z, log_q = self._draw(h, loc, scale, recipe.draws, flow=flow)
        likelihood, curves = self._likelihood(z, seen, wanted)
        likelihood = likelihood.sum(-1)
        if recipe.draws == 1 and not flow:
            kl = (0.5 * (scale.square() + loc.square() - 1) - scale.log()).sum(-1)
            bound = likelihood[:, 0] - beta * kl
        else:
            ratio = log_q - _log_prior(z) if beta else torch.zeros_like(log_q)
            bound = (likelihood - beta * ratio).logsumexp(1) - log(recipe.draws)
        entries = (wanted.mask * self.scaling.varying).sum().clamp(min=1)
        loss = -bound.sum() / entries
        if recipe.error_weight:
            weights = wanted.mask * self.scaling.relative_square().to(loc)
            errors = (curves - wanted.values[:, None]).square().mean(1)
            loss = loss + recipe.error_weight * (errors * weights).sum() / entries
        if self.classifier is not None and seen.labels is not None:
            targets = seen.labels.long().repeat_interleave(recipe.draws)
            dropout = recipe.dropout if torch.is_grad_enabled() else 0.0
            logits = self.classifier(seen, h, z, dropout).flatten(0, 1)
            known = (targets >= 0).sum().clamp(min=1)
            cost = cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / known
            loss = loss + recipe.label_weight * cost
        return loss

    # The parts

    def _encoded(self, seen: SeriesBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the encoder's features, and the mean and scale of its Gaussian."""
        h = self.encoder(seen)
        loc, log_scale = self.head(h).chunk(2, -1)
        return h, loc, (log_scale - 2).clamp(-7, 2).exp()

    def _draw(
        self,
        h: Tensor,
        loc: Tensor,
        scale: Tensor,
        draws: int,
        noise: Tensor | None = None,
        *,
        flow: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return draws of z₀ (B, K, latent) and log q (B, K), of the Gaussian if not by a flow."""
        if self.posterior is not None and flow:
            posterior = self.posterior if torch.is_grad_enabled() else self.posterior.accurate()
            given = None if noise is None else noise.transpose(0, 1)
            z, log_q = posterior(h, loc, scale).rsample_and_log_prob((draws,), given)
            return z.transpose(0, 1), log_q.T
        if noise is None:
            noise = torch.randn(len(loc), draws, self.latent_dim).to(loc)
        z = loc[:, None] + scale[:, None] * noise
        return z, _log_prior(noise) - scale.log().sum(-1)[:, None]

    def _path(self, z: Tensor, times: Tensor) -> Tensor:
        """Return the states (B, K, T, latent) at times (B, T), with integrals of events' rates.

        Fixed steps end at the same times whatever is asked for, so that rows do not depend on it.
        """
        fixed, steps = {}, self.solver["steps"]
        last = times[:, -1:]
        if steps is not None:
            count = max(steps, ceil(last.max().item() * steps - 1e-4))
            last = torch.full_like(last, count / steps)
            times = torch.minimum(times, last)  # some may be a rounding error beyond
            fixed = {"step_size": 1 / steps, "gradient": "backprop"}
        slope: Dynamics = LatentField.slope
        args: Any = self.field.args()
        if self.events is not None:
            slope, args = self.events.augmented(slope, args)
            z = self.events.initial(z)
        solution = solve(
            slope,
            z,
            torch.cat([torch.zeros_like(last), times, last], 1),
            args,
            method=self.solver["method"],
            rtol=self.solver["rtol"],
            atol=self.solver["atol"],
            step="joint" if fixed else "per_sample",
            **fixed,
        )
        return solution.ys[1:-1].permute(1, 2, 0, 3)

    def _decoded(self, z: Tensor, times: Tensor, seen: SeriesBatch) -> tuple[Tensor, Tensor]:
        """Return loc (B, K, T, D) and log σ, which broadcasts to it, at times (B, T)."""
        states = self._path(z, times)[..., : self.latent_dim]
        found: tuple[Tensor, Tensor] = self.decoder(states, times, seen)
        return found

    def _curves(self, z: Tensor, times: Tensor, seen: SeriesBatch) -> tuple[Tensor, Tensor]:
        """Return loc and σ as `_decoded`, those of columns of one value at it."""
        loc, log_scale = self._decoded(z, times, seen)
        return loc * self.scaling.varying, log_scale.exp() * self.scaling.varying

    def _likelihood(
        self, z: Tensor, seen: SeriesBatch, wanted: SeriesBatch
    ) -> tuple[Tensor, Tensor]:
        """Return log p of each column's wanted entries given z₀ (B, K, latent), and loc.

        Shapes: (B, K, D) and (B, K, T, D).
        """
        counted, times, places = self._counted(seen, wanted), wanted.times, None
        if counted is not None:
            times, order = torch.cat([times, self._begin(seen)], 1).sort(dim=1, stable=True)
            places = order.argsort(1)[:, None, :, None]
        path = self._path(z, times)
        if places is not None:  # of the wanted times, and of the begin at the end
            path = torch.take_along_dim(path, places, 2)
        states = path[:, :, : wanted.times.shape[1], : self.latent_dim]
        loc, log_scale = self.decoder(states, wanted.times, seen)
        log_p = self.noise.log_prob(wanted.values[:, None], loc, log_scale)
        mask = wanted.mask * self.scaling.varying
        likelihood = torch.einsum("bktd,btd->bkd", log_p, mask)
        if self.events is None or counted is None:
            return likelihood, loc
        integrals = path[..., self.latent_dim :]
        integral = (integrals[:, :, -2] - integrals[:, :, -1]).clamp(min=0)
        likelihood = likelihood + self.events.log_prob(
            self.events(states).movedim(2, 0), counted.movedim(1, 0)[:, :, None], integral
        )
        return likelihood, loc

    def _counted(self, seen: SeriesBatch, wanted: SeriesBatch) -> Tensor | None:
        """Return 1 for the entries that count as events, (B, T, D), or None where none does.

        Where what is wanted was hidden, the times are a part of those of the process, whose
        likelihood it has not.
        """
        if self.events is None:
            return None
        if self.task.kind != "interp":
            after = (wanted.times >= self._begin(seen))[..., None]
            return ((wanted.mask > 0) & after).to(wanted.mask)
        same = seen.times.shape == wanted.times.shape and torch.equal(seen.times, wanted.times)
        if not same or not (seen.mask * wanted.mask).any():
            return None
        return (torch.maximum(seen.mask, wanted.mask) > 0).to(wanted.mask)

    def _begin(self, seen: SeriesBatch) -> Tensor:
        """Return the times from which on events are wanted, (B, 1)."""
        if self.task.kind == "filter":
            return seen.times[:, -1:]
        if self.task.cut is None:
            return torch.zeros_like(seen.times[:, :1])
        cut = (self.task.cut - self.scaling.start.item()) / self.scaling.span.item()
        return torch.full_like(seen.times[:, :1], cut)

    # Questions

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

        After the task `extrap`, what comes before the cut is seen; else all of the series.

        Args:
            series: The series.
            times: Times of all series (T,), of each (n, T) in any order, or series of the same ids.
            draws: Number of draws of z₀.
            quantiles: Levels of the quantiles of observations, with their noise.
            paths: Whether to keep the draws of the curves.
            seed: Seed of the draws, which depend on a series and not on the others.

        Raises:
            ValueError: A time is before the start, far too late or not finite, the columns or ids
                are others, or a level is not between 0 and 1.
        """
        series = self.scaling.aligned(series)
        if isinstance(times, Series):
            times = times if self.scaling.clock is None else times.with_clock(self.scaling.clock)
        asked, lengths = asked_times(times, series)
        levels = checked_levels(quantiles)
        check_draws(draws)
        scaled = self.scaling.times(asked, series)
        self.scaling.warn_far(scaled)
        order = np.argsort(scaled, axis=1, kind="stable")
        n, count, width = *asked.shape, len(self.columns)
        mean = np.empty((n, count, width))
        bands = np.empty((len(levels), n, count, width))
        curves = np.empty((draws, n, count, width)) if paths else None
        levels_of_noise = torch.from_numpy(
            (np.random.default_rng(seed).permutation(draws) + 0.5) / draws
        )
        noise = self.noise.quantile(levels_of_noise[:, None])[:, None].to(self.like)
        for rows, batch, z in self._draws(self._seen(series), draws, seed, count):
            ordered = np.take_along_axis(scaled[rows], order[rows], 1)
            with torch.no_grad():
                loc, scale = self._curves(z, torch.from_numpy(ordered).to(self.like), batch)
                # Each draw has another level of the noise, so that the levels are evenly spread.
                drawn = (loc + scale * noise).sort(1).values
            inverse = order[rows].argsort(1)[..., None]
            mean[rows] = np.take_along_axis(_array(loc.mean(1)), inverse, 1)
            for band, level in zip(bands, levels, strict=True):
                band[rows] = np.take_along_axis(_array(_between(drawn, level)), inverse, 1)
            if curves is not None:
                found = _array(loc.transpose(0, 1))
                curves[:, rows] = np.take_along_axis(found, inverse[None], 2)
        values = self.scaling.values
        return Prediction(
            columns=self.columns,
            ids=series.ids,
            times=asked,
            lengths=lengths,
            mean=values(mean),
            quantiles=values(bands),
            levels=levels,
            draws=None if curves is None else values(curves),
            **frame_names(series),
        )

    def log_prob(
        self,
        series: Series,
        *,
        given: Series | None = None,
        draws: int = 64,
        refine: int = 4,
        seed: int = 0,
    ) -> SeriesScores:
        """Return a lower bound of log p of series, in the data's own units, and its standard error.

        Of whole series it is the importance-weighted bound, which rises to log p with K:

            log 1/K Σ_k p(x | z_k) p(z_k) / q(z_k | x),   z_k ~ q(z₀ | x).

        Here q is a Gaussian about the most probable z₀, found by steps from the encoder's mean, or
        the encoder's posterior for series where that is less probable, or without refinement.

        Given other observations of the same series, it is the density of a prediction,

            log 1/K Σ_k p(x | z_k),   z_k ~ q(z₀ | given).

        After the task `extrap`, it is that of what follows the cut given what comes before; after
        `filter` the sum over all times of that given what came before. A column that had one value
        in all training series does not count.

        Args:
            series: Series to score.
            given: What is seen of the same series, where that is not what the task says.
            draws: Number K of draws; the standard error of one is NaN.
            refine: Number of Gauss–Newton steps to the most probable z₀.
            seed: Seed of the draws, which depend on a series and not on the others.

        Raises:
            ValueError: The decoder corrects a baseline made of the very values that are scored; an
                observation is given and scored, or scored though it is before the task's cut; or an
                error of `predict`.

        Source: Burda et al. (2016), Importance weighted autoencoders, equation 8; Shun & McCullagh
        (1995), Laplace approximation of high dimensional integrals.
        """
        check_draws(draws)
        series = self.scaling.aligned(series)
        if self.task.cut is not None:
            if given is None:
                given, series = series, self.task.split(series, seed)[1]
            check_from(series, self.task.cut)
        if given is None and self.task.kind == "filter":
            return self._filtered(series, draws, seed)
        if given is None and self.baseline != "none":
            raise ValueError(
                "Expected given, what is seen of the series, since the decoder corrects a baseline "
                f"made of it, {self.baseline!r}; got none: pass given, or train with "
                "baseline='none'"
            )
        seen = self.scaled(series) if given is None else self._seen(self.scaling.aligned(given))
        wanted = self.scaled(series)
        if given is not None:
            check_apart(seen, wanted)
        refine = refine if given is None else 0
        return self._scores(seen, wanted, draws, seed, refine, bound=given is None)

    def _scores(
        self, seen: Series, wanted: Series, draws: int, seed: int, refine: int, *, bound: bool
    ) -> SeriesScores:
        """Return the scores of scaled series."""
        weights = np.empty((len(seen), draws))
        longest = int(wanted.lengths.max(initial=1))
        log_det, log_span = self.scaling.log_det(), self.scaling.span.log()
        for rows, batch, z, log_q in self._weighted(seen, draws, seed, longest, refine):
            target = SeriesBatch.of(wanted, np.arange(len(wanted))[rows], self.like)
            with torch.no_grad():
                log_p = self._likelihood(z, batch, target)[0].sum(-1).double()
                log_p += (target.mask.double().sum(1) * log_det).sum(-1)[:, None]
                if (counted := self._counted(batch, target)) is not None:
                    log_p -= counted.double().sum((1, 2))[:, None] * log_span
                if bound:
                    log_p += (_log_prior(z) - log_q).double()
            weights[rows] = _array(log_p)
        highest = weights.max(1, keepdims=True)
        shares = np.exp(weights - highest)
        mean = shares.mean(1)
        stderr = np.full(len(mean), np.nan)
        if draws > 1:
            stderr = shares.std(1, ddof=1) / (mean * draws**0.5)
        return SeriesScores(highest[:, 0] + np.log(mean), stderr)

    def _filtered(self, series: Series, draws: int, seed: int) -> SeriesScores:
        """Return the sums over times of log p given what came before."""
        log_prob, variance = np.zeros(len(series)), np.zeros(len(series))
        scaled, cells = self.scaled(series), np.cumsum(series.lengths**2 * len(self.columns))
        for part in np.split(
            np.arange(len(series)), np.flatnonzero(np.diff(cells // MAX_CELLS)) + 1
        ):
            # Each row of a series, given the rows before it, is a series of its own.
            owners, chosen = scaled[part].owners, scaled[part]
            if not len(owners):
                continue
            prefixes = chosen[owners]
            places = np.arange(len(owners)) - chosen.offsets[owners]
            row = np.arange(len(prefixes.times)) - prefixes.offsets[prefixes.owners]
            limits = places[prefixes.owners]
            seen, wanted = prefixes.rows(row < limits), prefixes.rows(row == limits)
            found = self._scores(seen, wanted, draws, seed, 0, bound=False)
            np.add.at(log_prob, part[owners], found.log_prob)
            np.add.at(variance, part[owners], found.stderr**2)
        return SeriesScores(log_prob, np.sqrt(variance))

    def classify(self, series: Series, *, draws: int = 20, seed: int = 0) -> Array:
        """Return the probabilities of the classes in `labels`, (n, classes), averaged over draws.

        Raises:
            ValueError: The model has no labels, or an error of `predict`.
        """
        if self.labels is None or self.classifier is None:
            raise ValueError(
                "Expected a model with labels; got one without: pass labels to LatentODE and train "
                "on series that have them"
            )
        found = np.empty((len(series), len(self.labels)))
        seen = self._seen(self.scaling.aligned(series))
        for rows, batch, z in self._draws(seen, draws, seed, 1):
            with torch.no_grad():
                logits = self.classifier(batch, self.encoder(batch), z)
            found[rows] = _array(logits.softmax(-1).mean(1))
        return found

    @torch.no_grad()
    def latents(self, series: Series) -> Array:
        """Return the means of the encoder's Gaussian of z₀, (n, latent), given what is seen.

        Raises:
            ValueError: An error of `predict`.
        """
        seen = self._seen(self.scaling.aligned(series))
        return np.concatenate([_array(self._encoded(each)[1]) for each in self._batches(seen)])

    @torch.no_grad()
    def sample(self, times: ArrayLike, n: int = 1, seed: int = 0) -> Series:
        """Draw n series at times (T,), with noise, from the prior.

        With a baseline they scatter about the training means.

        Raises:
            ValueError: A time is before the start, not finite, or they do not increase.
        """
        found, scaled = self.scaling.sample_times(times, n)
        self.scaling.warn_far(scaled)
        u = torch.from_numpy(scaled).to(self.like).expand(n, -1)
        none = u.new_zeros(n, 1, len(self.columns))
        unknown = u.new_full((n, len(self.static_columns)), np.nan)
        seen = SeriesBatch(u[:, :1], none, none, unknown, torch.zeros(n, dtype=torch.long))
        with seeded(seed, self.like.device):
            z = torch.randn(n, 1, self.latent_dim).to(self.like)
            loc, scale = self._curves(z, u, seen)
            level = torch.rand(loc.shape, dtype=torch.float64).clamp(min=1e-16)  # 0 has no quantile
            drawn = loc + scale * self.noise.quantile(level).to(loc)
        return Series(
            columns=self.columns,
            ids=np.arange(n),
            offsets=np.arange(n + 1) * len(found),
            times=np.tile(found, n),
            values=self.scaling.values(_array(drawn[:, 0])).reshape(-1, len(self.columns)),
            clock=self.scaling.clock or ColumnType(),
        )

    def _batches(self, scaled: Series) -> Iterator[SeriesBatch]:
        """Yield scaled series in batches."""
        for part in np.array_split(np.arange(len(scaled)), len(scaled) // PASS_SERIES + 1):
            yield SeriesBatch.of(scaled, part, self.like)

    def _seen(self, series: Series) -> Series:
        """Return what the task lets the model see of series, scaled."""
        seen = series.cut(self.task.cut)[0] if self.task.cut is not None else series
        return self.scaled(replace(seen, labels=None))

    def _draws(
        self, seen: Series, draws: int, seed: int, times: int
    ) -> Iterator[tuple[slice, SeriesBatch, Tensor]]:
        """Yield parts of scaled series, as batches, with draws of z₀ (B, K, latent)."""
        for rows, batch, z, _ in self._weighted(seen, draws, seed, times):
            yield rows, batch, z

    def _weighted(
        self, seen: Series, draws: int, seed: int, times: int, refine: int = 0
    ) -> Iterator[tuple[slice, SeriesBatch, Tensor, Tensor]]:
        """Yield parts of scaled series, as batches, with draws of z₀ and log q (B, K)."""
        most = max(draws, self.latent_dim + 1 if refine else 1)
        size = max(1, MAX_CELLS // (most * max(1, times) * len(self.columns)))
        for start in range(0, len(seen), size):
            rows = slice(start, min(start + size, len(seen)))
            batch = SeriesBatch.of(seen, np.arange(len(seen))[rows], self.like)
            source = RowNoise(seed, torch.from_numpy(traits(seen[rows])))
            noise = source.normal((len(batch.times), draws, self.latent_dim)).to(self.like)
            with torch.no_grad():
                encoded = self._encoded(batch)
                z, log_q = self._draw(*encoded, draws, noise)
                if refine:
                    z, log_q = self._refined(batch, encoded[1], z, log_q, noise, refine)
            yield rows, batch, z, log_q

    def _refined(
        self, batch: SeriesBatch, loc: Tensor, z: Tensor, log_q: Tensor, noise: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Return draws about the most probable z₀ and log q, where these are better than given."""

        def curves(points: Tensor) -> tuple[Tensor, Tensor]:
            found, log_scale = self._decoded(points, batch.times, batch)
            return found, log_scale.exp()

        mask = batch.mask * self.scaling.varying
        found = laplace(curves, self.noise.weight, batch.values, mask, loc, steps)
        points = torch.stack([found.mean, loc], 1)
        log_p = self._likelihood(points, batch, batch)[0].sum(-1) + _log_prior(points)
        better = (log_p[:, 0] >= log_p[:, 1])[:, None]
        drawn, log_density = found.of(noise)
        return torch.where(better[..., None], drawn, z), torch.where(better, log_density, log_q)

    # Solver and storage

    def with_solver(self, **changes: Any) -> Self:
        """Return a model that shares the parameters, with other settings of the latent solve.

        Args:
            **changes: `method`, a name in `cnf.ode.TABLEAUS`; `steps`, the number of steps of equal
                size within the span of training, or None for adaptive ones; `rtol` and `atol`.

        Raises:
            ValueError: A setting is unknown.
        """
        view = copy.copy(self)
        view.solver = _checked_solver({**self.solver, **changes})
        return view

    def inner_flows(self) -> dict[str, Flow]:
        """Return no flow: a posterior's is one of its modules."""
        return {}

    def config(self) -> dict[str, Any]:
        """Return the arguments, the task and the clock, ready for JSON."""
        clock = self.scaling.clock
        return {
            "columns": [*self.columns],
            "static": [*self.static_columns],
            "architecture": self.architecture,
            "solver": self.solver,
            "task": asdict(self.task),
            "clock": None if clock is None else asdict(clock),
        }

    @classmethod
    def of(cls, config: Mapping[str, Any], parts: Mapping[str, Flow]) -> LatentODE:
        """Return a model of a configuration, whose weights are loaded afterwards."""
        names = {"static": config["static"], "solver": config["solver"]}
        model = cls(config["columns"], **config["architecture"], **names)
        model.task = Task(**config["task"])
        clock = config["clock"]
        model.scaling.clock = None if clock is None else ColumnType(**clock)
        return model


MAX_STEPS = 100_000
DEFAULT_SOLVER: dict[str, Any] = {"method": "dopri5", "steps": 16, "rtol": 1e-5, "atol": 1e-5}


def _checked_solver(settings: dict[str, Any]) -> dict[str, Any]:
    unknown = settings.keys() - DEFAULT_SOLVER.keys()
    if unknown:
        raise ValueError(
            f"Expected solver settings among {', '.join(DEFAULT_SOLVER)}; got "
            f"{', '.join(sorted(unknown))}: correct them"
        )
    find_tableau(str(settings["method"]))  # or an error with the closest names
    steps, tolerances = settings["steps"], (settings["rtol"], settings["atol"])
    fixed = steps is None or (isinstance(steps, int) and 0 < steps <= MAX_STEPS)
    if not fixed or not all(isinstance(each, float) and 0 < each < 1 for each in tolerances):
        raise ValueError(
            f"Expected steps of None or 1 to {MAX_STEPS}, and rtol and atol between 0 and 1; got "
            f"{steps!r} and {tolerances}: correct them"
        )
    return settings


def _check_names(
    encoder: str, posterior: str, likelihood: str, baseline: str, events: str | None
) -> None:
    for what, name, names in (
        ("encoder", encoder, ENCODERS),
        ("posterior", posterior, POSTERIORS),
        ("likelihood", likelihood, NOISES),
        ("baseline", baseline, DECODER_BASELINES),
        ("events", events, EVENTS),
    ):
        if name not in names and name is not None:
            raise ValueError(
                f"Expected {what} to be one of {', '.join(names)}; got {name!r}: choose one"
            )


def _log_prior(z: Tensor) -> Tensor:
    """Return log N(z; 0, I) of (…, latent)."""
    return -0.5 * (z.square() + log(2 * pi)).sum(-1)


def _between(drawn: Tensor, level: float) -> Tensor:
    """Return the quantile of draws in order (B, K, T, D), between the two next to it."""
    place = min(max(level * drawn.shape[1] - 0.5, 0.0), drawn.shape[1] - 1.0)
    low = int(place)
    high = min(low + 1, drawn.shape[1] - 1)
    return drawn[:, low].lerp(drawn[:, high], place - low)


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.double().cpu().numpy()
    return found
