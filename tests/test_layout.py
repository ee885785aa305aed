"""Imports point one way: a room imports only from rooms that stand above it in the design."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cnf

ROOT = Path(__file__).parents[1]
ROOMS = [
    "cnf.utils",
    "cnf.ode",
    "cnf.fields",
    "cnf.layers",
    "cnf.flow",
    "cnf.variational",
    "cnf.storage",
    "cnf.training",
    "cnf.datasets",
    "cnf.tables",
    "cnf.diagnostics",
    "cnf.plotting",
    "cnf.vae",
    "cnf",
    "cnf.scripts",
]
FOLDERS = {"cnf": "cnf", "datasets": "cnf.datasets", "scripts": "cnf.scripts"}


def sources() -> dict[str, Path]:
    """Every module of the project by its import name."""
    return {
        ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): path
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def imports(path: Path) -> Iterator[str]:
    """The project's modules that a file imports, but for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for each in node.body
        for inner in ast.walk(each)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [node.module]
        if id(node) not in typing:
            yield from (name for name in names if name.split(".")[0] == "cnf")


def room(module: str) -> str:
    """The room that a module stands in; `cnf` for what stands in none."""
    if module == "cnf.__main__":  # `python -m cnf` is the programs'
        return "cnf.scripts"
    return next(name for name in sorted(ROOMS, reverse=True) if f"{module}.".startswith(f"{name}."))


@pytest.mark.parametrize("name", ROOMS)
def test_rooms_import_from_rooms_above_them(name):
    above = {*ROOMS[: ROOMS.index(name) + 1]}
    for module, path in sources().items():
        if room(module) == name:
            below = {each for each in imports(path) if room(each) not in above}
            assert not below, f"{module} imports {', '.join(sorted(below))}"


def test_fields_know_no_tableau():
    for module, path in sources().items():
        if room(module) == "cnf.fields":
            assert "tableau" not in path.read_text(encoding="utf-8").lower(), module


def test_the_analytic_path_is_used_through_its_interface():
    analytic = "cnf.fields.analytic"
    for module, path in sources().items():
        if not f"{module}.".startswith(f"{analytic}."):
            inside = [each for each in imports(path) if each.startswith(f"{analytic}.")]
            assert not inside, f"{module} imports {', '.join(inside)}"


def test_every_module_stands_in_a_room():
    outside = {module for module in sources() if room(module) == "cnf"}
    assert outside == {"cnf"}


def test_datasets_import_nothing_else_of_cnf():
    for module, path in sources().items():
        if room(module) == "cnf.datasets":
            assert all(room(each) == "cnf.datasets" for each in imports(path)), module


def test_every_package_is_installed():
    with open(ROOT / "pyproject.toml", "rb") as file:
        installed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    assert set(installed) == {
        module for module, path in sources().items() if path.name == "__init__.py"
    }


def test_what_takes_long_to_import_is_imported_when_it_is_needed():
    code = "import sys, cnf; print('torch' in sys.modules); cnf.fit, cnf.ode; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, after = found.stdout.splitlines()
    assert first == "False"
    late = {"sklearn", "pandas", "matplotlib", "scipy.stats", "torch._dynamo"}
    assert not late & set(after.split())


def test_public_names_are_there():
    assert set(cnf.__all__) <= set(dir(cnf))
    for name in dir(cnf):
        assert getattr(cnf, name) is not None
    with pytest.raises(AttributeError, match="module 'cnf' has no attribute 'nothing'"):
        cnf.nothing  # noqa: B018


def test_the_table_of_additions_names_what_is_there():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("## Adding things")[2].partition("## Rules")[0]
    registries = re.findall(r"`([A-Z_]+)` in `([\w/]+\.py)`", table)
    assert len(registries) > 20
    for name, file in registries:
        assert re.search(rf"^{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
            name
        )
    for folder in re.findall(r"`([\w/]+/)`", table):
        assert (ROOT / folder).is_dir(), folder
