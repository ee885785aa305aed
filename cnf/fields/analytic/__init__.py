"""The analytic path of the concat-squash family: closed-form trace, adjoint, compiled code.

Fields use what is named here and nothing else of this folder.
"""

from cnf.fields.analytic.compiled import EAGER, BatchSizes, PerceptronFunctions, compiled_functions
from cnf.fields.analytic.grouped import GROUPED, trace_matrices_of_groups
from cnf.fields.analytic.network import GatedNetwork, NetworkConstants
from cnf.fields.analytic.perceptron import (
    Perceptron,
    RowSubsets,
    trace_matrices,
    velocity_and_trace_over,
)

__all__ = [
    "EAGER",
    "GROUPED",
    "BatchSizes",
    "GatedNetwork",
    "NetworkConstants",
    "Perceptron",
    "PerceptronFunctions",
    "RowSubsets",
    "compiled_functions",
    "trace_matrices",
    "trace_matrices_of_groups",
    "velocity_and_trace_over",
]
