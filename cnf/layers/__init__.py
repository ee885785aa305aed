"""Invertible layers between base and data.

A new layer is one class in one file with an entry in `LAYERS`; a layer of single columns has its
entry in `COLUMN_LAYERS`, and a scaling of the data one in `SCALINGS` too.
"""

from cnf.layers.cnf import CNF
from cnf.layers.columns import (
    COLUMN_LAYERS,
    Argmax,
    Bounded,
    Circular,
    Concatenate,
    Constant,
    Dequantize,
    Identity,
    Positive,
)
from cnf.layers.layer import Layer, ScoredTransform, ScoringOptions, TransformResult
from cnf.layers.moving_norm import MovingNorm
from cnf.layers.scalings import SCALINGS, Gaussianize, Scaling, Standardize, Whiten
from cnf.layers.settings import SolverSettings

LAYERS: dict[str, type[Layer]] = {
    **{
        layer.name: layer
        for layer in (CNF, Standardize, Whiten, Gaussianize, MovingNorm, Concatenate)
    },
    **COLUMN_LAYERS,
}
"""The layers of a flow, by the name in its configuration."""

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
