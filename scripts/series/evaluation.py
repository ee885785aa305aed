"""The scores of a model of series, beside those of trivial predictions."""

from __future__ import annotations

import json
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import log, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.scripts.evaluation import clustered_stderr
from cnf.scripts.options import read_options
from cnf.scripts.rows import Array
from cnf.scripts.series.data import label_names
from cnf.scripts.series.folder import ColumnStatistics, TrainedSeries, warned
from cnf.series import BASELINES, Prediction, Series, entry_error, series_errors
from cnf.utils.serialization import json_value

SCORED_SHARE = 0.1  # of the entries, to score a model of the task interp that hid none in training
HIDDEN_SEED = 0
INTERVAL = (0.05, 0.95)
MEAN_DRAWS = 20  # of latents, where only a mean is needed
EXACT_ERROR = 1e-12  # of numbers that are equal but for rounding
MAX_FILTERED_ROWS = 2000  # each of which is predicted from those before it
MAX_FILTERED_TIMES = 2**20  # of the series of these rows, which are held in memory
WANTED = {"interp": "hidden", "extrap": "future", "filter": "next"}  # what errors are of, by task


@dataclass(frozen=True)
class SeriesEvaluation:
    """The scores of a model on series; squared errors are of scaled values, x / max |x|.

    The published ones are of x / max x.

    A standard error is None where there is one series.

    Attributes:
        n: Number of series, or for the task filter of times.
        observations: Number of entries that are predicted and scored.
        task: The task.
        error: Mean squared error over these entries.
        error_stderr: Its standard error over series.
        error_baselines: The same of trivial predictions, by name.
        paper_error: The squared error of a series and column as it is published for PhysioNet, with
            0 for columns without entries; of the task interp over all entries, all of them seen.
        paper_error_baselines: The same of trivial predictions.
        coverage: Share of the entries inside their 90 % intervals.
        coverage_training: The same of the interval of the training series' values of a column.
        width: Mean width of the intervals over that of these.
        log_prob: Mean log p of these entries given what is seen, in nats a series or a time.
        log_prob_stderr: Its standard error over series, with that of the estimates.
        log_prob_observation: The same in nats an entry.
        log_prob_observation_stderr: Its standard error.
        normal_log_prob_observation: That of a normal density with the training values' moments.
        bound: Mean log p of whole series, or a lower bound on it, where the model has one.
        bound_stderr: Its standard error over series.
        bound_exact: Whether it is log p itself.
        auroc: Area under the ROC curve of the labels, where there are labels.
        auroc_own_means: That of a logistic regression on each series' own means and counts.
    """

    n: int
    observations: int
    task: str
    error: float
    error_stderr: float | None
    error_baselines: Mapping[str, float]
    paper_error: float
    paper_error_baselines: Mapping[str, float]
    coverage: float
    coverage_training: float
    width: float
    log_prob: float
    log_prob_stderr: float | None
    log_prob_observation: float
    log_prob_observation_stderr: float | None
    normal_log_prob_observation: float
    bound: float | None = None
    bound_stderr: float | None = None
    bound_exact: bool | None = None
    auroc: float | None = None
    auroc_own_means: float | None = None

    def json(self) -> str:
        """Return one JSON object of the known numbers."""
        known = {name: each for name, each in asdict(self).items() if each is not None}
        return json.dumps(json_value(known))

    def lines(self) -> list[str]:
        """Return the numbers as lines of text."""
        what = WANTED[self.task]
        unit = "time" if self.task == "filter" else "series"
        counted = f"({self.observations} {what} entries of {self.n} {unit.rstrip('s')}s)"
        lines = [
            f"  error         {self.error:10.3e}{_spread(self.error_stderr, '.1e')} mean square, "
            f"scaled {counted}",
            *_baseline_lines(self.error, self.error_baselines),
            f"  paper's       {self.paper_error:10.3e} a series and column"
            + (", all entries seen" if self.task == "interp" else ""),
            *_baseline_lines(self.paper_error, self.paper_error_baselines),
            f"  90 % interval {self.coverage:10.1%} of the entries inside (training values' "
            f"interval: {self.coverage_training:.1%}), {self.width:.2f} times as wide as that",
            f"  log p         {self.log_prob:10.4f}{_spread(self.log_prob_stderr)} nats a {unit}",
            f"                {self.log_prob_observation:10.4f}"
            f"{_spread(self.log_prob_observation_stderr)} nats an entry (normal density: "
            f"{self.normal_log_prob_observation:.4f})",
        ]
        if self.bound is not None:
            lines.append(
                f"  whole series  {self.bound:10.4f}{_spread(self.bound_stderr)} nats each"
                + ("" if self.bound_exact else ", or more")
            )
        if self.auroc is not None:
            others = "chance: 0.5"
            if self.auroc_own_means is not None:
                others += f"; logistic regression on own means: {self.auroc_own_means:.4f}"
            lines.append(f"  AUROC         {self.auroc:10.4f} ({others})")
        return lines


