"""Every example in a docstring runs and gives what it says."""

import doctest
import pkgutil
from importlib import import_module

import pytest
import torch

import cnf

WALKED = [module.name for module in pkgutil.walk_packages(cnf.__path__, "cnf.")]
MODULES = {"cnf", *WALKED} | {
    module.name
    for package in ("cnf.datasets", "cnf.scripts", "cnf.scripts.benchmarks")
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}.")
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_examples(name):
    torch.manual_seed(0)
    assert doctest.testmod(import_module(name)).failed == 0


def test_examples_are_found():
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(import_module(name))]
    assert sum(bool(test.examples) for test in examples) > 30
