"""Fitting a flow to rows: the loop, and the recipes, objectives and callbacks that it takes."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package

if TYPE_CHECKING:
    from cnf.training.distillation import distil
    from cnf.training.history import Callback, Event, History, Record, StepEvent
    from cnf.training.loop import fit
    from cnf.training.mixture import distil_flows, fit_flows, fit_mixture
    from cnf.training.recipes import COUPLINGS, OBJECTIVES, PATHS, RECIPES, Recipe
    from cnf.training.run import TrainingError
else:  # recipes are read without PyTorch
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "distillation": "distil",
            "history": "Callback Event History Record StepEvent",
            "loop": "fit",
            "mixture": "distil_flows fit_flows fit_mixture",
            "recipes": "COUPLINGS OBJECTIVES PATHS RECIPES Recipe",
            "run": "TrainingError",
        },
    )

__all__ = [
    "COUPLINGS",
    "OBJECTIVES",
    "PATHS",
    "RECIPES",
    "Callback",
    "Event",
    "History",
    "Recipe",
    "Record",
    "StepEvent",
    "TrainingError",
    "distil",
    "distil_flows",
    "fit",
    "fit_flows",
    "fit_mixture",
]
