"""Outlier detection by flows: the scikit-learn estimator, its model, and conformal p-values."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package

if TYPE_CHECKING:
    from cnf.outliers.conformal import conformal_p_values, conformal_threshold
    from cnf.outliers.detector import OutlierModel, fit_detector
    from cnf.outliers.estimator import CNFOutlier
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "conformal": "conformal_p_values conformal_threshold",
            "detector": "OutlierModel fit_detector",
            "estimator": "CNFOutlier",
        },
    )

__all__ = [
    "CNFOutlier",
    "OutlierModel",
    "conformal_p_values",
    "conformal_threshold",
    "fit_detector",
]
