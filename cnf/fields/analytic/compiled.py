"""The functions that evaluate a perceptron, eager or compiled."""

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cnf.fields.analytic.folding import fold, fold_vjp
from cnf.fields.analytic.perceptron import (
    jacobian,
    jacobian_products,
    velocity,
    velocity_and_trace,
    velocity_and_trace_vjp,
    velocity_only,
    velocity_only_vjp,
)
from cnf.ode.fused_step import FusedSteps, StageFunctions, fused_steps

# The numbers of rows that compiled code is for: one each, or any.
BatchSizes = Literal["fixed", "any"]

# A state is (x, log-density), on which no slope depends.
STAGE_FUNCTIONS = StageFunctions(
    velocity_and_trace,
    velocity_and_trace_vjp,
    velocity_only,
    velocity_only_vjp,
    inputs=(slice(None), slice(None, -1)),
)


class PerceptronFunctions(NamedTuple):
    """The functions that evaluate a perceptron.

    Attributes:
        stage: The evaluation at a stage, with and without the trace.
        fused: Whole steps; None where they are taken stage by stage.
    """

    velocity: Callable[..., Tensor] = velocity
    jacobian: Callable[..., tuple[Tensor, Tensor]] = jacobian
    jacobian_products: Callable[..., tuple[Tensor, Tensor]] = jacobian_products
    stage: StageFunctions = STAGE_FUNCTIONS
    fold: Callable[..., Any] = fold
    fold_vjp: Callable[..., Any] = fold_vjp
    fused: FusedSteps | None = None


EAGER = PerceptronFunctions()


@lru_cache
def compiled_functions(sizes: BatchSizes, device: str) -> PerceptronFunctions:
    """Return the functions compiled; eager ones, with a warning, where no compiler works.

    Args:
        sizes: `"fixed"`: anew for each number of rows, with the fastest code; `"any"`: once.
        device: The type of the device that the code is for.
    """
    # Calls of the products from Python take as long as products of a hundred rows.
    options = {"cpp_wrapper": True} if device == "cpu" else {}
    compiler: Any = partial(torch.compile, dynamic=sizes == "any", options=options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about itself
            compiler(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a missing or broken toolchain raises
        warnings.warn(
            f"compile=True has no effect: torch.compile finds no working compiler ({error!r:.200})",
            RuntimeWarning,
            stacklevel=2,
        )
        return EAGER
    return PerceptronFunctions(
        velocity=compiler(velocity),
        jacobian=compiler(jacobian),
        jacobian_products=compiler(jacobian_products),
        stage=StageFunctions._make([*map(compiler, STAGE_FUNCTIONS[:4]), STAGE_FUNCTIONS.inputs]),
        fold=compiler(fold),
        fold_vjp=compiler(fold_vjp),
        fused=fused_steps(STAGE_FUNCTIONS, compiler),
    )
