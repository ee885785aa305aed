"""Named, complete configurations of a training run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnf.fields import ACTIVATIONS, FIELDS
from cnf.fields.divergence import check_divergence
from cnf.fields.regularizers import Regularization
from cnf.flow import Flow, ffjord
from cnf.layers import SCALINGS, Layer
from cnf.layers.scalings.quantiles import gaussianization_gain
from cnf.ode import GRADIENTS, TABLEAUS
from cnf.training.couplings import COUPLINGS
from cnf.training.objectives import OBJECTIVES

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Recipe:
    """A configuration of a training run: all of it but the data, the seed and the time.

    Attributes:
        objective: A name in `cnf.training.objectives.OBJECTIVES`: `"mle"`, maximum likelihood;
            `"matching"`, flow matching; `"hybrid"`, flow matching and then maximum likelihood.
        hidden: Widths of each field's hidden layers.
        activation: The fields' activation.
        blocks: Number of CNF layers.
        batch_norm: Whether a batch normalisation by moving statistics stands on the base's side of
            each; with objective `"mle"` alone.
        scaling: The layer that scales the data, a name in `cnf.layers.SCALINGS`.
        field: The fields' name in `cnf.fields.FIELDS`.
        time_features: The number of sines and cosines of time that enter the fields' layers.
        x_features: The number of sines and of cosines of x that enter the fields.
        x_scale: The standard deviation of their frequencies, in units of standardised columns.
        batch_size: Rows for each step of maximum likelihood, of each process.
        learning_rate: Its peak learning rate, where it takes at most `horizon` steps.
        horizon: Steps of maximum likelihood above which the peak falls as one over their root: in
            long runs smaller steps keep the field from becoming stiff.
        matching_batch: Rows for each step of flow matching, of each process.
        matching_rate: Its peak learning rate.
        matching: Fraction of a hybrid run that is flow matching: of its time or, where its length
            is given in steps, of these, of which matching's are cheap.
        coupling: The coupling of base and data in flow matching, a name in
            `cnf.training.couplings.COUPLINGS`.
        schedule: `"cosine"`, to zero, or `"constant"`; both after a linear warm-up.
        warmup: Fraction of each stage that warms up.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: The norm that gradients are clipped to.
        ema_decay: Decay of the weights' moving average, which is validated and kept.
        method: The solver's method in maximum likelihood, an adaptive one of `cnf.ode.TABLEAUS`.
        rtol: The solver's relative tolerance at the end of training, and in validations.
        atol: The solver's absolute tolerance at the end of training, and in validations.
        initial_tolerance_factor: The factor on both at the start, at least 1, which falls
            geometrically to 1. In a run of more than `horizon` steps it is less, by the square of
            how many horizons the run has: early steps need no accuracy, but the longer they do
            without it, the more the field relies on the solver's errors.
        gradient: The solver's gradient mode in maximum likelihood.
        activation_bytes: Bytes for the activations of accepted steps, which `"checkpoint"` then
            does not replay.
        divergence: A name for `cnf.fields.divergence.choose_divergence`, in training alone;
            `"auto"` is the flow's setting.
        kinetic: Weight of the regularizer `"kinetic"` of `cnf.fields.regularizers` in maximum
            likelihood.
        jacobian: Weight of the regularizer `"jacobian"`.
        path_l1: Weight of the regularizer `"path_l1"`.
        path_l2: Weight of the regularizer `"path_l2"`.
        directional: Weight of the regularizer `"directional"`.
        steer: Half the width of the interval that the base's time is drawn from, in training.
        validations: Number of validations, evenly spread over the run.
        validation_rows: The most rows that a validation scores.
        patience: Validations without improvement after which the run, or a hybrid run's flow
            matching, ends.
    """

    objective: str = "hybrid"
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "silu"
    blocks: int = 1
    batch_norm: bool = False
    scaling: str = "standardize"
    field: str = "concat_squash"
    time_features: int = 0
    x_features: int = 0
    x_scale: float = 1.0
    batch_size: int = 256
    learning_rate: float = 1e-2
    horizon: int = 800
    matching_batch: int = 512
    matching_rate: float = 1e-2
    matching: float = 0.1
    coupling: str = "independent"
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 1e-6
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    method: str = "bosh3"
    rtol: float = 1e-3
    atol: float = 1e-3
    initial_tolerance_factor: float = 10.0
    gradient: str = "checkpoint"
    activation_bytes: int = 2**28
    divergence: str = "auto"
    kinetic: float = 0.0
    jacobian: float = 0.0
    path_l1: float = 0.0
    path_l2: float = 0.0
    directional: float = 0.0
    steer: float = 0.0
    validations: int = 20
    validation_rows: int = 2000
    patience: int = 20

    def __post_init__(self) -> None:
        from_zero = {"warmup", "ema_decay", "weight_decay", "activation_bytes"}
        from_zero |= {"time_features", "x_features"}
        from_zero |= {field.name for field in fields(Regularization)}
        # All others are above 0.
        lowest = {**dict.fromkeys(from_zero, 0), "initial_tolerance_factor": 1}
        below_one = {"warmup", "ema_decay", "steer", "matching"}
        check_divergence(self.divergence)
        named: dict[str, Collection[str]] = {
            "objective": OBJECTIVES,
            "schedule": SCHEDULES,
            "coupling": COUPLINGS,
            "method": [name for name, tableau in TABLEAUS.items() if tableau.adaptive],
            "activation": ACTIVATIONS,
            "gradient": GRADIENTS,
            "field": FIELDS,
            "scaling": SCALINGS,
        }
        for name, choices in named.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"Expected the recipe's {name} to be one of {', '.join(choices)}; "
                    f"got {getattr(self, name)!r}"
                )
        for name, value in vars(self).items():
            if isinstance(value, str) or name == "batch_norm":
                continue
            number = min(value, default=0) if isinstance(value, tuple) else value
            least = lowest.get(name)
            low = number > 0 if least is None else number >= least
            high = number < (1 if name in below_one else inf)
            if not (low and high):
                wanted = "finite and " + ("above 0" if least is None else f"at least {least}")
                wanted += " and below 1" if name in below_one else ""
                raise ValueError(f"Expected the recipe's {name} to be {wanted}; got {value}")
        self._check_objective()

    def _check_objective(self) -> None:
        """Raise a ValueError where the objective does not allow the other numbers."""
        if not isinstance(self.batch_norm, bool):
            raise ValueError(
                f"Expected the recipe's batch_norm to be True or False; got {self.batch_norm!r}"
            )
        if self.batch_norm and self.objective != "mle":
            raise ValueError(
                "Expected objective mle with batch_norm, whose statistics flow matching does not "
                f"update, since no rows pass through the flow; got objective {self.objective}"
            )
        if self.objective == "matching" and self.regularization is not None:
            raise ValueError(
                "Expected no regularizer and no steer with objective matching, which solves "
                f"nothing that they could act on; got {self.regularization}. Train by hybrid or mle"
            )

    @property
    def regularization(self) -> Regularization | None:
        """Return the penalties that training adds to the loss, None where there are none."""
        found = Regularization(
            **{field.name: getattr(self, field.name) for field in fields(Regularization)}
        )
        return found if found.active or found.steer else None

    @property
    def field_options(self) -> dict[str, Any]:
        """Return the fields' arguments that differ from their defaults."""
        options = {
            "time_features": self.time_features,
            "x_features": self.x_features,
            "x_scale": self.x_scale if self.x_features else 0,
        }
        return {name: value for name, value in options.items() if value}

    def flow(self, dim: int, context_dim: int = 0, columns: Sequence[Layer] = ()) -> Flow:
        """Return a new flow of the recipe's architecture, by `cnf.ffjord`.

        Args:
            dim: Number of columns that are modelled.
            context_dim: Size of the context.
            columns: Layers next to the data, which map it to that many columns. Columns that they
                take for angles are angles of the flow.

        Example:
            >>> RECIPES["toy"].flow(2).solves
            1
        """
        return ffjord(
            dim,
            self.hidden,
            context_dim=context_dim,
            activation=self.activation,
            blocks=self.blocks,
            field=self.field,
            field_options=self.field_options,
            scaling=self.scaling,
            batch_norm=self.batch_norm,
            columns=columns,
        )


