"""The site: every public name is on one page, and side-by-side code of other libraries runs."""

import ast
import inspect
import pkgutil
import re
import shlex
from collections import Counter
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from runpy import run_path
from textwrap import dedent

import numpy as np
import pytest
import torch

from cnf.scripts.benchmark import BENCHMARK_SUBJECTS, parser

ROOT = Path(__file__).parents[1]
SITE = ROOT / "notebooks"
PARTS = (
    "ode fields layers flow training tables series outliers diagnostics variational vae datasets"
)
PUBLIC = ["cnf", *(f"cnf.{part}" for part in PARTS.split())]
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: (\S+)((?:\n {3}:.*)*)", re.MULTILINE)


def documented() -> Counter[int]:
    """Count how often the reference documents each object, by identity."""
    found: list[object] = []
    for page in (SITE / "reference").glob("*.md"):
        for kind, path, options in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if kind == "module":
                excluded = re.findall(r"\w+", options.partition("exclude-members:")[2])
                found += members(import_module(path), set(excluded))
            else:
                found.append(pkgutil.resolve_name(path))
    return Counter(map(id, found))


def members(module, excluded: set[str]) -> list[object]:
    """Return the members that autodoc documents for a module, without the excluded names."""
    lines = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    constants = {  # which a docstring follows
        target.id
        for line, after in pairwise(lines)
        if isinstance(line, ast.Assign | ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
    } - excluded
    public = set(getattr(module, "__all__", vars(module))) - excluded - constants
    return [getattr(module, name) for name in constants] + [
        member
        for member in (getattr(module, name) for name in public)
        if (inspect.isclass(member) or inspect.isfunction(member))
        and (hasattr(module, "__all__") or member.__module__ == module.__name__)
    ]


def test_each_formula_names_what_computes_it():
    page = (SITE / "formulas.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!\||-).+\|$", page, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        (path,) = re.findall(r"`(cnf\.[\w.]+)` \|$", row)
        pkgutil.resolve_name(path)


def test_every_public_name_is_on_one_page():
    times = documented()
    for module in map(import_module, PUBLIC):
        found = {name: times[id(getattr(module, name))] for name in module.__all__}
        assert found == dict.fromkeys(module.__all__, 1)


def side_by_side(title: str, count: int, theirs_too: bool = True) -> tuple[dict, dict]:
    """Run the pairs of Python examples under a title of the page on other libraries."""
    page = (SITE / "coming_from.md").read_text(encoding="utf-8")
    part = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    pairs = re.findall(
        r"^\* - ```python\n(.*?)^    ```\n  - ```python\n(.*?)^    ```\n",
        part,
        re.MULTILINE | re.DOTALL,
    )
    assert len(pairs) == count
    theirs, ours = {}, {}
    for their, our in pairs:
        if theirs_too:
            exec(dedent(their), theirs)
        exec(dedent(our), ours)
    return theirs, ours


def test_the_counterpart_of_ffjords_code_runs():
    _, ours = side_by_side("FFJORD's repository", 4, theirs_too=False)
    assert ours["samples"].shape == (100, 2)


def test_the_counterparts_of_code_on_series_run():
    _, ours = side_by_side("latent_ode", 3, theirs_too=False)
    assert ours["found"].mean.shape == (10, 20, 1)
    _, ours = side_by_side("torchcde", 2, theirs_too=False)
    assert ours["chances"].shape == (10, 2)


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
    theirs, ours = side_by_side(title, count)
    for name in theirs.keys() & ours.keys():
        if isinstance(theirs[name], torch.Tensor | np.ndarray):
            assert theirs[name].shape == ours[name].shape, name
    for name in same:
        assert torch.allclose(theirs[name], ours[name], atol=1e-4), name
    if title == "torchdiffeq":  # where a diverging row fails the whole batch
        assert isinstance(theirs["failed"], AssertionError)
        assert ours["fine"].tolist() == [True, False]


def test_the_committed_picture_is_what_its_script_draws():
    drawn = run_path(str(SITE / "architecture.py"))
    assert drawn["TARGET"].read_text(encoding="utf-8") == drawn["picture"]()
    for box in drawn["BOXES"]:
        import_module(box.name)


def test_the_site_loads_nothing_from_the_network(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.setenv("COLUMNS", "100")  # conf.py sets it
    conf = run_path(str(SITE / "conf.py"))
    scripts = [*dict(conf["html_js_files"]), conf["mathjax_path"]]
    for name in (*conf["html_css_files"], *scripts):
        text = (SITE / "static" / name).read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import|\.src ?=)\W*(https?:)?//", text), name
    for page in (*SITE.rglob("*.md"), *SITE.glob("*.ipynb")):
        text = page.read_text(encoding="utf-8")
        loaded = r"!\[[^]]*\]\(https?:|<(img|script|link|source)[^>]+https?:|\{image\} https?:"
        assert not re.search(loaded, text), page


def test_the_commands_above_benchmarks_parse():
    page = (SITE / "benchmarks.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (\w+): ([\w-]+)\n\n```sh\n(.*)\n```", page, re.MULTILINE)
    assert {subject for subject, *_ in titles} == set(BENCHMARK_SUBJECTS)
    for subject, section, command in titles:
        asked = parser().parse_args(shlex.split(command)[2:])
        assert (asked.subject, asked.section) == (subject, section)
        assert section in BENCHMARK_SUBJECTS[subject]
