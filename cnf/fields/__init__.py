"""Vector fields f(t, x, c), and the layers that they are made of.

A new field is one class in one file, entered in `FIELDS`, and nothing else. `LowRank` and
`GivenWeights` are not: their context consists of weights, not of any number of features.
"""

from inspect import signature
from typing import Any

from cnf.fields.activations import ACTIVATIONS, Activation
from cnf.fields.blend import Blend
from cnf.fields.concat_squash import Concat, ConcatSquash, Ignore, Squash
from cnf.fields.field import ModuleField, Traced, TracedField, VectorField, as_field
from cnf.fields.gated_linear import GatedLinear
from cnf.fields.given_weights import GivenWeights
from cnf.fields.hyper import Hyper
from cnf.fields.low_rank import LowRank
from cnf.fields.residual import Residual

FIELDS: dict[str, type[TracedField]] = {
    field.name: field for field in (Ignore, Concat, Squash, ConcatSquash, Blend, Hyper, Residual)
}


def field_arguments(name: str) -> tuple[str, ...]:
    """Return the arguments of the field of a name.

    Example:
        >>> field_arguments("hyper")
        ('dim', 'hidden', 'context_dim', 'activation', 'zero_last', 'circular', 'harmonics')
    """
    return tuple(signature(FIELDS[name]).parameters)


def make_field(name: str, **arguments: Any) -> TracedField:
    """Return a field of the registry.

    Raises:
        ValueError: The name is unknown, or the field does not take an argument.

    Example:
        >>> make_field("concat_squash", dim=2).dim
        2
    """
    if name not in FIELDS:
        raise ValueError(f"Expected a field among {', '.join(FIELDS)}; got {name!r}")
    known = field_arguments(name)
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ValueError(
            f"Expected arguments of the field {name} among {', '.join(known)}; "
            f"got {', '.join(unknown)}"
        )
    return FIELDS[name](**arguments)


__all__ = [
    "ACTIVATIONS",
    "FIELDS",
    "Activation",
    "Blend",
    "Concat",
    "ConcatSquash",
    "GatedLinear",
    "GivenWeights",
    "Hyper",
    "Ignore",
    "LowRank",
    "ModuleField",
    "Residual",
    "Squash",
    "Traced",
    "TracedField",
    "VectorField",
    "as_field",
    "field_arguments",
    "make_field",
]
