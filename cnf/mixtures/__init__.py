"""Mixtures of distributions in closed form, fitted by expectation maximisation."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package

if TYPE_CHECKING:
    from cnf.mixtures.normal import NormalMixture
else:  # imported on first use, with PyTorch
    __getattr__, __dir__ = lazy_package(__name__, {"normal": "NormalMixture"})

__all__ = ["NormalMixture"]
