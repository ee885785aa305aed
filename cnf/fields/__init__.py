"""Vector fields f(t, x, c), and the layers that they are made of.

A new field is one class in one file, entered in `FIELDS`, and nothing else.
"""

from cnf.fields.activations import ACTIVATIONS, Activation
from cnf.fields.concat_squash import Concat, ConcatSquash, Ignore, Squash
from cnf.fields.field import ModuleField, Traced, TracedField, VectorField, as_field
from cnf.fields.gated_linear import GatedLinear

FIELDS: dict[str, type[TracedField]] = {
    field.name: field for field in (Ignore, Concat, Squash, ConcatSquash)
}

__all__ = [
    "ACTIVATIONS",
    "FIELDS",
    "Activation",
    "Concat",
    "ConcatSquash",
    "GatedLinear",
    "Ignore",
    "ModuleField",
    "Squash",
    "Traced",
    "TracedField",
    "VectorField",
    "as_field",
]
