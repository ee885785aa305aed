"""Models of series against trivial predictions, known laws and latent_ode's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path
from statistics import median
from subprocess import run
from sys import executable
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import pandas as pd

from cnf.datasets import SERIES_DATASETS, load_series, physionet2012
from cnf.scripts.benchmarks import rivals
from cnf.scripts.benchmarks.measure import Array, TableItem, threads_used
from cnf.scripts.benchmarks.options import LATENT_ODE_REPOSITORY, BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.tables import FAILURES
from cnf.series import (
    BASELINES,
    FlowProcess,
    LatentODE,
    Series,
    SeriesRecipe,
    Task,
    column_means,
    column_scales,
    entry_error,
    series_errors,
)
from cnf.training.history import StepEvent

TRAIN_SHARE = 0.8
CUT = 24.0  # hours, from which extrapolation is scored
HIDDEN_SHARE = 0.1
DRAWS, LEVELS = 20, (0.05, 0.95)  # of predictions
PART = 200  # series that are predicted at once
PERIODIC_SERIES, PERIODIC_SHOWN = 1000, 50  # and times that are shown of 100
LAW_SERIES = (2000, 500)  # to train on, to score
BOUND_DRAWS = 64
# What is fitted; the rest is at its defaults.
STAY_MODEL: dict[str, Any] = {
    **{"likelihood": "student", "state_noise": True, "baseline": "local"},
    "solver": {"method": "bosh3", "steps": 4},
}
INTERPOLATION, EXTRAPOLATION = Task("interp", hide=0.3), Task("extrap", cut=CUT)
STAY_RECIPE = SeriesRecipe(error_weight=1000.0)
MORTALITY_MODEL: dict[str, Any] = {"likelihood": "student", "solver": {"steps": 8}}
MORTALITY_RECIPE = SeriesRecipe(label_weight=3.0, learning_rate=2e-3, dropout=0.4)
PERIODIC_MODEL: dict[str, Any] = {"baseline": "none", "latent_dim": 10}
PERIODIC_RECIPE = SeriesRecipe(batch_size=50, ema_decay=0.98)
LAW_MODEL: dict[str, Any] = {"baseline": "none", "latent_dim": 8, "field": (32,)}
LAW_RECIPE = SeriesRecipe(learning_rate=2e-2)


@dataclass(frozen=True, eq=False)
class Question:
    """Held-out series as they are seen and as they are wanted, and how errors are scaled."""

    name: str
    seen: Series
    wanted: Series
    means: Array
    scales: Array

    def row(self, predicted: Array, low: Array | None = None, high: Array | None = None) -> Row:
        """Return the scores of predictions (N, D), and of intervals where there are some."""
        wanted = self.wanted
        errors = series_errors(predicted, wanted, self.scales)
        row: Row = {
            "error": 1e3 * float(errors.mean()),
            "error of an entry": 1e3 * entry_error(predicted, wanted, self.scales),
        }
        if low is None or high is None:
            return row
        within = (low <= wanted.values) & (wanted.values <= high)
        return row | {"90 % cover": float(within[wanted.observed].mean())}

    def baselines(self) -> dict[str, Row]:
        """Return the scores of trivial predictions by their names."""
        return {
            name: self.row(predict(self.seen, self.wanted, self.means))
            for name, predict in BASELINES.items()
        }

    def answer(self, model: Any) -> Row:
        """Return the scores of a model's predictions."""
        return self.row(*predictions(model, self.seen, self.wanted))


def predictions(model: Any, seen: Series, wanted: Series) -> tuple[Array, Array, Array]:
    """Return the means and the ends of the 90 % intervals for rows that are wanted, (N, D)."""
    parts: list[list[Array]] = [[], [], []]
    for start in range(0, len(wanted), PART):
        rows = slice(start, start + PART)
        if not len(wanted[rows].times):
            continue
        found = model.predict(seen[rows], wanted[rows], draws=DRAWS, quantiles=LEVELS)
        kept = np.arange(found.times.shape[1]) < found.lengths[:, None]
        for part, values in zip(parts, (found.mean, *found.quantiles), strict=True):
            part.append(values[kept])
    mean, low, high = (np.concatenate(part) for part in parts)
    return mean, low, high


@dataclass
class Clock:
    """A callback that measures the processor's seconds of a step, the first left out."""

    batch: int
    series: int
    begin: float = nan
    end: float = nan
    steps: int = 0

    def __call__(self, event: StepEvent) -> None:
        self.end, self.steps = process_time(), self.steps + 1
        if self.steps == 1:
            self.begin = self.end

    def row(self) -> Row:
        """Return the columns of the cost of a fit."""
        epoch = self.series / self.batch
        return {
            "epochs": self.steps / epoch,
            "s an epoch": (self.end - self.begin) / max(1, self.steps - 1) * epoch,
        }


