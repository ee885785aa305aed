"""Checks of a model against itself and against data, and the methods behind them."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package

if TYPE_CHECKING:
    from cnf.diagnostics.checks import CHECKS, check
    from cnf.diagnostics.report import Report
else:  # the limits below are read without PyTorch
    __getattr__, __dir__ = lazy_package(__name__, {"checks": "CHECKS check", "report": "Report"})

MAX_CHECK_ROWS = 200  # of the data that are taken
MAX_CHECK_POINTS = 2**14  # at which the density is evaluated for its integral

__all__ = ["CHECKS", "Report", "check"]
