"""Encoders of the observations of a series, each of a batch to a vector for each series.

A new encoder is one class in one file, with its entry in `ENCODERS`.
"""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_package
from cnf.utils.registry import Registry

if TYPE_CHECKING:
    from cnf.series.encoders.deep_set import SetEncoder
    from cnf.series.encoders.encoder import Encoder
    from cnf.series.encoders.gru import GRUEncoder
    from cnf.series.encoders.mtand import MTANDEncoder
    from cnf.series.encoders.odernn import ODERNNEncoder
else:  # imported on first use, so that the registry needs no PyTorch
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            "deep_set": "SetEncoder",
            "encoder": "Encoder",
            "gru": "GRUEncoder",
            "mtand": "MTANDEncoder",
            "odernn": "ODERNNEncoder",
        },
    )

ENCODERS: "Registry[type[Encoder]]" = Registry(
    {
        "set": "cnf.series.encoders.deep_set:SetEncoder",
        "mtand": "cnf.series.encoders.mtand:MTANDEncoder",
        "gru": "cnf.series.encoders.gru:GRUEncoder",
        "odernn": "cnf.series.encoders.odernn:ODERNNEncoder",
    }
)
"""The encoders of a latent ODE."""

__all__ = ["ENCODERS", "Encoder", "GRUEncoder", "MTANDEncoder", "ODERNNEncoder", "SetEncoder"]
