"""How the site is built: `sphinx-build -W --keep-going -b html notebooks build/site`."""

import os
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import cnf

os.environ["COLUMNS"] = "100"  # of the programs' help

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
default_role = "py:obj"  # a name in backticks is a link where it is one of the site's

nb_execution_mode = "off"  # the tests run them; the site shows what they came to
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False  # PyTorch's own are no part of this site
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a dataclass's attributes are described once
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"cnf-flows {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False


class Help(Directive):
    """What a program prints when it is asked for all that it can be asked: `{program-help} train`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = import_module(f"cnf.scripts.{self.arguments[0].replace('-', '_')}")
        text = module.parser().format_help()
        return [nodes.literal_block(text, text)]


def as_written(app: Sphinx, what: str, name: str, at: Any, options: Any, lines: list[str]) -> None:
    """Have |det J|, *shape and numpy.object_ stand as they are: they are no marks of markup.

    A registry is told by its names.
    """
    opening, ending = re.compile(r"(?<![^\s(\[])([|*]+)(?=\w)"), re.compile(r"(?<=\w)_(?=\W|$)")
    for i, line in enumerate(lines):
        if line.startswith(":vartype"):
            lines[i] = ending.sub(r"\\_", line)
        elif not line.lstrip().startswith((">>>", "...")):
            lines[i] = opening.sub(lambda found: re.sub("(.)", r"\\\1", found[0]), line)
    if what == "data" and lines[:1] == (type(at).__doc__ or "").splitlines()[:1]:
        lines.clear()  # what a dict is in general is of no help
    if isinstance(at, dict):
        lines += ["", "Its names: " + ", ".join(f"``{each}``" for each in at) + "."]


def setup(app: Sphinx) -> None:
    app.add_directive("program-help", Help)
    app.connect("autodoc-process-docstring", as_written)
