"""Submodules and tensors that a module holds under several names."""

from collections.abc import Mapping
from itertools import chain
from operator import attrgetter

import torch
from torch import Tensor, nn


def shared_parts(module: nn.Module) -> dict[str, str]:
    """Return the repeated names of shared parts, each with the first name of the part.

    A part is a submodule, a parameter or a buffer; parts within a shared submodule are left out.

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


def restore_sharing(module: nn.Module, shared: Mapping[str, str]) -> None:
    """Assign the part of each first name to the repeated name too.

    Args:
        module: The module to change.
        shared: Repeated names with their first names, from `shared_parts`.

    Raises:
        ValueError: The parts of two names differ in type or in the shapes of their tensors.
        AttributeError: A name does not exist.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        >>> restore_sharing(net, {"2": "0"})
        >>> net[2] is net[0]
        True
    """
    for name, first in shared.items():
        part, other = _part(module, first), _part(module, name)
        if type(part) is not type(other) or _shapes(part) != _shapes(other):
            raise ValueError(
                f"Expected {first} and {name} of one type and shape to share them; got parts that "
                "differ: restore the saved configuration"
            )
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, part)


def _part(module: nn.Module, name: str) -> nn.Module | Tensor:
    part = attrgetter(name)(module)
    if not isinstance(part, nn.Module | Tensor):
        raise ValueError(
            f"Expected a module or a tensor to share at {name}; got {part!r:.40}: "
            "restore the saved configuration"
        )
    return part


def _shapes(part: nn.Module | Tensor) -> dict[str, torch.Size]:
    tensors = part.state_dict() if isinstance(part, nn.Module) else {"": part}
    return {name: tensor.shape for name, tensor in tensors.items()}
