"""Modules and tensors that stand in several places of a module: found, and shared again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn


def shared_parts(module: nn.Module) -> dict[str, str]:
    """Return the names of parts that stand elsewhere too, each with the name of its first place.

    A part is a submodule, a parameter or a buffer; those within a shared submodule are not named.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> shared_parts(nn.Sequential(layer, nn.Tanh(), layer))
        {'2': '0'}
    """
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    parts = chain(
        module.named_modules(remove_duplicate=False),
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for name, part in parts:
        if id(part) not in first:
            first[id(part)] = name
        elif not any(name.startswith(f"{outer}.") for outer in shared):
            shared[name] = first[id(part)]
    return shared


def share(module: nn.Module, shared: Mapping[str, str]) -> None:
    """Put the part of each first place in the other places too, as `shared_parts` found them.

    Raises:
        ValueError: The parts at two places differ in kind or in the shapes of their tensors.
        AttributeError: There is no part of a name.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        >>> share(net, {"2": "0"})
        >>> net[2] is net[0]
        True
    """
    for name, first in shared.items():
        part, other = _part(module, first), _part(module, name)
        if type(part) is not type(other) or _shapes(part) != _shapes(other):
            raise ValueError(f"Expected {first} and {name} to be alike to share them; they differ")
        place, _, own = name.rpartition(".")
        setattr(module.get_submodule(place), own, part)


def _part(module: nn.Module, name: str) -> nn.Module | Tensor:
    """Return the submodule, parameter or buffer of a name."""
    place, _, own = name.rpartition(".")
    part = getattr(module.get_submodule(place), own)
    if not isinstance(part, nn.Module | Tensor):
        raise ValueError(f"Expected a module or a tensor to share at {name}; got {part!r:.40}")
    return part


def _shapes(part: nn.Module | Tensor) -> dict[str, torch.Size]:
    """Return the shapes of a part's tensors, by name."""
    tensors = part.state_dict() if isinstance(part, nn.Module) else {"": part}
    return {name: tensor.shape for name, tensor in tensors.items()}