# The configuration of FFJORD's toys: https://github.com/rtqichen/ffjord, train_toy.py.
PAPER = Recipe(
    objective="mle",
    hidden=(64, 64, 64),
    activation="tanh",
    batch_size=100,
    learning_rate=1e-3,
    horizon=10**9,
    schedule="constant",
    warmup=0.0,
    weight_decay=1e-5,
    max_grad_norm=1e9,
    ema_decay=0.0,
    method="dopri5",
    rtol=1e-5,
    atol=1e-5,
    initial_tolerance_factor=1.0,
)

# The configuration of FFJORD's tables: train_tabular.py, and Grathwohl et al. (2019), appendix C.
# That validates all rows every 200 steps, divides the learning rate by 10 after 10 validations
# without improvement and again after 20, and ends after 30. Here the rate falls as a cosine over
# the run's length, which has a hundred validations on at most 10,000 rows and ends after 30 without
# improvement. Gradients are the discrete solve's, and validations use the flow's own divergence.
PAPER_TABLE = replace(
    PAPER,
    schedule="cosine",
    weight_decay=1e-6,
    rtol=1e-6,
    atol=1e-8,
    divergence="hutchinson-gaussian",
    validations=100,
    validation_rows=10_000,
    patience=30,
)

TABLE = Recipe(scaling="gaussianize", learning_rate=3e-2, ema_decay=0.99)

