"""A flow in training: its weights, their moving average, and the optimizer that changes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import nan

import numpy as np
import torch
from torch import Tensor, nn

from cnf.flow import Flow
from cnf.layers import MovingNorm
from cnf.ode import SolveError
from cnf.training.averaged_run import update_average
from cnf.training.data import Rows
from cnf.training.objectives import Objective
from cnf.training.optimizer import Optimizer, OptimizerStep, StepLoss
from cnf.training.recipes import Recipe
from cnf.utils.distributed import parallel, total
from cnf.utils.serialization import add_prefix, strip_prefix

TOLERANCES = ("rtol", "atol")


class Learner:
    """A flow, changed in place, its optimizer, and the moving average (EMA) of its weights."""

    def __init__(self, flow: Flow, recipe: Recipe) -> None:
        self.flow = flow
        self.recipe = recipe
        solver = {name: getattr(recipe, name) for name in recipe.solver_numbers()}
        divergence = {} if recipe.divergence == "auto" else {"divergence": recipe.divergence}
        self.losses = parallel(_Losses(flow.for_training(**solver, **divergence)))
        self.ema = copy.deepcopy(flow)  # after `parallel` has made the weights those of rank 0
        self.validated = self.ema.for_training(**solver)  # as the last steps of training solve
        self.validated.eval()
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        self.restart()

    def restart(self) -> None:
        """Start from the averaged weights with a new optimizer and a new average."""
        self.flow.load_state_dict(self.ema.state_dict())
        self.optimizer = Optimizer(
            self.parameters, self.recipe.weight_decay, self.recipe.max_grad_norm
        )
        self.ema_updates = 0

    def step(
        self, objective: Objective, batch: Rows, rate: float, tolerance_factor: float
    ) -> OptimizerStep:
        """Take an optimizer step of a learning rate, with a factor on the recipe's tolerances.

        The step is skipped where the solve, the loss or the gradient fails.
        """
        inputs: Sequence[Tensor] = ()
        tolerances = {name: tolerance_factor * getattr(self.recipe, name) for name in TOLERANCES}

        def loss() -> StepLoss:
            nonlocal inputs
            value, nfe, failure, inputs = self.losses(objective, batch, tolerances)
            return StepLoss(value, nfe, failure)

        step = self.optimizer.step(loss, rate)
        if not step.failure:
            # Batch normalisations are updated by the batch of all processes together.
            for layer, x in zip(self.flow.layers, inputs, strict=False):
                if isinstance(layer, MovingNorm):
                    layer.update(total(layer.sums(x)))
            self._update_ema()
        return step

    def copy_statistics(self) -> None:
        """Copy to the average what modules keep of their inputs, such as those of `BatchNorm1d`.

        Those of a `MovingNorm` are averaged.
        """
        averaged = {id(each) for norm in _norms(self.ema) for each in norm.buffers()}
        for kept, current in zip(self.ema.buffers(), self.flow.buffers(), strict=True):
            if id(kept) not in averaged:
                kept.copy_(current)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, averages and the optimizer's state by their names in training states."""
        return {
            **add_prefix("flow", self.flow.state_dict()),
            **add_prefix("averaged", self.ema.state_dict()),
            **add_prefix("optimizer", self.optimizer.tensors()),
            "averages": torch.tensor(self.ema_updates),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, bit for bit."""
        self.flow.load_state_dict(strip_prefix("flow", tensors))
        self.ema.load_state_dict(strip_prefix("averaged", tensors))
        self.optimizer.restore(strip_prefix("optimizer", tensors))
        self.ema_updates = int(tensors["averages"])

    def _update_ema(self) -> None:
        """Update the average.

        Moving statistics are averaged as the weights are, with which they change: to first order
        the averaged statistics are those of the averaged weights.
        """
        self.ema_updates += 1
        averaged, current = (
            [*flow.parameters(), *(x for norm in _norms(flow) for x in (norm.mean, norm.variance))]
            for flow in (self.ema, self.flow)
        )
        update_average(averaged, current, self.ema_updates, self.recipe.ema_decay)
        for averaged_norm, norm in zip(_norms(self.ema), _norms(self.flow), strict=True):
            averaged_norm.updates.copy_(norm.updates)


def _norms(flow: Flow) -> list[MovingNorm]:
    return [layer for layer in flow.layers if isinstance(layer, MovingNorm)]


class _Losses(nn.Module):
    """A module whose output is a flow's loss, so that processes can average their gradients."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(
        self, objective: Objective, batch: Rows, tolerances: Mapping[str, float]
    ) -> tuple[Tensor, float, str, Sequence[Tensor]]:
        """Return the loss, evaluations per solve, a failure's message, and each layer's inputs."""
        try:
            loss = objective(self.flow.with_solver(**tolerances), batch.x, batch.context)
        except SolveError as error:  # NaN with a gradient: no process waits for another's
            connected = torch.stack([p.sum() for p in self.parameters()]).sum()
            return nan * connected, nan, str(error), ()
        nfe = float(np.mean(loss.stats.evaluations)) / max(1, self.flow.solves)
        return loss.value, nfe, "", loss.inputs
