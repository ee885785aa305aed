"""A flow, a base distribution and invertible layers: its density, its samples, its scores."""

from cnf.flow.cylinder import Cylinder
from cnf.flow.distribution import FlowDistribution
from cnf.flow.ffjord import ffjord
from cnf.flow.flow import Flow
from cnf.flow.scores import Scores
from cnf.flow.transform import FlowTransform

__all__ = ["Cylinder", "Flow", "FlowDistribution", "FlowTransform", "Scores", "ffjord"]
