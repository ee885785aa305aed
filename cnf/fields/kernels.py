"""The evaluations of a perceptron, as they are or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch

from cnf.fields.folding import fold, fold_back
from cnf.fields.perceptron import bare, pull, pull_bare, tangents, traced, velocity

# Of compiled code: how many numbers of rows it is for.
Sizes = Literal["fixed", "any"]


class Kernels(NamedTuple):
    """The functions of `perceptron` and `folding`."""

    velocity: Callable[..., Any] = velocity
    bare: Callable[..., Any] = bare
    traced: Callable[..., Any] = traced
    tangents: Callable[..., Any] = tangents
    pull: Callable[..., Any] = pull
    pull_bare: Callable[..., Any] = pull_bare
    fold: Callable[..., Any] = fold
    fold_back: Callable[..., Any] = fold_back


EAGER = Kernels()


@lru_cache
def compiled_kernels(sizes: Sizes) -> Kernels:
    """The functions compiled; as they are, with a warning, where there is no compiler.

    Args:
        sizes: `"fixed"`: anew for each number of rows, for which they are fastest; `"any"`: once.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about itself
            torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(2))
    except Exception as error:  # whatever a toolchain that is missing or broken comes up with
        warnings.warn(
            f"compile=True has no effect: torch.compile finds no working compiler ({error!r:.200})",
            RuntimeWarning,
            stacklevel=2,
        )
        return EAGER
    dynamic = sizes == "any"
    return Kernels(*(torch.compile(function, dynamic=dynamic) for function in EAGER))
