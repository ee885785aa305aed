"""The stages of a run: what each one minimises, for how long and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from cnf.objectives import OBJECTIVES, FlowMatching, MaximumLikelihood, Objective
from cnf.recipes import Recipe


@dataclass(frozen=True)
class Stage:
    """A stretch of a run with one objective.

    Attributes:
        objective: What is minimised.
        share: Fraction of the run that it takes; the last stage takes what is left.
        learning_rate: Its peak.
        batch_size: Rows for each step, of each process.
        warmup: Fraction of the stage that warms up.
        falling: Whether the learning rate falls as a cosine to zero afterwards.
    """

    objective: Objective
    share: float
    learning_rate: float
    batch_size: int
    warmup: float
    falling: bool

    def rate(self, progress: float) -> float:
        """The learning rate at a fraction of the stage: linear warm-up, then cosine or constant.

        Example:
            >>> stage = stages(Recipe(objective="mle", learning_rate=0.1, warmup=0.1))[0]
            >>> [round(stage.rate(p), 4) for p in (0.05, 0.1, 0.55, 1.0)]
            [0.051, 0.1, 0.05, 0.0]
        """
        rise = min(1.0, progress / self.warmup + 0.01) if self.warmup else 1.0
        fallen = (progress - self.warmup) / (1 - self.warmup) if self.falling else 0.0
        fallen = min(1.0, max(0.0, fallen))
        return self.learning_rate * rise * 0.5 * (1 + cos(pi * fallen))


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """A recipe's stages, one for each of its objective's parts.

    The rule of a hybrid run: `recipe.matching` of it is flow matching, the rest is maximum
    likelihood, from the best averaged weights, each with its own learning rate and warm-up.

    Example:
        >>> [stage.objective.name for stage in stages(Recipe(objective="hybrid"))]
        ['flow matching', 'maximum likelihood']
    """
    made: dict[type[Objective], Objective] = {
        FlowMatching: FlowMatching(recipe.coupling),
        MaximumLikelihood: MaximumLikelihood(recipe.regularization),
    }
    numbers: dict[type[Objective], tuple[float, float, int]] = {
        FlowMatching: (recipe.matching, recipe.matching_rate, recipe.matching_batch),
        MaximumLikelihood: (1 - recipe.matching, recipe.learning_rate, recipe.batch_size),
    }
    falling = recipe.schedule == "cosine"
    return tuple(
        Stage(made[kind], *numbers[kind], recipe.warmup, falling)
        for kind in OBJECTIVES[recipe.objective]
    )
