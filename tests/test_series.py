"""Series in ragged arrays: from and to frames, parts, batches, tasks, baselines and errors."""

import warnings
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from cnf.series import (
    BASELINES,
    Series,
    SeriesBatch,
    Task,
    check_training,
    column_means,
    column_scales,
    entry_error,
    series_errors,
)

NAN = float("nan")
KINDS = {
    "pandas": lambda frame: frame,
    "polars": pl.from_pandas,
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
}
UNITS = {"D": 86_400, "h": 3600, "min": 60, "s": 1}


def made(times=(0.0, 1.0, 2.0, 0.5), ids=("a", "a", "a", "b"), x=(1.0, NAN, 3.0, 4.0), **columns):
    return pd.DataFrame({"id": ids, "time": times, "x": x, **columns})


def read(frame, **options) -> Series:
    return Series.from_frame(frame, **{"id": "id", "time": "time", **options})


@st.composite
def frames(draw) -> pd.DataFrame:
    """Frames of series with sorted times of several kinds, ids of several kinds, and gaps."""
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    names = draw(st.sampled_from([["b", "a", "ü", "0"], [7, -1, 3, 0], [2.5, 1.0, -3.0, 0.0]]))
    whole = st.lists(st.integers(-(10**6), 10**6), unique=True, min_size=5, max_size=5)
    times = np.concatenate([np.sort(draw(whole)[:count]) for count in counts])
    kind = draw(st.sampled_from(["int", "float", "date", "zone", "duration", "text"]))
    seconds = times * UNITS[draw(st.sampled_from(list(UNITS)))] % 10**9
    if kind == "int":
        column = pd.Series(times)
    elif kind == "float":
        column = pd.Series(times / 7)
    else:
        seconds = np.concatenate([np.sort(each) for each in np.split(seconds, np.cumsum(counts))])
        column = pd.Series(seconds.astype("m8[s]"))
        if kind != "duration":
            column = column + pd.Timestamp("2024-03-01").as_unit("s")
        if kind == "zone":
            column = column.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
        if kind == "text":
            column = column.dt.strftime("%Y-%m-%d %H:%M:%S")
    cell = st.one_of(st.just(NAN), st.floats(-1e6, 1e6))
    values = draw(st.lists(st.tuples(cell, cell), min_size=len(times), max_size=len(times)))
    ids = np.repeat(np.array(names[: len(counts)], dtype=object), counts)
    frame = pd.DataFrame({"id": pd.Series(list(ids)), "time": column})
    return frame.assign(x=[each[0] for each in values], y=[each[1] for each in values])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(frames(), st.sampled_from(list(KINDS)), st.randoms(use_true_random=False))
def test_frames_come_back_and_rows_may_come_in_any_order(frame, kind, random):
    frame = frame.drop_duplicates(["id", "time"], ignore_index=True)
    table = KINDS[kind](frame)
    series = read(table)
    back = series.to_frame()
    assert type(back) is type(table)
    if kind == "pandas":
        pd.testing.assert_frame_equal(back, frame)
    else:
        same = pa.Table.from_pandas(frame, preserve_index=False)
        found = back if kind == "pyarrow" else back.to_arrow()
        assert found.column_names == same.column_names
        assert found["id"].to_pylist() == same["id"].to_pylist()
        assert found["time"].to_pylist() == same["time"].to_pylist()
        np.testing.assert_array_equal(found["x"].to_pandas(), frame["x"])
    order = list(range(len(frame)))
    random.shuffle(order)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the order
        shuffled = read(KINDS[kind](frame.iloc[order].reset_index(drop=True)))
    place = {each: i for i, each in enumerate(shuffled.ids.tolist())}
    again = shuffled[[place[each] for each in series.ids.tolist()]]
    np.testing.assert_array_equal(again.values, series.values)
    np.testing.assert_array_equal(again.times, series.times)
    long = frame.melt(["id", "time"], ["x", "y"]).sort_values(["id", "time"], kind="stable")
    molten = read(KINDS[kind](long), variable="variable", value="value")
    again = molten[[molten.ids.tolist().index(each) for each in series.ids.tolist()]]
    np.testing.assert_array_equal(again.values, series.values)


