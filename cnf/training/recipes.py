"""Named, complete configurations of a training run: readable without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cnf.fields import ACTIVATIONS, DIVERGENCES, FIELDS, field_arguments
from cnf.fields.regularizers import REGULARIZERS, Regularization
from cnf.flow import BASES
from cnf.layers import SCALINGS
from cnf.layers.training_solver import TRAINING_SOLVER
from cnf.ode import GRADIENTS, TABLEAUS
from cnf.training.numbers import Number, document_numbers, number, numbers_of
from cnf.utils.registry import Registry

if TYPE_CHECKING:  # the command line reads recipes before there is work
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from cnf.flow import Flow, FlowMixture
    from cnf.layers import Layer
    from cnf.training.couplings import Coupling
    from cnf.training.schedule import Stage

OBJECTIVES: Registry[Callable[[Recipe], tuple[Stage, ...]]] = Registry(
    {
        "mle": "cnf.training.schedule:maximum_likelihood",
        "matching": "cnf.training.schedule:flow_matching",
        "hybrid": "cnf.training.schedule:hybrid",
    }
)
"""Functions of a recipe that return a run's stages, by the objective's name."""

COUPLINGS: Registry[Coupling] = Registry(
    {
        "independent": "cnf.training.couplings:INDEPENDENT",
        "optimal_transport": "cnf.training.couplings:OPTIMAL_TRANSPORT",
    }
)
"""Couplings of base and data points by name."""

PATHS: Registry[Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = Registry(
    {
        "straight": "cnf.training.paths:straight",
        "trigonometric": "cnf.training.paths:trigonometric",
    }
)
"""Functions of base points, data points and times that return points and velocities, by name."""

SCHEDULES = ("cosine", "constant")

# A recipe's numbers by their group in the help of `cnf train`, and the objectives that use them.
IN_LIKELIHOOD, IN_MATCHING = ("mle", "hybrid"), ("matching", "hybrid")
_flow = partial(number, group="the flow")
_training = partial(number, group="training")
_likelihood = partial(number, group="maximum likelihood", used_by=IN_LIKELIHOOD)
_matching = partial(number, group="flow matching", used_by=IN_MATCHING)
_solver = partial(number, group="the solver")


def _adaptive_methods() -> list[str]:
    return [name for name, tableau in TABLEAUS.items() if tableau.adaptive]


VARIANTS: tuple[Mapping[str, str], ...] = (
    {},
    {"base": "mixture"},
    {"scaling": "gaussianize_uneven"},
    {"scaling": "gaussianize_uneven", "base": "mixture"},
    {"scaling": "standardize", "base": "mixture"},
)
"""What the flows of a mixture, which take turns, change in their recipe."""

OF_SOLVES = (
    *("divergence", "steer", "method", "rtol", "atol"),
    *("initial_tolerance_factor", "gradient", "activation_bytes"),
)
"""The numbers, beside regularizers, that explicit steps do not use."""


@dataclass(frozen=True, init=False)
class Recipe:
    """A configuration of a training run: all of it but the data, the seed and the time.

    Args:
        regularizers: Weights of regularizers, by their names in
            `cnf.fields.regularizers.REGULARIZERS`, in maximum likelihood, 0 by default.
        numbers: Numbers that differ from their defaults; regularizers' weights may be among them.

    Raises:
        ValueError: A number is out of range, or the objective does not allow it.
        TypeError: A number is unknown.

    Example:
        >>> replace(Recipe(objective="mle", kinetic=0.1), jacobian=0.2).regularizers
        {'kinetic': 0.1, 'jacobian': 0.2}
    """

    blocks: int = _flow(1, "number of CNF layers")
    field: str = _flow("concat_squash", "vector field of each layer", choices=FIELDS)
    hidden: tuple[int, ...] = _flow((64, 64), "widths of each field's hidden layers, as 64,64,64")
    activation: str = _flow("silu", "the fields' activation", choices=ACTIVATIONS)
    time_features: int = _flow(0, "sines and cosines of time that enter the fields' layers", low=0)
    x_features: int = _flow(0, "sines and cosines of x, of random frequencies, in fields", low=0)
    x_scale: float = _flow(1.0, "standard deviation of these frequencies, of standardised columns")
    scaling: str = _flow("standardize", "layer that scales the columns", choices=SCALINGS)
    base: str = _flow("normal", "base: normal, or a mixture fitted before the field", choices=BASES)
    flows: int = _flow(1, "number of flows, whose mixture is the density")
    batch_norm: bool = _flow(
        False, "true or false: batch normalisation on the base side of each CNF layer (mle)"
    )
    objective: str = _training("hybrid", "loss; hybrid is matching then mle", choices=OBJECTIVES)
    matching: float = _training(
        0.1, "fraction of time or steps of flow matching", high=1, used_by=("hybrid",)
    )
    schedule: str = _training("cosine", "learning rate after the warm-up", choices=SCHEDULES)
    warmup: float = _training(0.05, "fraction of each stage in which the rate rises", low=0, high=1)
    weight_decay: float = _training(1e-6, "AdamW's decoupled weight decay", low=0)
    max_grad_norm: float = _training(1.0, "norm above which the gradient is clipped")
    ema_decay: float = _training(
        0.998, "decay of the weights' moving average, which is validated and kept", low=0, high=1
    )
    validations: int = _training(20, "number of validations, evenly spread over the run")
    validation_rows: int = _training(2000, "largest number of rows that a validation scores")
    patience: int = _training(
        20, "validations without improvement after which the run, or its flow matching, ends"
    )
    batch_size: int = _likelihood(256, "rows for each step of maximum likelihood, of each process")
    learning_rate: float = _likelihood(1e-2, "peak learning rate, in a run of up to horizon steps")
    # In long runs smaller steps keep the field from becoming stiff.
    horizon: int = _likelihood(800, "steps beyond which the peak falls as one over their root")
    explicit_steps: int = _likelihood(
        0, "explicit steps in place of the solver, without a context; 0 for none", low=0
    )
    divergence: str = _likelihood(
        "auto", "trace in training; auto is the flow's", choices=lambda: ("auto", *DIVERGENCES)
    )
    regularizers: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    # The field then stays smooth around 0. Source: Ghosh et al. (2020), STEER.
    steer: float = _likelihood(
        0.0, "largest distance from 0 of the random base time in training (STEER)", low=0, high=1
    )
    matching_batch: int = _matching(512, "rows for each step of flow matching, of each process")
    matching_rate: float = _matching(1e-2, "peak learning rate of flow matching")
    coupling: str = _matching("independent", "coupling of base and data", choices=COUPLINGS)
    path: str = _matching("straight", "path between base and data", choices=PATHS)
    method: str = _solver(
        TRAINING_SOLVER["method"], "method in maximum likelihood", choices=_adaptive_methods
    )
    rtol: float = _solver(
        TRAINING_SOLVER["rtol"], "relative tolerance at the end of training, and in validations"
    )
    atol: float = _solver(
        TRAINING_SOLVER["atol"], "absolute tolerance at the end of training, and in validations"
    )
    # Early steps need no accuracy, but the longer they do without it, the more the field relies on
    # the solver's errors: in long runs the factor is less, by the square of how many horizons.
    initial_tolerance_factor: float = _solver(
        10.0, "factor on both at the start, less beyond the horizon", low=1, used_by=IN_LIKELIHOOD
    )
    gradient: str = _solver(
        TRAINING_SOLVER["gradient"], "the gradient mode", choices=GRADIENTS, used_by=IN_LIKELIHOOD
    )
    activation_bytes: int = _solver(
        TRAINING_SOLVER["activation_bytes"],
        "bytes that checkpoint stores, not recomputes",
        low=0,
        used_by=IN_LIKELIHOOD,
    )

    def __init__(self, regularizers: Mapping[str, float] | None = None, **numbers: Any) -> None:
        known, given = self.numbers(), {**(regularizers or {}), **numbers}
        if unknown := given.keys() - known.keys():
            raise TypeError(f"Expected a recipe's numbers; got {', '.join(sorted(unknown))}")
        values = {name: given.get(name, each.default) for name, each in known.items()}
        for name, value in values.items():
            known[name].check(f"the recipe's {name}", value)
        weights = {name: weight for name in REGULARIZERS if (weight := values.pop(name))}
        for name, value in {**values, "regularizers": weights}.items():
            object.__setattr__(self, name, value)
        self._check_objective()

    def __getattr__(self, name: str) -> float:
        """Return a regularizer's weight."""
        if name in REGULARIZERS:
            return self.regularizers.get(name, 0.0)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def numbers(cls) -> dict[str, Number]:
        """Return all numbers by their names: those of the fields, and the regularizers' weights."""
        return numbers_of(cls) | {
            name: Number(0.0, regularizer.help, "maximum likelihood", low=0, used_by=IN_LIKELIHOOD)
            for name, regularizer in REGULARIZERS.items()
        }

    def entries(self) -> dict[str, Any]:
        """Return all numbers' values by their names, for JSON."""
        return {name: getattr(self, name) for name in self.numbers()}

    def _check_objective(self) -> None:
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

    @classmethod
    def solver_numbers(cls) -> list[str]:
        """Return the names of the numbers that are `cnf.layers.SolverSettings` of training."""
        return [name for name in TRAINING_SOLVER if name in cls.numbers()]

    @property
    def regularization(self) -> Regularization | None:
        """The penalties that training adds to the loss, None where there are none."""
        return Regularization(self.regularizers, steer=self.steer) or None

    @property
    def field_options(self) -> dict[str, Any]:
        """The fields' arguments that differ from their defaults."""
        names = ("time_features", "x_features", *(["x_scale"] if self.x_features else []))
        return {name: value for name in names if (value := getattr(self, name))}

    def flow(self, dim: int, context_dim: int = 0, columns: Sequence[Layer] = ()) -> Flow:
        """Return a new flow of the recipe's architecture, by `cnf.ffjord`.

        With `explicit_steps` its fields are followed by as many steps, unless it is trained by
        matching alone, has batch normalisation, a context or angles, or draws noise.

        Args:
            dim: Number of columns that are modelled.
            context_dim: Size of the context.
            columns: Layers next to the data, which map it to that many columns; their angles are
                the flow's.

        Example:
            >>> RECIPES["table-small"].flow(3).solves
            1
        """
        from cnf.flow import ffjord

        names = {"blocks", "field", "field_options", "scaling", "base", "batch_norm"}
        names |= {"hidden", "activation"} & set(field_arguments(self.field))
        options = {name: getattr(self, name) for name in names}
        flow = ffjord(dim, context_dim=context_dim, columns=columns, **options)
        solved = self.objective == "matching" or self.batch_norm or context_dim
        if not self.explicit_steps or solved or flow.circular or flow.noisy:
            return flow
        return flow.discretized(self.explicit_steps, learnt=True)

    def model(
        self, dim: int, context_dim: int = 0, columns: Sequence[Layer] = ()
    ) -> Flow | FlowMixture:
        """Return a new flow, or a mixture of `flows` of them; arguments as in `flow`.

        Example:
            >>> len(RECIPES["table-tiny"].model(3).flows)
            5
        """
        if self.flows == 1:
            return self.flow(dim, context_dim, columns)
        from cnf.flow import FlowMixture

        return FlowMixture(
            self.of_flow(k).flow(dim, context_dim, deepcopy([*columns])) for k in range(self.flows)
        )

    def of_flow(self, k: int) -> Recipe:
        """Return the recipe of flow k of a mixture, counted from 0, with its changes in `VARIANTS`.

        Example:
            >>> recipe = RECIPES["table-tiny"].of_flow(3)
            >>> recipe.scaling, recipe.base
            ('gaussianize_uneven', 'mixture')
        """
        changes: Mapping[str, Any] = VARIANTS[k % len(VARIANTS)]
        return replace(self, **changes)


