"""Continuous normalizing flows on PyTorch: fit, score and sample densities.

>>> import torch, cnf
>>> flow = cnf.ffjord(dim=2, hidden=(16,))
>>> history = cnf.fit(flow, torch.randn(200, 2), steps=3)
>>> flow.log_prob(torch.zeros(5, 2)).shape, flow.sample(5).shape
(torch.Size([5]), torch.Size([5, 2]))
"""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from cnf.diagnostics import Report, check
    from cnf.fields import ConcatSquash
    from cnf.flow import Flow, FlowMixture, ffjord
    from cnf.layers import CNF, Gaussianize, Standardize, Whiten
    from cnf.ode import SolveError
    from cnf.outliers import CNFOutlier
    from cnf.storage import load, save
    from cnf.tables import CNFDensity
    from cnf.training import History, distil, fit, fit_mixture
    from cnf.variational import FlowPosterior, elbo, iwae
else:  # `import cnf` itself imports none of them, nor PyTorch
    _NAMES = {
        "cnf.diagnostics": ("Report", "check"),
        "cnf.fields": ("ConcatSquash",),
        "cnf.flow": ("Flow", "FlowMixture", "ffjord"),
        "cnf.layers": ("CNF", "Gaussianize", "Standardize", "Whiten"),
        "cnf.ode": ("SolveError",),
        "cnf.outliers": ("CNFOutlier",),
        "cnf.storage": ("load", "save"),
        "cnf.tables": ("CNFDensity",),
        "cnf.training": ("History", "distil", "fit", "fit_mixture"),
        "cnf.variational": ("FlowPosterior", "elbo", "iwae"),
    }
    _ROOMS = {*_NAMES, *(f"cnf.{name}" for name in ("adapters", "datasets", "plotting"))}
    _ROOMS |= {"cnf.series", "cnf.vae"}
    __getattr__, __dir__ = lazy_names(
        __name__,
        {room.removeprefix("cnf."): room for room in _ROOMS}
        | {name: f"{room}:{name}" for room, names in _NAMES.items() for name in names},
    )

__version__ = "0.1.0"

__all__ = [
    "CNF",
    "CNFDensity",
    "CNFOutlier",
    "ConcatSquash",
    "Flow",
    "FlowMixture",
    "FlowPosterior",
    "Gaussianize",
    "History",
    "Report",
    "SolveError",
    "Standardize",
    "Whiten",
    "check",
    "distil",
    "elbo",
    "ffjord",
    "fit",
    "fit_mixture",
    "iwae",
    "load",
    "save",
]
