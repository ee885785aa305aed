"""Series that are observed at irregular times, each with its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnf.datasets import ColumnType, closest
from cnf.series.clock import recount

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Series:
    """Series of several columns, each observed at its own irregular times.

    All rows are in one array: those of series i are `offsets[i]:offsets[i + 1]`. A series may have
    one row, or none, as behind a cut.

    Attributes:
        columns: Names of the D columns.
        ids: The ids as they came, shape (n,).
        offsets: First rows of the series, and the number of rows, shape (n + 1,).
        times: Times of the rows, strictly increasing within a series, shape (N,).
        values: Observations, NaN where a column was not measured, shape (N, D).
        static_columns: Names of the S columns that do not change with time.
        static: Their values, NaN where unknown, shape (n, S).
        labels: A class or a number of each series, NaN where unknown, shape (n,).
        classes: Texts of labels that came as text, whose places are the labels.
        id_column: Name of the frame's column of ids.
        time_column: Name of the frame's column of times.
        clock: What times count: its `unit` and `origin` are empty for plain numbers.
        like: A frame without rows, of the library and the dtypes that `to_frame` returns.

    Raises:
        ValueError: The shapes do not fit, or times are not finite, or do not increase in a series.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": [7, 7, 8], "time": [0.0, 1.5, 0.2], "x": [1.0, None, 3.0]})
        >>> series = Series.from_frame(frame, id="id", time="time")
        >>> len(series), series.lengths.tolist(), series.observed[:, 0].tolist()
        (2, [2, 1], [True, False, True])
        >>> series[1].to_frame().to_dict("list")
        {'id': [8], 'time': [0.2], 'x': [3.0]}
    """

    columns: tuple[str, ...]
    ids: NDArray[Any]
    offsets: Whole
    times: Array
    values: Array
    static_columns: tuple[str, ...] = ()
    static: Array | None = None
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    id_column: str = "id"
    time_column: str = "time"
    clock: ColumnType = field(default_factory=ColumnType)
    like: Any = None

    def __post_init__(self) -> None:
        n, rows = len(self.ids), len(self.times)
        found = {
            "offsets": (self.offsets, (n + 1,)),
            "values": (self.values, (rows, len(self.columns))),
            "static": (self.static, (n, len(self.static_columns))),
            "labels": (self.labels, (n,)),
        }
        for name, (array, shape) in found.items():
            if array is not None and array.shape != shape:
                raise ValueError(f"Expected {name} of shape {shape}; got {array.shape}: reshape")
        ends = self.offsets[0], self.offsets[-1]
        if ends != (0, rows) or (np.diff(self.offsets) < 0).any():
            raise ValueError(
                f"Expected offsets that increase from 0 to {rows}; got {ends[0]} to {ends[1]}: "
                "build series by Series.from_frame"
            )
        steps = np.diff(self.times)
        steps[self.offsets[1:-1][(self.offsets[1:-1] > 0) & (self.offsets[1:-1] < rows)] - 1] = 1
        if (bad := ~np.isfinite(self.times)).any():
            place = int(self.owners[int(bad.argmax())])
            raise ValueError(
                f"Expected finite times; got {self.times[bad][0]:g} in series {self.name(place)}: "
                "build series by Series.from_frame"
            )
        if not (steps > 0).all():
            row = int((~(steps > 0)).argmax()) + 1
            place = int(np.searchsorted(self.offsets, row, side="right")) - 1
            raise ValueError(
                f"Expected times that increase; got {self.times[row]:g} after "
                f"{self.times[row - 1]:g} in series {self.name(place)}: build series by "
                "Series.from_frame"
            )

    @staticmethod
    def from_frame(
        frame: Any,
        *,
        id: str,
        time: str,
        columns: Sequence[str] | None = None,
        variable: str | None = None,
        value: str | None = None,
        static: Any = None,
        labels: Any = None,
        clock: ColumnType | None = None,
    ) -> Series:
        """Return the series in a table of pandas, polars or pyarrow.

        A wide table has a row for each id and time, a column for each quantity, and empty cells
        for what was not measured. A long one has a row for each measurement, whose quantity is
        named in the column `variable` and whose number is in the column `value`. Rows that are
        not in order of time are sorted, with a warning.

        Args:
            frame: The table.
            id: Name of the column of ids; series come in the order in which these first appear.
            time: Name of the column of times: numbers, dates or durations. Dates are counted from
                the first one in the coarsest unit that holds all, in UTC where they have a zone.
            columns: Names of the columns to take; by default all others, of a long table sorted.
            variable: Name of the column with the names of quantities in a long table.
            value: Name of the column with their numbers.
            static: Names of columns that are constant in each series, or a table with a column of
                ids and a row for each series; those without a row have NaN.
            labels: Name of a column that is constant in each series, or a table with a column of
                ids and one other.
            clock: The `clock` of other series, such as those of a fit, by which dates are counted.

        Raises:
            ValueError: A column does not exist; an id or a time is missing, or a time infinite; an
                id has two rows at one time (in a long table: of one variable); a value is infinite
                or no number; a static column varies within a series. The message names the id,
                the row and the remedy.

        Example:
            >>> import polars
            >>> frame = polars.DataFrame(
            ...     {"id": [5, 5, 6], "h": [0, 0, 2], "what": ["HR", "T", "HR"], "x": [61, 37, 80]}
            ... )
            >>> series = Series.from_frame(frame, id="id", time="h", variable="what", value="x")
            >>> series.columns, series.values.tolist()
            (('HR', 'T'), [[61.0, 37.0], [80.0, nan]])
        """
        from cnf.series.frames import frame_series  # which imports this module

        return frame_series(
            frame, id, time, columns, (variable, value), static=static, labels=labels, clock=clock
        )

    def to_frame(self) -> Any:
        """Return a wide table of ids, times and columns, of the library of the one that came.

        Ids and times have the dtypes that came, columns are float64; gaps are NaN in pandas and
        null in polars and pyarrow.
        """
        from cnf.series.frames import series_frame

        return series_frame(self)

    def __repr__(self) -> str:
        names = ", ".join(self.columns[:10]) + (", …" if len(self.columns) > 10 else "")
        return f"<{len(self)} series of {len(self.times)} rows, columns {names}>"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice | ArrayLike) -> Series:
        """Return some of the series, chosen by a place, a slice, places or a mask.

        Raises:
            IndexError: There is no such place.
        """
        places = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        places = np.atleast_1d(places)
        rows, offsets = ragged_rows(self.offsets, places)
        return replace(
            self,
            ids=self.ids[places],
            offsets=offsets,
            times=self.times[rows],
            values=self.values[rows],
            static=None if self.static is None else self.static[places],
            labels=None if self.labels is None else self.labels[places],
        )

    @property
    def lengths(self) -> Whole:
        """Numbers of rows, shape (n,)."""
        return np.diff(self.offsets)

    @cached_property
    def observed(self) -> Flags:
        """Whether a column was measured, shape (N, D)."""
        return ~np.isnan(self.values)

    @property
    def owners(self) -> Whole:
        """The place of each row's series, shape (N,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def name(self, place: int) -> str:
        """Return the id at a place as messages have it."""
        return repr(self.ids[place : place + 1].tolist()[0])

    def rows(self, kept: Flags) -> Series:
        """Return the rows of a mask (N,); the series stay aligned, and may have none."""
        counts = np.concatenate([[0], np.cumsum(kept)])
        return replace(
            self,
            offsets=counts[self.offsets],
            times=self.times[kept],
            values=self.values[kept],
        )

    def cut(self, at: ArrayLike) -> tuple[Series, Series]:
        """Return the rows before a time, and those from it on; the series stay aligned.

        Args:
            at: The time, or one for each series, shape (n,), as the clock counts.

        Example:
            >>> import pandas as pd
            >>> frame = pd.DataFrame({"id": 1, "time": [0.0, 1.0, 2.0], "x": 0.5})
            >>> before, after = Series.from_frame(frame, id="id", time="time").cut(1.0)
            >>> before.times.tolist(), after.times.tolist()
            ([0.0], [1.0, 2.0])
        """
        limits = np.broadcast_to(np.asarray(at, dtype=np.float64), (len(self),))
        early = self.times < np.repeat(limits, self.lengths)
        return self.rows(early), self.rows(~early)

    def hide(self, share: float, seed: int) -> tuple[Series, Series]:
        """Return what is shown, and a random share of all observations that is hidden.

        The share is of the entries of all series together, each with the same chance. Rows without
        an entry are left out of either part; the series stay aligned.

        Args:
            share: The share of observed entries to hide, from 0 to 1.
            seed: The seed of the choice.

        Raises:
            ValueError: The share is not between 0 and 1.

        Example:
            >>> import pandas as pd
            >>> frame = pd.DataFrame({"id": 1, "time": range(10), "x": 0.5})
            >>> shown, hidden = Series.from_frame(frame, id="id", time="time").hide(0.3, seed=0)
            >>> len(shown.times), len(hidden.times)
            (7, 3)
        """
        if not 0 <= share <= 1:
            raise ValueError(f"Expected a share to hide from 0 to 1; got {share}: correct it")
        entries = np.flatnonzero(self.observed)
        count = round(share * len(entries))
        chosen = np.zeros(len(entries), np.bool_)
        chosen[np.random.default_rng(seed).permutation(len(entries))[:count]] = True
        return self._entries(entries[~chosen]), self._entries(entries[chosen])

    def _entries(self, entries: Whole) -> Series:
        """Return the series of some entries of the flat values, without rows that have none."""
        values = np.full(self.values.shape, np.nan)
        values.ravel()[entries] = self.values.ravel()[entries]
        kept = np.zeros(len(values), np.bool_)
        kept[entries // max(len(self.columns), 1)] = True
        return replace(self, values=values).rows(kept)

    def select(self, columns: Sequence[str]) -> Series:
        """Return the series with these columns, in their order; gaps where there is no such one.

        Raises:
            ValueError: The series have a column that is not among them, with an observation.

        Example:
            >>> import pandas as pd
            >>> frame = pd.DataFrame({"id": [1], "time": [0.0], "x": [0.5]})
            >>> Series.from_frame(frame, id="id", time="time").select(("y", "x")).values.tolist()
            [[nan, 0.5]]
        """
        columns = tuple(columns)
        if columns == self.columns:
            return self
        for place, name in enumerate(self.columns):
            if name not in columns and self.observed[:, place].any():
                near = ", ".join(closest(name, columns))
                raise ValueError(
                    f"Expected columns that are known, such as {near}; got {name!r}: rename it, or "
                    "leave it out"
                )
        values = np.full((len(self.times), len(columns)), np.nan)
        for place, name in enumerate(columns):
            if name in self.columns:
                values[:, place] = self.values[:, self.columns.index(name)]
        return replace(self, columns=columns, values=values)

    def with_clock(self, clock: ColumnType) -> Series:
        """Return the series with times as another clock counts them, such as that of a fit.

        Raises:
            ValueError: One clock counts dates and the other does not.
        """
        kept = replace(self.clock, unit=clock.unit, origin=clock.origin)
        return replace(self, times=recount(self.times, self.clock, clock), clock=kept)


def ragged_rows(offsets: Whole, places: Whole) -> tuple[Whole, Whole]:
    """Return the rows of some series one after the other, and their new offsets.

    Example:
        >>> rows, offsets = ragged_rows(np.array([0, 2, 5]), np.array([1, 0]))
        >>> rows.tolist(), offsets.tolist()
        ([2, 3, 4, 0, 1], [0, 3, 5])
    """
    starts, lengths = offsets[places], offsets[places + 1] - offsets[places]
    new = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(new[-1]) + np.repeat(starts - new[:-1], lengths), new
