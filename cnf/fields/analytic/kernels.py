"""The evaluations of a perceptron, as they are or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch

from cnf.fields.analytic.folding import fold, fold_back
from cnf.fields.analytic.fused_step import StepKernels, step_kernels
from cnf.fields.analytic.perceptron import bare, pull, pull_bare, tangents, traced, velocity
from cnf.ode.tableau import Tableau

# Of compiled code: how many numbers of rows it is for.
Sizes = Literal["fixed", "any"]


class Kernels(NamedTuple):
    """The functions of `perceptron` and `folding`.

    Attributes:
        steps: A method's whole steps; None where they are taken stage by stage.
    """

    velocity: Callable[..., Any] = velocity
    bare: Callable[..., Any] = bare
    traced: Callable[..., Any] = traced
    tangents: Callable[..., Any] = tangents
    pull: Callable[..., Any] = pull
    pull_bare: Callable[..., Any] = pull_bare
    fold: Callable[..., Any] = fold
    fold_back: Callable[..., Any] = fold_back
    steps: Callable[[Tableau], StepKernels | None] = lambda tableau: None


EAGER = Kernels()


@lru_cache
def compiled_kernels(sizes: Sizes, device: str) -> Kernels:
    """The functions compiled; as they are, with a warning, where there is no compiler.

    Args:
        sizes: `"fixed"`: anew for each number of rows, for which they are fastest; `"any"`: once.
        device: The kind of device that they are for.
    """
    # Calls of the products from Python take as long as products of a hundred rows.
    options = {"cpp_wrapper": True} if device == "cpu" else {}
    compiled: Any = partial(torch.compile, dynamic=sizes == "any", options=options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about itself
            compiled(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a toolchain that is missing or broken comes up with
        warnings.warn(
            f"compile=True has no effect: torch.compile finds no working compiler ({error!r:.200})",
            RuntimeWarning,
            stacklevel=2,
        )
        return EAGER

    @lru_cache
    def steps(tableau: Tableau) -> StepKernels:
        return StepKernels(*map(compiled, step_kernels(tableau)))

    functions = EAGER._asdict()
    del functions["steps"]
    return Kernels(**{name: compiled(each) for name, each in functions.items()}, steps=steps)
