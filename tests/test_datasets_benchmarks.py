"""The benchmarks: published files, preprocessing and splits, on small files of that layout."""

import numpy as np
import pandas as pd
import pytest

from cnf.datasets import BENCHMARKS, load_benchmark
from cnf.datasets.benchmarks import draw_patches, patches_of

RNG = np.random.default_rng(0)
PARTS = ("train", "validation", "test")


def save(file, values):
    file.parent.mkdir()
    np.save(file, values)


def check(parts, sizes, expected):
    """Compare the sizes and all rows of a benchmark's parts."""
    found = [getattr(parts, part).values for part in PARTS]
    assert [len(part) for part in found] == sizes
    np.testing.assert_allclose(np.vstack(found), expected, atol=1e-12)


def standardized(values, known, **options):
    return (values - known.mean(0)) / known.std(0, **options)


def test_power_is_shuffled_and_gets_its_noise_by_the_published_seed(tmp_path, monkeypatch):
    rows, rng = RNG.normal(size=(1000, 8)), np.random.RandomState(42)
    save(tmp_path / "power/data.npy", rows)
    rng.shuffle(rows)
    voltage, power, metering = rng.rand(1000), rng.rand(1000), rng.rand(1000, 3)
    noise = np.column_stack([0.001 * power, 0.01 * voltage, metering, np.zeros(1000)])
    expected = rows[:, [0, 2, 4, 5, 6, 7]] + noise
    parts = load_benchmark("power", tmp_path)
    assert parts.train.columns == ("x0", "x1", "x2", "x3", "x4", "x5")
    check(parts, [810, 90, 100], standardized(expected, expected[:900]))
    monkeypatch.setenv("CNF_DATA", str(tmp_path))
    np.testing.assert_array_equal(load_benchmark("power").test.values, parts.test.values)


@pytest.mark.parametrize("ending", ["parquet", "txt"])
def test_gas_keeps_the_second_of_correlated_sensors(ending, tmp_path):
    sensors = np.repeat(RNG.normal(size=(500, 8)), 2, axis=1)
    sensors[:, ::2] += 0.01 * RNG.normal(size=(500, 8))
    names = ["Time", "CO", "Eth", *(f"R{i}" for i in range(16))]
    frame = pd.DataFrame(np.hstack([RNG.normal(size=(500, 3)), sensors]), columns=names)
    (tmp_path / "gas").mkdir()
    if ending == "parquet":
        frame.to_parquet(tmp_path / "gas/ethylene_CO.parquet")
    else:
        text = frame.to_csv(sep=" ", index=False, header=False)
        (tmp_path / "gas/ethylene_CO.txt").write_text("Time (s), CO conc (ppm), …\n" + text)
    kept = sensors[:, 1::2]
    check(load_benchmark("gas", tmp_path), [405, 45, 50], standardized(kept, kept, ddof=1))


def test_hepmass_is_the_new_particle_without_discrete_columns(tmp_path):
    """Five columns, the third of few values; the test file's header names one column too many."""
    (tmp_path / "hepmass").mkdir()
    kept = []
    for part, n in (("train", 400), ("test", 100)):
        values = RNG.normal(size=(n, 6))
        values[:, 0], values[:, 3] = RNG.integers(2, size=n), RNG.integers(3, size=n)
        header = ["# label", *(f"f{i}" for i in range(5))] + (["mass"] if part == "test" else [])
        rows = "\n".join(",".join(map(repr, row)) for row in values.tolist())
        (tmp_path / f"hepmass/1000_{part}.csv").write_text(",".join(header) + "\n" + rows + "\n")
        kept.append(values[values[:, 0] == 1][:, [1, 2, 4, 5]])
    n = len(kept[0])
    expected = standardized(np.vstack(kept), kept[0], ddof=1)
    check(load_benchmark("hepmass", tmp_path), [n - n // 10, n // 10, len(kept[1])], expected)


def test_miniboone_is_standardised_by_training_and_validation_rows(tmp_path):
    data = RNG.normal(3, 2, size=(200, 4))
    save(tmp_path / "miniboone/data.npy", data)
    check(load_benchmark("miniboone", tmp_path), [162, 18, 20], standardized(data, data[:180]))


def test_bsds300s_published_patches_are_unchanged(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "BSDS300").mkdir()
    patches = [RNG.normal(size=(n, 63)) for n in (9, 3, 4)]
    with h5py.File(tmp_path / "BSDS300/BSDS300.hdf5", "w") as file:
        file.update(zip(PARTS, patches, strict=True))
    check(load_benchmark("bsds300", tmp_path), [9, 3, 4], np.vstack(patches))


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_patches_lie_within_upright_and_lying_images(shape):
    """A pixel's value tells its row and column: a patch has eight of each, one after the other."""
    pixels = np.arange(240, dtype=np.uint8).reshape(1, -1)
    found = patches_of(pixels, np.array([shape]), np.array([0]), 500, np.random.default_rng(0))
    whole = 256 * np.column_stack([found, -found.sum(1)]).reshape(-1, 8, 8)
    np.testing.assert_allclose(np.diff(whole, axis=2), 1, atol=1.0)
    np.testing.assert_allclose(np.diff(whole, axis=1), shape[1], atol=1.0)


def test_patches_have_uniform_noise_and_no_mean(tmp_path):
    shapes = np.array([[12, 20], [20, 12]] * 15, np.int16)
    pixels = np.tile(np.arange(30, dtype=np.uint8)[:, None], (1, 240))  # each image is even
    sides = {"train_hw": shapes, "test_hw": shapes}
    file, counts = tmp_path / "bsds300_images.npz", dict(zip(PARTS, (4000, 300, 200), strict=True))
    np.savez(file, train_px=pixels, test_px=pixels + 100, **sides)
    train, validation, test = draw_patches(file, sizes=counts)
    assert [len(part) for part in (train, validation, test)] == [*counts.values()]
    # What is left is the noise less its mean, of variance 63/64 · 1/12 / 256².
    assert train.var() == pytest.approx(63 / 64 / 12 / 256**2, rel=0.02)
    assert np.abs(train).max() < 1 / 256
    np.testing.assert_array_equal(train, draw_patches(file, sizes=counts)[0])
    assert (train != draw_patches(file, seed=1, sizes=counts)[0]).all()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_file_is_named_with_its_source(name, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^Expected .* in .*; got no such file: .*https://"):
        load_benchmark(name, tmp_path)
    monkeypatch.delenv("CNF_DATA", raising=False)
    with pytest.raises(ValueError, match=r"got none: give --data-dir DIR, or set CNF_DATA"):
        load_benchmark(name)


def test_mistakes(tmp_path):
    save(tmp_path / "power/data.npy", np.zeros((20, 2)))
    (tmp_path / "bsds300_images.npz").write_bytes(b"torn")
    for name, message in {
        "powder": "a benchmark among power, .*; got 'powder'",
        "power": "files of power in .* to be as published",
        "bsds300": "Expected the images train_px",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_benchmark(name, tmp_path)