def fitted(
    options: BenchmarkOptions,
    names: Mapping[str, Any],
    build: Callable[[], Any],
    series: Series,
    fit: Mapping[str, Any],
    score: Callable[[Any], Row],
) -> Row:
    """Return the scores of a model that is fitted for the budget, unless they are cached.

    Args:
        options: The budget, and the cache.
        names: The names of the fit, among them the seed.
        build: Function that makes the model.
        series: Series to train on.
        fit: Options of `fit`.
        score: Function of the fitted model.
    """
    recipe = fit.get("recipe") or SeriesRecipe()
    clock = Clock(min(recipe.batch_size, len(series)), len(series))
    settings = {"budget": options.budget, "task": repr(fit.get("task"))}
    key = key_of(names, settings, recipe, series.times, series.values)

    def measure() -> Row:
        begin, seed = process_time(), names["seed"]
        try:
            model = build()
            model.fit(series, budget=options.budget, seed=seed, threads=1, callbacks=[clock], **fit)
            spent = process_time() - begin
            found = score(model)
        except FAILURES as error:
            return {"note": f"failed: {' '.join(str(error).split())}"}
        return {**found, "CPU s": spent, **clock.row(), "note": ""}

    return options.results.recall(key, measure)


def _over_seeds(rows: Sequence[Row]) -> Row:
    """Return the median, the least and the greatest of each column over seeds."""
    whole = [row for row in rows if not row["note"].startswith("failed")]
    if len(whole) < 2:
        return {}
    columns = [name for name in whole[0] if name not in ("note", "seed")]
    values = {name: [row[name] for row in whole] for name in columns}
    return {
        name: f"{median(each):.4g} ({min(each):.4g} to {max(each):.4g})"
        for name, each in values.items()
    }


def _table(
    baselines: Mapping[str, Row], rows: Mapping[str, Iterator[Row]], columns: Sequence[str]
) -> Iterator[TableItem]:
    """Yield a row for each baseline, and for each method those of its seeds and over them."""

    def line(method: str, seed: Any, row: Mapping[str, Any]) -> Row:
        cells = {name: row.get(name, "") for name in columns}
        return {"method": method, "seed": seed, **cells, "note": row.get("note", "")}

    for name, row in baselines.items():
        yield line(name, "", row)
    for method, found in rows.items():
        kept = []
        for seed, row in enumerate(found):
            kept.append(row)
            yield line(method, seed, row)
        if over := _over_seeds(kept):
            yield line(method, "median", over)


STAY_COLUMNS = ("error", "error of an entry", "90 % cover", "CPU s", "epochs", "s an epoch")


def stays(source: str | None, sets: Sequence[str] = ("a", "b")) -> tuple[Series, pd.DataFrame]:
    """Return the stays of PhysioNet 2012, and their outcomes."""
    frame, outcomes = physionet2012(source, sets=sets)
    labels = outcomes[["id", "In-hospital_death"]]
    return Series.from_frame(frame, id="id", time="time", labels=labels), outcomes