# Fourier features of x fit edges; flow matching comes first, with a coupling whose paths take two
# thirds of the evaluations.
TOY = Recipe(
    hidden=(64, 64, 64),
    field="concat",
    x_features=32,
    x_scale=3.0,
    matching_batch=128,
    matching=0.2,
    coupling="optimal_transport",
)

RECIPES: dict[str, Recipe] = {
    "toy": TOY,
    # Pictures have finer edges, which flow matching finds sooner than maximum likelihood does.
    "picture": replace(TOY, x_features=64, x_scale=6.0, matching_batch=256, matching=0.6),
    # With two hidden layers the trace has a closed form, whatever the number of columns. Columns
    # with normal marginals allow for a high learning rate, and leave the field the dependence. Few
    # rows are soon overfitted, which regularizers of the paths prevent.
    "table-tiny": replace(TABLE, matching_batch=256, weight_decay=1e-2, kinetic=1.0, jacobian=1.0),
    "table-small": replace(TABLE, matching_batch=256, weight_decay=1e-2, kinetic=0.1, jacobian=0.1),
    "table-large": replace(TABLE, hidden=(128, 128)),
    "ffjord-paper": PAPER,
    # Table 4 of the paper: hidden layers of 10 or 20 times as many units as there are columns.
    "ffjord-paper-power": replace(PAPER_TABLE, hidden=(60, 60, 60), blocks=5, batch_size=10_000),
    "ffjord-paper-gas": replace(PAPER_TABLE, hidden=(160, 160, 160), blocks=5, batch_size=1000),
    "ffjord-paper-hepmass": replace(
        PAPER_TABLE, hidden=(210, 210), activation="softplus", blocks=10, batch_size=10_000
    ),
    "ffjord-paper-miniboone": replace(
        PAPER_TABLE, hidden=(860, 860), activation="softplus", blocks=1, batch_size=1000
    ),
    "ffjord-paper-bsds300": replace(
        PAPER_TABLE, hidden=(1260, 1260, 1260), activation="softplus", blocks=2, batch_size=10_000
    ),
}

MAX_INSPECTED_ROWS = 100_000  # rows from which the columns' distributions are judged
MIN_INSPECTED_ROWS = 40  # fewer rows do not show them
UNEVEN_GAIN = 0.5  # nats; see `gain`. The toys' columns have up to 0.42
FLAT_EIGENVALUE = 1e-3  # of the columns' correlations, below which they lie on a line

MAX_RECIPE_ROWS = {"table-tiny": 300, "table-small": 2000}  # rows of a table that it is chosen for

OLD_NAMES = {
    "average": "ema_decay",
    "clip": "max_grad_norm",
    "keep": "activation_bytes",
    "loosening": "initial_tolerance_factor",
}
"""The current names of numbers that version 0.1.0 wrote into recipes and training states."""


def unused(recipe: Recipe) -> dict[str, str]:
    """Return the attributes without effect in a recipe, each with the attribute that disables it.

    Example:
        >>> sorted(unused(Recipe(objective="mle", x_features=8)))
        ['coupling', 'matching', 'matching_batch', 'matching_rate']
        >>> unused(Recipe())
        {'x_scale': 'x_features 0'}
    """
    of_matching = {"matching_batch", "matching_rate", "coupling"}
    of_likelihood = {"batch_size", "learning_rate", "horizon", "initial_tolerance_factor"}
    of_likelihood |= {"gradient", "activation_bytes", "divergence"}
    of_likelihood |= {field.name for field in fields(Regularization)}
    left_out = {"mle": {"matching"} | of_matching, "matching": {"matching"} | of_likelihood}
    found = {} if recipe.x_features else {"x_scale": "x_features 0"}
    if recipe.gradient != "checkpoint":
        found["activation_bytes"] = f"gradient {recipe.gradient}"
    by_objective = f"objective {recipe.objective}"
    return found | dict.fromkeys(left_out.get(recipe.objective, ()), by_objective)


