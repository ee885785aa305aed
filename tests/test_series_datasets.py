"""Toy series have their exact log-densities and laws; PhysioNet 2012 is read from either source."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import expm
from scipy.stats import kstest, multivariate_normal

from cnf.datasets import (
    SERIES_DATASETS,
    LinearGaussianSeries,
    OrnsteinUhlenbeckSeries,
    PeriodicSeries,
    SpiralSeries,
    load_series,
    physionet2012,
)

TOYS = {name: entry.toy for name, entry in SERIES_DATASETS.items() if entry.toy}


def covariance(toy, times) -> np.ndarray:
    """The covariance of noisy observations at some times, from the definition of the process."""
    if isinstance(toy, OrnsteinUhlenbeckSeries):
        kernel = toy.scale**2 * np.exp(-toy.rate * np.abs(times[:, None] - times))
    else:
        turn = 2 * np.pi * toy.frequency
        drift = np.array([[-toy.damping, -turn], [turn, -toy.damping]])
        readout = np.stack([expm(drift * t)[0] for t in times])
        kernel = readout @ readout.T
    return kernel + toy.noise**2 * np.eye(len(times))


@pytest.mark.parametrize(
    "toy",
    [
        OrnsteinUhlenbeckSeries(),
        OrnsteinUhlenbeckSeries(rate=0.3, scale=2.0, noise=0.5, span=40.0),
        LinearGaussianSeries(),
        LinearGaussianSeries(damping=-0.1, frequency=0.2, noise=0.4),
    ],
)
def test_log_densities_are_those_of_dense_normals_and_of_the_sampler(toy):
    frame = replace(toy, rows=(1, 12)).sample(200, seed=0)
    dense, whitened = [], []
    for _, each in frame.groupby("id", sort=False):
        cov = covariance(toy, each["time"].to_numpy())
        dense.append(multivariate_normal(cov=cov).logpdf(each["x"]))
        whitened.extend(np.linalg.solve(np.linalg.cholesky(cov), each["x"]))
    np.testing.assert_allclose(toy.log_prob(frame), dense, rtol=1e-9, atol=1e-8)
    assert kstest(whitened, "norm").pvalue > 1e-3
    mixed = frame.sample(frac=1, random_state=0)
    places = pd.Index(pd.unique(mixed["id"]))
    np.testing.assert_allclose(toy.log_prob(mixed), np.array(dense)[places])
    gappy = frame.assign(x=frame["x"].where(frame["time"] < 2.0))
    kept = frame[frame["time"] < 2.0]
    found = dict(zip(pd.unique(frame["id"]), toy.log_prob(gappy), strict=True))
    for id, value in zip(pd.unique(kept["id"]), toy.log_prob(kept), strict=True):
        assert found.pop(id) == pytest.approx(value)
    assert set(found.values()) <= {0.0}  # of series whose observations are all left out


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_frames_of_sorted_times_that_depend_on_the_seed(name):
    toy, (frame, labels) = TOYS[name], load_series(name, n=30, seed=3)
    counts = frame.groupby("id").size()
    assert len(counts) == 30
    assert toy.rows[0] <= counts.min() <= counts.max() <= toy.rows[1]
    assert frame.columns.tolist() == ["id", "time", *toy.columns]
    assert frame["time"].between(0, toy.span).all()
    assert (frame.groupby("id")["time"].diff().dropna() > 0).all()
    pd.testing.assert_frame_equal(frame, toy.sample(30, np.random.default_rng(3)))
    assert not frame.equals(toy.sample(30, seed=4))
    assert toy.sample(0, seed=0).shape == (0, frame.shape[1])
    assert labels is None or labels["id"].tolist() == list(range(30))
    with pytest.raises(ValueError, match="Expected a number of rows; got -1"):
        toy.sample(-1)


def test_periodic_series_and_spirals_follow_their_laws():
    frame = PeriodicSeries().sample(200, seed=0)
    times = frame["time"].to_numpy().reshape(200, 100)
    assert (times == times[0]).all()
    assert times[0, 0] == 0.0
    level = frame["x"].to_numpy().reshape(200, 100)[:, 0]  # sin is 0 there
    assert kstest(level, "norm", (1.005, 0.1)).pvalue > 1e-3
    swing = frame["x"].to_numpy().reshape(200, 100) - level[:, None]
    assert 0.95 < np.abs(swing).max() < 1.02
    frame = replace(SpiralSeries(), noise=0.0).sample(40, seed=0)
    radius = np.hypot(frame["x"], frame["y"])
    angle = np.arctan2(frame["y"], frame["x"])
    np.testing.assert_allclose(np.cos(2 * np.pi * radius), np.cos(angle), atol=1e-9)
    slope = radius.groupby(frame["id"]).diff() / frame["time"].groupby(frame["id"]).diff()
    sign = np.where(frame["id"] % 2, -1, 1)[slope.notna()]
    np.testing.assert_allclose(slope.dropna(), sign / (2 * np.pi), rtol=1e-6)


STAY = """Time,Parameter,Value
00:00,RecordID,{id}
00:00,Age,54
00:00,Height,-1
00:07,HR,70
00:07,HR,74
00:07,,3
47:30,Temp,36.5
"""


@pytest.fixture
def folder(tmp_path):
    """Published files of two stays, one in each set, and the same in arrays."""
    heads = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
    arrays = {"param_names": np.array(["Age", "HR", "Height", "Temp"])}
    (tmp_path / "texts").mkdir()
    for name, id in (("a", 132539), ("b", 142673)):
        (tmp_path / "texts" / f"set-{name}").mkdir()
        (tmp_path / "texts" / f"set-{name}" / f"{id}.txt").write_text(STAY.format(id=id))
        (tmp_path / "texts" / f"Outcomes-{name}.txt").write_text(f"{heads}{id},6,1,5,-1,0\n")
        arrays |= {
            f"{name}_offset": np.array([0, 5]),
            f"{name}_minute": np.array([0, 0, 7, 7, 2850], np.int16),
            f"{name}_param": np.array([0, 2, 1, 1, 3], np.uint8),
            f"{name}_value": np.array([54, -1, 70, 74, 36.5], np.float32),
            f"{name}_outcomes": np.array([[id, 6, 1, 5, -1, 0]], np.int32),
        }
    np.savez(tmp_path / "physionet2012_ab.npz", **arrays)
    return tmp_path


def test_stays_are_the_same_from_texts_and_from_arrays(folder):
    frame, outcomes = physionet2012(folder / "texts")
    for source in (folder, folder / "physionet2012_ab.npz"):
        pd.testing.assert_frame_equal(physionet2012(source)[0], frame)
        pd.testing.assert_frame_equal(physionet2012(source)[1], outcomes)
    assert frame.columns.tolist() == ["id", "time", "Age", "HR", "Height", "Temp"]
    assert frame["id"].tolist() == [132539] * 3 + [142673] * 3
    assert frame["time"].tolist() == [0.0, 7 / 60, 47.5] * 2
    assert frame["HR"].dropna().tolist() == [72.0, 72.0]  # the mean of two in one minute
    assert frame["Height"].dropna().tolist() == [-1.0, -1.0]
    assert physionet2012(folder, unknown="gap")[0]["Height"].isna().all()
    assert outcomes[["id", "set", "In-hospital_death"]].to_numpy().tolist() == [
        [132539, "a", 0],
        [142673, "b", 0],
    ]
    alone, labels = load_series("physionet2012", n=1, data_dir=folder)
    assert (alone["id"].unique().tolist(), labels["id"].tolist()) == ([132539], [132539])


def test_mistakes_of_sources_name_them(folder):
    texts = folder / "texts"
    for change, source, message in (
        (
            lambda: None,
            folder / "no.npz",
            "the arrays of PhysioNet 2012 in .*no.npz; got .*No such",
        ),
        (lambda: None, "", "a folder with the files of PhysioNet 2012; got none"),
        (
            lambda: (texts / "set-b" / "142673.txt").write_text(STAY.format(id=142673) + ",HR,70"),
            texts,
            "the stays of Outcomes-b.txt .*got a row without a time: restore",
        ),
        ((texts / "set-b" / "142673.txt").unlink, texts, "the stays of Outcomes-b.txt .*restore"),
        ((texts / "Outcomes-b.txt").unlink, texts, "Outcomes-a.txt and Outcomes-b.txt in .*got no"),
    ):
        change()
        with pytest.raises(ValueError, match=message):
            physionet2012(source)
    with pytest.raises(ValueError, match="unknown to be keep or gap; got 'drop'"):
        physionet2012(folder, unknown="drop")
    with pytest.raises(ValueError, match="got 'spiral': the closest are spirals"):
        load_series("spiral")


def test_every_data_set_of_series_has_a_line_of_help():
    for name, entry in SERIES_DATASETS.items():
        assert "\n" not in entry.help
        assert 10 < len(entry.help) < 80, name
