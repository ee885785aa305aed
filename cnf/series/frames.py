"""Series from tables of pandas, polars and pyarrow, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import ColumnType, closest, encode_column, from_any
from cnf.datasets.frames import column_names
from cnf.series.clock import decode_clock, encode_clock
from cnf.series.series import Array, Series, Whole

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd

NUMBERS = ("real", "whole", "boolean")
ENCODE = "correct it, or encode it as a number"  # the remedy for text
NAMES = (  # that for a column of text
    "encode the column as numbers; or, where it has the names of columns, give it as variable and "
    "that of their values as value (--variable and --value)"
)


@dataclass(frozen=True, eq=False)
class FrameKeys:
    """Ids and times of the rows of a frame.

    Attributes:
        id: Name of the column of ids.
        time: Name of the column of times.
        codes: The place of each row's id among the ids, shape (rows,).
        ids: The ids in the order in which they first appear, shape (n,).
        times: The times, shape (rows,).
        clock: What times count.
        cells: The column of times as it came.
    """

    id: str
    time: str
    codes: Whole
    ids: NDArray[Any]
    times: Array
    clock: ColumnType
    cells: pd.Series[Any]

    @staticmethod
    def of(table: pd.DataFrame, id: str, time: str, clock: ColumnType | None) -> FrameKeys:
        """Return the keys of a frame; the errors are those of `Series.from_frame`."""
        import pandas as pd

        for name, argument in ((id, "id"), (time, "time")):
            check_names([name], table, argument)
        if id == time:
            raise ValueError(f"Expected two columns for id and time; got {id!r} for both: name two")
        try:
            codes, uniques = pd.factorize(table[id])
        except TypeError as error:  # lists, for one
            raise ValueError(
                f"Expected numbers, text or dates as ids in column {id!r}; got values such as "
                f"{table[id].iloc[0]!r} ({error}): convert them to text"
            ) from None
        if (codes < 0).any():
            row = int((codes < 0).argmax())
            raise ValueError(
                f"Expected an id in every row; got a gap in column {id!r}, row {row + 1} (counting "
                "from 1): fill it, or leave the row out"
            )
        ids = np.asarray(pd.Index(uniques).to_numpy())
        times, clock = encode_clock(table[time], clock)
        keys = FrameKeys(id, time, codes.astype(np.int64), ids, times, clock, table[time])
        if (bad := ~np.isfinite(times)).any():
            row = int(bad.argmax())
            got = "a gap" if np.isnan(times[row]) else f"{times[row]}"
            raise ValueError(
                f"Expected a finite time in every row; got {got} in column {time!r}, "
                f"{keys.where(row)}: correct it, or leave the row out"
            )
        return keys

    def where(self, row: int) -> str:
        """Return the row and the series of a row, counted from 0, for a message."""
        return f"row {row + 1} (counting from 1) of series {self.ids[self.codes[row]]!s}"

    def order(self) -> tuple[Whole, str]:
        """Return the rows by series and time, and a warning where a series had them otherwise."""
        if (np.diff(self.codes) >= 0).all():
            grouped = np.arange(len(self.codes))
        else:
            grouped = np.argsort(self.codes, kind="stable")
        codes, times = self.codes[grouped], self.times[grouped]
        back = (np.diff(times) < 0) & (np.diff(codes) == 0)
        if not back.any():
            return grouped, ""
        row = int(grouped[int(back.argmax()) + 1])
        return np.lexsort((self.times, self.codes)), (
            f"Sorted the rows of {len(np.unique(codes[1:][back]))} series by time: "
            f"{self.where(row)} is earlier than the one before it"
        )

    def twice(self, rows: Whole, what: str = "") -> ValueError:
        """Return the error of two rows of one series at one time."""
        first, second = sorted(rows.tolist())
        return ValueError(
            f"Expected one row for each id and time{what and ', and variable'}; got two{what} at "
            f"{self.time} {self.cells.iloc[second]!s} of series {self.ids[self.codes[second]]!s}, "
            f"rows {first + 1} and {second + 1} (counting from 1): keep one of them, or their mean"
        )


def frame_series(
    frame: Any,
    id: str,
    time: str,
    columns: Sequence[str] | None,
    long: tuple[str | None, str | None],
    *,
    static: Any,
    labels: Any,
    clock: ColumnType | None,
) -> Series:
    """Return the series in a table; `Series.from_frame` has the arguments and the errors."""
    table, _ = from_any(frame)
    if not len(table):
        raise ValueError("Expected rows in the frame of series; got none: pass observations")
    names = column_names([id, time])
    keys = FrameKeys.of(table, names[0], names[1], clock)
    constant = [*_listed(static), *_listed(labels)]
    check_names(constant, table, "static and labels")
    own = [*names, *constant]
    order, unsorted = keys.order()
    if long == (None, None):
        found, offsets, times, values = _wide(table, keys, columns, own, order)
    else:
        found, offsets, times, values = _long(table, keys, columns, long, order)
    statics = _per_series(table, keys, static, "static", order)
    tags = _per_series(table, keys, labels, "labels", order)
    if tags is not None and len(tags[0]) != 1:
        raise ValueError(
            f"Expected one column of labels besides {names[0]!r}; got {len(tags[0])}, "
            f"{', '.join(tags[0][:10])}: select one"
        )
    if unsorted:  # last, so that an error is all that is said
        warnings.warn(unsorted, stacklevel=3)  # of the caller of Series.from_frame
    return Series(
        found,
        keys.ids,
        offsets,
        times,
        values,
        static_columns=() if statics is None else statics[0],
        static=None if statics is None else statics[1],
        labels=None if tags is None else tags[1][:, 0],
        classes=() if tags is None else tags[2],
        id_column=names[0],
        time_column=names[1],
        clock=keys.clock,
        like=_empty(frame, [id, time]),
    )


Read = tuple[tuple[str, ...], Whole, Array, Array]  # columns, offsets, times, values


def _wide(
    table: pd.DataFrame,
    keys: FrameKeys,
    columns: Sequence[str] | None,
    own: Sequence[str],
    order: Whole,
) -> Read:
    names = [name for name in table.columns if name not in own] if columns is None else [*columns]
    check_names(names, table, "columns")
    if not names:
        raise ValueError(
            f"Expected a column with values besides {', '.join(own)}; got none: add one"
        )
    values = np.empty((len(table), len(names)))
    for place, name in enumerate(names):
        values[:, place] = numbers_of(table[name], keys, NAMES)[order]
    codes, times = keys.codes[order], keys.times[order]
    same = (np.diff(codes) == 0) & (np.diff(times) == 0)
    if same.any():
        at = int(same.argmax())
        raise keys.twice(order[at : at + 2])
    counts = np.bincount(codes, minlength=len(keys.ids))
    return tuple(names), np.concatenate([[0], np.cumsum(counts)]), times, values


def _long(
    table: pd.DataFrame,
    keys: FrameKeys,
    columns: Sequence[str] | None,
    long: tuple[str | None, str | None],
    order: Whole,
) -> Read:
    import pandas as pd

    variable, value = long
    if variable is None or value is None:
        raise ValueError(
            "Expected both variable and value for a long table, or neither for a wide one; got "
            f"variable={variable!r} and value={value!r}: give both"
        )
    check_names([variable, value], table, "variable and value")
    numbers = numbers_of(table[value], keys)
    kinds, uniques = pd.factorize(table[variable], sort=True)
    if (kinds < 0).any():
        row = int((kinds < 0).argmax())
        raise ValueError(
            f"Expected the name of a variable in every row; got a gap in column {variable!r}, "
            f"{keys.where(row)}: fill it, or leave the row out"
        )
    found = column_names(uniques.tolist())
    names = found if columns is None else tuple(columns)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise _missing(unknown[0], found, f"variables in column {variable!r}")
    columns_of = np.array([names.index(name) if name in names else -1 for name in found])
    codes, times = keys.codes[order], keys.times[order]
    new = np.concatenate([[True], (np.diff(codes) != 0) | (np.diff(times) != 0)])
    rows = np.cumsum(new) - 1
    places, numbers = columns_of[kinds[order]], numbers[order]
    present = (places >= 0) & ~np.isnan(numbers)
    entries = rows[present] * len(names) + places[present]
    values = np.full((int(new.sum()), len(names)), np.nan)
    _check_single(keys, order[present], entries, values.size)
    values.ravel()[entries] = numbers[present]
    counts = np.bincount(codes[new], minlength=len(keys.ids))
    return names, np.concatenate([[0], np.cumsum(counts)]), times[new], values


def _check_single(keys: FrameKeys, rows: Whole, entries: Whole, size: int) -> None:
    """Raise a ValueError where two rows of a long table have the same entry."""
    seen = np.zeros(size, np.bool_)
    seen[entries] = True
    if np.count_nonzero(seen) == len(entries):
        return
    order = np.argsort(entries, kind="stable")
    at = int((np.diff(entries[order]) == 0).argmax())
    raise keys.twice(rows[order[at : at + 2]], " of one variable")


def _per_series(
    table: pd.DataFrame, keys: FrameKeys, given: Any, argument: str, order: Whole
) -> tuple[tuple[str, ...], Array, tuple[str, ...]] | None:
    """Return names, values (n, columns) and classes of what is constant in each series."""
    import pandas as pd

    if given is None:
        return None
    if names := _listed(given):
        found = [_encoded(table[name], argument, keys) for name in names]
        starts = np.searchsorted(keys.codes[order], np.arange(len(keys.ids)))
        values = np.stack(
            [
                _constant(each[0][order], starts, keys, name)
                for each, name in zip(found, names, strict=True)
            ],
            1,
        )
        return tuple(names), values, found[0][1]
    other, _ = from_any(given)
    check_names([keys.id], other, argument)
    names = [name for name in other.columns if name != keys.id]
    index = other.set_index(keys.id).index
    if index.has_duplicates:
        row = int(index.duplicated().argmax())
        raise ValueError(
            f"Expected one row for each series in {argument}; got a second of series "
            f"{index[row]!s} in row {row + 1} (counting from 1): leave it out"
        )
    places = index.get_indexer(pd.Index(keys.ids))
    if (places < 0).all():
        raise ValueError(
            f"Expected ids of the series in column {keys.id!r} of {argument}, such as "
            f"{keys.ids[0]!s}; got none of them, but {index[0]!s}: check the ids and their dtype"
        )
    found = [_encoded(other[name], argument, None) for name in names]
    values = np.full((len(keys.ids), len(names)), np.nan)
    for column, each in enumerate(found):
        values[places >= 0, column] = each[0][places[places >= 0]]
    return tuple(names), values, found[0][1] if found else ()


def _encoded(
    column: pd.Series[Any], argument: str, keys: FrameKeys | None
) -> tuple[Array, tuple[str, ...]]:
    """Return the numbers of a column, and the texts of labels that are text."""
    if argument == "labels":
        numbers, texts, _ = encode_column(column)
        return numbers, texts or ()
    return numbers_of(column, keys), ()


def _constant(values: Array, starts: Whole, keys: FrameKeys, name: str) -> Array:
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    if (varies := low < high).any():
        at = int(varies.argmax())
        raise ValueError(
            f"Expected one value of {name!r} in each series; got {low[at]:g} and {high[at]:g} in "
            f"series {keys.ids[at]!s}: correct it, or make it one of the columns"
        )
    return np.asarray(low)


def numbers_of(column: pd.Series[Any], keys: FrameKeys | None, text: str = ENCODE) -> Array:
    """Return a column's numbers, NaN for gaps; text is the remedy where none of it is a number.

    Raises:
        ValueError: A cell is infinite, or no number; the message names its row and its series.
    """
    import pandas as pd

    def refusal(row: int, wanted: str, remedy: str) -> ValueError:
        where = f"row {row + 1} (counting from 1)" if keys is None else keys.where(row)
        return ValueError(
            f"Expected {wanted} in column {column.name!r}; got {column.iloc[row]!s} in {where}: "
            f"{remedy}"
        )

    if column.dtype.kind in "biuf" and not isinstance(column.dtype, pd.CategoricalDtype):
        numbers = np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
        if (infinite := np.isinf(numbers)).any():
            raise refusal(int(infinite.argmax()), "finite values", "correct it, or empty the cell")
        return numbers
    present = column.notna().to_numpy()
    try:
        numbers, _, type = encode_column(column)
        held = type.family
    except ValueError:  # values of several classes
        numbers, held = np.full(len(column), np.nan), "text"
    if held in NUMBERS or not present.any():
        return numbers
    if held in ("date", "duration"):
        raise refusal(int(present.argmax()), "numbers", f"convert the column, which holds {held}s")
    parsed = pd.to_numeric(column.astype(object), errors="coerce").notna().to_numpy()
    row = int((present & ~parsed).argmax()) if (present & ~parsed).any() else int(present.argmax())
    raise refusal(row, "numbers", ENCODE if parsed.any() else text)


def check_names(names: Iterable[str], table: pd.DataFrame, argument: str) -> None:
    """Raise a ValueError unless a frame has these columns, if only as its index."""
    for name in names:
        if name in table.columns:
            continue
        if name in table.index.names:
            raise ValueError(
                f"Expected a column {name!r} for {argument}; got it as the index of the frame: "
                "pass frame.reset_index()"
            )
        raise _missing(name, [*table.columns], f"columns for {argument}")


def _missing(name: str, known: Iterable[str], what: str) -> ValueError:
    known = [*known]
    return ValueError(
        f"Expected {what} among {', '.join(map(str, known[:10]))}; got {name!r}: the closest is "
        f"{closest(str(name), map(str, known))[0]!r}"
    )


def _listed(given: Any) -> list[str]:
    """Return names of columns; none of a table."""
    if isinstance(given, str):
        return [given]
    return [*given] if isinstance(given, list | tuple) else []


def _empty(frame: Any, names: Sequence[str]) -> Any:
    """Return some columns of a table without rows, by which they get their dtypes back."""
    import narwhals as nw
    import pandas as pd

    if isinstance(frame, pd.DataFrame):
        return frame.loc[frame.index[:0], [*names]].copy()
    return nw.from_native(frame, eager_only=True).select(*names).head(0).to_native()


def series_frame(series: Series) -> Any:
    """Return a wide table of series; `Series.to_frame` says which."""
    import pandas as pd
    import pyarrow as pa

    like = series.like
    ids = pd.Series(series.ids[series.owners])
    if isinstance(like, pd.DataFrame):
        ids = ids.astype(like.iloc[:, 0].dtype)
    data = {series.id_column: ids, series.time_column: decode_clock(series.times, series.clock)}
    values = pd.DataFrame(series.values, columns=[*series.columns])
    frame = pd.concat([pd.DataFrame(data), values], axis=1)
    if like is None or isinstance(like, pd.DataFrame):
        return frame
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    schema = like.schema if isinstance(like, pa.Table) else like.to_arrow().schema
    for place, name in enumerate(data):
        found = table.column(place)
        try:
            column = found.cast(schema.types[place])
            same = column.cast(found.type).equals(found)
        except pa.ArrowException:
            same = False
        if same:  # the type may not hold times between those that came
            table = table.set_column(place, name, column)
    return table if isinstance(like, pa.Table) else like.__class__(table)
