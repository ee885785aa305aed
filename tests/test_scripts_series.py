"""Programs on series: what they write and print, and mistakes, by one small trained folder."""

import json
import shutil
from functools import partial
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from test_scripts_running import complaint, done, run

from cnf.datasets.series import load_series
from cnf.scripts.series.data import SeriesLayout, label_names, open_series
from cnf.scripts.series.evaluation import _regression, divided, summarize_series
from cnf.scripts.series.folder import ColumnStatistics, TrainedSeries
from cnf.series import Series, Task

TINY = ("--steps", "3", "--hidden", "4", "--latent-dim", "2", "--threads", "1")
KEYS = ("--id", "stay", "--time", "hour")


def waves(n=30, seed=0):
    """Two columns of waves, one with gaps, at 4 to 8 own times from 0 to 10."""
    rng, parts = np.random.default_rng(seed), []
    for i in range(n):
        times = np.sort(rng.uniform(0.5, 10, rng.integers(4, 9))).round(3)
        times[0] = 0.25 + i / 1000
        values = {"pulse": np.sin(times + i), "temp": 2 + np.cos(times + i)}
        part = pd.DataFrame({"stay": f"p{i:02d}", "hour": times, **values})
        part.loc[part.index[1::3], "temp"] = np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Series in a wide file with labels and static columns, in a long one, and with dates."""
    folder, frame = tmp_path_factory.mktemp("series"), waves()
    frame.to_csv(folder / "wide.csv", index=False)
    long = frame.melt(["stay", "hour"], var_name="what", value_name="x").dropna()
    long.sort_values(["stay", "hour"]).to_csv(folder / "long.csv", index=False)
    dates = pd.Timestamp("2024-03-01") + pd.to_timedelta(frame["hour"], "h").dt.round("s")
    frame.assign(hour=dates).to_parquet(folder / "dates.parquet", index=False)
    ids = frame["stay"].unique()
    kinds = np.where(np.arange(len(ids)) % 2, "yes", "no")
    pd.DataFrame({"stay": ids, "died": kinds}).to_csv(folder / "labels.csv", index=False)
    pd.DataFrame({"stay": ids, "age": range(30, 60)}).to_csv(folder / "static.csv", index=False)
    pd.DataFrame({"hour": [0.5, 20.0, 2.0]}).to_csv(folder / "times.csv", index=False)
    asked = pd.DataFrame({"stay": ["p01", "p00", "p01"], "hour": [3.0, 2.25, 1.0]})
    asked.to_csv(folder / "asked.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def trained(files):
    out = files / "trained"
    extra = ("--labels", files / "labels.csv", "--static", files / "static.csv")
    text = done("train-series", files / "wide.csv", *KEYS, *extra, *TINY, "--out", out)
    return out, text


@pytest.fixture(scope="module")
def undrawn():
    """Training that draws no figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnf.scripts.series.figures._default_figures", lambda trained: [])
        yield


@pytest.fixture(scope="module")
def future(files, trained, undrawn):
    """A folder of the task extrap on dates."""
    words = (files / "dates.parquet", *KEYS, "--task", "extrap", "--cut", "2024-03-01 05:00")
    return files / "future", done("train-series", *words, *TINY, "--out", files / "future")


def test_a_run_writes_what_train_writes_and_prints_the_baselines(trained):
    out, text = trained
    assert text.startswith(f"{out.parent / 'wide.csv'}: 24 training series of 2 columns")
    for name in ("training mean", "own mean", "last value", "linear interpolation", "AUROC"):
        assert name in text
    assert {path.name for path in (out / "figures").iterdir()} == {
        *("series.png", "latents.png", "learning_curve.png")
    }
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 3
    metadata = json.loads((out / "config.json").read_text())["metadata"]
    assert metadata["task"] == {"kind": "interp", "cut": None, "hide": 0.1}
    assert metadata["split"] == {"train": 24, "validation": 3, "test": 3}
    assert (metadata["id"], metadata["time"], metadata["columns"]) == (
        *("stay", "hour"),
        ["pulse", "temp"],
    )


def test_the_series_that_begins_first_is_one_to_train_on(files):
    """So that no held-out series begins before the model does."""
    layout = SeriesLayout("stay", "hour")
    for seed in range(4):
        data = open_series(str(files / "wide.csv"), layout, seed)
        assert data.train.times.min() == data.series.times.min()
        assert sorted(np.concatenate([*vars(data.parts).values()]).tolist()) == [*range(30)]


