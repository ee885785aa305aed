"""A trained folder of series: the model, and a record of the data that it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import ColumnType, ReadOptions
from cnf.scripts.rows import Array
from cnf.scripts.series.data import (
    FOUND_OUT,
    SeriesData,
    SeriesLayout,
    check_whole,
    open_series,
    read_series,
)
from cnf.scripts.series.kind import is_series
from cnf.scripts.trained import check_unused
from cnf.series import FlowProcess, Series, Task, column_means, column_scales
from cnf.series.clock import decode_clock
from cnf.series.scaling import FAR, MARGIN
from cnf.storage import load, load_config

FARTHEST = 100  # spans of the training's times; fixed steps to later ones are too many


@dataclass(frozen=True, eq=False)
class ColumnStatistics:
    """Statistics of training series' columns, each of shape (D,), that trivial predictions need."""

    means: Array
    deviations: Array
    scales: Array  # of errors: the largest |x|
    published_scales: Array  # the largest x, of the error as it is published
    low: Array  # the 5 % quantile
    high: Array  # the 95 % quantile

    @staticmethod
    def of(train: Series) -> ColumnStatistics:
        """Return the statistics of series, of which every column was observed."""
        low, high = np.nanquantile(train.values, (0.05, 0.95), axis=0)
        largest = np.nanmax(np.abs(train.values), axis=0)
        return ColumnStatistics(
            column_means(train),
            np.nanstd(train.values, axis=0),
            np.where(largest > 0, largest, 1.0),
            column_scales(train),
            low,
            high,
        )

    def json(self) -> dict[str, Any]:
        """Return the statistics ready for JSON."""
        return {name: np.asarray(each).tolist() for name, each in vars(self).items()}

    @staticmethod
    def read(entries: Mapping[str, Any], columns: int) -> ColumnStatistics:
        """Return the statistics that `json` wrote, of so many columns."""
        names = ("means", "deviations", "scales", "published_scales", "low", "high")
        numbers: dict[str, Any] = {
            name: np.asarray(entries[name], dtype=np.float64) for name in names
        }
        if any(each.shape != (columns,) for each in numbers.values()):
            raise ValueError
        return ColumnStatistics(**numbers)


