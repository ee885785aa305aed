"""The layout of states: a user's tensors or tuples, real or complex, and the solver's tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnf.ode.controllers import Norm, rms_norm

State = Tensor | tuple[Tensor, ...]


class InputError(ValueError, AssertionError):
    """An input that is not as described: a `ValueError` where torchdiffeq asserts."""


@dataclass(frozen=True)
class StateLayout:
    """The layout of a user's state, and of the one real tensor that the solver has for it."""

    shapes: tuple[torch.Size, ...]  # of the tensors of a tuple, or of the one tensor
    is_tuple: bool  # the solver has a tuple as one vector
    dtype: torch.dtype  # of all tensors; with a complex one the solver's state has a last axis of 2

    @staticmethod
    def of(y0: State) -> StateLayout:
        """Return the layout of a first state.

        Raises:
            InputError: The state is neither a tensor nor a tuple of tensors.
        """
        if isinstance(y0, Tensor):
            return StateLayout((y0.shape,), False, y0.dtype)
        if not (isinstance(y0, tuple) and y0 and all(isinstance(part, Tensor) for part in y0)):
            raise InputError(f"Expected y0 to be a tensor or a tuple of tensors; got {y0}")
        dtype = torch.cat([part.detach().flatten()[:0] for part in y0]).dtype
        return StateLayout(tuple(part.shape for part in y0), True, dtype)

    def pack(self, state: Any) -> Tensor:
        """Return a state, or its slope, as the solver has it.

        Raises:
            ValueError: It does not have this layout and does not broadcast to it.
        """
        parts = tuple(state) if self.is_tuple else (state,)
        if len(parts) != len(self.shapes):
            raise ValueError(
                f"Expected func to return {len(self.shapes)} tensors; got {len(parts)}"
            )
        fitted = [
            _fit(part, shape).to(self.dtype) for part, shape in zip(parts, self.shapes, strict=True)
        ]
        packed = torch.cat([part.flatten() for part in fitted]) if self.is_tuple else fitted[0]
        return torch.view_as_real(packed.resolve_conj()) if self.dtype.is_complex else packed

    def unpack(self, packed: Tensor, *times: int) -> Any:
        """Return a state, or the states at a number of times, as the user has it."""
        if self.dtype.is_complex:
            packed = torch.view_as_complex(packed.contiguous())
        if not self.is_tuple:
            return packed
        parts = packed.split([shape.numel() for shape in self.shapes], dim=-1)
        return tuple(
            part.reshape((*times, *shape)) for part, shape in zip(parts, self.shapes, strict=True)
        )

    def tolerance(self, name: str, given: Any, y0: Tensor) -> float | Tensor:
        """Return a tolerance for the solver's state.

        Raises:
            InputError: It requires a gradient, or a tuple has another length than the state.
        """
        if isinstance(given, Tensor) and given.requires_grad:
            raise InputError(f"Expected {name} without a gradient; got {given}")
        if self.is_tuple and not is_number(given):
            given = tuple(given)
            if len(given) != len(self.shapes):
                raise InputError(
                    f"Expected {name} for each of the {len(self.shapes)} tensors of y0; "
                    f"got {len(given)}"
                )
            parts = zip(given, self.shapes, strict=True)
            given = torch.cat([torch.as_tensor(g).expand(shape.numel()) for g, shape in parts])
        if is_number(given):
            return float(given)
        tolerance = torch.as_tensor(given, device=y0.device)
        return tolerance.unsqueeze(-1) if self.dtype.is_complex else tolerance

    def norm(self, given: Callable[[Any], Any] | None) -> Norm:
        """Return the user's norm of error ratios; by default the tensors' largest rms."""
        if given is not None:
            return lambda ratio: torch.as_tensor(given(self.unpack(ratio))).abs()
        if not self.is_tuple:
            return lambda ratio: rms_norm(self.unpack(ratio))
        return lambda ratio: torch.stack([rms_norm(part) for part in self.unpack(ratio)]).amax()


def _fit(slope: Any, shape: torch.Size) -> Tensor:
    """Return a slope in the shape of its state."""
    if not isinstance(slope, Tensor):
        raise ValueError(f"Expected func to return tensors; got {type(slope).__name__}")
    if slope.shape == shape:
        return slope
    if slope.numel() == shape.numel():
        return slope.reshape(shape)
    try:
        return slope.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"Expected func to return a slope of shape {tuple(shape)}; got {tuple(slope.shape)}"
        ) from None


def is_number(value: Any) -> bool:
    """Return whether a tolerance is one number."""
    return torch.as_tensor(value).ndim == 0 if not isinstance(value, tuple | list) else False
