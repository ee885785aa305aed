"""Invertible layers between base and data.

A new layer is one class in one file, entered in `LAYERS`, and nothing else.
"""

from cnf.layers.cnf import CNF
from cnf.layers.columns.argmax import Argmax
from cnf.layers.columns.bounded import Bounded
from cnf.layers.columns.circular import Circular
from cnf.layers.columns.concatenate import COLUMN_LAYERS, Concatenate
from cnf.layers.columns.constant import Constant
from cnf.layers.columns.dequantize import Dequantize
from cnf.layers.columns.identity import Identity
from cnf.layers.columns.positive import Positive
from cnf.layers.layer import Layer, ScoredTransform, ScoringOptions, TransformResult
from cnf.layers.moving_norm import MovingNorm
from cnf.layers.scalings.gaussianize import Gaussianize
from cnf.layers.scalings.scaling import Scaling
from cnf.layers.scalings.standardize import Standardize
from cnf.layers.scalings.whiten import Whiten
from cnf.layers.settings import SolverSettings

LAYERS: dict[str, type[Layer]] = {
    **{
        layer.name: layer
        for layer in (CNF, Standardize, Whiten, Gaussianize, MovingNorm, Concatenate)
    },
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
    "Bounded",
    "Circular",
    "Concatenate",
    "Constant",
    "Dequantize",
    "Gaussianize",
    "Identity",
    "Layer",
    "MovingNorm",
    "Positive",
    "Scaling",
    "ScoredTransform",
    "ScoringOptions",
    "SolverSettings",
    "Standardize",
    "TransformResult",
    "Whiten",
]
