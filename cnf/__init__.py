"""Continuous normalizing flows on PyTorch: fit, score and sample densities.

>>> import torch, cnf
>>> flow = cnf.ffjord(dim=2, hidden=(16,))
>>> history = cnf.fit(flow, torch.randn(200, 2), steps=3)
>>> flow.log_prob(torch.zeros(5, 2)).shape, flow.sample(5).shape
(torch.Size([5]), torch.Size([5, 2]))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnf.bounds import elbo, iwae
from cnf.fields import ConcatSquash
from cnf.flow import Flow, ffjord
from cnf.history import History
from cnf.layers import CNF, Gaussianize, Standardize, Whiten
from cnf.ode import SolveError
from cnf.posterior import FlowPosterior
from cnf.storage import load, save
from cnf.training import fit
from cnf.verdict import Report

if TYPE_CHECKING:
    from cnf.diagnostics import check
    from cnf.estimators import CNFDensity

__version__ = "0.1.0"

__all__ = [
    "CNF",
    "CNFDensity",
    "ConcatSquash",
    "Flow",
    "FlowPosterior",
    "Gaussianize",
    "History",
    "Report",
    "SolveError",
    "Standardize",
    "Whiten",
    "check",
    "elbo",
    "ffjord",
    "fit",
    "iwae",
    "load",
    "save",
]

# What needs scikit-learn or pandas, which take long to import, is imported when it is asked for.
_LATER = {"check": "cnf.diagnostics", "CNFDensity": "cnf.estimators"}
_MODULES = {"callbacks", "datasets", "diagnostics", "estimators", "schema", "two_sample"}


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES})


if not TYPE_CHECKING:  # type checkers would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            return getattr(import_module(_LATER[name]), name)
        if name in _MODULES:
            return import_module(f"cnf.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
