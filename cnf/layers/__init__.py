"""Invertible layers between base and data.

A new layer is one class in one file, entered in `LAYERS`, and nothing else.
"""

from cnf.layers.cnf import CNF
from cnf.layers.layer import Assessed, Care, Layer, Mapped
from cnf.layers.settings import SolverSettings
from cnf.layers.standardize import Standardize

LAYERS: dict[str, type[Layer]] = {layer.name: layer for layer in (CNF, Standardize)}

__all__ = [
    "CNF",
    "LAYERS",
    "Assessed",
    "Care",
    "Layer",
    "Mapped",
    "SolverSettings",
    "Standardize",
]
