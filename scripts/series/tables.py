"""The tables that programs write of series: predictions, draws, and scores."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cnf.datasets import ReadOptions, frame_table, table_frame, write_table
from cnf.scripts.options import read_options
from cnf.scripts.rows import Array
from cnf.scripts.series.data import listing, load_rows
from cnf.scripts.series.evaluation import has_whole_density
from cnf.scripts.series.folder import FARTHEST, TrainedSeries, time_text, warned
from cnf.series import Prediction, Series
from cnf.series.clock import encode_clock
from cnf.series.scaling import FAR, MARGIN

MAX_DRAWN = 200_000  # times of series that are drawn at once
PREDICTED_SERIES = 500  # in one call, whose draws are held in memory


@dataclass(frozen=True, eq=False)
class AskedTimes:
    """The rows of a table of times.

    Attributes:
        frame: The table's columns as they came: those of id and time, or of time alone.
        times: The times as the model's clock counts, shape (rows,).
        ids: The ids, shape (rows,); None where the times are those of every series.
    """

    frame: pd.DataFrame
    times: Array
    ids: NDArray[np.object_] | None


def read_times(name: str, trained: TrainedSeries, reading: ReadOptions) -> AskedTimes:
    """Read a table with the model's columns of id and time, or with that of time alone.

    Raises:
        ValueError: There is no column of times, a time is missing, or before the training's start.
    """
    layout = trained.layout
    table = load_rows(name, layout, replace(reading, only=(layout.id, layout.time)))
    if layout.time not in table.columns:
        raise ValueError(
            f"Expected a column {layout.time!r} of times in {name}, and perhaps one of ids, "
            f"{layout.id!r}; got {', '.join(table.columns[:5])}: rename them"
        )
    frame = table_frame(table.select([c for c in (layout.id, layout.time) if c in table.columns]))
    try:
        times, _ = encode_clock(frame[layout.time], trained.clock)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    ids = frame[layout.id].to_numpy(dtype=object) if layout.id in frame else None
    if ids is not None and (gaps := frame[layout.id].isna().to_numpy()).any():
        raise ValueError(
            f"Expected an id in every row of {name}; got a gap in row {gaps.argmax() + 1} "
            "(counting from 1): fill it"
        )
    asked = AskedTimes(frame, times, ids)
    _check_times(name, asked, trained)
    return asked


def _check_times(name: str, asked: AskedTimes, trained: TrainedSeries) -> None:
    """Refuse gaps and times before the start; warn of those far beyond the training's end."""

    def where(row: int) -> str:
        whose = "" if asked.ids is None else f", of series {asked.ids[row]}"
        return f"row {row + 1} (counting from 1){whose}"

    written = asked.frame[trained.layout.time]
    scaling, spans = trained.model.scaling, trained.spans(asked.times)
    first, last = (
        time_text(each.item(), trained.clock)
        for each in (scaling.start, scaling.start + scaling.span)
    )
    if (gaps := np.isnan(asked.times)).any():
        raise ValueError(
            f"Expected a time in every row of {name}; got a gap in {where(int(gaps.argmax()))}: "
            "fill it, or leave the row out"
        )
    if (early := spans < -MARGIN).any():
        row = int(early.argmax())
        raise ValueError(
            f"Expected times from {first} on, where the model's time begins, "
            f"in {name}; got {written.iloc[row]} in {where(row)}: leave it out"
        )
    if (beyond := spans > FARTHEST).any():
        row = int(beyond.argmax())
        raise ValueError(
            f"Expected times up to {time_text(trained.farthest, trained.clock)}, {FARTHEST} times "
            f"as far as the training series go, in {name}; got {written.iloc[row]} in "
            f"{where(row)}: leave it out"
        )
    if (far := spans > FAR).any():
        row = int(far.argmax())
        warnings.warn(
            f"{far.sum()} of {len(far)} times in {name} are far beyond the training series, which "
            f"end at {last}; the first is {written.iloc[row]} in {where(row)}: "
            "nothing was learned about them",
            stacklevel=2,
        )


