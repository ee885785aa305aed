"""The benchmarks: published files, preprocessing and splits, on small files of that layout."""

import numpy as np
import pandas as pd
import pytest

from cnf.datasets import BENCHMARKS, load_benchmark
from cnf.datasets.patches import draw_patches, patches_of

RNG = np.random.default_rng(0)


def power_file(folder):
    data = RNG.normal(size=(1000, 8))
    (folder / "power").mkdir()
    np.save(folder / "power/data.npy", data)
    return data


def gas_frame():
    """Sixteen sensors in pairs: the first of each pair, nearly a copy of the second, is to go."""
    sensors = np.repeat(RNG.normal(size=(500, 8)), 2, axis=1)
    sensors[:, ::2] += 0.01 * RNG.normal(size=(500, 8))
    names = ["Time", "CO", "Eth", *(f"R{i}" for i in range(16))]
    return pd.DataFrame(np.hstack([RNG.normal(size=(500, 3)), sensors]), columns=names)


def hepmass_files(folder):
    """Five columns, the third of few values; the test file's header names one column too many."""
    (folder / "hepmass").mkdir()
    frames = {}
    for part, n in (("train", 400), ("test", 100)):
        values = RNG.normal(size=(n, 6))
        values[:, 0] = RNG.integers(2, size=n)
        values[:, 3] = RNG.integers(3, size=n)
        header = ["# label", *(f"f{i}" for i in range(5))] + (["mass"] if part == "test" else [])
        rows = "\n".join(",".join(map(repr, row)) for row in values.tolist())
        (folder / f"hepmass/1000_{part}.csv").write_text(",".join(header) + "\n" + rows + "\n")
        frames[part] = values
    return frames


def sizes(parts):
    return [len(part.values) for part in (parts.train, parts.validation, parts.test)]


def seen(parts):
    return np.vstack([parts.train.values, parts.validation.values])


def test_power_is_shuffled_and_gets_its_noise_by_the_published_seed(tmp_path):
    data = power_file(tmp_path)
    parts = load_benchmark("power", tmp_path)
    assert sizes(parts) == [810, 90, 100]
    assert parts.train.columns == ("x0", "x1", "x2", "x3", "x4", "x5")
    rng = np.random.RandomState(42)
    expected = data.copy()
    rng.shuffle(expected)
    voltage, power, metering = rng.rand(1000), rng.rand(1000), rng.rand(1000, 3)
    expected = expected[:, [0, 2, 4, 5, 6, 7]]
    expected[:, 0] += 0.001 * power
    expected[:, 1] += 0.01 * voltage
    expected[:, 2:5] += metering
    mean, scale = expected[:900].mean(0), expected[:900].std(0)
    found = np.vstack([seen(parts), parts.test.values])
    np.testing.assert_allclose(found, (expected - mean) / scale, atol=1e-12)


@pytest.mark.parametrize("ending", ["parquet", "txt"])
def test_gas_keeps_one_of_sensors_that_say_the_same(ending, tmp_path):
    frame = gas_frame()
    (tmp_path / "gas").mkdir()
    if ending == "parquet":
        frame.to_parquet(tmp_path / "gas/ethylene_CO.parquet")
    else:
        text = frame.to_csv(sep=" ", index=False, header=False)
        (tmp_path / "gas/ethylene_CO.txt").write_text("Time (s), CO conc (ppm), …\n" + text)
    parts = load_benchmark("gas", tmp_path)
    assert sizes(parts) == [405, 45, 50]
    kept = frame.iloc[:, 4::2].to_numpy()
    found = np.vstack([seen(parts), parts.test.values])
    np.testing.assert_allclose(found, (kept - kept.mean(0)) / kept.std(0, ddof=1), atol=1e-12)


