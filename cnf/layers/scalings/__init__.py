"""Layers that are fitted to the training rows and bring columns to a common scale."""

from cnf.layers.scalings.gaussianize import Gaussianize
from cnf.layers.scalings.scaling import Scaling
from cnf.layers.scalings.standardize import Standardize
from cnf.layers.scalings.whiten import Whiten

SCALINGS: dict[str, tuple[type[Scaling], ...]] = {
    "standardize": (Standardize,),
    "whiten": (Whiten,),
    "gaussianize": (Whiten, Gaussianize),
}
"""The layers of each scaling by its name, the one next to the data last."""

__all__ = ["SCALINGS", "Gaussianize", "Scaling", "Standardize", "Whiten"]