def _spread(stderr: float | None, form: str = ".4f") -> str:
    """Return a standard error as it stands behind a number; nothing where it is unknown."""
    return "" if stderr is None else f" ± {stderr:{form}}"


def _baseline_lines(error: float, baselines: Mapping[str, float]) -> list[str]:
    """Return a line for each trivial prediction; an error of 0 is of one that saw the answers."""
    exact = {name for name, value in baselines.items() if value < EXACT_ERROR}
    best = min((value for name, value in baselines.items() if name not in exact), default=0.0)
    return [
        f"    {name:<20} "
        + (
            f"{0:10.3e} (it repeats what it sees)"
            if name in exact
            else f"{value:10.3e}"
            + (f": the best; the model's is {_apart(error, value)}" if value == best else "")
        )
        for name, value in baselines.items()
    ]


def _apart(error: float, other: float) -> str:
    """Return how an error compares with another, which is above 0."""
    if error > 2 * other:
        return f"{error / other:.3g} times that"
    return f"{abs(error / other - 1):.1%} {'lower' if error < other else 'higher'}"


def evaluate_series(arguments: Namespace) -> list[str]:
    """Score held-out series, or those of a file, and return what to print."""
    trained = TrainedSeries.read(arguments.dir)
    files, reading = (arguments.data, arguments.static, arguments.labels), read_options(arguments)
    series, train = trained.scored_series(*files, reading)
    found = summarize_series(trained, series, train)
    return [found.json()] if arguments.json else found.lines()


def divided(trained: TrainedSeries, series: Series) -> tuple[Series, Series]:
    """Return what a model sees of series, and the entries that it does not see and is scored on.

    For the task filter each row of a series, with those before it, is one more series. Of a
    model that has no density of a part of the columns whole rows are hidden.
    """
    task, seed = trained.task, HIDDEN_SEED
    if task.kind == "extrap":
        return series.cut(task.cut)  # type: ignore[arg-type]
    if task.kind == "interp" and trained.together:
        rows = np.flatnonzero(series.observed.any(1))
        count = max(1, round(SCORED_SHARE * len(rows)))
        hidden = np.zeros(len(series.times), np.bool_)
        hidden[np.random.default_rng(seed).permutation(rows)[:count]] = True
        return series.rows(~hidden), series.rows(hidden)
    if task.kind == "interp":
        least = 1 / max(1, int(series.observed.sum()))  # one entry
        return series.hide(max(task.hide or SCORED_SHARE, least), seed)
    rows = np.flatnonzero(series.observed.any(1))
    longer = max(1.0, float(series.lengths[series.owners[rows]].mean())) if len(rows) else 1.0
    count = max(1, min(MAX_FILTERED_ROWS, int(MAX_FILTERED_TIMES / longer)))
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    owners = series.owners[chosen]
    whole, limits = series[owners], chosen - series.offsets[owners]
    place = np.arange(len(whole.times)) - whole.offsets[whole.owners]
    return whole.rows(place < limits[whole.owners]), whole.rows(place == limits[whole.owners])


