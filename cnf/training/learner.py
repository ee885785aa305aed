"""A flow that learns: its weights, their moving average, and the optimizer that moves them."""

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
from cnf.utils.serialization import prefixed, under

FIRST_STEP = 0.15  # in training, of a time of 1: choosing it takes two of twenty evaluations


@dataclass(frozen=True)
class OptimizerStep:
    """An optimizer step.

    Attributes:
        loss: Mean over the processes, nan where the step was skipped.
        nfe: Evaluations per solve, nan where the step was skipped.
        failure: Why it was skipped, empty where it was not.
    """

    loss: float
    nfe: float
    failure: str = ""


class Learner:
    """A flow with what trains it.

    Args:
        flow: Its weights are changed in place.
        recipe: The optimizer's numbers and the solver's in training.

    Attributes:
        averaged: A copy of the flow with the moving average of its weights.
        judged: The same, solved as in the last steps of training.
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
        self.averaged = copy.deepcopy(flow)  # as it is in all processes now
        self.judged = self.averaged.with_solver(**cheap)
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        self.restart()

    def restart(self) -> None:
        """Begin anew from the averaged weights, with an optimizer and an average that know nothing.

        So does each stage of a run.
        """
        self.flow.load_state_dict(self.averaged.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=0.0, weight_decay=self.recipe.weight_decay, fused=True
        )
        self.averages = 0

    def step(
        self, objective: Objective, batch: Rows, rate: float, tolerance_factor: float
    ) -> OptimizerStep:
        """One optimizer step, skipped where the solve, the loss or the gradient fails.

        Args:
            objective: What to minimise.
            batch: Of which rows.
            rate: The learning rate.
            tolerance_factor: By what the recipe's tolerances are multiplied.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss, nfe, failure, passed = self.losses(
            objective, batch, self._tolerances(tolerance_factor)
        )
        try:
            loss.backward()
        except SolveError as error:  # as backsolve's way back may
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
        self._normalize(passed)
        self._average()
        return OptimizerStep(value, nfe)

    def tensors(self) -> dict[str, Tensor]:
        """All that it is made of: weights, average, the optimizer's."""
        slots = {
            f"optimizer.{i}.{name}": tensor
            for i, entries in self.optimizer.state_dict()["state"].items()
            for name, tensor in entries.items()
        }
        return {
            **prefixed("flow", self.flow.state_dict()),
            **prefixed("averaged", self.averaged.state_dict()),
            **slots,
            "averages": torch.tensor(self.averages),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Be what `tensors` tells of again, bit for bit."""
        self.flow.load_state_dict(under("flow", tensors))
        self.averaged.load_state_dict(under("averaged", tensors))
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimizer", tensors).items():
            index, slot = name.split(".")
            parameter = self.parameters[int(index)]
            if tensor.shape == parameter.shape:  # fused, the optimizer wants them to lie alike
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            entries.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.averages = int(tensors["averages"])

    def _tolerances(self, tolerance_factor: float) -> dict[str, float]:
        return {
            "rtol": tolerance_factor * self.recipe.rtol,
            "atol": tolerance_factor * self.recipe.atol,
        }

    def _normalize(self, passed: Sequence[Tensor]) -> None:
        """Tell batch normalisations of the whole batch, as all processes have it together."""
        for layer, x in zip(self.flow.layers, passed, strict=False):
            if isinstance(layer, MovingNorm):
                layer.update(total(layer.sums(x)))

    @torch.no_grad()
    def _average(self) -> None:
        """θ̄ ← θ̄ + (1 − d)(θ − θ̄), with a decay d that starts low, so that θ̄ forgets its start.

        Moving statistics are averaged alike: they change with the weights, so that to first order
        what they come to belongs to what the weights come to.
        """
        self.averages += 1
        decay = min(self.recipe.ema_decay, self.averages / (9 + self.averages))
        averaged = [*self.averaged.parameters(), *_statistics(self.averaged)]
        current = [*self.flow.parameters(), *_statistics(self.flow)]
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for own, layer in zip(_norms(self.averaged), _norms(self.flow), strict=True):
            own.updates.copy_(layer.updates)


def _norms(flow: Flow) -> list[MovingNorm]:
    return [layer for layer in flow.layers if isinstance(layer, MovingNorm)]


def _statistics(flow: Flow) -> list[Tensor]:
    return [buffer for norm in _norms(flow) for buffer in (norm.mean, norm.variance)]


class _Losses(nn.Module):
    """A flow's losses as a module's output, so that several processes can average their gradients.

    A solve that fails gives a loss of NaN with a gradient of NaN: the step is skipped, and no
    process waits for another.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(
        self, objective: Objective, batch: Rows, tolerances: Mapping[str, float]
    ) -> tuple[Tensor, float, str, Sequence[Tensor]]:
        """The loss, the evaluations of a solve, what failed, and what came to each layer."""
        try:
            loss = objective(self.flow.with_solver(**tolerances), batch.x, batch.context)
        except SolveError as error:
            reached = torch.stack([p.sum() for p in self.parameters()]).sum()
            return nan * reached, nan, str(error), ()
        nfe = float(np.mean(loss.stats.evaluations)) / max(1, self.flow.solves)
        return loss.value, nfe, "", loss.passed
