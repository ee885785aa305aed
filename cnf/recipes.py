"""Named, complete configurations of a training run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from math import inf
from typing import Any

from cnf.divergence import check_divergence
from cnf.fields import ACTIVATIONS, FIELDS
from cnf.ode import GRADIENTS
from cnf.regularizers import Regularization


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run is made of, but the data, the seed and the time.

    Attributes:
        hidden: Widths of each field's hidden layers.
        activation: The fields' activation.
        blocks: Number of CNF layers.
        batch_size: Rows for each step.
        learning_rate: Peak of the schedule (linear warm-up, then a cosine to zero).
        warmup: Fraction of the run that warms up.
        weight_decay: AdamW's decoupled weight decay.
        clip: Largest norm of the gradient.
        average: Decay of the weights' moving average, which is validated and kept.
        rtol: The solver's relative tolerance in training.
        atol: The solver's absolute tolerance in training.
        gradient: The solver's gradient mode in training.
        keep: Bytes for the activations of accepted steps, which `"checkpoint"` does not replay.
        validations: How often the run is validated, evenly over its length.
        validation_rows: The most rows that a validation scores.
        patience: Validations without improvement after which the run ends.
        field: The fields' name in `cnf.fields.FIELDS`.
        time_features: The number of sines and cosines of time that enter the fields' layers.
        x_features: The number of sines and of cosines of x that enter the fields.
        x_scale: The standard deviation of their frequencies, in units of standardised columns.
        divergence: A name for `cnf.divergence.choose_divergence`, in training alone; `"auto"`
            leaves the flow its own.
        kinetic: Weight of the regularizer of this name in `cnf.regularizers`.
        jacobian: Alike.
        path_l1: Alike.
        path_l2: Alike.
        directional: Alike.
        steer: Half the width of the interval that the base's time is drawn from, in training.
    """

    hidden: tuple[int, ...] = (64, 64, 64)
    activation: str = "tanh"
    blocks: int = 1
    batch_size: int = 512
    learning_rate: float = 2e-2
    warmup: float = 0.02
    weight_decay: float = 1e-6
    clip: float = 5.0
    average: float = 0.995
    rtol: float = 1e-3
    atol: float = 1e-3
    gradient: str = "checkpoint"
    keep: int = 2**28
    validations: int = 50
    validation_rows: int = 2000
    patience: int = 20
    field: str = "concat_squash"
    time_features: int = 0
    x_features: int = 0
    x_scale: float = 1.0
    divergence: str = "auto"
    kinetic: float = 0.0
    jacobian: float = 0.0
    path_l1: float = 0.0
    path_l2: float = 0.0
    directional: float = 0.0
    steer: float = 0.0

    def __post_init__(self) -> None:
        from_zero = {"warmup", "average", "weight_decay", "keep", "time_features", "x_features"}
        from_zero |= {field.name for field in fields(Regularization)}
        below_one = {"warmup", "average", "steer"}
        check_divergence(self.divergence)
        named: dict[str, Collection[str]] = {
            "activation": ACTIVATIONS,
            "gradient": GRADIENTS,
            "field": FIELDS,
        }
        for name, choices in named.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"Expected the recipe's {name} to be one of {', '.join(choices)}; "
                    f"got {getattr(self, name)!r}"
                )
        for name, value in vars(self).items():
            if isinstance(value, str):
                continue
            number = min(value, default=0) if isinstance(value, tuple) else value
            low = number >= 0 if name in from_zero else number > 0
            high = number < (1 if name in below_one else inf)
            if not (low and high):
                wanted = "finite and " + ("at least 0" if name in from_zero else "above 0")
                wanted += " and below 1" if name in below_one else ""
                raise ValueError(f"Expected the recipe's {name} to be {wanted}; got {value}")

    @property
    def regularization(self) -> Regularization | None:
        """What training adds to the loss; None for nothing."""
        found = Regularization(
            **{field.name: getattr(self, field.name) for field in fields(Regularization)}
        )
        return found if found.active or found.steer else None

    @property
    def field_options(self) -> dict[str, Any]:
        """What `cnf.ffjord` hands on to the fields, where the recipe changes it."""
        options = {
            "time_features": self.time_features,
            "x_features": self.x_features,
            "x_scale": self.x_scale if self.x_features else 0,
        }
        return {name: value for name, value in options.items() if value}


RECIPES: dict[str, Recipe] = {
    # FFJORD's own network for its toys.
    "toy": Recipe(),
    # Two hidden layers: the trace has a closed form, whatever the number of columns.
    "table": Recipe(hidden=(128, 128), activation="silu", weight_decay=1e-4, learning_rate=3e-3),
}


def choose_recipe(name: str | None, dim: int) -> tuple[str, Recipe]:
    """The recipe called `name`, or the one for data of this dimension; with its name.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> choose_recipe(None, dim=10)[0]
        'table'
    """
    if name is None:
        name = "toy" if dim <= 2 else "table"
    if name not in RECIPES:
        raise ValueError(f"Expected a recipe among {', '.join(RECIPES)}; got {name!r}")
    return name, RECIPES[name]
