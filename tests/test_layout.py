"""Imports point one way: a module imports only from what stands above it in the design."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cnf

ROOT = Path(__file__).parents[1]
ORDER = [
    "cnf.ode.trees",
    "cnf.ode.tableaus",
    "cnf.ode.controllers",
    "cnf.ode.interpolation",
    "cnf.ode.arguments",
    "cnf.ode.lanes",
    "cnf.ode.settings",
    "cnf.ode.clock",
    "cnf.ode.dynamics",
    "cnf.ode.step",
    "cnf.ode.pullback",
    "cnf.ode.record",
    "cnf.ode.recording",
    "cnf.ode.outputs",
    "cnf.ode.solution",
    "cnf.ode.fates",
    "cnf.ode.integrate",
    "cnf.ode.leaves",
    "cnf.ode.checkpoint",
    "cnf.ode.backsolve",
    "cnf.ode.gradients",
    "cnf.ode.solve",
    "cnf.ode.form",
    "cnf.ode.odeint",
    "cnf.ode",
    "cnf.angles",
    "cnf.shapes",
    "cnf.fields.activations",
    "cnf.fields.features",
    "cnf.fields.logistic",
    "cnf.fields.affine",
    "cnf.fields.gated_linear",
    "cnf.fields.signals",
    "cnf.fields.perceptron",
    "cnf.fields.folding",
    "cnf.fields.steps",
    "cnf.fields.kernels",
    "cnf.fields.field",
    "cnf.fields.linearization",
    "cnf.fields.gated_perceptron",
    "cnf.fields.concat_squash",
    "cnf.fields.layerwise",
    "cnf.fields.blend",
    "cnf.fields.hyper",
    "cnf.fields.residual",
    "cnf.fields.row_perceptron",
    "cnf.fields.low_rank",
    "cnf.fields.given_weights",
    "cnf.fields",
    "cnf.noise",
    "cnf.divergence",
    "cnf.regularizers",
    "cnf.layers.layer",
    "cnf.layers.settings",
    "cnf.layers.copies",
    "cnf.layers.augmented",
    "cnf.layers.cnf",
    "cnf.layers.scaling",
    "cnf.layers.standardize",
    "cnf.layers.whiten",
    "cnf.layers.rational_quadratic",
    "cnf.layers.quantiles",
    "cnf.layers.gaussianize",
    "cnf.layers.moving_norm",
    "cnf.layers.keep",
    "cnf.layers.constant",
    "cnf.layers.ends",
    "cnf.layers.positive",
    "cnf.layers.bounded",
    "cnf.layers.circular",
    "cnf.layers.noisy",
    "cnf.layers.dequantize",
    "cnf.layers.argmax",
    "cnf.layers.beside",
    "cnf.layers",
    "cnf.schema",
    "cnf.cylinder",
    "cnf.bases",
    "cnf.scores",
    "cnf.support",
    "cnf.distribution",
    "cnf.transform",
    "cnf.chunks",
    "cnf.flow",
    "cnf.posterior",
    "cnf.bounds",
    "cnf.distributed",
    "cnf.files",
    "cnf.json_values",
    "cnf.sharing",
    "cnf.storage",
    "cnf.couplings",
    "cnf.objectives",
    "cnf.recipes",
    "cnf.schedule",
    "cnf.rows",
    "cnf.history",
    "cnf.named_tensors",
    "cnf.learner",
    "cnf.standing",
    "cnf.training_state",
    "cnf.training",
    "cnf.callbacks",
    "cnf.datasets.table",
    "cnf.datasets.toy",
    "cnf.datasets.curves",
    "cnf.datasets.pinwheel",
    "cnf.datasets.toys",
    "cnf.datasets.pictures",
    "cnf.datasets.conditional_toys",
    "cnf.datasets.collinear",
    "cnf.datasets.surface",
    "cnf.datasets.degenerate",
    "cnf.datasets.frames",
    "cnf.datasets.files",
    "cnf.datasets.splits",
    "cnf.datasets.tables",
    "cnf.datasets.patches",
    "cnf.datasets.benchmarks",
    "cnf.datasets.images",
    "cnf.datasets",
    "cnf.estimators",
    "cnf.two_sample",
    "cnf.axes",
    "cnf.integral",
    "cnf.subject",
    "cnf.verdict",
    "cnf.diagnostics",
    "cnf.plotting.style",
    "cnf.plotting.image",
    "cnf.plotting.panels",
    "cnf.plotting.course",
    "cnf.plotting.density",
    "cnf.plotting.conditional",
    "cnf.plotting.motion",
    "cnf.plotting.pairs",
    "cnf.plotting.projection",
    "cnf.plotting.learning_curve",
    "cnf.plotting.film",
    "cnf.plotting.flow_films",
    "cnf.plotting",
    "cnf.comparison",
    "cnf.vae.likelihoods",
    "cnf.vae.networks",
    "cnf.vae.architecture",
    "cnf.vae.planar",
    "cnf.vae.posteriors",
    "cnf.vae.model",
    "cnf.vae.plan",
    "cnf.vae.score",
    "cnf.vae.training",
    "cnf.vae.figures",
    "cnf.vae",
    "cnf",
    "cnf.scripts.program",
    "cnf.scripts.rows",
    "cnf.scripts.data",
    "cnf.scripts.gaussian",
    "cnf.scripts.trained",
    "cnf.scripts.settings",
    "cnf.scripts.folder",
    "cnf.scripts.report",
    "cnf.scripts.evaluate",
    "cnf.scripts.sample",
    "cnf.scripts.log_prob",
    "cnf.scripts.plot",
    "cnf.scripts.check",
    "cnf.scripts.train",
    "cnf.scripts.train_vae",
    "cnf.scripts.benchmarks.detest",
    "cnf.scripts.benchmarks.peers",
    "cnf.scripts.benchmarks.accuracy",
    "cnf.scripts.benchmarks.overhead",
    "cnf.scripts.benchmarks.rows",
    "cnf.scripts.benchmarks.processes",
    "cnf.scripts.benchmarks.memory",
    "cnf.scripts.benchmarks.ffjord",
    "cnf.scripts.benchmarks.contenders",
    "cnf.scripts.benchmarks.networks",
    "cnf.scripts.benchmarks.floor",
    "cnf.scripts.benchmarks.training_step",
    "cnf.scripts.benchmarks.truth",
    "cnf.scripts.benchmarks.trade_off",
    "cnf.scripts.benchmarks.scoring",
    "cnf.scripts.benchmarks.step_memory",
    "cnf.scripts.benchmarks.cells",
    "cnf.scripts.benchmarks.page",
    "cnf.scripts.benchmarks.options",
    "cnf.scripts.benchmarks.fits",
    "cnf.scripts.benchmarks.contact_sheet",
    "cnf.scripts.benchmarks.toys",
    "cnf.scripts.benchmarks.reference",
    "cnf.scripts.benchmarks.race",
    "cnf.scripts.benchmarks.uci",
    "cnf.scripts.benchmarks.prepared",
    "cnf.scripts.benchmarks.density",
    "cnf.scripts.benchmarks.mixture",
    "cnf.scripts.benchmarks.kernel",
    "cnf.scripts.benchmarks.autoregressive",
    "cnf.scripts.benchmarks.methods",
    "cnf.scripts.benchmarks.trials",
    "cnf.scripts.benchmarks.ranking",
    "cnf.scripts.benchmarks.tables",
    "cnf.scripts.benchmarks.vae_trials",
    "cnf.scripts.benchmarks.vae",
    "cnf.scripts.benchmarks",
    "cnf.scripts.benchmark",
    "cnf.scripts.completion",
    "cnf.scripts.__main__",
    "cnf.__main__",
    "cnf.scripts",
]


def sources() -> dict[str, Path]:
    """Every module of the project by its import name."""
    found = {}
    for folder, package in (
        ("cnf", "cnf"),
        ("datasets", "cnf.datasets"),
        ("scripts", "cnf.scripts"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """The project's modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "cnf"}


def test_the_order_names_every_module():
    assert sorted(ORDER) == sorted(sources())


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_upwards(module):
    above = ORDER[: ORDER.index(module)]
    assert imports(sources()[module]) <= set(above)


@pytest.mark.parametrize("module", [name for name in ORDER if name.startswith("cnf.datasets")])
def test_data_sets_know_nothing_of_flows(module):
    assert all(name.startswith("cnf.datasets") for name in imports(sources()[module]))


def test_what_takes_long_to_import_is_imported_when_it_is_needed():
    late = {"sklearn", "pandas", "matplotlib", "scipy.stats", "torch._dynamo"}
    code = (
        f"import sys, cnf; print(*{late} & set(sys.modules)); cnf.check, cnf.CNFDensity, dir(cnf)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not found.stdout.split()
    with pytest.raises(AttributeError, match="module 'cnf' has no attribute 'nothing'"):
        cnf.nothing  # noqa: B018
