"""Fixtures that several test modules share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from test_scripts_running import SMALL, done, rows_of_table, write_csv
from torch.distributions import Distribution

import cnf
from cnf.datasets import TOYS
from cnf.diagnostics import two_sample
from cnf.diagnostics.consistency import consistency
from cnf.mixtures import normal as mixture

# The tests' tensors are small: more threads only wait for each other. And runs that are compared
# bit by bit may not choose their number.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


# The files that take longest, and a few tests of seconds each: begun last, one worker would
# finish them alone.
LONGEST = (
    *(
        "test_compiled",
        "test_scripts_report",
        "test_diagnostics",
        "test_readme",
        "test_scripts_processes",
    ),
    *("test_distributed", "test_determinism", "test_scripts_benchmark", "test_bounds"),
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # by the number of tests, which says little


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    # Thousands of modules are not garbage: searched again and again they are 5 % of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _small_models() -> Iterator[None]:
    """Mixtures of few components and classifiers of few trees, which take most of many tests."""
    few = patch.object(mixture, "COMPONENTS", (1, 2, 5))
    with few, patch.object(two_sample, "BOOSTING_ROUNDS", 20):
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fitted() -> cnf.Flow:
    """A flow fitted to moons: small and quick, with as many layers as the toy recipe has."""
    torch.manual_seed(0)
    rows = torch.from_numpy(TOYS["moons"].sample(2000, seed=0))
    flow = cnf.ffjord(2, hidden=(16, 16, 16))
    cnf.fit(flow, rows, steps=100)
    return flow.double()


# The layout of a figure takes as long as its drawing, and is that of the plots' own tests.
LAYOUT = "matplotlib.layout_engine.ConstrainedLayoutEngine.execute"


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """No figures of training, others coarse without a layout, few rows of toys, smaller mixtures.

    And answers of models of rows are compared over few splits of their columns.
    """
    rows = {"train": 20_000, "validation": 1_000, "test": 3_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnf.scripts.data.TOY_ROWS", rows)
        patch.setattr("cnf.scripts.figures._default_figures", lambda trained: [])
        patch.setattr("cnf.scripts.series.figures._default_figures", lambda trained: [])
        patch.setattr("cnf.plotting.style.png.__defaults__", (50,))
        patch.setattr(LAYOUT, lambda self, figure: None)
        patch.setattr(mixture, "COMPONENTS", (1, 2))
        patch.setitem(consistency.__wrapped__.__kwdefaults__, "splits", 3)
        yield


@pytest.fixture(scope="module")
def coarse() -> Iterator[None]:
    """Few rows of toys, coarse shades without a layout, short films and few trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LAYOUT, lambda self, figure: None)
        patch.setattr("cnf.scripts.data.TOY_ROWS", {"train": 2000, "validation": 200, "test": 200})
        patch.setattr("cnf.diagnostics.similarity.TREES", 5)
        patch.setattr("cnf.plotting.density.DENSITY_PIXELS", 12)
        patch.setattr("cnf.plotting.density.STRIP_PIXELS", 8)
        patch.setattr("cnf.plotting.conditional.DENSITY_PIXELS", 12)
        patch.setattr("cnf.plotting.flow_films.density_film.__defaults__", (None, False, 3, 500, 0))
        patch.setattr("cnf.plotting.flow_films.samples_film.__defaults__", (False, None, 3, 0))
        yield


@pytest.fixture
def data(tmp_path) -> Path:
    return write_csv(tmp_path / "rows.csv", rows_of_table())


# Folders that the programs trained. A test that changes one copies it first.


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    """A folder trained on `rows_of_table()`, which is in rows.csv next to it."""
    out = tmp_path_factory.mktemp("table") / "out"
    rows = write_csv(out.parent / "rows.csv", rows_of_table())
    done("train", rows, "--out", out, *SMALL, "--flows", 1)
    return out


@pytest.fixture(scope="session")
def given(table) -> Path:
    """A folder trained on the same table with `width` as the context."""
    out = table.parent / "given"
    words = ("train", table.parent / "rows.csv", "--context", "width", "--flows", 1)
    done(*words, "--out", out, *SMALL)
    return out


@pytest.fixture(scope="session")
def moons(tmp_path_factory) -> Path:
    """A folder trained on a toy."""
    out = tmp_path_factory.mktemp("moons") / "out"
    done("train", "moons", "--out", out, *SMALL)
    return out


@pytest.fixture
def validating() -> Iterator[None]:
    """PyTorch's own default, which zuko and Pyro switch off for the whole process on import."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)
