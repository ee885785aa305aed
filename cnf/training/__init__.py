"""Fitting a flow to rows: the loop, and the recipes, objectives and callbacks that it takes."""

from cnf.training.couplings import COUPLINGS
from cnf.training.history import Callback, Event, History, Record
from cnf.training.loop import TrainingError, fit
from cnf.training.objectives import OBJECTIVES
from cnf.training.recipes import RECIPES, Recipe

__all__ = [
    "COUPLINGS",
    "OBJECTIVES",
    "RECIPES",
    "Callback",
    "Event",
    "History",
    "Recipe",
    "Record",
    "TrainingError",
    "fit",
]
