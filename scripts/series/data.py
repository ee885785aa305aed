"""Series that the command line names, and their parts for training, selection and scoring."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cnf.datasets as datasets
from cnf.datasets import ColumnType, ReadOptions, Split, Table, closest, table_frame
from cnf.datasets.reading import drop_option
from cnf.datasets.series import SERIES_DATASETS, load_series
from cnf.datasets.series_toys import SERIES_KEYS
from cnf.datasets.splitting import MIN_SPLIT_ROWS
from cnf.scripts.train_series import OWN_LABELS
from cnf.series import Series
from cnf.series.clock import decode_clock
from cnf.training.checkpoint import sha256

FOUND_OUT = ReadOptions()  # all that there is to know about how a file is read


@dataclass(frozen=True)
class SeriesLayout:
    """The names of a file's columns, and how it is read."""

    id: str = SERIES_KEYS[0]
    time: str = SERIES_KEYS[1]
    variable: str | None = None  # the column with the columns' names, in a long table
    value: str | None = None
    columns: tuple[str, ...] | None = None  # those that are modelled; all others when None
    reading: ReadOptions = FOUND_OUT

    @property
    def keys(self) -> dict[str, str]:
        """The columns that are not modelled, by their options."""
        names = {"--id": self.id, "--time": self.time}
        long = {"--variable": self.variable, "--value": self.value}
        return names | {option: name for option, name in long.items() if name is not None}


@dataclass(frozen=True, eq=False)
class SeriesData:
    """Series for training, validation and testing."""

    name: str  # a toy's name, or the absolute path of a file
    series: Series
    parts: Split
    sha256: str  # of the observations, static columns and labels
    notes: tuple[str, ...] = ()  # on how the file was read

    @property
    def train(self) -> Series:
        """The training series."""
        return self.series[self.parts.train]

    @property
    def validation(self) -> Series:
        """The series that the weights are selected by."""
        return self.series[self.parts.validation]

    @property
    def test(self) -> Series:
        """The held-out series."""
        return self.series[self.parts.test]


def open_series(
    name: str,
    layout: SeriesLayout,
    seed: int,
    static: str | None = None,
    labels: str | None = None,
    data_dir: str | None = None,
    clock: ColumnType | None = None,
) -> SeriesData:
    """Read a file of series, or draw a toy's, and split the series 80/10/10 by a seed.

    Raises:
        ValueError: The file or a column does not exist, an observation is no number, or there are
            too few series; the message names the id, the row and the remedy.
    """
    notes: tuple[str, ...]
    if name in SERIES_DATASETS:
        series, notes = _named(name, seed, labels is not None, data_dir), ()
    else:
        check_name(name)
        name = os.path.abspath(name)
        series, notes = read_series(name, layout, static, labels, clock)
    if len(series) < MIN_SPLIT_ROWS:
        raise ValueError(
            f"Expected at least {MIN_SPLIT_ROWS} series, to split them 80/10/10; got {len(series)} "
            f"in {name}: add series, or name the column of their ids in --id"
        )
    return SeriesData(name, series, _split(series, seed), series_sha256(series), notes)


def check_name(name: str) -> None:
    """Check that a name without an ending is one of a file or of a data set."""
    if not Path(name).suffix and not os.path.exists(name) and name not in SERIES_DATASETS:
        near = ", ".join(closest(name, SERIES_DATASETS))
        raise ValueError(
            f"Expected a file, or the name of a data set of series; got {name!r}: the closest "
            f"names are {near}"
        )


def check_whole(series: Series, remedy: str) -> None:
    """Check that every row has all columns, which one flow transforms together, or none."""
    part = series.observed.any(1) & ~series.observed.all(1)
    if part.any():
        row = int(part.argmax())
        missing = series.columns[int(series.observed[row].argmin())]
        at = decode_clock(series.times[row : row + 1], series.clock).iloc[0]
        raise ValueError(
            f"Expected all columns at once, for --together; got no {missing} at "
            f"{series.time_column} {at} in series {series.name(int(series.owners[row]))} "
            f"({part.sum()} such rows): fill them, leave the rows out, {remedy}"
        )


def _named(name: str, seed: int, labelled: bool, data_dir: str | None) -> Series:
    """Return the series of a data set by its name, with its labels where they are asked for."""
    frame, labels = load_series(name, seed=seed, data_dir=data_dir)
    if labelled and labels is None:
        raise ValueError(f"Expected no --labels with {name}, which has none: leave it out")
    given = labels if labelled else None
    return Series.from_frame(frame, id=SERIES_KEYS[0], time=SERIES_KEYS[1], labels=given)


def _split(series: Series, seed: int) -> Split:
    """Split series at random, with the one that begins first among those for training.

    A model's time starts where its training series begin, and nothing is predicted before.
    """
    parts = datasets.split(len(series), seed)
    begins = np.full(len(series), np.inf)
    np.minimum.at(begins, series.owners, series.times)
    first = int(begins.argmin())
    held_out = {"validation": parts.validation.copy(), "test": parts.test.copy()}
    train = parts.train.copy()
    for places in held_out.values():
        own = places == first
        if own.any():
            places[own], train[0] = train[0], first
    return Split(train, **held_out)


