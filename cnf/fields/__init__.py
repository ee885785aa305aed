"""Vector fields f(t, x, c), and the layers that they are made of.

A new field is one class in one file, whose constructor takes what the field uses, with its entry in
`FIELDS`. `LowRank` and `GivenWeights` have none: their context consists of weights.
"""

from inspect import signature
from typing import TYPE_CHECKING, Any

from cnf.utils.lazy import lazy_package
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnf.fields.activations import Activation
    from cnf.fields.blend import Blend
    from cnf.fields.concat_squash import Concat, ConcatSquash, Ignore, Squash
    from cnf.fields.conditional import Conditional
    from cnf.fields.divergence import Divergence
    from cnf.fields.field import ModuleField, Traced, TracedField, VectorField, as_field
    from cnf.fields.gated_linear import GatedLinear
    from cnf.fields.given_weights import GivenWeights
    from cnf.fields.hyper import Hyper
    from cnf.fields.low_rank import LowRank
    from cnf.fields.masked import Masked
    from cnf.fields.residual import Residual
else:  # imported on first use, so that the registries need no PyTorch
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "activations": "Activation",
            "blend": "Blend",
            "concat_squash": "Concat ConcatSquash Ignore Squash",
            "conditional": "Conditional",
            "divergence": "Divergence",
            "field": "ModuleField Traced TracedField VectorField as_field",
            "gated_linear": "GatedLinear",
            "given_weights": "GivenWeights",
            "hyper": "Hyper",
            "low_rank": "LowRank",
            "masked": "Masked",
            "residual": "Residual",
        },
    )

FIELDS: "Registry[type[TracedField]]" = Registry(
    {
        "ignore": "cnf.fields.concat_squash:Ignore",
        "concat": "cnf.fields.concat_squash:Concat",
        "squash": "cnf.fields.concat_squash:Squash",
        "concat_squash": "cnf.fields.concat_squash:ConcatSquash",
        "blend": "cnf.fields.blend:Blend",
        "hyper": "cnf.fields.hyper:Hyper",
        "residual": "cnf.fields.residual:Residual",
    }
)
"""The vector fields of a CNF layer."""

WRAPPERS: "Registry[type[TracedField]]" = Registry({"masked": "cnf.fields.masked:Masked"})
"""The fields made of another field, which they take as `field`."""

ACTIVATIONS: "Registry[Activation]" = Registry(
    {
        "tanh": "cnf.fields.activations:TANH",
        "softplus": "cnf.fields.activations:SOFTPLUS",
        "silu": "cnf.fields.activations:SILU",
        "gelu": "cnf.fields.activations:GELU",
    }
)
"""The activations of a field's hidden layers."""

DIVERGENCES: "Registry[Callable[[], Divergence]]" = Registry(
    {
        "exact": "cnf.fields.divergence:FieldTrace",
        "tangents": "cnf.fields.divergence:TangentTrace",
        "autograd": "cnf.fields.divergence:AutogradTrace",
        "hutchinson": "cnf.fields.divergence:Hutchinson",
        "hutchinson-gaussian": "cnf.fields.divergence:gaussian_hutchinson",
        "hutch++": "cnf.fields.divergence:HutchPlusPlus",
    }
)
"""The methods for a field's divergence, besides `"auto"`, which chooses one for a field."""


def field_arguments(name: str) -> tuple[str, ...]:
    """Return the arguments of the field of a name.

    Example:
        >>> field_arguments("hyper")
        ('dim', 'hidden', 'context_dim', 'activation', 'zero_last', 'circular', 'harmonics')
    """
    return tuple(signature(FIELDS[name]).parameters)


def make_field(
    name: str, defaults: "Mapping[str, Any] | None" = None, **arguments: Any
) -> "TracedField":
    """Return a field of the registry.

    Args:
        name: A name in `FIELDS`.
        defaults: Arguments that are left out where the field does not take them.
        arguments: Arguments that the field must take, unless they are 0 or empty.

    Raises:
        ValueError: The name is unknown, or the field does not take an argument.

    Example:
        >>> make_field("concat_squash", dim=2).dim
        2
    """
    if name in WRAPPERS:
        return WRAPPERS[name](**arguments)
    if name not in FIELDS:
        raise ValueError(f"Expected a field among {', '.join(FIELDS)}; got {name!r}")
    known = field_arguments(name)
    unknown = [argument for argument, value in arguments.items() if argument not in known and value]
    if unknown:
        raise ValueError(
            f"Expected arguments of the field {name} among {', '.join(known)}; "
            f"got {', '.join(unknown)}: leave it out"
        )
    given = {**(defaults or {}), **arguments}
    return FIELDS[name](**{each: given[each] for each in known if each in given})


__all__ = [
    "ACTIVATIONS",
    "DIVERGENCES",
    "FIELDS",
    "WRAPPERS",
    "Activation",
    "Blend",
    "Concat",
    "ConcatSquash",
    "Conditional",
    "Divergence",
    "GatedLinear",
    "GivenWeights",
    "Hyper",
    "Ignore",
    "LowRank",
    "Masked",
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