def test_clocks_count_dates_alike_and_come_back_between_their_units():
    days = pd.to_datetime(["2024-01-01", "2024-02-01", "2024-03-01"]).as_unit("s")
    series = read(made(times=days, ids=["a"] * 3, x=[1.0, 2.0, 3.0]))
    assert (series.clock.unit, series.times.tolist()) == ("D", [0.0, 31.0, 60.0])  # no months
    hours = pd.to_datetime(["2024-01-02 12:00", "2024-01-03 00:00"])
    later = made(times=hours, ids=["b"] * 2, x=[1.0, 2.0])
    for other in (read(later, clock=series.clock), read(later).with_clock(series.clock)):
        assert other.times.tolist() == [1.5, 2.0]
        assert other.to_frame()["time"].tolist() == hours.tolist()
    spring = pd.to_datetime(["2024-03-30 12:00", "2024-03-31 12:00"]).tz_localize("Europe/Berlin")
    assert read(made(times=spring, ids=["a"] * 2, x=[1.0, 2.0])).times.tolist() == [0.0, 23.0]
    with pytest.raises(ValueError, match="Expected times that are dates, .* got numbers"):
        read(made()).with_clock(series.clock)
    with pytest.raises(ValueError, match="Expected dates in the time column 'time'.* got numbers"):
        read(made(), clock=series.clock)
    dated = pl.DataFrame({"id": [1, 1], "time": list(days[:2].date), "x": [1.0, 2.0]})
    found = read(dated)
    assert found.to_frame().equals(dated)
    noons = replace(found, times=found.times + 0.5).to_frame()  # which no date is
    assert [each.hour for each in noons["time"]] == [12, 12]
    unit = replace(found.clock, unit="h")
    assert found.with_clock(unit).times.tolist() == [0.0, 744.0]
    assert found.with_clock(unit).to_frame().equals(dated)


def test_static_columns_and_labels_come_by_name_or_from_a_table():
    frame = made(sex=[1.0, NAN, 1.0, 0.0], end=["died", "died", "died", "lived"])
    named = read(frame, static=["sex"], labels="end")
    assert (named.columns, named.static_columns) == (("x",), ("sex",))
    other = pd.DataFrame({"id": ["b", "c", "a"], "end": ["lived", "died", "died"]})
    sexes = pl.DataFrame({"id": ["a"], "sex": [1]})
    tabled = read(made(), static=sexes, labels=other)
    assert named.static.tolist() == [[1.0], [0.0]]
    np.testing.assert_array_equal(tabled.static, [[1.0], [NAN]])
    for each in (named, tabled):
        assert each.labels.tolist() == [0.0, 1.0]
        assert each.classes == ("died", "lived")
    assert named[1:].static.tolist() == [[0.0]]


def test_parts_stay_aligned():
    series = read(made(x=[Decimal("1.5"), None, Decimal(3), Decimal(4)]))
    assert repr(series) == "<2 series of 4 rows, columns x>"
    assert series.select(["x"]) is series
    before, after = series.cut(1.0)
    assert (before.lengths.tolist(), after.lengths.tolist()) == ([1, 1], [2, 0])
    assert (after.ids.tolist(), after.times.tolist()) == (["a", "b"], [1.0, 2.0])
    assert series.cut([9.0, 0.0])[0].lengths.tolist() == [3, 0]
    for index, ids in ((-1, ["b"]), ([1, 0, 1], list("bab")), ([False, True], ["b"]), ([], [])):
        assert series[np.array(index, dtype=int if index == [] else None)].ids.tolist() == ids
    with pytest.raises(IndexError):
        series[2]
    rng = np.random.default_rng(0)
    many = Series(
        columns=("x", "y"),
        ids=np.arange(50),
        offsets=np.arange(51) * 10,
        times=np.tile(np.arange(10.0), 50),
        values=np.where(rng.random((500, 2)) < 0.5, rng.normal(size=(500, 2)), NAN),
    )
    shown, hidden = many.hide(0.25, seed=1)
    count = int(many.observed.sum())
    assert int(hidden.observed.sum()) == round(0.25 * count)
    assert int(shown.observed.sum()) == count - round(0.25 * count)
    assert shown.observed.any(1).all()
    assert hidden.observed.any(1).all()
    both = pd.concat([shown.to_frame(), hidden.to_frame()]).groupby(["id", "time"]).max()
    whole = many.rows(many.observed.any(1)).to_frame().set_index(["id", "time"])
    pd.testing.assert_frame_equal(both, whole)
    assert not np.array_equal(many.hide(0.25, seed=2)[1].times, hidden.times)
    assert len(many.hide(0, seed=0)[1].times) == 0