def test_evaluate_prints_what_training_printed_or_one_json_object(trained):
    out, text = trained
    again = done("evaluate", out)
    assert again in text
    found = json.loads(done("evaluate", out, "--json"))
    assert found["error"] == pytest.approx(float(again.split()[1]), rel=1e-3)
    assert set(found["error_baselines"]) == set(found["paper_error_baselines"])
    assert 0 <= found["coverage"] <= 1
    assert 0 <= found["auroc"] <= 1
    assert found["n"] <= 3
    assert "bound" not in found  # the decoder corrects the series' own means


def test_evaluate_other_series_without_labels(trained, files):
    named = ("--data", files / "wide.csv", "--static", files / "static.csv")
    found = json.loads(done("evaluate", trained[0], *named, "--json"))
    assert found["n"] > 10
    assert "auroc" not in found
    one = edited(files, lambda frame: frame[frame["stay"] == "p03"])
    assert "±" not in done("evaluate", trained[0], "--data", one, "--static", files / "static.csv")
    labelled = done("evaluate", trained[0], *named, "--labels", files / "labels.csv", "--json")
    assert 0 <= json.loads(labelled)["auroc"] <= 1


@pytest.mark.parametrize(
    ("name", "column", "others"), [("labels", "died", ("yes", "no")), ("static", "age", (3, 4))]
)
def test_a_changed_side_table_is_noticed(trained, files, name, column, others):
    file, kept = files / f"{name}.csv", (files / f"{name}.csv").read_bytes()
    pd.read_csv(file).assign(**{column: [*others] * 15}).to_csv(file, index=False)
    try:
        assert "has changed since" in complaint("evaluate", trained[0])
    finally:
        file.write_bytes(kept)


def test_errors_are_of_values_over_their_largest_size():
    """Which of a column below 0 is no small number."""
    values = np.array([[-8.0, 0.0], [-0.5, 0.0], [4.0, 0.0]])
    series = Series(("x", "y"), np.arange(1), np.array([0, 3]), np.arange(3.0), values)
    statistics = ColumnStatistics.of(series)
    assert statistics.scales.tolist() == [8, 1]
    assert statistics.published_scales.tolist() == [4, 1]


@pytest.mark.filterwarnings("default")
def test_predictions_have_the_rows_and_the_types_that_came(trained, files, tmp_path):
    seen = ("--data", files / "wide.csv", "--static", files / "static.csv")
    done("predict", trained[0], *seen, "--times", files / "asked.csv", "--out", tmp_path / "a.csv")
    asked, found = pd.read_csv(files / "asked.csv"), pd.read_csv(tmp_path / "a.csv")
    pd.testing.assert_frame_equal(found[["stay", "hour"]], asked)
    assert [*found.columns[2:6]] == ["pulse", "pulse q0.05", "pulse q0.5", "pulse q0.95"]
    assert (found["pulse q0.05"] < found["pulse q0.5"]).all()
    assert (found["pulse q0.5"] < found["pulse q0.95"]).all()
    out = tmp_path / "b.parquet"
    result = run("predict", trained[0], *seen, "--times", files / "times.csv", "--out", out)
    assert (result.status, result.err.count("\n")) == (0, 1)
    assert "30 times" not in result.err
    assert "1 of 3 times" in result.err
    assert "20.0 in row 2" in result.err
    draws = ("sample", trained[0], "-n", 2, "--times", files / "times.csv", "--out")
    assert run(*draws, tmp_path / "s.csv").err.count("\n") == 1  # one warning
    every = pd.read_parquet(out)
    assert len(every) == 3 * 30
    assert every["hour"].tolist()[:3] == [0.5, 20.0, 2.0]
    # A row's prediction depends on its own series alone.
    one = waves().query("stay == 'p01'")
    one.to_csv(tmp_path / "one.csv", index=False)
    alone = ("--data", tmp_path / "one.csv", "--static", files / "static.csv")
    pd.DataFrame({"hour": [0.5]}).to_csv(tmp_path / "t.csv", index=False)
    done("predict", trained[0], *alone, "--times", tmp_path / "t.csv", "--out", tmp_path / "c.csv")
    mine = pd.read_csv(tmp_path / "c.csv").loc[0, "pulse"]
    assert mine == pytest.approx(every.query("stay == 'p01' and hour == 0.5")["pulse"].item())