def summarize_series(
    trained: TrainedSeries, series: Series, train: Series | None = None
) -> SeriesEvaluation:
    """Return the scores of series; labels are also predicted by a regression on training series.

    Raises:
        ValueError: No entry is hidden or lies ahead.
    """
    task, model, record = trained.task, trained.model, trained.statistics
    seen, wanted = divided(trained, series)
    if not wanted.observed.any():
        raise ValueError(
            f"Expected {WANTED[task.kind]} observations to score; got none in {len(series)} "
            "series: give longer ones"
        )
    scored = np.flatnonzero(wanted.lengths)
    count = len(wanted)  # of series; the error of those with nothing that is wanted is 0
    seen, wanted = seen[scored], wanted[scored]
    trained.warn_far(series)
    with warned():
        found: Prediction = model.predict(seen, wanted, quantiles=INTERVAL)
    log_prob = model.log_prob(wanted, given=seen).log_prob
    mean = rows_of(wanted, found.mean)
    published = (mean, seen, wanted)
    if task.kind == "interp":  # all entries are seen, and predicted
        with warned():
            again = model.predict(series, series, quantiles=INTERVAL, draws=MEAN_DRAWS)
        published, count = (rows_of(series, again.mean), series, series), len(series)
    return SeriesEvaluation(
        n=len(wanted),
        observations=int(wanted.observed.sum()),
        task=task.kind,
        **_errors(mean, seen, wanted, record),
        **_published(*published, record, count),
        **_intervals(wanted, found, record),
        **_densities(log_prob, wanted, record),
        **_bound(trained, series, wanted, log_prob),
        **_labels(trained, series, train),
    )


def rows_of(series: Series, padded: Array) -> Array:
    """Return padded numbers (n, T, D) in the rows of series, shape (N, D)."""
    kept = np.arange(padded.shape[1]) < series.lengths[:, None]
    return np.asarray(padded[kept])


def _errors(mean: Array, seen: Series, wanted: Series, record: ColumnStatistics) -> dict[str, Any]:
    squares = np.where(wanted.observed, ((mean - wanted.values) / record.scales) ** 2, 0.0)
    return {
        "error": entry_error(mean, wanted, record.scales),
        "error_stderr": _ratio_stderr(
            wanted, _by_series(wanted, squares), _by_series(wanted, wanted.observed)
        ),
        "error_baselines": {
            name: entry_error(predict(seen, wanted, record.means), wanted, record.scales)
            for name, predict in BASELINES.items()
        },
    }


def _published(
    mean: Array, seen: Series, wanted: Series, record: ColumnStatistics, count: int
) -> dict[str, Any]:
    def error(predicted: Array) -> float:
        return float(series_errors(predicted, wanted, record.published_scales).sum() / count)

    return {
        "paper_error": error(mean),
        "paper_error_baselines": {
            name: error(predict(seen, wanted, record.means)) for name, predict in BASELINES.items()
        },
    }


def _intervals(wanted: Series, found: Prediction, record: ColumnStatistics) -> dict[str, Any]:
    observed, values = wanted.observed, wanted.values
    low, high = (rows_of(wanted, each) for each in found.quantiles)
    inside, typical = (
        ((values >= below) & (values <= above))[observed].mean()
        for below, above in ((low, high), (record.low, record.high))
    )
    wide = np.broadcast_to(record.high - record.low, observed.shape)
    varies = observed & (wide > 0)
    return {
        "coverage": float(inside),
        "coverage_training": float(typical),
        "width": float(((high - low)[varies] / wide[varies]).mean()) if varies.any() else 0.0,
    }


def _densities(log_prob: Array, wanted: Series, record: ColumnStatistics) -> dict[str, Any]:
    """Return means of log p of what is wanted, of the columns that varied in training."""
    varying = record.deviations > 0
    deviations = np.where(varying, record.deviations, 1.0)
    z = (wanted.values - record.means) / deviations
    normal = -0.5 * z**2 - np.log(deviations) - 0.5 * log(2 * pi)
    counted = wanted.observed & varying
    entries = _by_series(wanted, counted)
    return {
        "log_prob": float(log_prob.mean()),
        "log_prob_stderr": _stderr(wanted, log_prob),
        "log_prob_observation": float(log_prob.sum() / max(1.0, entries.sum())),
        "log_prob_observation_stderr": _ratio_stderr(wanted, log_prob, entries),
        "normal_log_prob_observation": float(normal[counted].mean()) if counted.any() else 0.0,
    }


def has_whole_density(trained: TrainedSeries) -> bool:
    """Whether a model scores series without seeing them first; of extrap what follows the cut."""
    corrects = getattr(trained.model, "baseline", "none") != "none"
    return trained.task.kind != "interp" or not corrects