def test_series_of_other_columns_and_constructed_by_hand():
    series = read(made(y=[NAN] * 4))
    chosen = series.select(("z", "x"))  # y has no observation
    np.testing.assert_array_equal(chosen.values[:, 1], series.values[:, 0])
    assert np.isnan(chosen.values[:, 0]).all()
    with pytest.raises(ValueError, match="Expected columns that are known.*got 'x': rename it"):
        series.select(("y",))
    parts = dict(columns=("x",), ids=np.array([1, 2]), values=np.zeros((3, 1)))
    whole = Series(**parts, offsets=np.array([0, 2, 3]), times=np.array([0.0, 1.0, 0.5]))
    assert whole.to_frame()["id"].tolist() == [1, 1, 2]
    for offsets, times, message in (
        ([0, 2, 3], [1.0, 1.0, 0.5], "increase; got 1 after 1 in series 1"),
        ([0, 1, 3], [1.0, 1.0, NAN], "finite times; got nan in series 2"),
        ([0, 2, 2], [0.0, 1.0, 2.0], "offsets that increase from 0 to 3; got 0 to 2"),
        ([0, 3], [0.0, 1.0, 2.0], r"offsets of shape \(3,\); got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Series(**parts, offsets=np.array(offsets), times=np.array(times))


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (made(), {"id": "stay"}, "columns for id among id, time, x; got 'stay': the closest"),
        (made().set_index("id"), {}, "column 'id' for id; got it as the index .*reset_index"),
        (made(), {"time": "id"}, "two columns for id and time; got 'id' for both"),
        (made(ids=["a", None, "a", "b"]), {}, "got a gap in column 'id', row 2"),
        (made(ids=[[1], [1], [2], [3]]), {}, r"as ids in column 'id'; got values such as \[1\]"),
        (made(times=[0, NAN, 1, 2]), {}, "got a gap in column 'time', row 2 .* of series a: corr"),
        (made(times=[0, 1, 2, np.inf]), {}, "got inf in column 'time', row 4 .* of series b"),
        (made(times=list("uvwx")), {}, "numbers, dates or durations in the .*got 'u' in row 1"),
        (made(times=[0, 1, 1, 0]), {}, "got two at time 1.* of series a, rows 2 and 3 .*mean"),
        (made(x=[1, 2, -np.inf, 3]), {}, "finite values in column 'x'; got -inf in row 3 .*ies a"),
        (made(x=[1, "2", "high", 3]), {}, "numbers in column 'x'; got high in row 3 .* series a"),
        (made(x=list("pqpq")), {}, "got p in row 1 .* series a: enc.*variable and --value"),
        (made(x=pd.to_datetime(["2024"] * 4)), {}, "got 2024-01-01 .* which holds dates"),
        (made(), {"columns": ["y"]}, "columns for columns among id, time, x; got 'y'"),
        (made()[["id", "time"]], {}, "column with values besides id, time; got none"),
        (made()[:0], {}, "rows in the frame of series; got none"),
        (made(), {"variable": "x"}, "both variable and value .*variable='x' and value=None"),
        (
            made(what=["p", "q", None, "p"]),
            {"variable": "what", "value": "x"},
            "name of a variable in every row; got a gap in column 'what', row 3 .* series a",
        ),
        (
            made(times=[0, 1, 1, 0], x=[1.0, 2.0, 3.0, 4.0], what=["p"] * 4),
            {"variable": "what", "value": "x"},
            "and variable; got two of one variable at time 1.* of series a, rows 2 and 3",
        ),
        (made(times=[0, 2, 0, 0]), {}, "got two at time 0.* rows 1 and 3"),  # without a warning
        (
            made(what=["p"] * 4),
            {"variable": "what", "value": "x", "columns": ["q"]},
            "variables in column 'what' among p; got 'q'",
        ),
        (made(s=[1, 1, 2, 3]), {"static": ["s"]}, "one value of 's' in each.* got 1 and 2 in seri"),
        (made(), {"static": pd.DataFrame({"id": [1], "s": 1})}, "ids of the series .* but 1: che"),
        (
            made(),
            {"static": pd.DataFrame({"id": ["a"] * 2, "s": 1})},
            "second of series a in row 2",
        ),
        (made(), {"labels": pd.DataFrame({"id": ["a"], "s": 1, "r": 2})}, "one column of labels"),
    ],
)
def test_a_mistake_in_a_frame_is_said_with_series_row_and_remedy(frame, options, message):
    with pytest.raises(ValueError, match=f"Expected .*{message}") as error:
        read(frame, **options)
    assert "\n" not in str(error.value)
    assert ": " in str(error.value)