@dataclass(frozen=True, eq=False)
class TrainedSeries:
    """A trained model of series, on the CPU, with a record of its training data."""

    folder: Path
    model: Any  # one of `cnf.series.SERIES_MODELS`
    source: str  # the FILE argument of the training
    sha256: str  # of its series
    seed: int  # of the split
    data_dir: str | None
    layout: SeriesLayout  # the names of its columns
    columns: tuple[str, ...]  # those that the model was fitted on
    static: str | None  # the file of columns that do not change
    labels: str | None  # the file of labels
    clock: ColumnType  # what the times count
    task: Task
    statistics: ColumnStatistics

    @staticmethod
    def read(folder: str) -> TrainedSeries:
        """Read the model in a folder.

        Raises:
            ValueError: The folder holds no model that `train-series` wrote.
        """
        config = load_config(folder, ("metadata",))
        if not is_series(folder):
            raise ValueError(
                f"Expected a folder written by train-series; got {folder}, a model of rows"
            )
        model = load(folder)
        try:
            return TrainedSeries(Path(folder), model, **_checked(config["metadata"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"Expected a folder written by train-series; the metadata in {folder}/config.json "
                "is not as it writes it: restore it, or train again"
            ) from None

    @property
    def together(self) -> bool:
        """Whether the model needs all columns of a row, or none of them."""
        return bool(getattr(self.model, "together", False))

    @property
    def exact(self) -> bool:
        """Whether the model's log p of a series is no bound."""
        return bool(self.model.kind == FlowProcess.kind)

    def before(self, series: Series) -> Series:
        """Return what the model sees of series: after extrap, what comes before the cut."""
        return series if self.task.cut is None else series.cut(self.task.cut)[0]

    def data(self, advice: str = "train again") -> SeriesData:
        """Read the training data, with the same split, or advise where it has changed."""
        files = (self.static, self.labels, self.data_dir, self.clock)
        data = open_series(self.source, self.layout, self.seed, *files)
        if data.sha256 != self.sha256:
            raise ValueError(
                f"Expected the series that the model was trained on; {self.source} has changed "
                f"since, so its held-out series are no longer known: restore it, or {advice}"
            )
        return data

    def scored_series(
        self, data: str | None, static: str | None, labels: str | None, reading: ReadOptions
    ) -> tuple[Series, Series | None]:
        """Read the series of a file, or those held out and those that were trained on.

        Raises:
            ValueError: Files or options are given without the file in --data, or as `series`.
        """
        if data is not None:
            return self.series(data, static, labels, reading), None
        check_unused(reading, "--data")
        for option, name in (("--static", static), ("--labels", labels)):
            if name is not None:
                raise ValueError(f"Expected --data with {option}; got none: give both")
        known = self.data("name the series to score with --data")
        return known.test, known.train

    def series(
        self,
        data: str,
        static: str | None = None,
        labels: str | None = None,
        reading: ReadOptions = FOUND_OUT,
    ) -> Series:
        """Read the series of a file, in the model's columns.

        Raises:
            ValueError: The file lacks a column of the model, or has an unknown one.
        """
        if self.static is not None and static is None:
            raise ValueError(
                "Expected --static, a file with the columns that do not change, as in training; "
                "got none: give it"
            )
        layout = replace(self.layout, reading=reading)
        dropped = self.layout.reading.drop
        series, _ = read_series(data, layout, static, labels, self.clock, self.columns, dropped)
        if self.together:
            check_whole(series, "or train without --together")
        self._check_cut(series)
        self._check_times(data, series)
        return series

    def _check_times(self, data: str, series: Series) -> None:
        """Refuse times before the start, or too far beyond the training's end, of a file."""
        spans, scaling = self.spans(series.times), self.model.scaling
        start, last = (time_text(t, self.clock) for t in (scaling.start.item(), self.farthest))
        for wrong, wanted in (
            (spans < -MARGIN, f"from {start} on, where the model's time begins"),
            (spans > FARTHEST, f"up to {last}, {FARTHEST} times as far as the training series go"),
        ):
            if wrong.any():
                raise ValueError(
                    f"Expected times in {data} {wanted}; got {self._first(series, wrong)} "
                    f"({wrong.sum()} such rows): correct them, or leave them out"
                )

    def _first(self, series: Series, rows: NDArray[np.bool_]) -> str:
        """Return the time and the series of the first of some rows, for a message."""
        row = int(rows.argmax())
        time = time_text(series.times[row], self.clock)
        return f"{time} in series {series.name(int(series.owners[row]))}"

    def warn_far(self, series: Series) -> None:
        """Warn of times of series far beyond those of training."""
        if (far := self.spans(series.times) > FAR).any():
            scaling = self.model.scaling
            end = time_text((scaling.start + scaling.span).item(), self.clock)
            warnings.warn(
                f"{far.sum()} of {len(far)} rows of the series are far beyond the training series, "
                f"which end at {end}; the first is at {self._first(series, far)}: nothing was "
                "learned about such times",
                stacklevel=2,
            )

    def _check_cut(self, series: Series) -> None:
        """Check that the model sees something of every series, after the task extrap."""
        if self.task.cut is None:
            return
        seen = self.before(series)
        counts = np.bincount(seen.owners, seen.observed.any(1), len(series))
        if (empty := counts == 0).any():
            raise ValueError(
                f"Expected an observation before {time_text(self.task.cut, self.clock)}, the --cut "
                "of the model's training, in every series; got none in series "
                f"{series.name(int(empty.argmax()))} ({empty.sum()} such series): leave them out"
            )

    def spans(self, times: Array) -> Array:
        """Return times in spans of the training's times from their start, as the model has it."""
        scaling = self.model.scaling
        return np.asarray((times - scaling.start.item()) / scaling.span.item())

    @property
    def farthest(self) -> float:
        """The time after which nothing is predicted or scored."""
        scaling = self.model.scaling
        return float(scaling.start + FARTHEST * scaling.span)


@contextmanager
def warned() -> Iterator[None]:
    """Leave out a model's warning of times far beyond training, of which a program warned."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Predictions up to")
        yield


def time_text(time: float, clock: ColumnType) -> str:
    """Return a time as it is written in a file with such a clock."""
    return str(decode_clock(np.array([time]), clock).iloc[0])


def series_metadata(
    data: SeriesData,
    layout: SeriesLayout,
    task: Task,
    static: str | None,
    labels: str | None,
    **run: Any,
) -> dict[str, Any]:
    """Return the metadata that the other programs need, ready for JSON."""
    series = data.series
    parts = {name: len(part) for name, part in vars(data.parts).items()}
    return {
        "data": data.name,
        "data_sha256": data.sha256,
        **{name: getattr(layout, name) for name in ("id", "time", "variable", "value")},
        "columns": list(series.columns),
        "chosen_columns": layout.columns is not None,
        "clock": asdict(series.clock),
        "static": static,
        "labels": labels,
        "static_columns": list(series.static_columns),
        "task": asdict(task),
        "split": parts,
        "reading": asdict(layout.reading),
        "statistics": ColumnStatistics.of(data.train).json(),
        **run,
    }


def _checked(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a trained folder from its metadata."""
    columns, seed = metadata["columns"], metadata["seed"]
    names = ("id", "time", "variable", "value")
    keys = {name: metadata[name] for name in names}
    texts = [metadata[name] for name in ("data", "data_sha256", "id", "time")]
    maybe = [metadata[name] for name in ("static", "labels", "data_dir", "variable", "value")]
    good = (
        all(isinstance(each, str) for each in texts),
        all(isinstance(each, str | None) for each in maybe),
        isinstance(columns, list) and all(isinstance(name, str) for name in columns),
        isinstance(seed, int) and seed >= 0,
    )
    if not all(good):
        raise ValueError
    layout = SeriesLayout(
        **keys,
        columns=tuple(columns) if metadata["chosen_columns"] else None,
        reading=ReadOptions(**metadata["reading"]),
    )
    return {
        "source": metadata["data"],
        "sha256": metadata["data_sha256"],
        "seed": seed,
        "data_dir": metadata["data_dir"],
        "layout": layout,
        "columns": tuple(columns),
        "static": metadata["static"],
        "labels": metadata["labels"],
        "clock": ColumnType(**metadata["clock"]),
        "task": Task(**metadata["task"]),
        "statistics": ColumnStatistics.read(metadata["statistics"], len(columns)),
    }
