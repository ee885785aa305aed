"""A flow in training: its weights, their moving average, and the optimizer that changes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnf.flow import Flow
from cnf.layers import MovingNorm
from cnf.ode import SolveError
from cnf.training.data import Rows
from cnf.training.objectives import Objective
from cnf.training.recipes import Recipe
from cnf.utils.distributed import mean, parallel, total, world_size
from cnf.utils.serialization import add_prefix, strip_prefix

FIRST_STEP = 0.15  # in training, of a time of 1: choosing it takes two of twenty evaluations


@dataclass(frozen=True)
class OptimizerStep:
    """An optimizer step.

    Attributes:
        loss: Mean over the processes, nan where the step was skipped.
        nfe: Evaluations per solve, nan where the step was skipped.
        failure: Why the step was skipped, empty where it was not.
    """

    loss: float
    nfe: float
    failure: str = ""


class Learner:
    """A flow, its optimizer, and the exponential moving average (EMA) of its weights.

    Args:
        flow: The flow, whose weights are changed in place.
        recipe: The numbers of the optimizer, and of the solver in training.

    Attributes:
        ema: A copy of the flow with the moving average of its weights.
        validated: A view of `ema` that solves as the last steps of training do.
    """

    def __init__(self, flow: Flow, recipe: Recipe) -> None:
        self.flow = flow
        self.recipe = recipe
        cheap: dict[str, Any] = {"method": recipe.method, "step": "joint", "first_step": FIRST_STEP}
        cheap |= {"rtol": recipe.rtol, "atol": recipe.atol}
        training: dict[str, Any] = {
            "gradient": recipe.gradient,
            "activation_bytes": recipe.activation_bytes,
        }
        if recipe.divergence != "auto":
            training["divergence"] = recipe.divergence
        self.losses = parallel(_Losses(flow.with_solver(**cheap, **training)))
        self.ema = copy.deepcopy(flow)  # after `parallel` has made the weights those of rank 0
        self.validated = self.ema.with_solver(**cheap)
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        self.restart()

    def restart(self) -> None:
        """Start from the averaged weights with a new optimizer and a new average."""
        self.flow.load_state_dict(self.ema.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=0.0, weight_decay=self.recipe.weight_decay, fused=True
        )
        self.ema_updates = 0

    def step(
        self, objective: Objective, batch: Rows, rate: float, tolerance_factor: float
    ) -> OptimizerStep:
        """Take an optimizer step, skipped where the solve, the loss or the gradient fails.

        Args:
            objective: The objective to minimise.
            batch: The rows to minimise it on.
            rate: The learning rate.
            tolerance_factor: The factor on the recipe's tolerances.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss, nfe, failure, inputs = self.losses(
            objective, batch, self._tolerances(tolerance_factor)
        )
        try:
            loss.backward()
        except SolveError as error:  # the backward solve of `backsolve` may fail
            if world_size() > 1:  # the other processes wait for this one's gradient
                raise
            return OptimizerStep(nan, nan, str(error))
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm)
        value, length = torch.stack([loss.detach(), norm]).tolist()
        # A norm is the same in all processes, and not finite where one of them failed.
        value, nfe = mean([value, nfe], norm)
        if not (isfinite(value) and isfinite(length)):
            failure = failure or f"The loss is {value} and the norm of its gradient {length}."
            return OptimizerStep(nan, nan, failure)
        self.optimizer.step()
        self._update_norms(inputs)
        self._update_ema()
        return OptimizerStep(value, nfe)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, averages and the optimizer's state by their names in training states."""
        slots = {
            f"optimizer.{i}.{name}": tensor
            for i, entries in self.optimizer.state_dict()["state"].items()
            for name, tensor in entries.items()
        }
        return {
            **add_prefix("flow", self.flow.state_dict()),
            **add_prefix("averaged", self.ema.state_dict()),
            **slots,
            "averages": torch.tensor(self.ema_updates),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, bit for bit."""
        self.flow.load_state_dict(strip_prefix("flow", tensors))
        self.ema.load_state_dict(strip_prefix("averaged", tensors))
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in strip_prefix("optimizer", tensors).items():
            index, slot = name.split(".")
            parameter = self.parameters[int(index)]
            if (
                tensor.shape == parameter.shape
            ):  # the fused optimizer wants the strides of the parameter
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            entries.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.ema_updates = int(tensors["averages"])

    def _tolerances(self, tolerance_factor: float) -> dict[str, float]:
        return {
            "rtol": tolerance_factor * self.recipe.rtol,
            "atol": tolerance_factor * self.recipe.atol,
        }

    def _update_norms(self, inputs: Sequence[Tensor]) -> None:
        """Update batch normalisations by the batch of all processes together."""
        for layer, x in zip(self.flow.layers, inputs, strict=False):
            if isinstance(layer, MovingNorm):
                layer.update(total(layer.sums(x)))

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Update the average θ̄ ← θ̄ + (1 − d)(θ − θ̄).

        The decay d starts low, so that θ̄ forgets where it started. Moving statistics are averaged
        as the weights are: they change with the weights, so that to first order the averaged
        statistics are those of the averaged weights.
        """
        self.ema_updates += 1
        decay = min(self.recipe.ema_decay, self.ema_updates / (9 + self.ema_updates))
        averaged = [*self.ema.parameters(), *_statistics(self.ema)]
        current = [*self.flow.parameters(), *_statistics(self.flow)]
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for averaged_norm, norm in zip(_norms(self.ema), _norms(self.flow), strict=True):
            averaged_norm.updates.copy_(norm.updates)


def _norms(flow: Flow) -> list[MovingNorm]:
    return [layer for layer in flow.layers if isinstance(layer, MovingNorm)]


def _statistics(flow: Flow) -> list[Tensor]:
    return [buffer for norm in _norms(flow) for buffer in (norm.mean, norm.variance)]


class _Losses(nn.Module):
    """A module whose output is a flow's loss, so that processes can average their gradients.

    A solve that fails gives a loss of NaN with a gradient of NaN: the step is skipped, and no
    process waits for another.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(
        self, objective: Objective, batch: Rows, tolerances: Mapping[str, float]
    ) -> tuple[Tensor, float, str, Sequence[Tensor]]:
        """Return the loss, evaluations per solve, a failure's message, and each layer's inputs."""
        try:
            loss = objective(self.flow.with_solver(**tolerances), batch.x, batch.context)
        except SolveError as error:
            connected = torch.stack([p.sum() for p in self.parameters()]).sum()
            return nan * connected, nan, str(error), ()
        nfe = float(np.mean(loss.stats.evaluations)) / max(1, self.flow.solves)
        return loss.value, nfe, "", loss.inputs
