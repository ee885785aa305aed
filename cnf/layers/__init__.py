"""Invertible layers between base and data.

A new layer is one class in one file, entered in `LAYERS`, and nothing else.
"""

from cnf.layers.argmax import Argmax
from cnf.layers.beside import COLUMN_LAYERS, Beside
from cnf.layers.bounded import Bounded
from cnf.layers.circular import Circular
from cnf.layers.cnf import CNF
from cnf.layers.constant import Constant
from cnf.layers.dequantize import Dequantize
from cnf.layers.gaussianize import Gaussianize
from cnf.layers.keep import Keep
from cnf.layers.layer import Assessed, Care, Layer, Mapped
from cnf.layers.moving_norm import MovingNorm
from cnf.layers.positive import Positive
from cnf.layers.scaling import Scaling
from cnf.layers.settings import SolverSettings
from cnf.layers.standardize import Standardize
from cnf.layers.whiten import Whiten

LAYERS: dict[str, type[Layer]] = {
    **{layer.name: layer for layer in (CNF, Standardize, Whiten, Gaussianize, MovingNorm, Beside)},
    **COLUMN_LAYERS,
}

SCALINGS: dict[str, tuple[type[Scaling], ...]] = {
    "standardize": (Standardize,),
    "whiten": (Whiten,),
    "gaussianize": (Whiten, Gaussianize),
}
"""How the data is brought to a common scale: layers, the one next to the data last."""

__all__ = [
    "CNF",
    "COLUMN_LAYERS",
    "LAYERS",
    "SCALINGS",
    "Argmax",
    "Assessed",
    "Beside",
    "Bounded",
    "Care",
    "Circular",
    "Constant",
    "Dequantize",
    "Gaussianize",
    "Keep",
    "Layer",
    "Mapped",
    "MovingNorm",
    "Positive",
    "Scaling",
    "SolverSettings",
    "Standardize",
    "Whiten",
]
