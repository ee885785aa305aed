"""Solver settings of CNF layers in training, readable without PyTorch."""

from typing import Any

TRAINING_SOLVER: dict[str, Any] = {
    "method": "bosh3",
    "rtol": 1e-3,
    "atol": 1e-3,
    "step": "joint",
    "first_step": 0.15,  # of a time of 1: choosing it takes two of twenty evaluations
    "gradient": "checkpoint",
    "activation_bytes": 2**28,
}
"""The `SolverSettings` of `Flow.for_training`, by name: joint steps at a loose tolerance."""