def _bound(
    trained: TrainedSeries, series: Series, wanted: Series, log_prob: Array
) -> dict[str, Any]:
    """Return the bound on log p of whole series, of a model that has one.

    For the task filter it is estimated from the times that were chosen, whose log p is given.
    """
    if trained.task.kind == "extrap" or not has_whole_density(trained):
        return {}
    if trained.task.kind == "filter" and not trained.exact:
        places = {name: place for place, name in enumerate(series.ids.tolist())}
        owners = [places[name] for name in wanted.ids.tolist()]
        share = len(wanted) / series.observed.any(1).sum()
        found = np.bincount(owners, log_prob, len(series)) / share
    else:
        found = trained.model.log_prob(series).log_prob
    return {
        "bound": float(found.mean()),
        "bound_stderr": _stderr(series, found),
        "bound_exact": trained.exact,
    }


def _labels(trained: TrainedSeries, series: Series, train: Series | None) -> dict[str, Any]:
    """Return the areas under the ROC curve of labels, the model's and a regression's."""
    classes = getattr(trained.model, "labels", None)
    names = label_names(series)
    if names is None:
        return {}
    if classes is None:
        warnings.warn(
            "The model was trained without --labels, so it predicts none: there is no AUROC",
            stacklevel=2,
        )
        return {}
    chosen = np.flatnonzero([name is not None for name in names])
    target = np.array([classes.index(names[i]) for i in chosen], dtype=np.int64)
    if len(np.unique(target)) < 2:
        warnings.warn(
            "The scored series have labels of one class, or none: there is no AUROC, which needs "
            "two classes",
            stacklevel=2,
        )
        return {}
    found = {"auroc": _auroc(target, trained.model.classify(series[chosen]))}
    if train is not None and train.labels is not None:
        found["auroc_own_means"] = _regression(trained, train, series[chosen], target)
    return found


def _regression(
    trained: TrainedSeries, train: Series, series: Series, target: NDArray[np.int64]
) -> float:
    """Return the AUROC of a logistic regression on each column's mean and number of entries."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = label_names(train) or []
    known = np.flatnonzero([name is not None for name in names])
    goal = [trained.model.labels.index(names[i]) for i in known]
    inputs = [
        _own_means(trained.before(each), trained.statistics) for each in (train[known], series)
    ]
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    chances = regression.fit(inputs[0], goal).predict_proba(inputs[1])
    probabilities = np.zeros((len(series), len(trained.model.labels)))
    probabilities[:, regression.classes_] = chances
    return _auroc(target, probabilities)


def _own_means(series: Series, record: ColumnStatistics) -> Array:
    counts = np.stack([np.bincount(series.owners, o, len(series)) for o in series.observed.T], 1)
    sums = np.nan_to_num(series.values).T
    totals = np.stack([np.bincount(series.owners, each, len(series)) for each in sums], 1)
    means = np.where(counts > 0, totals / np.maximum(counts, 1), record.means)
    return np.hstack([means, np.log1p(counts)])


def _auroc(target: NDArray[np.int64], probabilities: Array) -> float:
    """Return the AUROC of two classes, or the mean of each class against the rest."""
    from sklearn.metrics import roc_auc_score

    present = np.unique(target)
    return float(np.mean([roc_auc_score(target == k, probabilities[:, k]) for k in present]))


def _by_series(series: Series, entries: NDArray[Any]) -> Array:
    """Return the sums of numbers of rows and columns (N, D) over each series, shape (n,)."""
    totals = entries.sum(1).astype(np.float64)
    return np.asarray(np.bincount(series.owners, totals, len(series)), dtype=np.float64)


def _stderr(series: Series, values: Array) -> float | None:
    """Return the standard error of a mean of values, one of each series; None of a single one.

    The times of a series that the task filter takes one by one share its id.
    """
    _, groups = np.unique(series.ids.astype(str), return_inverse=True)
    return clustered_stderr(values, groups)


def _ratio_stderr(series: Series, totals: Array, counts: Array) -> float | None:
    """Return the standard error of a mean over entries, by the totals and counts of series."""
    count = max(1.0, float(counts.sum()))
    found = _stderr(series, totals - totals.sum() / count * counts)
    return None if found is None else found * len(counts) / count
