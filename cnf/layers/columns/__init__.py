"""Layers of single columns, one for each kind of column, and their concatenation."""

from cnf.layers.columns.argmax import Argmax
from cnf.layers.columns.bounded import Bounded
from cnf.layers.columns.circular import Circular
from cnf.layers.columns.concatenate import COLUMN_LAYERS, Concatenate
from cnf.layers.columns.constant import Constant
from cnf.layers.columns.dequantize import Dequantize
from cnf.layers.columns.identity import Identity
from cnf.layers.columns.positive import Positive
from cnf.layers.columns.stochastic import StochasticLayer

__all__ = [
    "COLUMN_LAYERS",
    "Argmax",
    "Bounded",
    "Circular",
    "Concatenate",
    "Constant",
    "Dequantize",
    "Identity",
    "Positive",
    "StochasticLayer",
]
