"""FFJORD in one line: a flow of concat-squash fields between a Gaussian and scaled data."""

from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch.distributions import Distribution, Independent, Normal

from cnf.fields import make_field
from cnf.flow import BASES
from cnf.flow.cylinder import Cylinder
from cnf.flow.flow import Flow
from cnf.flow.mixture_base import unfitted_mixture
from cnf.layers import (
    CNF,
    SCALINGS,
    Circular,
    Concatenate,
    Identity,
    Layer,
    MovingNorm,
    Standardize,
)
from cnf.utils.angles import circular_columns


def ffjord(
    dim: int,
    hidden: Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    blocks: int = 1,
    zero_last: bool = True,
    field: str = "concat_squash",
    field_options: Mapping[str, Any] | None = None,
    scaling: str = "standardize",
    base: str = "normal",
    batch_norm: bool = False,
    circular: Sequence[int] = (),
    columns: Sequence[Layer] = (),
    **solver: Any,
) -> Flow:
    """Return FFJORD's flow: a base, CNF layers with concat-squash fields, a scaling.

    Angles are uniform at the base, and field and density are functions on the circle.

    Args:
        dim: Size of what is modelled, mostly of x.
        hidden: Widths of each field's hidden layers; with one or two the exact trace has a closed
            form, whatever the dimension.
        context_dim: Size of the context, which is standardised too; 0 without one.
        activation: A name in `cnf.fields.ACTIVATIONS`.
        blocks: How many CNF layers follow one another.
        zero_last: Whether the fields start at zero, so that training starts from the Gaussian that
            the standardisation fits: it gets further in the same number of steps.
        field: A name in `cnf.fields.FIELDS`. A field without use for `hidden`, `activation` or
            `zero_last` is made without it, unless it is given.
        field_options: What else the field takes, such as `{"x_features": 64, "x_scale": 5.0}`.
        scaling: A name in `cnf.layers.SCALINGS`: `"standardize"`; `"whiten"`, which takes the
            columns' correlation out as well; `"gaussianize"`, which first makes each column normal;
            `"gaussianize_uneven"`, which does so for columns far from it or with edges.
        base: A name in `cnf.flow.BASES`: `"normal"`; or `"mixture"`, of normal distributions, which
            `cnf.fit` fits by expectation maximisation before it trains the field. Angles have none.
        batch_norm: Whether a `cnf.layers.MovingNorm` follows each CNF layer on the way to the base;
            the scaling stands for FFJORD's next to the data. For maximum likelihood alone.
        circular: Which columns are angles in radians, drawn in [−π, π); in other units they are by
            layers of `columns`, which know them.
        columns: Layers next to the data, which bring its columns to `dim`, such as
            `cnf.tables.schema.Schema.layers`.
        solver: Any of `cnf.layers.SolverSettings`' attributes.

    Raises:
        ValueError: A size is not positive, a name unknown, or a column not there.

    Source: Grathwohl et al. (2019), FFJORD: Free-form continuous dynamics for scalable reversible
    generative models.

    Example:
        >>> flow = ffjord(dim=2)
        >>> flow.log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
        >>> ffjord(dim=2, circular=(0,)).circular  # a direction and a speed
        (0,)
    """
    if blocks < 1:
        raise ValueError(f"Expected blocks of at least 1; got {blocks}")
    if scaling not in SCALINGS:
        raise ValueError(f"Expected scaling to be one of {', '.join(SCALINGS)}; got {scaling!r}")
    if base not in BASES:
        raise ValueError(f"Expected base to be one of {', '.join(BASES)}; got {base!r}")
    if circular:
        columns = [_angles(circular_columns(circular, dim), dim), *columns]
    angles = (columns[0].circular if columns else None) or ()
    options = {"hidden": hidden, "activation": activation, "zero_last": zero_last}
    defaults = {name: each.default for name, each in signature(ffjord).parameters.items()}
    given: dict[str, Any] = {k: value for k, value in options.items() if value != defaults[k]}
    given |= {"dim": dim, "context_dim": context_dim, "circular": angles, **(field_options or {})}
    if batch_norm and angles:
        raise ValueError("Expected no batch_norm with angles, which have no mean; got both")
    layers: list[Layer] = []
    for _ in range(blocks):
        layers += [MovingNorm(dim)] if batch_norm else []
        layers += [CNF(make_field(field, options, **given), **solver)]
    context = Standardize(context_dim) if context_dim else None
    kind = SCALINGS[scaling]
    layers += [SCALINGS[kind.follows](dim, angles)] if kind.follows else []
    layers += [kind(dim, angles)]
    return Flow(_base(base, dim, angles), [*layers, *columns], context)


def _base(name: str, dim: int, angles: Sequence[int]) -> Distribution:
    loc = torch.zeros(dim - len(angles))
    if angles:
        return Cylinder(loc, torch.ones_like(loc), angles)
    if name == "mixture":
        return unfitted_mixture(dim)
    return Independent(Normal(loc, torch.ones_like(loc)), 1)


def _angles(circular: tuple[int, ...], dim: int) -> Layer:
    """Return the layer that keeps angles in [−π, π), and other columns as they are."""
    runs = [list(run) for _, run in groupby(range(dim), key=lambda column: column in circular)]
    kinds = [Circular if run[0] in circular else Identity for run in runs]
    return Concatenate([kind(len(run)) for kind, run in zip(kinds, runs, strict=True)], runs)
