"""A flow of parameters given simulated data: its architecture, and how it is trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, constraints
from torch.distributions.constraints import Constraint

from cnf.adapters.pairs import check_pairs
from cnf.fields import field_arguments, make_field
from cnf.flow import Flow
from cnf.layers import CNF, Bounded, Concatenate, Identity, Layer, Positive, Standardize
from cnf.layers.conditional_affine import ConditionalAffine
from cnf.layers.data_context import DataContext
from cnf.training import Callback, History, Recipe, fit
from cnf.training.data import Rows, hold_out, rows_for
from cnf.training.flow_run import mean_nll
from cnf.training.loop import fit_scalings
from cnf.training.progress import TrainingBudget

FEW_SIMULATIONS = 3000
GAUSSIAN_SHARE, GAUSSIAN_STEPS = 0.1, 0.3  # of a run's seconds, and of its steps
GAUSSIAN_HIDDEN = (64, 64)

SIMULATIONS = Recipe(
    objective="hybrid",
    hidden=(128, 128),
    # The Gaussian makes parameters nearly normal, and the field has only the rest to learn.
    path="trigonometric",
    matching=0.375,
    matching_rate=5e-3,
    learning_rate=3e-3,
    horizon=10**9,
    weight_decay=1e-2,
    validations=32,
    patience=4,
)
"""The recipe for 3,000 simulations and more; 4,000 steps suffice for 10,000."""

SIMULATIONS_FEW = replace(SIMULATIONS, hidden=(64, 64), matching=0.5, validations=24)
"""The recipe for fewer simulations; 1,200 steps suffice for 1,000."""


def simulation_flow(
    target: Tensor,
    condition: Tensor,
    *,
    support: Constraint | None = None,
    embedding_net: nn.Module | None = None,
    recipe: Recipe | None = None,
) -> Flow:
    """Return a new flow p(θ | x) of parameters θ given data x, which `fit_simulations` trains.

        θ = T(r + s ∘ G(y(1); x)),   dy/dt = f(t, y, x),   y(0) ~ N(0, 1)

    T maps the real numbers onto the support, so that no draw is outside; r and s standardise; G is
    a `cnf.layers.ConditionalAffine`. Without the field f, θ is a Gaussian given x under T. The data
    pass through a `cnf.layers.data_context.DataContext` first.

    Args:
        target: Parameters θ, shape (simulations, parameters).
        condition: Data x, shape (simulations, *shape).
        support: The prior's support: an interval, a half-line or the real line for each parameter,
            as of `prior.support`; the real numbers when None.
        embedding_net: A module that maps standardised data (rows, *shape) to features (rows,
            features), trained with the flow; the data are the features when None.
        recipe: The recipe, of which the fields' numbers are used; chosen by the number of
            simulations when None.

    Raises:
        ValueError: A shape does not fit, a value is not finite or outside the support, a parameter
            is constant, the support is of another kind, or the recipe has batch normalisation or
            another scaling.
        TypeError: θ or x is no tensor.

    Example:
        >>> theta = torch.rand(200, 2)
        >>> x = theta + 0.1 * torch.randn(200, 2)
        >>> flow = simulation_flow(theta, x, support=constraints.unit_interval)
        >>> flow.log_prob(theta, x).shape
        torch.Size([200])
    """
    check_pairs(target, condition)
    recipe = recipe or simulation_recipe(len(target))
    if recipe.batch_norm or recipe.scaling != "standardize":
        raise ValueError(
            "Expected a recipe without batch_norm, and with scaling standardize, as the flow has a "
            f"Gaussian of its own; got {recipe.batch_norm} and {recipe.scaling}: leave them out"
        )
    dim = target.shape[1]
    columns = [] if support is None else support_layers(support, dim)
    for layer in columns:
        _check_inside(layer.to(target), target)
    encoder = DataContext(condition.shape[1:], embedding_net)
    sizes = {"dim": dim, "context_dim": encoder.features}
    defaults = {"activation": recipe.activation, "zero_last": True}
    hidden = {"hidden": recipe.hidden} if "hidden" in field_arguments(recipe.field) else {}
    fields = [
        make_field(recipe.field, defaults, **hidden, **recipe.field_options, **sizes)
        for _ in range(recipe.blocks)
    ]
    affine = ConditionalAffine(**sizes, hidden=GAUSSIAN_HIDDEN)
    base = Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1)
    layers = [*map(CNF, fields), affine, Standardize(dim), *columns]
    return Flow(base, layers, encoder).to(target)


def fit_simulations(
    flow: Flow,
    target: Tensor,
    condition: Tensor,
    *,
    recipe: Recipe | None = None,
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train a flow of `simulation_flow` by `cnf.fit`: first its Gaussian given x, then all of it.

    Both parts hold out the same tenth of the simulations, and keep the weights that are best on it:
    a part that gains nothing on them leaves the flow as it was.

    Args:
        flow: The flow, changed in place.
        target: Parameters θ, shape (simulations, parameters).
        condition: Data x, shape (simulations, *shape).
        recipe: The recipe; chosen by the number of simulations when None.
        budget: Seconds of both parts; 60 where neither it nor steps is given.
        steps: Optimizer steps of the second part; the first takes three tenths as many, which
            together cost as much as a few of those.
        seed: Seed of the held-out simulations and of training.
        callbacks: Called after each step of the second part.

    Returns:
        The history of the second part.

    Raises:
        ValueError: A shape does not fit, a value is not finite, a parameter is constant, or the
            flow is not made by `simulation_flow`.
        TypeError: θ or x is no tensor.
        TrainingError: Training diverged.

    Example:
        >>> x = torch.randn(200, 2)
        >>> theta = x + 0.1 * torch.randn(200, 2)
        >>> flow = simulation_flow(theta, x)
        >>> fit_simulations(flow, theta, x, steps=3).steps
        3
    """
    check_pairs(target, condition)
    recipe = recipe or simulation_recipe(len(target))
    length, begin = TrainingBudget.of(budget, steps), perf_counter()
    generator = torch.Generator().manual_seed(seed)
    rows = rows_for(flow, "parameters", target, condition.flatten(1))
    train, held_out = hold_out(rows, generator)
    flow.train()
    fit_scalings(flow, train)
    few = inf if steps is None else max(1, round(GAUSSIAN_STEPS * steps))
    first = TrainingBudget(GAUSSIAN_SHARE * length.budget, few)
    _fit_part(gaussian_part(flow), train, held_out, gaussian_recipe(len(target)), first, seed)
    rest = TrainingBudget(length.without(perf_counter() - begin).budget, length.steps)
    return _fit_part(flow, train, held_out, recipe, rest, seed, callbacks)