def stay_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the tables of interpolation and extrapolation of stays."""
    series, _ = stays(options.data_dir)
    train, test = split(series, 0)
    means, scales = column_means(train), column_scales(series)
    yield (
        f"PhysioNet 2012: {len(train)} stays to train on, {len(test)} to score, "
        f"{len(series.columns)} columns, times by the minute; errors in 1e-3, of columns scaled "
        "by their minimum and maximum over all stays"
    )
    yield (
        "error: as published, the mean over a stay's columns, 0 where one is unseen; error of an "
        f"entry: the mean over observations; {options.budget:g} s a fit, {threads_used()}; where "
        "all is seen, interpolation repeats it without error"
    )
    yield ""
    shown, hidden = test.hide(HIDDEN_SHARE, 0)
    before, after = test.cut(CUT)
    questions = {
        INTERPOLATION: [
            Question("interpolation as published: all is seen", test, test, means, scales),
            Question(f"{HIDDEN_SHARE:.0%} of the entries hidden", shown, hidden, means, scales),
        ],
        EXTRAPOLATION: [Question(f"after {CUT:g} h", before, after, means, scales)],
    }
    for task, asked in questions.items():
        found = {
            seed: _stay_fit(options, train, task, asked, seed) for seed in range(options.seeds)
        }
        for question in asked:
            yield question.name
            rows = (_of_question(row, question.name) for row in found.values())
            yield from _table(question.baselines(), {"latent ODE": rows}, STAY_COLUMNS)
            yield ""


def split(series: Series, seed: int) -> tuple[Series, Series]:
    """Return a random 80 % of series, and the rest."""
    order = np.random.default_rng(seed).permutation(len(series))
    count = round(TRAIN_SHARE * len(series))
    return series[np.sort(order[:count])], series[np.sort(order[count:])]


def _stay_fit(
    options: BenchmarkOptions, train: Series, task: Task, asked: Sequence[Question], seed: int
) -> Row:
    """Return the scores of all questions by their names, and the cost, of a fit."""
    return fitted(
        options,
        {"task": task.kind, "seed": seed},
        lambda: LatentODE(train.columns, **STAY_MODEL),
        train,
        {"task": task, "recipe": STAY_RECIPE},
        lambda model: {question.name: question.answer(model) for question in asked},
    )


def _of_question(row: Row, name: str) -> Row:
    return {**row.get(name, {}), **{key: row[key] for key in row if not isinstance(row[key], dict)}}


def mortality_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of in-hospital mortality, set a."""
    from sklearn.metrics import roc_auc_score

    series, outcomes = stays(options.data_dir, ("a",))
    assert series.labels is not None
    yield (
        f"In-hospital mortality: area under the receiver's curve; {len(series)} stays of set a, "
        f"{TRAIN_SHARE:.0%} to train on, another split for each seed; {options.budget:g} s a fit, "
        f"{threads_used()}"
    )
    columns = ("AUROC", "CPU s", "epochs", "s an epoch")
    scored: dict[str, list[Row]] = {"SAPS-I": [], "logistic regression": [], "latent ODE": []}
    for seed in range(options.seeds):
        train, test = split(series, seed)
        assert test.labels is not None
        places = pd.Index(outcomes["id"]).get_indexer(pd.Index(test.ids))
        labels = test.labels

        def auroc(scores: Any, labels: Array = labels) -> Row:
            return {"AUROC": float(roc_auc_score(labels, scores))}

        def classified(model: Any, auroc: Callable[..., Row] = auroc, test: Series = test) -> Row:
            return auroc(model.classify(test)[:, 1])

        scored["SAPS-I"].append(auroc(outcomes["SAPS-I"].to_numpy()[places]) | {"note": ""})
        scored["logistic regression"].append(auroc(_regression(train, test)) | {"note": ""})
        scored["latent ODE"].append(
            fitted(
                options,
                {"task": "mortality", "seed": seed},
                partial(LatentODE, train.columns, labels=(0, 1), **MORTALITY_MODEL),
                train,
                {"recipe": MORTALITY_RECIPE},
                classified,
            )
        )
    yield from _table({}, {name: iter(rows) for name, rows in scored.items()}, columns)


def _regression(train: Series, test: Series) -> Array:
    """Return the scores of a logistic regression on means, last values and counts of columns."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    means = column_means(train)

    def features(series: Series) -> Array:
        end = _ends(series)
        parts = [BASELINES[name](series, end, means) for name in ("own mean", "last value")]
        counts = np.add.reduceat(series.observed, series.offsets[:-1], axis=0, dtype=np.float64)
        return np.hstack([*parts, np.log1p(counts)])

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    model.fit(features(train), train.labels)
    return np.asarray(model.predict_proba(features(test))[:, 1])


def _ends(series: Series) -> Series:
    """Return a row for each series that comes after all others."""
    n = len(series)
    return replace(
        series,
        offsets=np.arange(n + 1),
        times=np.full(n, series.times.max() + 1),
        values=np.full((n, len(series.columns)), np.nan),
    )


def periodic_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the table of sine waves, half of whose times are seen."""
    frame, _ = load_series("periodic", PERIODIC_SERIES, 0)
    series = Series.from_frame(frame, id="id", time="time")
    count = round(TRAIN_SHARE * len(series))
    train, test = series[:count], series[count:]
    times = test.times[: test.lengths[0]]
    chosen = np.random.default_rng(0).random((len(test), len(times))).argsort(1) < PERIODIC_SHOWN
    means = column_means(train)
    question = Question("", test.rows(chosen.ravel()), test, means, np.ones(1))
    yield (
        f"Sine waves of random frequency: {len(train)} series to train on, {len(test)} to score at "
        f"{len(times)} times, of which {PERIODIC_SHOWN} are seen; mean squared error; "
        f"{options.budget:g} s a fit, {threads_used()}"
    )
    task = Task("interp", hide=1 - PERIODIC_SHOWN / len(times))

    def plain(row: Row) -> Row:
        return {**row, "error": row["error"] / 1e3} if "error" in row else row

    def ours(seed: int) -> Row:
        return fitted(
            options,
            {"task": "periodic", "seed": seed},
            lambda: LatentODE(train.columns, **PERIODIC_MODEL),
            train,
            {"task": task, "recipe": PERIODIC_RECIPE},
            question.answer,
        )

    rows = {"latent ODE": (plain(ours(seed)) for seed in range(options.seeds))}
    if options.latent_ode is not None:
        arrays = {
            "times": times / times[-1],
            "train": train.values.reshape(count, -1),
            "test": test.values.reshape(len(test), -1),
            "shown": chosen,
        }
        folder = options.latent_ode
        rows["latent_ode"] = (
            plain(_of_repository(options, folder, arrays, question, seed))
            for seed in range(options.seeds)
        )
    baselines = {name: plain(row) for name, row in question.baselines().items()}
    yield from _table(baselines, rows, ("error", "90 % cover", "CPU s", "epochs"))
    if options.latent_ode is None:
        yield (
            f"latent_ode's own code is left out: git clone {LATENT_ODE_REPOSITORY[0]} DIR, and "
            "give --latent-ode DIR"
        )


