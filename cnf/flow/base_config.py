"""Base distributions as configuration: to JSON and named tensors, and back."""

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from cnf.flow.cylinder import Cylinder

# Constructor arguments that attributes of other names hold.
_ATTRIBUTES = {"base_distribution": "base_dist", "lims": "_lims", "validate_args": "_validate_args"}


def describe(base: Distribution, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a distribution of `torch.distributions` or a `Cylinder` as JSON, and its tensors.

    The tensors' names start with the prefix.

    Raises:
        ValueError: The distribution is neither, or is not made of tensors, numbers and
            distributions alone.

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
    for part, value in _arguments(base).items():
        if isinstance(value, Distribution):
            inner, inner_tensors = describe(value, f"{prefix}.{part}")
            description["parts"][part] = inner
            tensors |= inner_tensors
        elif isinstance(value, Tensor):
            description["parts"][part] = None
            tensors[f"{prefix}.{part}"] = value
        elif _is_numeric(value):
            description["numbers"][part] = value
        else:
            found = " ".join(repr(value).split())
            raise ValueError(
                "Expected a base made of tensors, numbers and distributions to save; got "
                f"{name}, whose {part} is {found:.60}: save flow.state_dict() yourself, and make "
                "the base anew before loading it"
            )
    return description, tensors


def _kind(name: str) -> Any:
    return Cylinder if name == "Cylinder" else getattr(torch.distributions, name, None)


def _arguments(base: Distribution) -> dict[str, Any]:
    """Return the constructor arguments that make a distribution anew, by name."""
    names = [*signature(type(base)).parameters]
    left_out = set()
    if "scale_tril" in names:  # which is kept, whatever of the three was given
        left_out = {"covariance_matrix", "precision_matrix"}
    if "probs" in names and "logits" in names:
        left_out = {"probs", "logits"} - {_given(base)}
    if "_validate_args" not in vars(base):  # PyTorch's default, which may be another on loading
        left_out.add("validate_args")
    kept = [name for name in names if name not in left_out]
    return {name: getattr(base, _ATTRIBUTES.get(name, name), None) for name in kept}


def _given(base: Distribution) -> str:
    """Return which of `probs` and `logits` a distribution was made from."""
    part: Any = base
    while (inner := getattr(part, "base_dist", getattr(part, "_categorical", None))) is not None:
        part = inner
    kept = vars(part)  # whichever was not given is computed on first use, and kept then too
    if "_param" in kept:
        return "probs" if kept["_param"] is kept.get("probs") else "logits"
    return "logits" if "logits" in kept else "probs"


def _is_numeric(value: Any) -> bool:
    values = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(each, int | float) for each in values)


def rebuild(description: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> Distribution:
    """Return the distribution that `describe` described.

    Raises:
        ValueError: The description names no such distribution, or a tensor is not of real numbers.
    """
    name = description["class"]
    kind = _kind(str(name))
    if not (isinstance(kind, type) and issubclass(kind, Distribution)):
        raise ValueError(f"Expected a base of torch.distributions; got {name!r}")
    arguments = dict(description["numbers"])
    for part, inner in description["parts"].items():
        full = f"{prefix}.{part}"
        if inner is not None:
            arguments[part] = rebuild(inner, full, tensors)
        elif tensors[full].is_floating_point():
            arguments[part] = tensors[full]
        else:
            raise ValueError(f"Expected real numbers for {full}; got {tensors[full].dtype}")
    made = kind(**arguments)
    if isinstance(made, Categorical):  # which has normalised, and so rounded, once more
        for part in {"probs", "logits"} & arguments.keys():
            setattr(made, part, arguments[part])
            made._param = arguments[part]
    return made


def map_tensors(base: Distribution, fn: Callable[[Tensor], Tensor]) -> Distribution:
    """Return a distribution with `fn`, a change of dtype or device, applied to its tensors."""
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