def _fit_part(
    flow: Flow,
    train: Rows,
    held_out: Rows,
    recipe: Recipe,
    length: TrainingBudget,
    seed: int,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train a flow, and leave it as it was where that does not lower the held-out NLL."""
    held_out = held_out[: recipe.validation_rows]
    flow.eval()  # as after training
    assert held_out.context is not None
    before, weights = mean_nll(flow, held_out), copy.deepcopy(flow.state_dict())
    limits: dict[str, Any] = {"budget": length.budget, "steps": length.steps}
    history = fit(
        flow,
        train.x,
        context=train.context,
        validation=(held_out.x, held_out.context),
        recipe=recipe,
        seed=seed,
        callbacks=callbacks,
        threads=None,
        **{name: value for name, value in limits.items() if value < inf},
    )
    if not mean_nll(flow, held_out) < before:
        flow.load_state_dict(weights)
    return history


def gaussian_part(flow: Flow) -> Flow:
    """Return the flow without its continuous layers, a Gaussian given the context.

    It shares the parameters.

    Raises:
        ValueError: The flow has no `cnf.layers.ConditionalAffine`.
    """
    if not any(isinstance(each, ConditionalAffine) for each in flow.layers):
        raise ValueError(
            "Expected a flow of cnf.adapters.simulation_flow; got one without a ConditionalAffine "
            "layer: train it by cnf.fit"
        )
    return Flow(
        flow.base, [each for each in flow.layers if not isinstance(each, CNF)], flow.context
    )


def support_layers(support: Constraint, dim: int) -> list[Layer]:
    """Return the layers that map the real numbers onto a support, next to the data.

    Args:
        support: A constraint on the real line for each parameter, or for all.
        dim: The number of parameters.

    Raises:
        ValueError: The support is of another kind, such as whole numbers, or of another size.

    Example:
        >>> support_layers(constraints.independent(constraints.interval(-1.0, 1.0), 1), 2)
        [Bounded()]
    """
    ends = _column_ends(support, dim)
    kinds = [_kind(support, low, high) for low, high in ends]
    groups = {kind: [i for i, each in enumerate(kinds) if each is kind] for kind in _KINDS}
    groups = {kind: columns for kind, columns in groups.items() if columns}
    if [*groups] == [Identity]:
        return []
    made = [_layer(kind, [ends[i] for i in columns]) for kind, columns in groups.items()]
    return made if len(made) == 1 else [Concatenate(made, [*groups.values()])]


_KINDS: tuple[type[Layer], ...] = (Bounded, Positive, Identity)


def _kind(support: Constraint, low: float, high: float) -> type[Layer]:
    """Return the kind of layer of a column with these ends."""
    if isfinite(low):
        return Bounded if isfinite(high) else Positive
    if not isfinite(high):
        return Identity
    raise _unsupported(support)


def _layer(kind: type[Layer], ends: Sequence[tuple[float, float]]) -> Layer:
    """Return a layer of a kind for columns with these ends."""
    lows, highs = [[*each] for each in zip(*ends, strict=True)]
    if kind is Bounded:
        return Bounded(lows, highs)
    return Positive(lows) if kind is Positive else Identity(len(ends))


def _column_ends(support: Any, dim: int) -> list[tuple[float, float]]:
    """Return the lower and the upper end of each column, infinite without one."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support.is_discrete:
        raise _unsupported(support)
    if hasattr(support, "cseq"):  # of `constraints.cat`
        pairs = zip(support.cseq, support.lengths, strict=True)
        return [ends for each, size in pairs for ends in _column_ends(each, size)]
    if hasattr(support, "lower_bound"):
        return _repeated(support.lower_bound, getattr(support, "upper_bound", inf), dim)
    if isinstance(support, type(constraints.real)) or support is constraints.real_vector:
        return [(-inf, inf)] * dim
    raise _unsupported(support)


def _unsupported(support: Constraint) -> ValueError:
    return ValueError(
        "Expected a support of intervals, half-lines with a lower end, and real lines; got "
        f"{support}: give None, and leave out the draws that are outside"
    )


def _repeated(low: Any, high: Any, dim: int) -> list[tuple[float, float]]:
    """Return the ends of each column, of numbers, or of tensors of one for each."""
    tensors = [torch.as_tensor(end, dtype=torch.float64).flatten() for end in (low, high)]
    if any(len(each) not in (1, dim) for each in tensors):
        raise ValueError(
            f"Expected a support of {dim} parameters; got {[len(each) for each in tensors]}"
        )
    lows, highs = (each.expand(dim).tolist() for each in tensors)
    return [*zip(lows, highs, strict=True)]


def _check_inside(layer: Layer, target: Tensor) -> None:
    """Raise a ValueError where a layer next to the data reaches not all rows."""
    outside = (~layer.in_range(target)).sum().item()
    if outside:
        raise ValueError(
            f"Expected rows within the support; got {outside} of {len(target)} outside, or on the "
            "end of a half-line: give the prior that they were drawn from"
        )


def gaussian_recipe(simulations: int) -> Recipe:
    """Return the recipe of the Gaussian's training, by likelihood.

    Example:
        >>> gaussian_recipe(1000).objective
        'mle'
    """
    few = simulations < FEW_SIMULATIONS
    return Recipe(
        objective="mle",
        learning_rate=3e-3 if few else 1e-2,
        horizon=10**9,
        weight_decay=10.0 if few else 1e-3,
        warmup=0.3,  # the first validations are of the regression, nearly as it was fitted
        ema_decay=0.98,
        validations=40,
        patience=10,
    )


def simulation_recipe(simulations: int) -> Recipe:
    """Return the recipe for a number of simulations.

    Example:
        >>> simulation_recipe(1000) == SIMULATIONS_FEW
        True
    """
    return SIMULATIONS_FEW if simulations < FEW_SIMULATIONS else SIMULATIONS
