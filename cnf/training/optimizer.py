"""AdamW with clipped gradients, which skips steps that fail and whose state can be saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import torch
from torch import Tensor, nn

from cnf.ode import SolveError
from cnf.utils.distributed import mean, world_size


@dataclass(frozen=True)
class OptimizerStep:
    """An optimizer step; loss and nfe are nan where it was skipped."""

    loss: float  # mean over the processes
    nfe: float  # evaluations per solve
    failure: str = ""  # why the step was skipped, empty where it was not


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step."""

    value: Tensor  # a scalar to differentiate
    nfe: float = 0.0  # evaluations per solve
    failure: str = ""  # why there is none, empty where there is


class Optimizer:
    """AdamW, with decoupled weight decay and gradients clipped to a norm."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        weight_decay: float,
        max_grad_norm: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.parameters, self.max_grad_norm = parameters, max_grad_norm
        self.adamw = torch.optim.AdamW(
            parameters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
        )

    def step(self, loss: Callable[[], StepLoss], rate: float) -> OptimizerStep:
        """Take a step of a learning rate, skipped where the loss, a solve or the gradient fails."""
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.zero_grad()
        try:
            found = loss()
            found.value.backward()
        except SolveError as error:  # the backward solve of `backsolve` may fail
            if world_size() > 1:  # the other processes wait for this one's gradient
                raise
            return OptimizerStep(nan, nan, str(error))
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        value, length = torch.stack([found.value.detach(), norm]).tolist()
        # A norm is the same in all processes, and not finite where one of them failed.
        value, nfe = mean([value, found.nfe], norm)
        if not (isfinite(value) and isfinite(length)):
            reason = f"The loss is {value} and the norm of its gradient {length}."
            return OptimizerStep(nan, nan, found.failure or reason)
        self.adamw.step()
        return OptimizerStep(value, nfe)

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state by its names in training states."""
        return {
            f"{i}.{name}": tensor
            for i, entries in self.adamw.state_dict()["state"].items()
            for name, tensor in entries.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, bit for bit."""
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, slot = name.split(".")
            parameter = self.parameters[int(index)]
            if tensor.shape == parameter.shape:  # the fused optimizer wants the parameter's strides
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            entries.setdefault(int(index), {})[slot] = tensor
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict({"state": entries, "param_groups": groups})
