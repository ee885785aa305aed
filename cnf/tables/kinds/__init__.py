"""The kinds of columns: a class for each, and their registry."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from cnf.tables.kinds.kind import ColumnKind, Looks
    from cnf.tables.kinds.nominal import CategoricalColumn, ConstantColumn
    from cnf.tables.kinds.numeric import (
        BoundedColumn,
        CircularColumn,
        IntegerColumn,
        PositiveColumn,
        RealColumn,
    )
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "kind": "ColumnKind Looks",
            "nominal": "CategoricalColumn ConstantColumn",
            "numeric": "BoundedColumn CircularColumn IntegerColumn PositiveColumn RealColumn",
        },
    )

KINDS: Registry[type["ColumnKind"]] = Registry(
    {
        "real": "cnf.tables.kinds.numeric:RealColumn",
        "positive": "cnf.tables.kinds.numeric:PositiveColumn",
        "bounded": "cnf.tables.kinds.numeric:BoundedColumn",
        "circular": "cnf.tables.kinds.numeric:CircularColumn",
        "integer": "cnf.tables.kinds.numeric:IntegerColumn",
        "categorical": "cnf.tables.kinds.nominal:CategoricalColumn",
        "constant": "cnf.tables.kinds.nominal:ConstantColumn",
    }
)
"""The kinds of columns, general ones first: a column is inferred to be of the last that fits."""

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