def write_predictions(arguments: Namespace) -> str:
    """Write the predictions of a file's series, and return a summary."""
    trained, reading = TrainedSeries.read(arguments.dir), read_options(arguments)
    seen = trained.series(arguments.data, arguments.static, reading=reading)
    asked = read_times(arguments.times, trained, reading)
    layout = trained.layout
    if asked.ids is None:
        frame, owners, places = _for_every_series(seen, asked, layout.id)
        times = np.tile(np.unique(asked.times), (len(seen), 1))
    else:
        frame = asked.frame
        owners = _owners(arguments, seen, asked.ids)
        times, places = _ragged(owners, asked.times, len(seen))
    trained.warn_far(trained.before(seen))
    _warn_unseen(arguments.data, trained.before(seen), owners)
    found = _predicted(trained, seen, times, owners, places, arguments.seed)
    columns = {}
    for column, name in enumerate(trained.columns):
        columns[name] = found[0][:, column]
        for level, values in zip(found[2], found[1], strict=True):
            columns[f"{name} q{level:g}"] = values[:, column]
    out = pd.concat([frame.reset_index(drop=True), pd.DataFrame(columns)], axis=1)
    write_table(arguments.out, frame_table(out, arguments.out))
    series = len(np.unique(owners))
    return f"{len(out)} times of {series} series in {arguments.out}"


def _warn_unseen(name: str, seen: Series, owners: NDArray[np.int64]) -> None:
    """Warn of series that are predicted, and of columns, without an observation in a file."""
    wanted = np.unique(owners)
    counts = np.bincount(seen.owners, seen.observed.sum(1), len(seen))
    if len(empty := wanted[counts[wanted] == 0]):
        warnings.warn(
            f"{name} has no observation of series {seen.name(int(empty[0]))} ({len(empty)} such "
            "series): it is predicted as one of which nothing is known",
            stacklevel=2,
        )
    if never := [seen.columns[i] for i in np.flatnonzero(~seen.observed.any(0))]:
        warnings.warn(
            f"{name} has no observation of {listing(never)}: predictions rest on no value of it",
            stacklevel=2,
        )


def _for_every_series(
    seen: Series, asked: AskedTimes, id: str
) -> tuple[pd.DataFrame, NDArray[np.int64], NDArray[np.int64]]:
    """Return ids and times for every series, each row's series, and its place among the times."""
    _, inverse = np.unique(asked.times, return_inverse=True)
    count, rows = len(seen), len(asked.times)
    owners = np.repeat(np.arange(count), rows)
    frame = pd.concat([asked.frame] * count, ignore_index=True)
    ids = pd.Series(seen.ids[owners])
    frame.insert(0, id, ids if seen.like is None else ids.astype(seen.like.iloc[:, 0].dtype))
    return frame, owners, np.tile(inverse, count)


def _owners(arguments: Namespace, seen: Series, ids: NDArray[np.object_]) -> NDArray[np.int64]:
    """Return the place of each row's series among those that were seen."""
    places = pd.Index(seen.ids).get_indexer(pd.Index(ids))
    if (unknown := places < 0).any():
        row = int(unknown.argmax())
        raise ValueError(
            f"Expected ids of {arguments.times} to be among the {len(seen)} of {arguments.data}, "
            f"such as {seen.ids[0]}; got {ids[row]} in row {row + 1} (counting from 1): add what "
            "is seen of it, or leave the row out"
        )
    return np.asarray(places, dtype=np.int64)


def _ragged(owners: NDArray[np.int64], times: Array, count: int) -> tuple[Array, NDArray[np.int64]]:
    """Return the distinct times of each series, (count, T) padded by the last, and rows' places."""
    order = np.lexsort((times, owners))
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(owners[order]) != 0) | (np.diff(times[order]) != 0)
    kept = order[new]
    lengths = np.bincount(owners[kept], minlength=count)
    starts = np.cumsum(lengths) - lengths
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(new) - 1 - starts[owners[order]]
    width = np.arange(max(1, lengths.max(initial=1)))
    index = starts[:, None] + np.minimum(width, np.maximum(lengths - 1, 0)[:, None])
    return times[kept][np.minimum(index, len(kept) - 1)], places


