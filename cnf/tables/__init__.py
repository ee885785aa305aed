"""Tables: the kinds of their columns, and the scikit-learn estimator over them."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package

if TYPE_CHECKING:
    from cnf.tables.code_training import CodeRecipe
    from cnf.tables.dates import date_parts
    from cnf.tables.estimators import CNFDensity
    from cnf.tables.questions import Explanation, explain
    from cnf.tables.row_model import RowModel
    from cnf.tables.row_training import RowHistory, fit_rows
    from cnf.tables.schema import Column, Schema
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "code_training": "CodeRecipe",
            "dates": "date_parts",
            "estimators": "CNFDensity",
            "questions": "Explanation explain",
            "row_model": "RowModel",
            "row_training": "RowHistory fit_rows",
            "schema": "Column Schema",
        },
    )

__all__ = [
    "CNFDensity",
    "CodeRecipe",
    "Column",
    "Explanation",
    "RowHistory",
    "RowModel",
    "Schema",
    "date_parts",
    "explain",
    "fit_rows",
]
