"""Checks of a flow against itself and against data, and the methods behind them."""

from cnf.diagnostics.checks import CHECKS, check
from cnf.diagnostics.report import Report

__all__ = ["CHECKS", "Report", "check"]
