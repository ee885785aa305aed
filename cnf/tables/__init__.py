"""Tables: the kinds of their columns, and the scikit-learn estimator over them."""

from typing import TYPE_CHECKING

from cnf.tables.schema import Column, Schema
from cnf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from cnf.tables.estimators import CNFDensity
else:  # pandas and scikit-learn take long to import
    __getattr__, __dir__ = lazy_names(__name__, {"CNFDensity": "cnf.tables.estimators:CNFDensity"})

__all__ = ["CNFDensity", "Column", "Schema"]