def choose_recipe(
    name: str | None,
    rows: int,
    dim: int,
    conditional: bool = False,
    objective: str | None = None,
    values: NDArray[np.float64] | None = None,
) -> tuple[str, Recipe]:
    """Return the recipe of a name, or for data of a size and dimension; with its name.

    Args:
        name: A name in `RECIPES`; None to choose by the data.
        rows: The data's number of rows.
        dim: The number of columns that are modelled.
        conditional: Whether there is a context: a coupling that breaks the condition is replaced.
        objective: The objective of training, the recipe's when None; with flow matching the recipe
            loses its regularizers, which have no effect there.
        values: Rows of the columns of real numbers. Where `uneven_columns` finds these uneven, a
            recipe that is chosen by the data gaussianizes.

    Raises:
        ValueError: The name, or that of the objective, is unknown.

    Example:
        >>> choose_recipe(None, rows=100_000, dim=10)[0]
        'table-large'
    """
    if name is None:
        fitting = (name for name, largest in MAX_RECIPE_ROWS.items() if rows <= largest)
        name = "toy" if dim <= 2 else next(fitting, "table-large")
    else:
        values = None
    if name not in RECIPES:
        raise ValueError(f"Expected a recipe among {', '.join(RECIPES)}; got {name!r}")
    recipe = RECIPES[name]
    if recipe.scaling == "standardize" and values is not None and uneven_columns(values):
        recipe = replace(recipe, scaling="gaussianize")
    if conditional and not COUPLINGS[recipe.coupling].keeps_condition:
        recipe = replace(recipe, coupling="independent")
    if objective is not None:
        lost: dict[str, Any] = {}
        if objective == "matching":
            lost = {field.name: 0.0 for field in fields(Regularization)}
        recipe = replace(recipe, objective=objective, **lost)
    return name, recipe


def uneven_columns(values: NDArray[np.float64]) -> bool:
    """Return whether standardised columns are far from normal, or nearly on a line.

    The field has to learn such a distribution at its own scale: most rows of a Cauchy column lie
    within a hundredth of a standard deviation, two clusters far apart are as narrow, and so is a
    column given another one that determines it.

    Args:
        values: Shape (rows, columns), of which the first rows are inspected.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> uneven_columns(rng.normal(size=(500, 2))), uneven_columns(rng.standard_cauchy((500, 1)))
        (False, True)
    """
    values = values[:MAX_INSPECTED_ROWS, np.ptp(values, 0) > 0]
    if len(values) < MIN_INSPECTED_ROWS or not values.shape[1]:
        return False
    correlation = np.atleast_2d(np.corrcoef(values.T))
    flat = np.linalg.eigvalsh(correlation)[0] < FLAT_EIGENVALUE
    return bool(flat) or any(gaussianization_gain(column) > UNEVEN_GAIN for column in values.T)


def current_names(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries with old names of recipes' numbers replaced by the current ones.

    Example:
        >>> current_names({"clip": 1.0, "rtol": 1e-3})
        {'max_grad_norm': 1.0, 'rtol': 0.001}
    """
    return {OLD_NAMES.get(name, name): value for name, value in entries.items()}


def recipe_of(entries: Mapping[str, Any]) -> Recipe:
    """Return the recipe in JSON, whose entries may have old names and be among others.

    Raises:
        KeyError: An attribute is missing.
        TypeError: The JSON is not an object.
        ValueError: A value is of another type, or a number out of range.

    Example:
        >>> import json
        >>> from dataclasses import asdict
        >>> recipe_of(json.loads(json.dumps(asdict(Recipe())))) == Recipe()
        True
    """
    if not isinstance(entries, Mapping):
        raise TypeError(f"Expected an object with a recipe's numbers; got {str(entries)[:40]}")
    entries = current_names(entries)
    found = {field.name: entries[field.name] for field in fields(Recipe)}
    for name, value in found.items():
        kind = type(getattr(Recipe, name))
        kinds, wanted = _KINDS[kind]
        if kind is tuple:
            right = isinstance(value, list) and all(type(width) is int for width in value)
        else:
            right = type(value) in kinds
        if not right:
            raise ValueError(f"Expected the recipe's {name} to be {wanted}; got {value!r}")
    return Recipe(**{**found, "hidden": tuple(found["hidden"])})


_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a name"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
    tuple: ((list,), "a list of whole numbers"),
}
