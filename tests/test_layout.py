"""Imports point one way: a room imports only from rooms that stand above it in the design."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cnf

ROOT = Path(__file__).parents[1]
ROOMS = [
    *("cnf.datasets", "cnf.utils", "cnf.mixtures", "cnf.ode", "cnf.fields", "cnf.layers"),
    *("cnf.flow", "cnf.variational", "cnf.storage", "cnf.training", "cnf.tables", "cnf.series"),
    *("cnf.outliers", "cnf.adapters", "cnf.diagnostics", "cnf.plotting", "cnf.vae"),
    *("cnf", "cnf.scripts"),
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


def test_rooms_import_from_rooms_above_them():
    """And datasets from none; fields know no tableau; the analytic path has an interface."""
    analytic, outside = "cnf.fields.analytic", set()
    for module, path in sources().items():
        name, found = room(module), [*imports(path)]
        if name == "cnf":
            outside.add(module)
        above = {name} if name == "cnf.datasets" else {*ROOMS[: ROOMS.index(name) + 1]}
        below = {each for each in found if room(each) not in above}
        assert not below, f"{module} imports {', '.join(sorted(below))}"
        if name == "cnf.fields":
            assert "tableau" not in path.read_text(encoding="utf-8").lower(), module
        if not f"{module}.".startswith(f"{analytic}."):
            inside = [each for each in found if each.startswith(f"{analytic}.")]
            assert not inside, f"{module} imports {', '.join(inside)}"
    assert outside == {"cnf"}  # every other module stands in a room


def test_every_package_is_installed():
    with open(ROOT / "pyproject.toml", "rb") as file:
        installed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    assert set(installed) == {
        module for module, path in sources().items() if path.name == "__init__.py"
    }


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
