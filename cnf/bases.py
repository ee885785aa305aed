"""Base distributions: taken apart into names and tensors, and put together again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from cnf.cylinder import Cylinder

# Constructor arguments, and the attributes that hold them, of distributions made of distributions,
# and of the one that keeps its Cholesky factor whatever it was made from. Every other distribution
# is made of the tensors that its arg_constraints name.
_CONSTRUCTORS = {
    "Cylinder": {"loc": "loc", "scale": "scale", "circular": "circular"},
    "MultivariateNormal": {"loc": "loc", "scale_tril": "scale_tril"},
    "Independent": {
        "base_distribution": "base_dist",
        "reinterpreted_batch_ndims": "reinterpreted_batch_ndims",
    },
    "MixtureSameFamily": {
        "mixture_distribution": "mixture_distribution",
        "component_distribution": "component_distribution",
    },
}


def describe(base: Distribution, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A distribution of `torch.distributions` or a `Cylinder` as JSON, and its tensors by name.

    Args:
        base: The distribution.
        prefix: What the tensors' names start with.

    Raises:
        ValueError: The distribution is neither, or is not described by its parameters.

    Example:
        >>> from torch.distributions import Independent, Laplace
        >>> base = Independent(Laplace(torch.zeros(2), torch.ones(2)), 1)
        >>> description, tensors = describe(base, "base")
        >>> sorted(tensors)
        ['base.base_distribution.loc', 'base.base_distribution.scale']
        >>> rebuild(description, "base", tensors)
        Independent(Laplace(loc: torch.Size([2]), scale: torch.Size([2])), 1)
    """
    name = type(base).__name__
    if _kind(name) is not type(base):
        raise ValueError(f"Expected a base of torch.distributions to save; got {name}")
    description: dict[str, Any] = {"class": name, "parts": {}, "numbers": {}}
    tensors: dict[str, Tensor] = {}
    for part, attribute in (_CONSTRUCTORS.get(name) or _parameters(base)).items():
        value = getattr(base, attribute)
        if isinstance(value, Distribution):
            inner, inner_tensors = describe(value, f"{prefix}.{part}")
            description["parts"][part] = inner
            tensors |= inner_tensors
        elif isinstance(value, Tensor):
            description["parts"][part] = None
            tensors[f"{prefix}.{part}"] = value
        else:
            description["numbers"][part] = value
    return description, tensors


def _kind(name: str) -> Any:
    """What goes by a distribution's name; None for nothing."""
    return Cylinder if name == "Cylinder" else getattr(torch.distributions, name, None)


def _parameters(base: Distribution) -> dict[str, str]:
    """The parameters that a distribution was made from: of probs and logits, say, only one."""
    names = {name: name for name in base.arg_constraints if name in vars(base)}
    if "logits" in names:
        names.pop("probs", None)
    names = names or {name: name for name in base.arg_constraints}  # kept by a part of it
    if not names:
        raise ValueError(
            f"Expected a base described by its parameters to save; {type(base).__name__} is not"
        )
    return names


def _real(name: str, tensors: dict[str, Tensor]) -> Tensor:
    tensor = tensors[name]
    if not tensor.is_floating_point():
        raise ValueError(f"Expected real numbers for {name}; got {tensor.dtype}")
    return tensor


def rebuild(description: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> Distribution:
    """The distribution that `describe` described.

    Raises:
        ValueError: The description names no such distribution, or a tensor is none of real numbers.
    """
    name = description["class"]
    kind = _kind(str(name))
    if not (isinstance(kind, type) and issubclass(kind, Distribution)):
        raise ValueError(f"Expected a base of torch.distributions; got {name!r}")
    arguments = dict(description["numbers"])
    for part, inner in description["parts"].items():
        full = f"{prefix}.{part}"
        arguments[part] = _real(full, tensors) if inner is None else rebuild(inner, full, tensors)
    return kind(**arguments)


def map_tensors(base: Distribution, fn: Callable[[Tensor], Tensor]) -> Distribution:
    """The same distribution with `fn` (a change of dtype or device) applied to its tensors."""
    try:
        description, tensors = describe(base, "base")
    except ValueError:  # not made of its parameters alone: map whatever tensors it holds
        return _copy(base, fn)
    mapped = {name: fn(tensor) for name, tensor in tensors.items()}
    return rebuild(description, "base", mapped)


def _copy(base: Distribution, fn: Callable[[Tensor], Tensor]) -> Distribution:
    mapped = copy.copy(base)
    for name, value in vars(base).items():
        if isinstance(value, Tensor):
            setattr(mapped, name, fn(value))
        elif isinstance(value, Distribution):
            setattr(mapped, name, _copy(value, fn))
    return mapped


def circular_of(base: Distribution) -> tuple[int, ...]:
    """Which columns of a base are angles, in radians: of a `Cylinder` some, of others none."""
    return base.circular if isinstance(base, Cylinder) else ()
