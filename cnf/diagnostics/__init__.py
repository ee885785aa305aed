"""The checks that a flow is put through, and what they are made of."""

from cnf.diagnostics.checks import CHECKS, check
from cnf.diagnostics.report import Report

__all__ = ["CHECKS", "Report", "check"]
