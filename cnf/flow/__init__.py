"""A flow, a base distribution and invertible layers: its density, its samples, its scores."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package

BASES = ("normal", "mixture")
"""Names of the bases of `cnf.ffjord`."""

if TYPE_CHECKING:
    from cnf.flow.build import ffjord
    from cnf.flow.codes import code_flow
    from cnf.flow.cylinder import Cylinder
    from cnf.flow.distribution import FlowDistribution
    from cnf.flow.flow import Flow
    from cnf.flow.mixture import FlowMixture
    from cnf.flow.scores import Scores
    from cnf.flow.transform import FlowTransform
else:  # imported on first use, with PyTorch
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "build": "ffjord",
            "codes": "code_flow",
            "cylinder": "Cylinder",
            "distribution": "FlowDistribution",
            "flow": "Flow",
            "mixture": "FlowMixture",
            "scores": "Scores",
            "transform": "FlowTransform",
        },
    )

__all__ = [
    "BASES",
    "Cylinder",
    "Flow",
    "FlowDistribution",
    "FlowMixture",
    "FlowTransform",
    "Scores",
    "code_flow",
    "ffjord",
]
