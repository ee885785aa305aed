"""Casts between the dtype of a caller's tensors and a flow's."""

from collections.abc import Iterator

from torch import Tensor
from torch.distributions import Distribution

from cnf.utils.shapes import check_tensors


def cast_points(like: Tensor, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return points and contexts in the dtype of another tensor.

    Raises:
        TypeError: x or the context is no tensor.
        ValueError: One is not of a floating dtype, or on another device.

    Example:
        >>> import torch
        >>> cast_points(torch.zeros(0), torch.zeros(2, dtype=torch.float64), None)
        (tensor([0., 0.]), None)
        >>> cast_points(torch.zeros(0), torch.arange(2), None)
        Traceback (most recent call last):
        ValueError: Expected x of a floating dtype; got torch.int64: pass x.to(torch.float32)
    """
    check_tensors(x=x, context=context)
    given = None if context is None else cast_tensor(like, "context", context)
    return cast_tensor(like, "x", x), given


def cast_tensor(like: Tensor, name: str, value: Tensor) -> Tensor:
    """Return a tensor in the dtype of another one; errors are those of `cast_points`."""
    if not value.is_floating_point():
        raise ValueError(
            f"Expected {name} of a floating dtype; got {value.dtype}: pass {name}.to({like.dtype})"
        )
    if value.device != like.device:
        raise ValueError(
            f"Expected {name} on the flow's device, {like.device}; got {value.device}: pass "
            f"{name}.to({str(like.device)!r})"
        )
    return value.to(like.dtype)


def tensors_of(base: Distribution) -> Iterator[Tensor]:
    """Yield the tensors of real numbers that a distribution, or one inside it, consists of.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> [each.dtype for each in tensors_of(Independent(Normal(torch.zeros(2), 1.0), 1))]
        [torch.float32, torch.float32]
    """
    for value in vars(base).values():
        if isinstance(value, Distribution):
            yield from tensors_of(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            yield value
