"""Layers that are fitted to the training rows and bring columns to a common scale."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from cnf.layers.scalings.gaussianize import Gaussianize
    from cnf.layers.scalings.gaussianize_uneven import GaussianizeUneven
    from cnf.layers.scalings.scaling import Scaling
    from cnf.layers.scalings.standardize import Standardize
    from cnf.layers.scalings.whiten import Whiten
else:  # imported on first use, so that the registry needs no PyTorch
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            **{name.lower(): name for name in ("Gaussianize", "Scaling", "Standardize", "Whiten")},
            "gaussianize_uneven": "GaussianizeUneven",
        },
    )

SCALINGS: "Registry[type[Scaling]]" = Registry(
    {
        "standardize": "cnf.layers.scalings.standardize:Standardize",
        "whiten": "cnf.layers.scalings.whiten:Whiten",
        "gaussianize": "cnf.layers.scalings.gaussianize:Gaussianize",
        "gaussianize_uneven": "cnf.layers.scalings.gaussianize_uneven:GaussianizeUneven",
    }
)
"""The layer of each scaling."""

__all__ = ["SCALINGS", "Gaussianize", "GaussianizeUneven", "Scaling", "Standardize", "Whiten"]