def test_rows_out_of_order_are_sorted_with_a_warning():
    with pytest.warns(UserWarning, match="rows of 1 series by time: row 3 .* series a is earl"):
        series = read(made(times=[0.0, 2.0, 1.0, 0.5]))
    assert series.times.tolist() == [0.0, 1.0, 2.0, 0.5]
    np.testing.assert_array_equal(series.values.ravel(), [1.0, 3.0, NAN, 4.0])
    mixed = read(made(ids=["a", "b", "a", "b"], times=[0.0, 5.0, 2.0, 6.0]))  # no warning
    assert mixed.times.tolist() == [0.0, 2.0, 5.0, 6.0]


def test_batches_are_padded_and_a_series_is_the_same_with_any_neighbours():
    series = read(
        made(y=[NAN, 5.0, NAN, 6.0], s=[1, 1, 1, 2], l=[0, 0, 0, 1]), static=["s"], labels="l"
    )
    batch = SeriesBatch.of(series, [1, 0], torch.zeros((), dtype=torch.float64))
    assert batch.times.tolist() == [[0.5] * 3, [0.0, 1.0, 2.0]]
    assert batch.values.tolist() == [[[4.0, 6.0], [0, 0], [0, 0]], [[1.0, 0], [0, 5.0], [3.0, 0]]]
    assert batch.mask.tolist() == [[[1, 1], [0, 0], [0, 0]], [[1, 0], [0, 1], [1, 0]]]
    assert (batch.lengths.tolist(), batch.static.tolist()) == ([1, 3], [[2.0], [1.0]])
    assert batch.labels.tolist() == [1.0, 0.0]
    alone = SeriesBatch.of(series, [1], torch.zeros(()))
    assert alone.values.dtype == torch.float32
    assert alone.values.shape == (1, 1, 2)
    _, after = series.cut(1.5)
    empty = SeriesBatch.of(after, [1], torch.zeros(()))
    assert (empty.times.tolist(), empty.mask.sum(), empty.lengths) == ([[0.0]], 0, tensor([0]))
    with_other = SeriesBatch.of(after, [0, 1], torch.zeros(()))
    assert torch.equal(with_other.times[1:], empty.times)
    assert SeriesBatch.of(read(made()), [], torch.zeros(())).labels is None


def test_tasks_divide_series():
    series = read(made())
    seen, wanted = Task().split(series, seed=0)
    assert seen is wanted is series
    seen, wanted = Task(hide=0.34).split(series, seed=0)
    assert (seen.observed.sum(), wanted.observed.sum()) == (2, 3)
    seen, wanted = Task("extrap", cut=1.0).split(series, seed=0)
    assert (seen.times.tolist(), wanted.times.tolist()) == ([0.0, 0.5], [1.0, 2.0])
    for task, message in (
        (lambda: Task("smooth"), "a task among interp, extrap, filter; got 'smooth'"),
        (lambda: Task("extrap"), "a cut for the task extrap.*got extrap with None: give one"),
        (lambda: Task("filter", cut=1.0), "got filter with 1.0: leave it out"),
        (lambda: Task("extrap", cut=NAN), "a finite cut; got nan"),
        (lambda: Task(hide=1.0), "a share to hide from 0 to below 1; got 1.0"),
        (lambda: series.hide(2, 0), "a share to hide from 0 to 1; got 2"),
        (
            lambda: Task("extrap", cut=0.5).split(series, 0),
            r"before the cut 0.5 in every series; got none in series 'b' \(1 such series\)",
        ),
        (lambda: Task("extrap", cut=9.0).split(series, 0), "from the cut 9 on; got none"),
    ):
        with pytest.raises(ValueError, match=message):
            task()