document_numbers(Recipe)


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
# Unlike there, the rate falls as a cosine over the run's length instead of in steps, of a hundred
# validations each scores at most 10,000 rows, gradients are the discrete solve's, and validations
# use the flow's own divergence.
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
# Few rows are overfitted in another way by each flow, and do not tell the better scaling or base.
SMALL_TABLE = replace(TABLE, flows=len(VARIANTS), matching_batch=256, weight_decay=1e-2)

# Without weight decay fields of long runs are stiff where columns are nearly functions of others.
LARGE_TABLE = replace(TABLE, hidden=(128, 128), scaling="gaussianize_uneven", weight_decay=4e-2)

# Fourier features of x fit edges; the coupling's paths take two thirds of the evaluations.
NARROW = Recipe(
    hidden=(64, 64, 64, 64),
    field="concat",
    x_features=32,
    x_scale=3.0,
    matching_batch=128,
    matching=0.2,
    coupling="optimal_transport",
)

# Explicit steps are the better density where data have no outliers, which may lie beyond a fold.
# Where steps share times, gates cost nothing: the stages are networks of their own.
TOY = replace(
    NARROW,
    explicit_steps=2,
    field="concat_squash",
    hidden=(32, 32, 32),
    time_features=4,
    horizon=2000,
)

CODES, BY_SIZE = "codes", "table"  # names of a model of rows, and of a flow by the data's size
RECIPES: dict[str, Recipe] = {
    "toy": TOY,
    # Pictures have finer edges, which flow matching finds sooner than maximum likelihood does.
    "picture": replace(
        NARROW,
        hidden=(64, 64, 64),
        x_features=64,
        x_scale=6.0,
        matching_batch=256,
        matching=0.6,
    ),
    "table-narrow": NARROW,
    # With two hidden layers the trace has a closed form. Normal marginals allow for a high learning
    # rate, and leave the field the dependence. Regularizers keep few rows from being overfitted.
    "table-tiny": replace(SMALL_TABLE, regularizers={"kinetic": 1.0, "jacobian": 1.0}),
    "table-small": replace(SMALL_TABLE, regularizers={"kinetic": 0.1, "jacobian": 0.1}),
    # Many rows show the field the shapes of columns that are nearly even.
    "table-medium": replace(LARGE_TABLE, flows=2),
    "table-large": LARGE_TABLE,
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

# Rows of a table that they are chosen for.
MAX_RECIPE_ROWS = {"table-tiny": 300, "table-small": 2000, "table-medium": 10_000}

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
        >>> sorted(unused(Recipe(objective="mle", x_features=8, flows=2)))
        ['coupling', 'matching', 'matching_batch', 'matching_rate', 'path']
        >>> unused(Recipe())
        {'x_scale': 'x_features 0'}
    """
    network = ("hidden", "activation", "time_features", "x_features")
    taken = field_arguments(recipe.field)
    found = {name: f"field {recipe.field}" for name in network if name not in taken}
    found |= {} if recipe.x_features else {"x_scale": "x_features 0"}
    if recipe.gradient != "checkpoint":
        found["activation_bytes"] = f"gradient {recipe.gradient}"
    if recipe.explicit_steps:
        steps = f"explicit_steps {recipe.explicit_steps}"
        found |= dict.fromkeys((*OF_SOLVES, *REGULARIZERS), steps)
    return found | {
        name: f"objective {recipe.objective}"
        for name, each in recipe.numbers().items()
        if each.used_by and recipe.objective not in each.used_by
    }


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
        name: A name in `RECIPES`; None, or `"table"`, to choose by the data.
        rows: The data's number of rows.
        dim: The number of columns that are modelled.
        conditional: Whether there is a context: a coupling that breaks the condition is replaced.
        objective: The objective, the recipe's when None; matching loses its regularizers.
        values: Rows of the numbers that are modelled, such as `Schema.continuous` returns: where
            `uneven_columns` finds them uneven, a recipe that is chosen by the data gaussianizes.

    Raises:
        ValueError: The name, or that of the objective, is unknown.

    Example:
        >>> choose_recipe(None, rows=100_000, dim=10)[0]
        'table-large'
    """
    if name in (None, BY_SIZE):
        fitting = (name for name, largest in MAX_RECIPE_ROWS.items() if rows <= largest)
        name = "table-narrow" if dim <= 2 else next(fitting, "table-large")
    else:
        values = None
    if name not in RECIPES:
        raise ValueError(f"Expected a recipe among {', '.join(RECIPES)}; got {name!r}")
    recipe = RECIPES[name]
    if recipe.scaling == "standardize" and values is not None:
        from cnf.training.data import uneven_columns

        if uneven_columns(values):
            recipe = replace(recipe, scaling="gaussianize")
    if conditional and not COUPLINGS[recipe.coupling].keeps_condition:
        recipe = replace(recipe, coupling="independent")
    if objective is not None:
        lost: dict[str, Any] = {"regularizers": {}, "steer": 0.0} if objective == "matching" else {}
        recipe = replace(recipe, objective=objective, **lost)
    return name, recipe


def current_names(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries with old names of recipes' numbers replaced by the current ones."""
    return {OLD_NAMES.get(name, name): value for name, value in entries.items()}


def recipe_of(entries: Mapping[str, Any]) -> Recipe:
    """Return the recipe in JSON, whose entries may have old names, or be missing or among others.

    Raises:
        TypeError: The JSON is not an object.
        ValueError: There is no number of a recipe, a value is of another type, or out of range.

    Example:
        >>> recipe_of({"clip": 2.0, "hidden": [8]}) == Recipe(max_grad_norm=2.0, hidden=(8,))
        True
    """
    if not isinstance(entries, Mapping):
        raise TypeError(f"Expected an object with a recipe's numbers; got {str(entries)[:40]}")
    entries, known = current_names(entries), Recipe.numbers()
    found = {name: entries[name] for name in known if name in entries}
    if not found:
        raise ValueError(f"Expected a recipe's numbers; got {', '.join(entries) or 'none'}")
    for name, value in found.items():
        known[name].check_type(f"the recipe's {name}", value)
    widths = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    return Recipe(**{**found, **widths})
