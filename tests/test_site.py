"""The site's pages: every public name is on one, and code beside that of other libraries runs."""

import ast
import inspect
import pkgutil
import re
import shlex
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch

from cnf.scripts.benchmark import BENCHMARK_SUBJECTS, parser

ROOT = Path(__file__).parents[1]
SITE = ROOT / "notebooks"
PUBLIC = ("cnf", "cnf.ode", "cnf.fields", "cnf.layers", "cnf.vae", "cnf.datasets")
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: (\S+)((?:\n {3}:.*)*)", re.MULTILINE)


def named(path: str) -> object:
    """What a dotted path leads to."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def shown() -> tuple[set[int], set[str]]:
    """What the reference describes: objects, by identity, and paths."""
    objects, paths = set(), set()
    for page in (SITE / "reference").glob("*.md"):
        for kind, path, options in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if kind != "module":
                objects.add(id(named(path)))
                paths.add(path)
                continue
            module = import_module(path)
            left_out = re.findall(r"\w+", options.partition("exclude-members:")[2])
            for name in set(getattr(module, "__all__", vars(module))) - set(left_out):
                found = vars(module)[name]
                if inspect.isclass(found) or inspect.isfunction(found):
                    objects.add(id(found))
            paths |= {f"{path}.{name}" for name in told(module)}
    return objects, paths


def told(module) -> set[str]:
    """A module's own constants that are followed by what they are."""
    lines = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    return {
        target.id
        for line, after in pairwise(lines)
        if isinstance(line, ast.Assign | ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
    }


def test_each_formula_names_what_computes_it():
    page = (SITE / "formulas.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!\||-).+\|$", page, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        (path,) = re.findall(r"`(cnf\.[\w.]+)` \|$", row)
        pkgutil.resolve_name(path)


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_on_a_page(package):
    objects, paths = shown()
    module = import_module(package)
    for name in module.__all__:
        assert id(getattr(module, name)) in objects or f"{package}.{name}" in paths, name


def beside(title: str) -> list[tuple[str, str]]:
    """The pairs of Python on the page of other libraries, under a title."""
    page = (SITE / "coming_from.md").read_text(encoding="utf-8")
    part = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    pairs = re.findall(
        r"^\* - ```python\n(.*?)^    ```\n  - ```python\n(.*?)^    ```\n",
        part,
        re.MULTILINE | re.DOTALL,
    )
    return [tuple(re.sub("^    ", "", code, flags=re.MULTILINE) for code in pair) for pair in pairs]


def test_code_beside_ffjords_runs():
    ours: dict[str, object] = {}
    pairs = beside("FFJORD's repository")
    assert len(pairs) == 4
    for _, code in pairs:
        exec(code, ours)
    assert ours["samples"].shape == (100, 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("title", "library", "count", "same"),
    [
        ("torchdiffeq", "torchdiffeq", 3, ("ys", "last", "slope")),
        ("zuko", "zuko", 4, ()),
        ("scikit-learn", "sklearn", 3, ()),
    ],
)
def test_code_side_by_side_runs_and_agrees(title, library, count, same):
    pytest.importorskip(library)
    torch.manual_seed(0)
    theirs, ours = {}, {}
    pairs = beside(title)
    assert len(pairs) == count
    for their, our in pairs:
        exec(their, theirs)
        exec(our, ours)
    for name in theirs.keys() & ours.keys():
        if isinstance(theirs[name], torch.Tensor | np.ndarray):
            assert theirs[name].shape == ours[name].shape, name
    for name in same:
        assert torch.allclose(theirs[name], ours[name], atol=1e-4), name


def test_a_row_that_blows_up_ends_the_others_solves_there_alone():
    pytest.importorskip("torchdiffeq")
    theirs, ours = {}, {}
    for their, our in beside("torchdiffeq"):
        exec(their, theirs)
        exec(our, ours)
    assert isinstance(theirs["failed"], AssertionError)
    assert ours["fine"].tolist() == [True, False]


def test_the_picture_is_the_one_that_its_script_draws():
    drawn = run_path(str(SITE / "architecture.py"))
    assert drawn["TARGET"].read_text(encoding="utf-8") == drawn["picture"]()
    for box in drawn["BOXES"]:
        import_module(box.name)


def test_each_command_above_a_benchmark_can_be_asked():
    page = (SITE / "benchmarks.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (\w+): ([\w-]+)\n\n```sh\n(.*)\n```", page, re.MULTILINE)
    assert {subject for subject, *_ in titles} == set(BENCHMARK_SUBJECTS)
    for subject, section, command in titles:
        asked = parser().parse_args(shlex.split(command)[2:])
        assert (asked.subject, asked.section) == (subject, section)
        assert section in BENCHMARK_SUBJECTS[subject].sections
