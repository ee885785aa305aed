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

# What needs scikit-learn, which takes long to import, is imported when it is asked for.
_LATER = {"check": "cnf.diagnostics", "CNFDensity": "cnf.estimators"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
