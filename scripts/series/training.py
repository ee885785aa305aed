"""The work of `cnf train-series`: fit a model of series, score it and draw its figures."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnf.datasets import ColumnType
from cnf.datasets.reading import drop_option
from cnf.datasets.series import SERIES_DATASETS
from cnf.scripts.folder import default_folder, run_folder, write_records
from cnf.scripts.options import READ_OPTIONS, given_numbers, listed, option_of, read_options
from cnf.scripts.program import say
from cnf.scripts.series.data import (
    SeriesData,
    SeriesLayout,
    check_name,
    check_whole,
    label_names,
    open_series,
)
from cnf.scripts.series.evaluation import SCORED_SHARE, divided, summarize_series
from cnf.scripts.series.figures import plot_series
from cnf.scripts.series.folder import TrainedSeries, series_metadata, time_text
from cnf.scripts.trained import STATE_FILE
from cnf.scripts.training import RunRecorder, by_threads, last_threads
from cnf.series import SERIES_MODELS, Series, SeriesRecipe, Task, check_training
from cnf.series.clock import encode_clock
from cnf.storage import save
from cnf.training.callbacks import ProgressBar
from cnf.training.history import History, Record
from cnf.training.numbers import numbers_of
from cnf.utils.threads import number_of_threads

LATENT_OPTIONS = (
    *("encoder", "posterior", "baseline", "likelihood", "events", "latent_dim", "hidden"),
)  # of a latent_ode alone
MAX_SHOWN_SERIES = 500  # held-out series scored after training
MAX_CLASSES = 100
LEVELS = (0.05, 0.5, 0.95)  # of predicted quantiles
LARGEST = float(np.finfo(np.float32).max)


def train_series(arguments: argparse.Namespace) -> None:
    """Train a model of series as the command line says, score it and draw its figures."""
    layout = _layout(arguments)
    recipe = _recipe(arguments)
    files = {name: _absolute(getattr(arguments, name)) for name in ("static", "labels")}
    known = (files["static"], files["labels"], arguments.data_dir)
    data = open_series(arguments.data, layout, arguments.seed, *known)
    task = Task(arguments.task, _cut(arguments.cut, data.series), _hidden_share(arguments))
    _check_columns(data, layout)
    with warnings.catch_warnings(action="ignore"):  # which `fit` repeats
        check_training(data.train)
    _check_observations(data.series)
    task.split(data.series, arguments.seed)  # or an error that names a series
    model = _new_model(arguments, data)
    out = arguments.out or default_folder(data.name)
    with run_folder(out, arguments.resume) as folder:
        say(*_summary(data, model, task))
        run = {name: getattr(arguments, name) for name in ("seed", "data_dir", "budget", "steps")}
        metadata = series_metadata(data, layout, task, **files, **run)
        history = _fit(arguments, data, model, task, recipe, folder, metadata)
        threads = history.threads.tolist()
        say(
            f"{history.steps} steps in {history.duration:.1f} s{by_threads(threads)}, ended by "
            f"{history.reason}; kept the averaged weights of step {history.best_step}"
        )
        with number_of_threads(last_threads(threads)):
            _show(TrainedSeries.read(str(folder)), data)


def _layout(arguments: argparse.Namespace) -> SeriesLayout:
    """Return the layout of the file that the command line says.

    Raises:
        ValueError: A name of a column is missing, or is given for a data set that has its own.
    """
    check_name(arguments.data)
    if arguments.data in SERIES_DATASETS:
        text = (option[2:].replace("-", "_") for option in READ_OPTIONS)
        for name in ("id", "time", "variable", "value", "columns", "drop", "static", *text):
            if getattr(arguments, name) is not None:
                raise ValueError(
                    f"Expected no {option_of(name)} with the data set {arguments.data}, whose "
                    f"columns are known; got {getattr(arguments, name)!r}: leave it out"
                )
        if arguments.labels:
            raise ValueError(
                f"Expected --labels without a file with the data set {arguments.data}, which has "
                f"its own; got {arguments.labels!r}: leave the file out"
            )
        return SeriesLayout()
    for name in ("id", "time"):
        if getattr(arguments, name) is None:
            near = ", ".join(SERIES_DATASETS)
            raise ValueError(
                f"Expected --{name} COL, the column of {name}s of the file {arguments.data}; got "
                f"none: name it (only the data sets {near} need none)"
            )
    if (arguments.variable is None) != (arguments.value is None):
        raise ValueError(
            "Expected both --variable and --value for a long table, or neither for a wide one; "
            "got one of them: give both"
        )
    return SeriesLayout(
        arguments.id,
        arguments.time,
        arguments.variable,
        arguments.value,
        None if arguments.columns is None else listed(arguments.columns),
        read_options(arguments, () if arguments.drop is None else listed(arguments.drop)),
    )


def _absolute(file: str | None) -> str | None:
    return str(Path(file).resolve()) if file else file


def _cut(text: str | None, series: Series) -> float | None:
    """Return the time of the cut as the clock of series counts, from a number or a date."""
    import pandas as pd

    if text is None:
        return None
    clock = series.clock
    try:
        if not clock.unit:
            return float(text)
        kind = pd.to_datetime if clock.origin else pd.to_timedelta
        dtype = "datetime64[ns]" if clock.origin else "timedelta64[ns]"
        bare = ColumnType(dtype, clock.unit, clock.origin)
        return float(encode_clock(pd.Series([kind(text)]), bare)[0][0])
    except ValueError:
        wanted = {"date": "a date", "duration": "a duration"}.get(clock.family, "a number")
        raise ValueError(
            f"Expected --cut to be {wanted}, as the times in column {series.time_column!r} are; "
            f"got {text!r}: write one"
        ) from None


def _recipe(arguments: argparse.Namespace) -> SeriesRecipe:
    """Return the numbers of training that the command line sets.

    Raises:
        ValueError: One is out of range, or has no effect on the model.
    """
    numbers = numbers_of(SeriesRecipe)
    given = given_numbers(arguments, numbers)
    for name in given:
        used_by = numbers[name].used_by
        if used_by and arguments.model not in used_by:
            raise ValueError(
                f"Expected no {option_of(name)} with a {arguments.model}; got it: leave it out"
            )
    return SeriesRecipe(**given)


def _hidden_share(arguments: argparse.Namespace) -> float:
    """Return the share of entries that are hidden in training.

    Raises:
        ValueError: The model needs another one.
    """
    learns = arguments.model == "latent_ode" and arguments.task == "interp"
    hide: float = arguments.hide if arguments.hide is not None else SCORED_SHARE * learns
    if arguments.together and arguments.model != "latent_ode" and hide:
        raise ValueError(
            f"Expected no --hide with --together, since a part of the columns has no density; got "
            f"{hide:g}: leave one of them out"
        )
    if arguments.baseline == "local" and arguments.task == "interp" and not hide:
        raise ValueError(
            "Expected --hide above 0 with --baseline local, which has what is seen; got 0: hide a "
            "tenth, or choose another baseline"
        )
    return hide


def _check_columns(data: SeriesData, layout: SeriesLayout) -> None:
    """Check that training observes all columns, and that their names leave those of outputs."""
    names = data.series.columns
    outputs = {f"{name} q{level:g}" for name in names for level in LEVELS}
    if clash := [name for name in names if name in {layout.id, layout.time} | outputs]:
        raise ValueError(
            f"Expected columns to model besides {layout.id!r} and {layout.time!r}, none of them "
            f"named as a quantile of another in predictions; got {clash[0]!r}: leave it out of "
            "--columns, or rename it"
        )
    if (never := ~data.train.observed.any(0)).any():
        name = names[int(never.argmax())]
        remedy = drop_option(name) if layout.variable is None else "naming the others in --columns"
        raise ValueError(
            f"Expected observations of every column in the {len(data.train)} training series; got "
            f"none of {name!r}: leave it out by {remedy}"
        )


def _check_observations(series: Series) -> None:
    """Check that every series has an observation, and that single precision holds all numbers."""
    numbers = np.column_stack([series.times, np.nan_to_num(series.values)])
    if (wrong := np.abs(numbers) > LARGEST).any():
        row, place = divmod(int(wrong.argmax()), numbers.shape[1])
        name = (series.time_column, *series.columns)[place]
        raise ValueError(
            f"Expected numbers up to {LARGEST:.2g}; got {numbers[row, place]:g} in column {name!r} "
            f"of series {series.name(int(series.owners[row]))}, {series.time_column} "
            f"{series.times[row]:g}: correct it, or rescale the column"
        )
    counts = np.bincount(series.owners, series.observed.any(1), len(series))
    if (empty := counts == 0).any():
        raise ValueError(
            f"Expected observations in every series; got none in series "
            f"{series.name(int(empty.argmax()))} ({empty.sum()} such series): leave them out"
        )


def _new_model(arguments: argparse.Namespace, data: SeriesData) -> Any:
    """Return a new model of the data, with random weights.

    Raises:
        ValueError: An option does not belong to the model, or the labels are of one class.
    """
    torch.manual_seed(arguments.seed)
    series = data.series
    kind: Any = SERIES_MODELS[arguments.model]
    given = {name: value for name in LATENT_OPTIONS if (value := getattr(arguments, name))}
    if arguments.model == "latent_ode":
        if arguments.together:
            raise ValueError("Expected no --together with a latent_ode; got it: leave it out")
        options = {**given, "static": series.static_columns, "labels": _classes(data)}
        model: Any = kind(series.columns, **options)
    else:
        files = {"static": arguments.static, "labels": arguments.labels}
        for name in {**given, **{name: 0 for name, each in files.items() if each is not None}}:
            raise ValueError(
                f"Expected no {option_of(name)} with a {arguments.model}; got it: leave it out"
            )
        if arguments.together:
            check_whole(data.series, "or leave --together out")
            values = data.train.values
            if (constant := np.nanmax(values, axis=0) == np.nanmin(values, axis=0)).any():
                name = series.columns[int(constant.argmax())]
                raise ValueError(
                    f"Expected columns that vary with --together; got {name!r} of one value: leave "
                    "it, or --together, out"
                )
        model = kind(series.columns, together=arguments.together)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _classes(data: SeriesData) -> list[Any] | None:
    """Return the labels' classes; None without labels.

    Raises:
        ValueError: There is one class alone, or there are too many.
    """
    names = label_names(data.train)
    if names is None:
        return None
    found = sorted({name for name in label_names(data.series) or () if name is not None})
    trained = {name for name in names if name is not None}
    if len(trained) < 2 or len(found) > MAX_CLASSES:
        got = (
            f"{len(found)} classes"
            if len(found) > MAX_CLASSES
            else (f"only {trained.pop()}" if trained else "none")
        )
        raise ValueError(
            f"Expected labels of 2 to {MAX_CLASSES} classes among the {len(names)} training "
            f"series; got {got}: leave --labels out, or label more series"
        )
    return found


def _summary(data: SeriesData, model: Any, task: Task) -> list[str]:
    """Return lines that describe the data and the model to be trained."""
    train = data.train
    lengths, cells = train.lengths, train.observed
    cut = f" from {time_text(task.cut, train.clock)}" if task.cut is not None else ""
    hide = f", {task.hide:.0%} hidden" if task.hide else ""
    weights = sum(p.numel() for p in model.parameters())
    unit = f" (times in {train.clock.unit})" if train.clock.unit else ""
    return [
        f"{data.name}: {len(train)} training series of {len(train.columns)} column"
        f"{'s' * (len(train.columns) > 1)}, "
        f"{lengths.min()} to {lengths.max()} times each (median {np.median(lengths):g}), "
        f"{cells.mean():.1%} of the cells observed{unit}",
        f"  task {task.kind}{cut}{hide}; {model.kind}, {weights} weights",
        *(f"  {note}" for note in data.notes),
    ]


def _fit(
    arguments: argparse.Namespace,
    data: SeriesData,
    model: Any,
    task: Task,
    recipe: SeriesRecipe,
    folder: Path,
    metadata: dict[str, Any],
) -> History:
    """Train a model, and save it in a folder whenever it improves."""
    recorder = RunRecorder(folder, lambda event: save(event.model, folder, metadata))
    history: History = model.fit(
        data.train,
        task=task,
        validation=data.validation,
        budget=arguments.budget,
        steps=arguments.steps,
        seed=arguments.seed,
        threads=arguments.threads,
        state=folder / STATE_FILE,
        callbacks=[SeriesProgressBar(), recorder],
        recipe=recipe,
    )
    save(model, folder, metadata)
    columns = (getattr(history, field.name).tolist() for field in fields(Record))
    write_records(folder, [Record(*row) for row in zip(*columns, strict=True)])
    return history


class SeriesProgressBar(ProgressBar):
    """A progress bar with loss and validation loss of an observation, on terminals only."""

    def describe(self, event: Any) -> str:
        nll = f"{event.records[-1].validation_nll:.3f}" if event.records else "-"
        return f"step {event.step}  loss {event.loss:.3f}  validation {nll} nats an observation"


def _show(trained: TrainedSeries, data: SeriesData) -> None:
    """Score the trained model on held-out series and draw its figures."""
    shown = data.test[:MAX_SHOWN_SERIES]
    if divided(trained, shown)[1].observed.any():
        say(*summarize_series(trained, shown, data.train).lines())
    else:
        say(f"  none of the {len(shown)} held-out series has observations to score")
    if len(shown) < len(data.test):
        say(f"  {len(shown)} of {len(data.test)} held-out series; cnf evaluate scores all")
    say(*(f"  {path}" for path in plot_series(trained, data)))