def read_series(
    name: str,
    layout: SeriesLayout,
    static: str | None = None,
    labels: str | None = None,
    clock: ColumnType | None = None,
    known: tuple[str, ...] | None = None,
    dropped: Collection[str] = (),
) -> tuple[Series, tuple[str, ...]]:
    """Read the series of a file, and return notes on how it was read.

    Args:
        name: The file.
        layout: Its columns.
        static: A file with a row for each series: its id, and columns that do not change.
        labels: A file with a row for each series: its id and label.
        clock: What the times of a model count, by which those of the file are counted.
        known: The columns of a model, all of which a wide file must have; a long one may have some
            of them. Others are an error, unless columns were chosen in training.
        dropped: Columns that were left out in training.

    Raises:
        ValueError: As `open_series`.
    """
    chosen = layout.columns if known is None else known
    table = _checked_table(name, layout, chosen, None if known is None else {*known, *dropped})
    given = {"static": side_table(static, layout), "labels": side_table(labels, layout)}
    frame = table_frame(table)

    def built(**sides: Any) -> Series:
        return Series.from_frame(
            frame,
            id=layout.id,
            time=layout.time,
            columns=chosen if layout.variable is None or known is None else None,
            variable=layout.variable,
            value=layout.value,
            clock=clock,
            **sides,
        )

    try:
        series = built(**given)
        if known is not None:
            series = _without(series, known if layout.columns else series.columns).select(known)
    except ValueError as error:
        wrong = _wrong_side(built, given)
        file = {"static": static, "labels": labels}.get(wrong, name)
        raise ValueError(f"{file}: {error}") from None
    return series, table.notes


def _wrong_side(built: Callable[..., Series], given: dict[str, Any]) -> str:
    """Return which table of ids series cannot be built with; an empty text if none with any."""
    try:
        with warnings.catch_warnings(action="ignore"):
            built()
    except ValueError:
        return ""
    for name, each in given.items():
        try:
            with warnings.catch_warnings(action="ignore"):
                built(**{name: each})
        except ValueError:
            return name
    return ""


def _checked_table(
    name: str, layout: SeriesLayout, chosen: Sequence[str] | None, allowed: Collection[str] | None
) -> Table:
    """Return the table of a file, checked to have some columns, and those alone that are allowed.

    Where columns were chosen in training, others are not read.
    """
    reading, keys, wide = layout.reading, layout.keys, layout.variable is None
    if layout.columns is not None and wide:
        reading = replace(reading, only=(*keys.values(), *layout.columns))
    table = load_rows(name, layout, reading)
    for option, column in keys.items():
        _check_column(column, table.columns, option, name)
    if not wide or chosen is None:
        return table
    if missing := [column for column in chosen if column not in table.columns]:
        every = datasets.load(name, "keep", replace(reading, only=None)).columns
        others = [column for column in every if column not in {*chosen, *keys.values()}]
        _check_column(missing[0], others, "a column of each name that is modelled", name)
    known = (*keys.values(), *(table.columns if allowed is None else allowed))
    if unknown := [column for column in table.columns if column not in known]:
        raise ValueError(
            f"Expected the columns of the training's file in {name}, {listing(chosen)}; got "
            f"{unknown[0]!r}: leave it out (only a model trained with --columns ignores others)"
        )
    return table


def load_rows(name: str, layout: SeriesLayout, reading: ReadOptions) -> Table:
    """Return the table of a file whose columns of ids and times are not to be left out."""
    try:
        return datasets.load(name, "keep", reading)
    except ValueError as error:
        message = str(error)
        for option in map(drop_option, layout.keys.values()):  # the remedy of readers
            advice = rf"the column out (with {re.escape(option)}|\({re.escape(option)}\))"
            message = re.sub(advice, "the row out", message)
        raise ValueError(message) from None


def listing(names: Sequence[str]) -> str:
    """Return the first of some names."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _without(series: Series, columns: Sequence[str]) -> Series:
    """Return series without the columns that are not among some."""
    kept = [i for i, name in enumerate(series.columns) if name in columns]
    names = tuple(series.columns[i] for i in kept)
    return replace(series, columns=names, values=series.values[:, kept])


def side_table(name: str | None, layout: SeriesLayout) -> Any:
    """Return a table with a row for each series as a data frame; None without a name."""
    if name is None:
        return None
    if name == OWN_LABELS:
        raise ValueError("Expected --labels FILE, a table of ids and labels; got no file: name one")
    table = datasets.load(name, "keep", replace(layout.reading, drop=(), only=None))
    _check_column(layout.id, table.columns, "--id", name)
    return table_frame(table)


def label_names(series: Series) -> list[Any] | None:
    """Return each series' label, a text or a number, None where it is unknown; None without."""
    if series.labels is None:
        return None
    classes = series.classes
    return [
        None if np.isnan(each) else classes[int(each)] if classes else _whole(each)
        for each in series.labels.tolist()
    ]


def _whole(number: float) -> float:
    """Return a whole number as an integer."""
    return int(number) if float(number).is_integer() else number


def series_sha256(series: Series) -> str:
    """Return the checksum of the observations, ids, static columns and labels."""
    texts = (series.columns, series.ids.tolist(), series.static_columns, label_names(series))
    arrays = [series.offsets, series.times, series.values]
    arrays += [] if series.static is None else [series.static]
    return sha256(
        *map(str, texts),
        *(torch.from_numpy(np.array(each)) for each in arrays),
    )


def _check_column(column: str, columns: Sequence[str], option: str, name: str) -> None:
    if column not in columns:
        near = ", ".join(map(repr, closest(column, columns))) or "none"
        raise ValueError(
            f"Expected {option} in {name}; got no {column!r}: the closest are {near}; rename it, "
            "or correct the option"
        )
