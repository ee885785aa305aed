"""Solver settings of a continuous layer."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from cnf.fields.analytic import BatchSizes
from cnf.fields.divergence import Divergence, check_divergence
from cnf.layers.training_solver import TRAINING_SOLVER
from cnf.ode import GRADIENTS, TABLEAUS, Checkpoint, Gradient, StepMode, Tolerance


def row_errors(ratio: Tensor, dim: int) -> Tensor:
    """Return the larger of a row's RMS over coordinates and its log-density's error, (rows,).

    The log-density, the column after the `dim` coordinates, is never diluted by them; later columns
    do not affect the steps.
    """
    coordinates = ratio[:, :dim].square().mean(1).sqrt()
    return torch.maximum(coordinates, ratio[:, dim].abs())


def per_sample_errors(ratio: Tensor, dim: int) -> Tensor:
    """Return the row errors in units of a tenth of the tolerance, (rows,).

    The errors of steps accumulate; with a tenth for each, that of the whole map stays near the
    tolerance. On flows fitted to toys z → x → z at 1e-5 was wrong by up to 1e-5, with the whole
    tolerance for each step by up to 2e-4; the cost is a third more evaluations.
    """
    return 10 * row_errors(ratio, dim)


def joint_error(ratio: Tensor, dim: int) -> Tensor:
    """Return the root mean square of the row errors, a scalar."""
    return row_errors(ratio, dim).square().mean().sqrt()


STEP_NORMS: dict[StepMode, Callable[[Tensor, int], Tensor]] = {
    "per_sample": per_sample_errors,
    "joint": joint_error,
}

SMALLEST_TOLERANCE = 1e-12  # that a solve in double precision can be expected to keep


@dataclass(frozen=True)
class SolverSettings:
    """Solver settings of a CNF layer.

    Attributes:
        divergence: A name for `cnf.fields.divergence.choose_divergence`, or a `Divergence` object.
            It is not part of a saved model.
        method: Name of a tableau in `cnf.ode.TABLEAUS`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        gradient: Name of a mode in `cnf.ode.GRADIENTS`.
        activation_bytes: Bytes of activations of accepted steps that `"checkpoint"` stores rather
            than recomputes in the backward pass: 256 MiB, of which only solves that autograd
            records make use. A saved model keeps the number that it was saved with.
        step: `"per_sample"`: every row has its own time and steps, each with an error of at most a
            tenth of the tolerance, so that a row's log p does not depend on the other rows;
            `"joint"`: one step for the batch, whose root mean square error is within the
            tolerance, cheapest for training.
        step_size: Steps of this size with no error control, for any method; adaptive when None.
        first_step: Size of the first step tried; when None it is estimated from the dynamics,
            cautiously and with one more evaluation. Training avoids both (`TRAINING_SOLVER`).
        max_steps: Largest number of steps of a solve, for each row where steps are per sample.
        compile: Whether `torch.compile` compiles the evaluations of concat-squash fields, and whole
            steps of training by maximum likelihood; small batches gain most. Warns where there is
            no compiler. First solves take up to a minute longer, with another number of rows half a
            minute, for up to `torch._dynamo.config.recompile_limit` numbers. Not part of a model.
        first_pass: Whether rows first take steps at times that they share, of dopri5 and dopri8
            whatever the method, and only those that need shorter ones are solved with steps of
            their own: about twice as fast. It applies where autograd does not record, steps are
            per sample, and neither `step_size` nor `first_step` is given. Each row chooses its
            steps by its own errors. A user's module gets its time as a scalar, as in joint
            steps.

    Raises:
        ValueError: A name is unknown or a number out of range.
    """

    divergence: str | Divergence = "auto"
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    gradient: str = "checkpoint"
    activation_bytes: int = TRAINING_SOLVER["activation_bytes"]
    step: StepMode = "per_sample"
    step_size: float | None = None
    first_step: float | None = None
    max_steps: int = 1000
    compile: bool = False
    first_pass: bool = True

    def __post_init__(self) -> None:
        Tolerance(self.rtol, self.atol)
        check_divergence(self.divergence)
        names: dict[str, Collection[str]] = {
            "method": TABLEAUS,
            "gradient": GRADIENTS,
            "step": STEP_NORMS,
        }
        for setting, choices in names.items():
            given = getattr(self, setting)
            if given not in choices:
                known = ", ".join(choices)
                raise ValueError(f"Expected {setting} to be one of {known}; got {given!r}")
        if self.max_steps < 1:
            raise ValueError(f"Expected max_steps of at least 1; got {self.max_steps}")
        if self.activation_bytes < 0:
            raise ValueError(
                f"Expected activation_bytes of at least 0 bytes; got {self.activation_bytes}"
            )
        if self.step_size is None and not TABLEAUS[self.method].adaptive:
            raise ValueError(
                f"Expected a step_size with method {self.method!r}, which has no error estimate; "
                "got None: give one, or choose an adaptive method"
            )
        for setting in ("step_size", "first_step"):
            size = getattr(self, setting)
            if size is not None and not size > 0:
                raise ValueError(f"Expected {setting} to be above 0; got {size}")

    @property
    def compile_sizes(self) -> BatchSizes | None:
        """Batch sizes to compile for: any where rows finish one by one; None without a compiler."""
        if not self.compile:
            return None
        return "fixed" if self.step == "joint" else "any"

    @property
    def may_share_times(self) -> bool:
        """Whether steps are chosen so freely that a first pass may choose them."""
        free = self.step_size is None and self.first_step is None
        return self.first_pass and self.step == "per_sample" and free

    @property
    def gradient_mode(self) -> Gradient:
        """The gradient mode of solves."""
        if self.gradient == "checkpoint":
            return Checkpoint(self.activation_bytes)
        return GRADIENTS[self.gradient]

    def replaced(self, changes: dict[str, Any]) -> Self:
        """Return settings with some of them replaced.

        Raises:
            ValueError: A setting is unknown or out of range.
        """
        names = [field.name for field in fields(self)]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise ValueError(
                f"Expected solver settings among {', '.join(names)}; got {', '.join(unknown)}"
            )
        return replace(self, **changes)

    def tightened(self, factor: float) -> dict[str, Any]:
        """Return changes that tighten a solve: dopri8 at tolerances times a factor below 1.

        A factor of 1 changes nothing; fixed steps are halved. The order is raised since on smooth
        paths a method takes the same steps at either tolerance, with the same error: at 1e-3 the
        difference revealed it in 3 rows of 10, with dopri8 in 99 of 100.
        """
        if factor == 1:
            return {}
        changes: dict[str, Any] = {"rtol": factor * self.rtol, "atol": factor * self.atol}
        changes["first_pass"] = False  # its steps might be those of the solve that is examined
        if self.step_size is not None:
            return changes | {"step_size": self.step_size / 2, "max_steps": 2 * self.max_steps}
        return changes | {"method": "dopri8"}

    def scoring_factor(self, factor: float) -> float:
        """Return the factor of the tolerances for a solve that shows another one's error.

        A first pass, of dopri8 too, is often better than its tolerance: at a tenth of that the
        difference covered the error of 8 rows in 10, at a thousandth of 95 in 100. It is not
        lowered where double precision could not follow.
        """
        if factor == 1 or not self.may_share_times:
            return factor
        least = SMALLEST_TOLERANCE / (factor * max(self.rtol, self.atol))
        return factor * max(0.01, min(1.0, least))

    def model_config(self) -> dict[str, Any]:
        """Return the settings that belong to a model, ready for JSON."""
        left_out = ("divergence", "compile")
        return {name: value for name, value in vars(self).items() if name not in left_out}
