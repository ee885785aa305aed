"""How a continuous layer solves."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from cnf.fields.analytic.kernels import Sizes
from cnf.fields.divergence import Divergence, check_divergence
from cnf.ode import GRADIENTS, TABLEAUS, Checkpoint, Gradient, StepMode, Tolerance


def row_errors(ratio: Tensor, dim: int) -> Tensor:
    """The larger of the RMS over a row's coordinates and its log-density's own error, (rows,).

    So the log-density, the column after the `dim` coordinates, is always controlled and never
    diluted by them; columns after it do not steer.
    """
    coordinates = ratio[:, :dim].square().mean(1).sqrt()
    return torch.maximum(coordinates, ratio[:, dim].abs())


def own_errors(ratio: Tensor, dim: int) -> Tensor:
    """The row errors in units of a tenth of the tolerance, (rows,).

    A map's error is what those of its steps add up to; so it keeps near the tolerance, there and
    back. Measured on flows fitted to toys: z → x → z at 1e-5 is wrong by up to 1e-5, with the whole
    tolerance for each step by up to 2e-4; the price is a third more evaluations.
    """
    return 10 * row_errors(ratio, dim)


def batch_error(ratio: Tensor, dim: int) -> Tensor:
    """The root mean square of the row errors, a scalar."""
    return row_errors(ratio, dim).square().mean().sqrt()


NORMS: dict[StepMode, Callable[[Tensor, int], Tensor]] = {
    "per_sample": own_errors,
    "joint": batch_error,
}


@dataclass(frozen=True)
class SolverSettings:
    """How a CNF layer solves.

    Attributes:
        divergence: A name for `cnf.fields.divergence.choose_divergence`, or a `Divergence` of one's own.
            It is chosen anew for each use: a saved model does not remember it.
        method: Name of a tableau in `cnf.ode.TABLEAUS`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        gradient: Name of a mode in `cnf.ode.GRADIENTS`.
        activation_bytes: Bytes for the activations of accepted steps, which `"checkpoint"` then does not
            replay on the way back.
        step: `"per_sample"`: every row has its own time and steps, each with an error of at most a
            tenth of the tolerance, so that a row's log p does not depend on the rows beside it;
            `"joint"`: one step for the batch, whose root mean square error is within the
            tolerance, cheapest for training.
        step_size: Steps of this size with no error control, for any method; adaptive when None.
        first_step: Size of the first step tried; when None it is chosen from the dynamics, with
            care and one more evaluation. Training saves both (`cnf.training.learner`).
        max_steps: The most steps that one solve may take, for each row where steps are per sample.
        compile: Whether the field's evaluations are compiled by `torch.compile`, for the family of
            concat-squash fields, and whole steps of training by maximum likelihood, which gains
            most where batches are small. Falls back with a warning where there is no compiler. The
            first solves take up to a minute longer, the first ones with another number of rows
            half a minute; after eight such numbers PyTorch compiles no more, unless its
            `torch._dynamo.config.recompile_limit` is raised. Like the divergence, not part of a
            saved model.

    Raises:
        ValueError: A name is unknown or a number out of range.
    """

    divergence: str | Divergence = "auto"
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    gradient: str = "checkpoint"
    activation_bytes: int = 0
    step: StepMode = "per_sample"
    step_size: float | None = None
    first_step: float | None = None
    max_steps: int = 1000
    compile: bool = False

    def __post_init__(self) -> None:
        Tolerance(self.rtol, self.atol)
        check_divergence(self.divergence)
        names: dict[str, Collection[str]] = {
            "method": TABLEAUS,
            "gradient": GRADIENTS,
            "step": NORMS,
        }
        for setting, choices in names.items():
            if getattr(self, setting) not in choices:
                raise ValueError(
                    f"Expected {setting} to be one of {', '.join(choices)}; "
                    f"got {getattr(self, setting)!r}"
                )
        if self.max_steps < 1:
            raise ValueError(f"Expected max_steps of at least 1; got {self.max_steps}")
        if self.activation_bytes < 0:
            raise ValueError(
                f"Expected activation_bytes of at least 0 bytes; got {self.activation_bytes}"
            )
        if self.step_size is None and not TABLEAUS[self.method].adaptive:
            raise ValueError(
                f"Expected a step_size with method {self.method!r}, which has no error estimate"
            )
        for setting in ("step_size", "first_step"):
            size = getattr(self, setting)
            if size is not None and not size > 0:
                raise ValueError(f"Expected {setting} to be above 0; got {size}")

    @property
    def compiled(self) -> Sizes | None:
        """How code is compiled: rows with steps of their own leave a solve one by one."""
        if not self.compile:
            return None
        return "fixed" if self.step == "joint" else "any"

    @property
    def gradient_mode(self) -> Gradient:
        """How solves are differentiated."""
        return (
            Checkpoint(self.activation_bytes)
            if self.gradient == "checkpoint"
            else GRADIENTS[self.gradient]
        )

    def changed(self, changes: dict[str, Any]) -> SolverSettings:
        """These settings with some of them changed.

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

    def tighter(self, factor: float) -> dict[str, Any]:
        """Changes that make a solve more careful: by dopri8 at tolerances times a factor below 1.

        None for a factor of 1. The order is raised too, since where paths are smooth a method comes
        to the same steps at either tolerance, and to the same error: measured at 1e-3, the change
        then told of the error for 3 rows in 10 alone, with dopri8 for 99 in 100. Fixed steps are
        halved.
        """
        if factor == 1:
            return {}
        changes: dict[str, Any] = {"rtol": factor * self.rtol, "atol": factor * self.atol}
        if self.step_size is not None:
            return changes | {"step_size": self.step_size / 2, "max_steps": 2 * self.max_steps}
        return changes | {"method": "dopri8"}

    def saved(self) -> dict[str, Any]:
        """The settings that belong to a model, ready for JSON.

        How its divergence is found, and whether code is compiled for it, is chosen by whoever uses
        it.
        """
        chosen = ("divergence", "compile")
        return {name: value for name, value in vars(self).items() if name not in chosen}
