"""Configuration of the site: `sphinx-build -W --keep-going -b html notebooks build/site`."""

import os
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import cnf

os.environ["COLUMNS"] = "100"  # width of the programs' help

project = "cnf-flows"
author = "the authors of cnf-flows"
version = release = cnf.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["**.ipynb_checkpoints"]
default_role = "py:obj"  # a name in backticks is a link if the site documents it

nb_execution_mode = "off"  # the tests run them; the site shows their stored outputs
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False  # leave out PyTorch's docstrings
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # describe a dataclass's attributes once
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"cnf-flows {release}"
html_static_path = ["static"]
html_css_files = ["katex/katex.min.css", "site.css"]
html_js_files = [("formulas.js", {"defer": "defer"})]
mathjax_path = "katex/katex.min.js"  # on pages with formulas, which formulas.js hands to KaTeX
mathjax_options = {"defer": "defer"}
myst_update_mathjax = False
html_show_copyright = False
html_show_sourcelink = False


class Help(Directive):
    """A directive that shows a program's help: `{program-help} train`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = import_module(f"cnf.scripts.{self.arguments[0].replace('-', '_')}")
        text = module.parser().format_help()
        return [nodes.literal_block(text, text)]


def escape_literals(
    app: Sphinx, what: str, name: str, at: Any, options: Any, lines: list[str]
) -> None:
    """Escape |det J|, *shape and numpy.object_, which are not markup; list a registry's names."""
    opening, ending = re.compile(r"(?<![^\s(\[])([|*]+)(?=\w)"), re.compile(r"(?<=\w)_(?=\W|$)")
    for i, line in enumerate(lines):
        if line.startswith(":vartype"):
            lines[i] = ending.sub(r"\\_", line)
        elif not line.lstrip().startswith((">>>", "...")):
            lines[i] = opening.sub(lambda found: re.sub("(.)", r"\\\1", found[0]), line)
    if what == "data" and lines[:1] == (type(at).__doc__ or "").splitlines()[:1]:
        lines.clear()  # the docstring of the built-in type does not help
    if isinstance(at, dict):
        lines += ["", "Its names: " + ", ".join(f"``{each}``" for each in at) + "."]


def setup(app: Sphinx) -> None:
    app.add_directive("program-help", Help)
    app.connect("autodoc-process-docstring", escape_literals)