def _of_repository(
    options: BenchmarkOptions,
    repository: Path,
    arrays: Mapping[str, Array],
    question: Question,
    seed: int,
) -> Row:
    """Return the scores of latent_ode's own code after as many seconds, in another process."""
    program = Path(rivals.__file__).with_name("latent_ode.py")
    key = key_of({"task": "latent_ode", "seed": seed}, {"budget": options.budget}, *arrays.values())

    def measure() -> Row:
        with TemporaryDirectory() as name:
            data, out = Path(name) / "data.npz", Path(name) / "out.npz"
            np.savez(data, **arrays)  # type: ignore[arg-type]
            given = ("--repository", repository, "--budget", options.budget, "--seed", seed)
            command = [executable, program, data, out, *given]
            ended = run([*map(str, command)], capture_output=True, text=True, check=False)
            if ended.returncode:
                last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
                return {"note": f"failed: {last}"}
            with np.load(out) as found:
                mean, spent, epochs = (found[each] for each in ("mean", "seconds", "epochs"))
        row = question.row(mean.reshape(-1, 1))
        return {**row, "CPU s": float(spent), "epochs": float(epochs), "note": ""}

    return options.results.recall(key, measure)


def law_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield the tables of log p beside the exact evidence of two laws."""
    trained, scored = LAW_SERIES
    yield (
        f"Log p of {scored} series whose evidence is known, after {options.budget:g} s on "
        f"{trained} others; {threads_used()}; nats"
    )
    posteriors = {
        f"latent ODE, {name} posterior": {"posterior": name} for name in ("gaussian", "flow")
    }
    models: dict[str, dict[str, Callable[[], Any]]] = {
        "linear_gaussian": {
            name: partial(LatentODE, ("x",), **{**LAW_MODEL, **given})
            for name, given in posteriors.items()
        },
        "ornstein_uhlenbeck": {
            "flow process": partial(FlowProcess, ("x",)),
            "latent ODE": partial(LatentODE, ("x",), **LAW_MODEL),
        },
    }
    for law, made in models.items():
        toy = SERIES_DATASETS[law].toy
        assert toy is not None
        frames = [toy.sample(count, seed) for seed, count in enumerate(LAW_SERIES)]
        train, test = (Series.from_frame(frame, id="id", time="time") for frame in frames)
        exact = toy.log_prob(frames[1])  # type: ignore[attr-defined]
        entries = int(test.observed.sum())
        yield f"{SERIES_DATASETS[law].help}: exact {exact.mean():.3f} nats a series"

        def scores(model: Any, test: Series = test, exact: Array = exact, m: int = entries) -> Row:
            draws = {} if isinstance(model, FlowProcess) else {"draws": BOUND_DRAWS}
            return _gap(exact, model.log_prob(test, **draws).log_prob, m)

        def fits(
            name: str,
            build: Callable[[], Any],
            law: str = law,
            train: Series = train,
            scores: Callable[[Any], Row] = scores,
        ) -> Iterator[Row]:
            recipe = SeriesRecipe() if name == "flow process" else LAW_RECIPE
            for seed in range(options.seeds):
                names = {"task": law, "model": name, "seed": seed}
                yield fitted(options, names, build, train, {"recipe": recipe}, scores)

        rows = {name: fits(name, build) for name, build in made.items()}
        baselines = {"independent normals": _gap(exact, _independent(train, test), entries)}
        yield from _table(baselines, rows, ("gap a series", "gap an entry", "CPU s", "epochs"))
        yield ""
    yield f"gap: exact log p minus the model's; of latent ODEs the bound of {BOUND_DRAWS} draws"


def _gap(exact: Array, log_prob: Array, entries: int) -> Row:
    gaps = exact - log_prob
    return {"gap a series": float(gaps.mean()), "gap an entry": float(gaps.sum()) / entries}


def _independent(train: Series, test: Series) -> Array:
    """Return log p of series by one normal law of all entries."""
    mean, scale = np.nanmean(train.values), np.nanstd(train.values)
    terms = -0.5 * ((test.values[:, 0] - mean) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))
    return np.bincount(test.owners, terms, len(test)).astype(np.float64)
