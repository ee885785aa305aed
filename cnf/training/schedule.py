"""The stages of a run: their objectives, lengths and learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, pi, sqrt
from typing import Any

from cnf.training.objectives import FlowMatching, MaximumLikelihood, Objective
from cnf.training.recipes import OBJECTIVES, Recipe


@dataclass(frozen=True)
class Stage:
    """A part of a run with one objective.

    Attributes:
        objective: The objective.
        share: Fraction of the run that the stage takes; the last stage takes the rest.
        learning_rate: The peak learning rate of a stage of at most `horizon` steps.
        batch_size: Rows for each step, of each process.
        warmup: Fraction of the stage that warms up.
        falling: Whether the learning rate falls as a cosine to zero afterwards.
        horizon: Steps above which the peak falls as one over their root.
        initial_tolerance_factor: The factor on the solver's tolerances at the stage's start.
    """

    objective: Objective
    share: float
    learning_rate: float
    batch_size: int
    warmup: float
    falling: bool
    horizon: float = inf
    initial_tolerance_factor: float = 1.0

    def rate(self, progress: float, steps: float = 0.0) -> float:
        """Return the learning rate: linear warm-up, then cosine or constant.

        Args:
            progress: Fraction of the stage that is done.
            steps: Number of steps that the stage will have, as far as it is known.

        Source: Bjorck et al. (2024), Scaling optimal LR across token horizons: the best rate falls
        with the length of a run.

        Example:
            >>> recipe = Recipe(objective="mle", learning_rate=0.1, warmup=0.1, horizon=500)
            >>> stage = stages(recipe)[0]
            >>> [round(stage.rate(p), 4) for p in (0.05, 0.1, 0.55, 1.0)]
            [0.051, 0.1, 0.05, 0.0]
            >>> stage.rate(0.1, steps=2000)
            0.05
        """
        rise = min(1.0, progress / self.warmup + 0.01) if self.warmup else 1.0
        fallen = (progress - self.warmup) / (1 - self.warmup) if self.falling else 0.0
        fallen = min(1.0, max(0.0, fallen))
        peak = self.learning_rate / sqrt(self._horizons(steps))
        return peak * rise * 0.5 * (1 + cos(pi * fallen))

    def tolerance_factor(self, progress: float, steps: float = 0.0) -> float:
        """Return the factor on the solver's tolerances, which falls geometrically to 1.

        It starts at `initial_tolerance_factor`, over the square of the number of horizons in longer
        runs. Arguments are those of `rate`.

        Example:
            >>> recipe = Recipe(objective="mle", initial_tolerance_factor=9.0, horizon=500)
            >>> stage = stages(recipe)[0]
            >>> [stage.tolerance_factor(p) for p in (0.0, 0.5, 1.0)]
            [9.0, 3.0, 1.0]
            >>> stage.tolerance_factor(0.0, steps=1000)
            2.25
        """
        first = max(1.0, self.initial_tolerance_factor / self._horizons(steps) ** 2)
        return float(first ** (1 - min(1.0, progress)))

    def _horizons(self, steps: float) -> float:
        return max(1.0, steps / self.horizon)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Return a recipe's stages, by its objective.

    Example:
        >>> [stage.objective.name for stage in stages(Recipe(objective="hybrid"))]
        ['flow matching', 'maximum likelihood']
    """
    return OBJECTIVES[recipe.objective](recipe)


def flow_matching(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stage of flow matching, the share `recipe.matching` of a hybrid run."""
    numbers = (recipe.matching, recipe.matching_rate, recipe.matching_batch)
    return (Stage(FlowMatching(recipe.coupling, recipe.path), *numbers, **_shape(recipe)),)


def maximum_likelihood(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stage of maximum likelihood."""
    likelihood, factor = MaximumLikelihood(recipe.regularization), recipe.initial_tolerance_factor
    numbers = (1 - recipe.matching, recipe.learning_rate, recipe.batch_size)
    shape = _shape(recipe) | {"horizon": recipe.horizon, "initial_tolerance_factor": factor}
    return (Stage(likelihood, *numbers, **shape),)


def hybrid(recipe: Recipe) -> tuple[Stage, ...]:
    """Return flow matching, and maximum likelihood from its best averaged weights."""
    return flow_matching(recipe) + maximum_likelihood(recipe)


def _shape(recipe: Recipe) -> dict[str, Any]:
    return {"warmup": recipe.warmup, "falling": recipe.schedule == "cosine"}
