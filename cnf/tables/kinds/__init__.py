"""The kinds of columns: a class for each, and their registry."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from cnf.tables.kinds.column_values import Atoms, ColumnValues, Looks, find_atoms, find_masses
    from cnf.tables.kinds.grid import DatetimeColumn, GridColumn, IntegerColumn
    from cnf.tables.kinds.kind import GAPS, ColumnKind, Gaps, Unknown
    from cnf.tables.kinds.nominal import BooleanColumn, CategoricalColumn, ConstantColumn
    from cnf.tables.kinds.numeric import (
        BoundedColumn,
        CircularColumn,
        PositiveColumn,
        RealColumn,
        SpikeColumn,
    )
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "column_values": "Atoms ColumnValues Looks find_atoms find_masses",
            "grid": "DatetimeColumn GridColumn IntegerColumn",
            "kind": "GAPS ColumnKind Gaps Unknown",
            "nominal": "BooleanColumn CategoricalColumn ConstantColumn",
            "numeric": "BoundedColumn CircularColumn PositiveColumn RealColumn SpikeColumn",
        },
    )

KINDS: Registry[type["ColumnKind"]] = Registry(
    {
        "real": "cnf.tables.kinds.numeric:RealColumn",
        "positive": "cnf.tables.kinds.numeric:PositiveColumn",
        "bounded": "cnf.tables.kinds.numeric:BoundedColumn",
        "circular": "cnf.tables.kinds.numeric:CircularColumn",
        "integer": "cnf.tables.kinds.grid:IntegerColumn",
        "grid": "cnf.tables.kinds.grid:GridColumn",
        "spike": "cnf.tables.kinds.numeric:SpikeColumn",
        "datetime": "cnf.tables.kinds.grid:DatetimeColumn",
        "boolean": "cnf.tables.kinds.nominal:BooleanColumn",
        "categorical": "cnf.tables.kinds.nominal:CategoricalColumn",
        "constant": "cnf.tables.kinds.nominal:ConstantColumn",
    }
)
"""The kinds of columns, general ones first: a column is inferred to be of the last that fits."""

__all__ = [
    "GAPS",
    "KINDS",
    "Atoms",
    "BooleanColumn",
    "BoundedColumn",
    "CategoricalColumn",
    "CircularColumn",
    "ColumnKind",
    "ColumnValues",
    "ConstantColumn",
    "DatetimeColumn",
    "Gaps",
    "GridColumn",
    "IntegerColumn",
    "Looks",
    "PositiveColumn",
    "RealColumn",
    "SpikeColumn",
    "Unknown",
    "find_atoms",
    "find_masses",
]