def test_hepmass_is_the_new_particle_without_discrete_columns(tmp_path):
    files = hepmass_files(tmp_path)
    parts = load_benchmark("hepmass", tmp_path)
    train, test = (files[part][files[part][:, 0] == 1][:, 1:] for part in ("train", "test"))
    assert sizes(parts) == [len(train) - len(train) // 10, len(train) // 10, len(test)]
    kept = [0, 1, 3, 4]
    standard = (train - train.mean(0)) / train.std(0, ddof=1)
    np.testing.assert_allclose(seen(parts), standard[:, kept], atol=1e-12)
    standard = (test - train.mean(0)) / train.std(0, ddof=1)
    np.testing.assert_allclose(parts.test.values, standard[:, kept], atol=1e-12)


def test_miniboone_is_standardised_by_training_and_validation_rows(tmp_path):
    (tmp_path / "miniboone").mkdir()
    data = RNG.normal(3, 2, size=(200, 4))
    np.save(tmp_path / "miniboone/data.npy", data)
    parts = load_benchmark("miniboone", tmp_path)
    assert sizes(parts) == [162, 18, 20]
    np.testing.assert_allclose(seen(parts).mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(seen(parts).std(0), 1)
    np.testing.assert_allclose(
        parts.test.values, (data[180:] - data[:180].mean(0)) / data[:180].std(0)
    )


def test_bsds300s_published_patches_come_as_they_are(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "BSDS300").mkdir()
    patches = {part: RNG.normal(size=(n, 63)) for part, n in (("train", 9), ("validation", 3))}
    patches["test"] = RNG.normal(size=(4, 63))
    with h5py.File(tmp_path / "BSDS300/BSDS300.hdf5", "w") as file:
        for part, values in patches.items():
            file[part] = values
    parts = load_benchmark("bsds300", tmp_path)
    for part, values in patches.items():
        np.testing.assert_array_equal(getattr(parts, part).values, values)


def images(folder):
    """Thirty images whose pixels are their number, standing and lying, in one flat array."""
    shapes = np.array([[12, 20], [20, 12]] * 15, np.int16)
    pixels = np.tile(np.arange(30, dtype=np.uint8)[:, None], (1, 240))
    np.savez(
        folder / "bsds300_images.npz",
        train_px=pixels, train_hw=shapes, test_px=pixels + 100, test_hw=shapes,
    )  # fmt: skip
    return folder / "bsds300_images.npz"


def test_patches_lie_within_their_image_whichever_way_it_stands():
    """A pixel's value tells its row and column: a patch has eight of each, one after the other."""
    for shape in ((12, 20), (20, 12)):
        rows, columns = np.indices(shape)
        pixels = (rows * shape[1] + columns).astype(np.uint8).reshape(1, -1)
        found = patches_of(pixels, np.array([shape]), np.array([0]), 500, np.random.default_rng(0))
        last = -found.sum(1, keepdims=True)
        whole = (np.hstack([found, last]) * 256).reshape(-1, 8, 8)
        np.testing.assert_allclose(np.diff(whole, axis=2), 1, atol=1.0)
        np.testing.assert_allclose(np.diff(whole, axis=1), shape[1], atol=1.0)


def test_patches_have_uniform_noise_and_no_mean(tmp_path):
    train, validation, test = draw_patches(
        images(tmp_path), sizes={"train": 4000, "validation": 300, "test": 200}
    )
    assert [len(part) for part in (train, validation, test)] == [4000, 300, 200]
    # Images are even: what is left is the noise less its mean, of variance 63/64 · 1/12 / 256².
    expected = 63 / 64 / 12 / 256**2
    assert train.var() == pytest.approx(expected, rel=0.02)
    assert np.abs(train).max() < 1 / 256
    again, *_ = draw_patches(images(tmp_path), sizes={"train": 4000, "validation": 1, "test": 1})
    np.testing.assert_array_equal(train, again)
    other, *_ = draw_patches(
        images(tmp_path), seed=1, sizes={"train": 4000, "validation": 1, "test": 1}
    )
    assert (train != other).all()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_file_is_named_with_where_it_comes_from(name, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^Expected .* in .*; got no such file: .*https://"):
        load_benchmark(name, tmp_path)
    monkeypatch.delenv("CNF_DATA", raising=False)
    with pytest.raises(ValueError, match=r"got none: give --data-dir DIR, or set CNF_DATA"):
        load_benchmark(name)


def test_the_environment_names_the_folder_too(tmp_path, monkeypatch):
    power_file(tmp_path)
    monkeypatch.setenv("CNF_DATA", str(tmp_path))
    assert sizes(load_benchmark("power")) == [810, 90, 100]


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="a benchmark among power, .*; got 'powder'"):
        load_benchmark("powder", tmp_path)
    (tmp_path / "power").mkdir()
    np.save(tmp_path / "power/data.npy", np.zeros((20, 2)))
    with pytest.raises(ValueError, match="files of power in .* to be as published"):
        load_benchmark("power", tmp_path)
    (tmp_path / "bsds300_images.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match="Expected the images train_px"):
        load_benchmark("bsds300", tmp_path)