def _predicted(
    trained: TrainedSeries,
    seen: Series,
    times: Array,
    owners: NDArray[np.int64],
    places: NDArray[np.int64],
    seed: int,
) -> tuple[Array, Array, Array]:
    """Return means (rows, D) and quantiles (Q, rows, D) of rows, and the quantiles' levels."""
    columns = len(trained.columns)
    mean, quantiles, levels = np.empty((len(owners), columns)), np.empty((0, 0, 0)), np.empty(0)
    wanted = np.unique(owners)
    for i in range(0, len(wanted), PREDICTED_SERIES):
        chosen = wanted[i : i + PREDICTED_SERIES]
        with warned():
            found: Prediction = trained.model.predict(seen[chosen], times[chosen], seed=seed)
        levels = np.asarray(found.levels)
        if not quantiles.size:
            quantiles = np.empty((len(levels), len(owners), columns))
        rows = np.flatnonzero(np.isin(owners, chosen))
        own = np.searchsorted(chosen, owners[rows])
        mean[rows] = found.mean[own, places[rows]]
        quantiles[:, rows] = found.quantiles[:, own, places[rows]]
    return mean, quantiles, levels


def write_drawn_series(arguments: Namespace) -> str:
    """Write drawn series at the times of training series, or of a file, and return a summary."""
    trained, count = TrainedSeries.read(arguments.dir), arguments.n
    rng = np.random.default_rng(arguments.seed)
    if arguments.times is None:
        train = trained.data("name the times in --times").train
        chosen = train[rng.integers(len(train), size=count)]
        times = [chosen.times[slice(*chosen.offsets[i : i + 2])] for i in range(count)]
    else:
        asked = read_times(arguments.times, trained, read_options(arguments))
        times = _drawn_times(asked, count)
    series = Series(
        trained.columns,
        np.arange(1, count + 1),
        np.cumsum([0, *map(len, times)]),
        np.concatenate(times),
        _drawn(trained, times, rng),
        id_column=trained.layout.id,
        time_column=trained.layout.time,
        clock=trained.clock,
    )
    write_table(arguments.out, frame_table(series.to_frame(), arguments.out))
    return f"{count} series, {len(series.times)} rows, in {arguments.out}"


def _drawn_times(asked: AskedTimes, count: int) -> list[Array]:
    """Return the times of drawn series: those of the ids in turn, or the same for all."""
    owners = np.zeros(len(asked.times), np.int64)
    if asked.ids is not None:
        owners = pd.factorize(asked.ids)[0]
    lists = [np.unique(asked.times[owners == i]) for i in range(owners.max() + 1)]
    return [lists[i % len(lists)] for i in range(count)]


def _drawn(trained: TrainedSeries, times: Sequence[Array], rng: np.random.Generator) -> Array:
    """Return drawn series at each one's times, one below the other.

    Several are drawn at once, at the union of their times, of which each keeps its own.
    """
    values, begin = [], 0
    while begin < len(times):
        end, union = begin + 1, times[begin]
        while end < len(times):
            wider = np.union1d(union, times[end])
            if len(wider) * (end + 1 - begin) > MAX_DRAWN:
                break
            end, union = end + 1, wider
        with warned():
            drawn = trained.model.sample(union, end - begin, seed=int(rng.integers(2**31)))
        each = drawn.values.reshape(end - begin, len(union), -1)
        values += [each[i, np.searchsorted(union, own)] for i, own in enumerate(times[begin:end])]
        begin = end
    return np.concatenate(values)


def write_series_scores(arguments: Namespace) -> str:
    """Write log p of a file's series, in nats and the data's units, and return a summary."""
    trained = TrainedSeries.read(arguments.dir)
    if not has_whole_density(trained):
        raise ValueError(
            f"Expected a model with a density of whole series; {arguments.dir} corrects a curve "
            "that is made of them: train it with --baseline none, or for the task filter, or score "
            "its predictions with cnf evaluate"
        )
    series = trained.series(arguments.data, arguments.static, reading=read_options(arguments))
    trained.warn_far(series)
    scores = trained.model.log_prob(series)
    ids = series.to_frame()[trained.layout.id].iloc[series.offsets[:-1]]
    columns = {
        trained.layout.id: ids.reset_index(drop=True),
        "observations": np.bincount(series.owners, series.observed.sum(1), len(series)),
        "log_prob": scores.log_prob,
        "stderr": scores.stderr,
    }
    frame = pd.DataFrame(columns).astype({"observations": np.int64})
    write_table(arguments.out, frame_table(frame, arguments.out))
    mean = f"mean log p {scores.log_prob.mean():.4f} nats a series"
    return f"{len(series)} series in {arguments.out}, {mean}"
