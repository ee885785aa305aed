"""Vector fields f(t, x, c), and the layers that they are made of.

A new field is one class in one file, entered in `FIELDS`, and nothing else.
"""

from cnf.fields.activations import ACTIVATIONS
from cnf.fields.concat_squash import ConcatSquash
from cnf.fields.field import TracedField
from cnf.fields.gated_linear import GatedLinear

FIELDS: dict[str, type[TracedField]] = {field.name: field for field in (ConcatSquash,)}

__all__ = ["ACTIVATIONS", "FIELDS", "ConcatSquash", "GatedLinear", "TracedField"]