def test_times_are_finite():
    for times in ([NAN], [np.inf], [0.0, np.inf]):
        n = len(times)
        with pytest.raises(ValueError, match=r"finite times; got (nan|inf) in series 7"):
            Series(("x",), np.array([7]), np.array([0, n]), np.array(times), np.ones((n, 1)))


def test_series_are_checked_before_training():
    check_training(read(made()))  # one of them has a single row
    with pytest.warns(UserWarning, match="Columns of one value are trained on: y; leave"):
        check_training(read(made(y=[2.0, NAN, 2.0, NAN])))
    for frame, message in (
        (made(y=[NAN] * 4), "observations in every column; got none in 'y': leave it out"),
        (made(x=[NAN] * 4), "series with observations to train on; got 2 series without any"),
        (made(ids=range(4)), "rows at two times or more; got one row in each of 4 series"),
    ):
        with pytest.raises(ValueError, match=message):
            check_training(read(frame))


def plain_baseline(name, times, values, at, mean):
    """A baseline of one column of one series by loops."""
    known = ~np.isnan(values)
    own = values[known].mean() if known.any() else mean
    before = values[known & (times < at)]
    return {
        "training mean": mean,
        "own mean": own,
        "last value": before[-1] if len(before) else own,
        "linear interpolation": np.interp(at, times[known], values[known]) if known.any() else mean,
    }[name]


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_and_errors_are_those_of_plain_loops(name):
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(20), rng.integers(1, 8, 20))
    frame = made(rng.normal(size=len(ids)), ids, rng.normal(size=len(ids))).sort_values(
        ["id", "time"]
    )
    series = read(
        frame.assign(y=rng.normal(size=len(ids))).where(
            rng.random((len(ids), 4)) < [1, 1, 0.4, 0.4]
        )
    )
    for seen, wanted in (series.hide(0.3, 0), series.cut(0.0), (series, series)):
        means, scales = column_means(series), column_scales(series)
        predicted = BASELINES[name](seen, wanted, means)
        assert scales.tolist() == pytest.approx(np.nanmax(series.values, 0))
        errors, every = np.zeros(20), []
        for i in range(20):
            (a, b), (c, d) = seen.offsets[i : i + 2], wanted.offsets[i : i + 2]
            for j in range(2):
                one = [
                    plain_baseline(name, seen.times[a:b], seen.values[a:b, j], at, means[j])
                    for at in wanted.times[c:d]
                ]
                np.testing.assert_allclose(predicted[c:d, j], one, rtol=1e-12, atol=1e-12)
                squares = ((np.array(one) - wanted.values[c:d, j]) / scales[j]) ** 2
                squares = squares[~np.isnan(squares)]
                errors[i] += squares.mean() / 2 if len(squares) else 0
                every.extend(squares)
        np.testing.assert_allclose(series_errors(predicted, wanted, scales), errors, atol=1e-12)
        assert entry_error(predicted, wanted, scales) == pytest.approx(np.mean(every))


def test_errors_need_predictions_of_the_same_rows():
    series = read(made())
    with pytest.raises(ValueError, match=r"predictions of shape \(4, 1\); got \(3, 1\)"):
        entry_error(np.zeros((3, 1)), series, np.ones(1))
    with pytest.raises(ValueError, match="Expected the same series seen and wanted; got 1 and 2"):
        BASELINES["last value"](series[:1], series, np.zeros(1))
    nothing = series.rows(np.zeros(4, bool))
    assert np.isnan(entry_error(np.zeros((0, 1)), nothing, np.ones(1)))
    assert series_errors(np.zeros((0, 1)), nothing, np.ones(1)).tolist() == [0.0, 0.0]
