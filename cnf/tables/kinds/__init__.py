"""The kinds of columns: a class for each, and their registry."""

from cnf.tables.kinds.bounded import BoundedColumn
from cnf.tables.kinds.categorical import CategoricalColumn
from cnf.tables.kinds.circular import CircularColumn
from cnf.tables.kinds.constant import ConstantColumn
from cnf.tables.kinds.integer import IntegerColumn
from cnf.tables.kinds.kind import ColumnKind, Looks
from cnf.tables.kinds.positive import PositiveColumn
from cnf.tables.kinds.real import RealColumn

# From the most general to the most special: a column is inferred to be of the last that fits.
KINDS: dict[str, type[ColumnKind]] = {
    "real": RealColumn,
    "positive": PositiveColumn,
    "bounded": BoundedColumn,
    "circular": CircularColumn,
    "integer": IntegerColumn,
    "categorical": CategoricalColumn,
    "constant": ConstantColumn,
}

__all__ = [
    "KINDS",
    "BoundedColumn",
    "CategoricalColumn",
    "CircularColumn",
    "ColumnKind",
    "ConstantColumn",
    "IntegerColumn",
    "Looks",
    "PositiveColumn",
    "RealColumn",
]