def test_dates_are_times(future, files, tmp_path):
    out, text = future
    assert "task extrap from 2024-03-01 05:00:00" in text
    assert "future entries" in text
    frame = pd.read_parquet(files / "dates.parquet")
    frame[["hour"]].tail(3).to_parquet(tmp_path / "times.parquet")
    named = ("--data", files / "dates.parquet", "--times", tmp_path / "times.parquet")
    done("predict", out, *named, "--out", tmp_path / "p.parquet")
    found = pd.read_parquet(tmp_path / "p.parquet")
    assert found["hour"].dtype == frame["hour"].dtype
    assert found["hour"].tolist()[:3] == frame["hour"].tolist()[-3:]
    done("sample", out, "-n", 4, "--out", tmp_path / "d.parquet")
    drawn = pd.read_parquet(tmp_path / "d.parquet")
    assert drawn["hour"].dtype == frame["hour"].dtype
    assert drawn["stay"].unique().tolist() == [1, 2, 3, 4]
    done("log-prob", out, "--data", files / "dates.parquet", "--out", tmp_path / "l.csv")
    scores = pd.read_csv(tmp_path / "l.csv")
    assert scores["stay"].tolist() == frame["stay"].unique().tolist()
    assert np.isfinite(scores[["log_prob", "stderr"]]).all(axis=None)


def test_series_without_anything_before_the_cut_are_one_line(future, files, tmp_path):
    frame = pd.read_parquet(files / "dates.parquet")
    late = frame[(frame["stay"] != "p03") | (frame["hour"] > "2024-03-01 05:00")]
    late.to_parquet(tmp_path / "late.parquet")
    for words in (("evaluate",), ("log-prob", "--out", tmp_path / "l.csv")):
        line = complaint(words[0], future[0], "--data", tmp_path / "late.parquet", *words[1:])
        assert "before 2024-03-01 05:00:00, the --cut of" in line
        assert "in series 'p03' (1 such series): leave them out" in line


def test_the_regression_on_own_means_sees_nothing_after_the_cut():
    """What tells the classes apart here."""
    labels = np.arange(20) % 2.0
    values = np.stack([np.ones(20), labels], 1).reshape(-1, 1)
    offsets, times = 2 * np.arange(21), np.tile([0.0, 2.0], 20)
    series = Series(("x",), np.arange(20), offsets, times, values, labels=labels)
    trained = Mock(task=Task("extrap", cut=1.0), statistics=ColumnStatistics.of(series))
    trained.model.labels = [0, 1]
    trained.before = partial(TrainedSeries.before, trained)
    assert _regression(trained, series, series, labels.astype(np.int64)) == 0.5


def test_labels_that_are_whole_numbers_are_written_as_such(files):
    labels = pd.read_csv(files / "labels.csv")
    labels["died"] = labels["died"].map({"yes": 1, "no": 2})
    labels.to_csv(files / "numbers.csv", index=False)
    words = (str(files / "wide.csv"), SeriesLayout("stay", "hour"), 0)
    names = label_names(open_series(*words, labels=str(files / "numbers.csv")).series)
    assert [*map(str, names[:3])] == ["2", "1", "2"]


def test_a_long_table_by_another_model_and_draws_at_given_times(files, tmp_path, undrawn):
    long = ("--variable", "what", "--value", "x", "--model", "flow_process")
    out = tmp_path / "out"
    words = (files / "long.csv", *KEYS, *long, "--steps", 2, "--threads", 1, "--out", out)
    text = done("train-series", *words)
    assert "flow_process" in text
    assert "whole series" in text
    line = complaint("plot", out, "--figures", "latents")
    assert "draw series" in line
    done("sample", out, "-n", 3, "--times", files / "asked.csv", "--out", tmp_path / "s.csv")
    drawn = pd.read_csv(tmp_path / "s.csv")
    assert drawn["hour"].tolist() == [1.0, 3.0, 2.25, 1.0, 3.0]
    done("log-prob", out, "--data", files / "long.csv", "--out", tmp_path / "l.csv")
    assert (pd.read_csv(tmp_path / "l.csv")["stderr"] == 0).all()
    more = pd.read_csv(files / "long.csv").replace({"what": {"temp": "tmep"}})
    more.to_csv(tmp_path / "more.csv", index=False)
    named = ("--data", tmp_path / "more.csv", "--out", tmp_path / "l.csv")
    line = complaint("log-prob", out, *named)
    assert "got 'tmep'" in line
    assert "temp" in line


