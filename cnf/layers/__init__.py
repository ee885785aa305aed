"""Invertible layers between base and data.

A new layer is one class in one file with an entry in `LAYERS`, or in `SCALINGS` where it brings the
data to a common scale.
"""

from collections import ChainMap
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, cast

from cnf.layers.scalings import SCALINGS
from cnf.utils.lazy import lazy_package
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from cnf.layers.cnf import CNF
    from cnf.layers.columns.argmax import Argmax
    from cnf.layers.columns.bounded import Bounded
    from cnf.layers.columns.circular import Circular
    from cnf.layers.columns.concatenate import Concatenate
    from cnf.layers.columns.constant import Constant
    from cnf.layers.columns.dequantize import Dequantize
    from cnf.layers.columns.identity import Identity
    from cnf.layers.columns.positive import Positive
    from cnf.layers.conditional_affine import ConditionalAffine
    from cnf.layers.field_layer import FieldLayer
    from cnf.layers.layer import Layer, ScoredTransform, ScoringOptions, TransformResult
    from cnf.layers.moving_norm import MovingNorm
    from cnf.layers.scalings import (
        Gaussianize,
        GaussianizeUneven,
        Scaling,
        Standardize,
        Whiten,
    )
    from cnf.layers.settings import SolverSettings
    from cnf.layers.steps import Steps
else:  # imported on first use, so that the registries need no PyTorch
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "cnf": "CNF",
            "columns.argmax": "Argmax",
            "columns.bounded": "Bounded",
            "columns.circular": "Circular",
            "columns.concatenate": "Concatenate",
            "columns.constant": "Constant",
            "columns.dequantize": "Dequantize",
            "columns.identity": "Identity",
            "columns.positive": "Positive",
            "conditional_affine": "ConditionalAffine",
            "field_layer": "FieldLayer",
            "layer": "Layer ScoredTransform ScoringOptions TransformResult",
            "moving_norm": "MovingNorm",
            "scalings": "Gaussianize GaussianizeUneven Scaling Standardize Whiten",
            "settings": "SolverSettings",
            "steps": "Steps",
        },
    )

_OTHERS: Registry[Any] = Registry(
    {
        "cnf": "cnf.layers.cnf:CNF",
        "steps": "cnf.layers.steps:Steps",
        "moving_norm": "cnf.layers.moving_norm:MovingNorm",
        "conditional_affine": "cnf.layers.conditional_affine:ConditionalAffine",
        "concatenate": "cnf.layers.columns.concatenate:Concatenate",
        "identity": "cnf.layers.columns.identity:Identity",
        "constant": "cnf.layers.columns.constant:Constant",
        "positive": "cnf.layers.columns.positive:Positive",
        "bounded": "cnf.layers.columns.bounded:Bounded",
        "circular": "cnf.layers.columns.circular:Circular",
        "dequantize": "cnf.layers.columns.dequantize:Dequantize",
        "argmax": "cnf.layers.columns.argmax:Argmax",
    }
)

LAYERS: "MutableMapping[str, type[Layer]]" = ChainMap(_OTHERS, cast("Any", SCALINGS))
"""The layers of a flow, by the name in its configuration; the scalings are among them."""

__all__ = [
    "CNF",
    "LAYERS",
    "SCALINGS",
    "Argmax",
    "Bounded",
    "Circular",
    "Concatenate",
    "ConditionalAffine",
    "Constant",
    "Dequantize",
    "FieldLayer",
    "Gaussianize",
    "GaussianizeUneven",
    "Identity",
    "Layer",
    "MovingNorm",
    "Positive",
    "Scaling",
    "ScoredTransform",
    "ScoringOptions",
    "SolverSettings",
    "Standardize",
    "Steps",
    "TransformResult",
    "Whiten",
]