def test_a_named_data_set_with_its_labels_filtered(tmp_path, monkeypatch, undrawn):
    def few(name, seed, data_dir):
        return load_series(name, 20, seed, data_dir)

    monkeypatch.setattr("cnf.scripts.series.data.load_series", few)
    monkeypatch.setattr("cnf.scripts.series.evaluation.MAX_FILTERED_ROWS", 20)
    words = ("spirals", "--labels", "--task", "filter", "--baseline", "none", "--out", tmp_path)
    text = done("train-series", *words, *TINY)
    assert "16 training series of 2 columns" in text
    assert "next entries of 20 times" in text
    trained = TrainedSeries.read(tmp_path)
    series = trained.data().series[:3].cut(1.0)[0]
    monkeypatch.setattr("cnf.scripts.series.evaluation.MAX_FILTERED_ROWS", len(series.times) // 2)
    few = summarize_series(trained, series).bound
    monkeypatch.setattr("cnf.scripts.series.evaluation.MAX_FILTERED_ROWS", len(series.times))
    every = summarize_series(trained, series).bound
    assert every == pytest.approx(trained.model.log_prob(series).log_prob.mean())
    assert len(series.times) > 12
    assert few == pytest.approx(every, rel=0.5)
    monkeypatch.setattr("cnf.scripts.series.evaluation.MAX_FILTERED_TIMES", 4 * len(series.times))
    assert len(divided(trained, series)[0]) in range(6, 13)  # 4 * 3 but for lengths that differ


def test_a_run_resumes(trained, files, tmp_path, undrawn):
    out = shutil.copytree(trained[0], tmp_path / "out")
    extra = ("--labels", files / "labels.csv", "--static", files / "static.csv")
    words = ("train-series", files / "wide.csv", *KEYS, *extra, *TINY, "--out", out)
    assert "not empty" in complaint(*words)
    again = done(*words, "--resume").splitlines()
    assert again[:-1] == trained[1].splitlines()[: len(again) - 1]
    assert "its seed was 0, and now is 1" in complaint(*words, "--resume", "--seed", 1)
    assert "task hide was 0.1, and now is 0.2" in complaint(*words, "--resume", "--hide", 0.2)
    rate = ("--resume", "--learning-rate", 0.01)
    assert "its learning_rate was 0.005, and now is 0.01" in complaint(*words, *rate)
    assert "the series recipe's pool to be finite and at least 1" in complaint(*words, "--pool", 0)
    words = (*words, "--model", "flow_process")
    assert "no --kl-start with a flow_process" in complaint(*words, "--kl-start", 0.1)


def edited(folder, change):
    """A file of the series with a change."""
    frame = change(waves())
    frame.to_csv(folder / "edited.csv", index=False)
    return folder / "edited.csv"


def put(row, column, value):
    def change(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame

    return change


FILES = {  # a change of the series' file, and what the line on it says
    "no id": (lambda f: f.rename(columns={"stay": "Stay"}), ("--id", "'stay'", "'Stay'")),
    "no time": (lambda f: f.rename(columns={"hour": "h"}), ("--time", "'hour'", "'h'")),
    "gap in id": (put(3, "stay", None), ("an id in every row", "row 4")),
    "gap in time": (put(4, "hour", None), ("row 5", "p00")),
    "infinite time": (
        put(5, "hour", "inf"),
        ("finite", "'inf'", "hour", "row 6", "leave the row out"),
    ),
    "text as time": (put(5, "hour", "noon"), ("'noon'", "hour")),
    "twice": (
        lambda f: pd.concat([f[:3], f[2:]]),
        ("one row for each id and time", "p00", "rows 3 and 4"),
    ),
    "text": (put(3, "pulse", "high"), ("'high'", "pulse")),
    "huge": (put(3, "pulse", 1e300), ("1e+300", "'pulse'", "'p00'")),
    "few": (lambda f: f[f["stay"] < "p05"], ("at least 10 series", "got 5")),
    "never": (lambda f: f.assign(temp=np.nan), ("'temp'", "leave it out by --drop temp")),
    "nothing seen": (
        lambda f: f.assign(**{c: f[c].where(f["stay"] != "p07") for c in ("pulse", "temp")}),
        ("'p07'", "leave them out"),
    ),
    "one row each": (lambda f: f.groupby("stay", as_index=False).first(), ("column of ids",)),
}


@pytest.mark.parametrize(("change", "said"), FILES.values(), ids=FILES)
def test_a_wrong_file_is_one_line(tmp_path, change, said):
    out = tmp_path / "out"
    line = complaint("train-series", edited(tmp_path, change), *KEYS, *TINY, "--out", out)
    assert all(each in line for each in said), line
    assert not out.exists()


@pytest.mark.filterwarnings("default")
def test_rows_in_any_order_are_sorted_and_the_program_says_so(tmp_path, undrawn):
    shuffled = edited(tmp_path, lambda frame: frame.sample(frac=1, random_state=0))
    result = run("train-series", shuffled, *KEYS, *TINY, "--out", tmp_path / "out")
    assert result.status == 0
    assert "warning: Sorted the rows of" in result.err


MISTAKES = [
    (("wide.csv",), "Expected --id COL"),
    (("wide.csv", "--id", "stay"), "Expected --time COL"),
    (("wide.csv", *KEYS, "--variable", "what"), "both --variable and --value"),
    (("wide.csv", *KEYS, "--task", "extrap"), "Expected a cut for the task extrap"),
    (("wide.csv", *KEYS, "--cut", "3"), "and for no other"),
    (("wide.csv", *KEYS, "--task", "extrap", "--cut", "noon"), "--cut to be a number"),
    (("dates.parquet", *KEYS, "--task", "extrap", "--cut", "x"), "--cut to be a date"),
    (("wide.csv", *KEYS, "--task", "extrap", "--cut", "0.26"), "in series 'p10'"),
    (
        ("dates.parquet", *KEYS, "--task", "extrap", "--cut", "2024-03-01 00:15:36"),
        "before the cut 2024-03-01 00:15:36 in",
    ),
    (("wide.csv", *KEYS, "--task", "extrap", "--cut", "99"), "lower the cut"),
    (("wide.csv", *KEYS, "--hide", "1"), "a number from 0 to below 1"),
    (("wide.csv", *KEYS, "--columns", "pulse,tmep"), "got no 'tmep': the closest are 'temp'"),
    (("wide.csv", *KEYS, "--drop", "tmep"), "--drop to name columns"),
    (("wide.csv", *KEYS, "--labels"), "--labels FILE"),
    (("wide.csv", *KEYS, "--labels", "one.csv"), "2 to 100 classes"),
    (
        ("wide.csv", *KEYS, "--static", "twice.csv"),
        "twice.csv: Expected one row for each series in static; got a second of series p00",
    ),
    (("wide.csv", *KEYS, "--static", "others.csv"), "got none of them"),
    (("wide.csv", *KEYS, "--model", "flow_process", "--encoder", "set"), "no --encoder"),
    (("wide.csv", *KEYS, "--model", "flow_process", "--labels", "one.csv"), "no --labels"),
    (("wide.csv", *KEYS, "--together"), "no --together"),
    (("wide.csv", *KEYS, "--likelihood", "cauchy"), "one of normal, student"),
    (("spirals", *KEYS), "no --id with the data set spirals"),
    (("spirals", "--labels", "one.csv"), "leave the file out"),
    (("periodic", "--labels"), "no --labels with periodic"),
    (("none.csv", *KEYS), "no such file"),
    (("spiral", *KEYS), "closest names"),
    (("periodik",), "closest names are periodic"),
    (("wide.csv", *KEYS, "--columns", "pulse,hour"), "got 'hour': leave it out of --columns"),
    (("clash.csv", *KEYS), "got 'pulse q0.5'"),
    (("wide.csv", *KEYS, "--model", "flow_process", "--together"), "no temp at hour"),
    (("flat.csv", *KEYS, "--model", "flow_process", "--together"), "got 'temp' of one value"),
    (
        ("wide.csv", *KEYS, "--model", "flow_process", "--together", "--hide", "0.2"),
        "Expected no --hide with --together",
    ),
    (("wide.csv", *KEYS, "--baseline", "local", "--hide", "0"), "--hide above 0"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_a_mistake_in_training_is_one_line(files, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(files)
    ids = pd.read_csv("labels.csv")["stay"]
    pd.DataFrame({"stay": ids, "died": 1}).to_csv("one.csv", index=False)
    pd.DataFrame({"stay": ["p00", "p00"], "age": 3}).to_csv("twice.csv", index=False)
    pd.DataFrame({"stay": ["x", "y"], "age": 3}).to_csv("others.csv", index=False)
    waves().assign(temp=1.5).to_csv("flat.csv", index=False)
    waves().rename(columns={"temp": "pulse q0.5"}).to_csv("clash.csv", index=False)
    line = complaint("train-series", *words, *TINY[:2], "--out", tmp_path / "out")
    assert said in line, line


ASKED = [  # a file of times, and what the line on it says
    ({"when": [1.0]}, "a column 'hour' of times"),
    ({"hour": [1.0, None]}, "a gap in row 2"),
    ({"hour": [1.0, -5.0]}, "got -5.0 in row 2"),
    ({"stay": ["p01", "p02"], "hour": [1.0, 1e9]}, "got 1000000000.0 in row 2"),
    ({"stay": ["p01", "p99"], "hour": [1.0, 1.0]}, "got p99 in row 2"),
    ({"stay": ["p01", "p02"], "hour": [1.0, -3.0]}, "row 2 (counting from 1), of series p02"),
    ({"stay": ["p01", None], "hour": [1.0, 1.0]}, "a gap in row 2"),
    ({"hour": ["2024-03-01"]}, "Expected numbers"),
    ({"hour": [1.0, np.inf]}, "or leave the row out"),
]


@pytest.mark.parametrize(("times", "said"), ASKED)
def test_wrong_times_are_one_line(trained, files, tmp_path, times, said):
    pd.DataFrame(times).to_csv(tmp_path / "times.csv", index=False)
    seen = ("--data", files / "wide.csv", "--static", files / "static.csv")
    named = ("--times", tmp_path / "times.csv", "--out", tmp_path / "out.csv")
    line = complaint("predict", trained[0], *seen, *named)
    assert said in line, line
    assert not (tmp_path / "out.csv").exists()


def test_wrong_series_to_predict_are_one_line(trained, files, tmp_path):
    static, times = ("--static", files / "static.csv"), ("--times", files / "asked.csv")
    out = ("--out", tmp_path / "out.csv")
    other = edited(tmp_path, lambda frame: frame.rename(columns={"temp": "tmep"}))
    line = complaint("predict", trained[0], "--data", other, *static, *times, *out)
    assert "got no 'temp': the closest are 'tmep'" in line
    line = complaint("predict", trained[0], "--data", files / "wide.csv", *times, *out)
    assert "Expected --static" in line
    more = edited(tmp_path, lambda frame: frame.assign(age=3.0))
    line = complaint("predict", trained[0], "--data", more, *static, *times, *out)
    assert "pulse, temp; got 'age': leave it out" in line
    early = edited(tmp_path, lambda frame: frame.assign(hour=frame["hour"] - 5))
    line = complaint("predict", trained[0], "--data", early, *static, *times, *out)
    assert "from 0.0 on, where the model's time begins; got -4.75 in series 'p00'" in line
    late = edited(tmp_path, put(len(waves()) - 1, "hour", 1e6))
    line = complaint("evaluate", trained[0], "--data", late, *static)
    assert "got 1000000.0 in series 'p29'" in line
    pd.DataFrame({"stay": ["p01"], "died": ["maybe"]}).to_csv(tmp_path / "l.csv", index=False)
    named = ("--data", files / "wide.csv", *static, "--labels", tmp_path / "l.csv")
    assert "got 'maybe'" in complaint("evaluate", trained[0], *named)


@pytest.mark.filterwarnings("default")
def test_what_predictions_lack_is_said_in_one_line_each(trained, files, tmp_path):
    static, times = ("--static", files / "static.csv"), ("--times", files / "asked.csv")

    def warnings_of(program, change, *words):
        result = run(program, trained[0], "--data", edited(tmp_path, change), *static, *words)
        assert result.status == 0
        return result.err.splitlines()

    def far(frame):
        return frame.assign(hour=frame["hour"] + 400.0 * (frame["stay"] == "p03"))

    said = "the first is at 400.253 in series 'p03'"
    for words in (("evaluate",), ("predict", *times, "--out", tmp_path / "out.csv")):
        (line,) = warnings_of(words[0], far, *words[1:])
        assert said in line
    for name, column, said in (
        ("p01", ["pulse", "temp"], "no observation of series 'p01' (1 such series)"),
        ("p02", ["pulse", "temp"], ""),  # which is not asked for
        ("p", ["temp"], "no observation of temp"),
    ):

        def unseen(frame, name=name, column=column):
            frame.loc[frame["stay"].str.startswith(name), column] = np.nan
            return frame

        lines = warnings_of("predict", unseen, *times, "--out", tmp_path / "out.csv")
        assert len(lines) == bool(said)
        assert said in "".join(lines)


@pytest.mark.filterwarnings("default")
def test_labels_without_an_auroc_are_said(trained, future, files, tmp_path):
    labels = pd.read_csv(files / "labels.csv").assign(died="no")
    labels.to_csv(tmp_path / "one.csv", index=False)
    wide = ("--data", files / "wide.csv", "--static", files / "static.csv")
    result = run("evaluate", trained[0], *wide, "--labels", tmp_path / "one.csv")
    assert result.err.count("\n") == 1
    assert "needs two classes" in result.err
    dates = ("--data", files / "dates.parquet", "--labels", files / "labels.csv")
    assert "trained without --labels" in run("evaluate", future[0], *dates).err


def test_programs_on_the_other_kind_of_model_are_one_line(trained, table, tmp_path):
    out, rows = trained[0], table.parent / "rows.csv"
    for words in (
        ("check", out),
        ("impute", out, "--data", rows, "--out", tmp_path / "a.csv"),
        ("distil", out, "--out", tmp_path / "steps"),
    ):
        assert "one of series: use it with cnf evaluate" in complaint(*words)
    for words in (
        ("evaluate", out, "--report"),
        ("evaluate", out, "--divergence", "exact"),
        ("sample", out, "-n", 2, "--given", rows, "--out", tmp_path / "a.csv"),
        ("log-prob", out, "--data", rows, "--errors", "--out", tmp_path / "a.csv"),
        ("plot", out, "--film", "gif"),
    ):
        assert "with a model of series" in complaint(*words)
    assert "figures of a model of series" in complaint("plot", out, "--figures", "density")
    assert "figures of a model of rows" in complaint("plot", table, "--figures", "latents")
    assert "with a model of rows" in complaint("evaluate", table, "--labels", rows)
    line = complaint("log-prob", out, "--data", rows, "--out", tmp_path / "a.csv")
    assert "--baseline none" in line
    words = ("--data", rows, "--times", rows, "--out", tmp_path / "a.csv")
    assert "a model of rows" in complaint("predict", table, *words)


@pytest.mark.filterwarnings("default")
def test_a_folder_that_was_damaged_or_whose_data_changed_is_one_line(future, files, tmp_path):
    out = shutil.copytree(future[0], tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    config["metadata"]["statistics"]["means"] = [1.0]
    (out / "config.json").write_text(json.dumps(config))
    result = run("evaluate", out)
    assert result.status == 2
    assert "is not as it writes it" in result.err
    moved = shutil.copytree(future[0], tmp_path / "moved")
    changed = waves().assign(hour=pd.read_parquet(files / "dates.parquet")["hour"], temp=1.0)
    kept = (files / "dates.parquet").read_bytes()
    changed.to_parquet(files / "dates.parquet", index=False)
    try:
        assert "has changed since" in complaint("evaluate", moved)
    finally:
        (files / "dates.parquet").write_bytes(kept)


@pytest.fixture(scope="module")
def whole(files):
    """Series of which every row has all columns."""
    frame = waves(12)
    frame.assign(temp=2 + np.cos(frame["hour"])).to_csv(files / "whole.csv", index=False)
    return files / "whole.csv"


@pytest.mark.parametrize(
    ("task", "together"),
    [("interp", ()), ("interp", ("--together",)), ("extrap", ("--together",)), ("filter", ())],
)
def test_a_flow_process_does_every_task(whole, tmp_path, monkeypatch, together, task):
    """One that transforms its columns together has whole rows hidden."""
    monkeypatch.setattr("cnf.scripts.series.figures._default_figures", lambda _: ["series"])
    monkeypatch.setattr("cnf.scripts.series.figures.CURVE_TIMES", 3)
    cut = ("--cut", 1) if task == "extrap" else ()
    words = (*KEYS, "--model", "flow_process", *together, "--task", task, *cut, *TINY[:2])
    text = done("train-series", whole, *words, "--out", tmp_path / "out")
    assert "or more" not in text  # as its log p is exact
    assert done("evaluate", tmp_path / "out") in text
    assert (tmp_path / "out" / "figures" / "series.png").exists()
