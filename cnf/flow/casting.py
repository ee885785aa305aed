"""Casts between the dtype of a caller's tensors and a flow's."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

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


def tensors_of(part: object) -> Iterator[Tensor]:
    """Yield the tensors that a distribution, a transform or a module consists of.

    Also those of distributions, transforms and modules inside it, a flow's base among them.

    Example:
        >>> import torch
        >>> from torch.distributions import AffineTransform, Normal, TransformedDistribution
        >>> loc, shift = torch.zeros(()), torch.ones(())
        >>> base = TransformedDistribution(Normal(loc, 2.0), AffineTransform(shift, 3.0))
        >>> sorted(float(each) for each in tensors_of(base))
        [0.0, 1.0, 2.0]
    """
    seen: set[int] = set()  # a transform and its inverse name each other
    yield from _tensors_within(part, seen)


def _tensors_within(part: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors of a part, but for those of parts that were seen."""
    if isinstance(part, Tensor):
        yield part
        return
    inside: Iterable[object] = ()
    if isinstance(part, list | tuple):
        inside = part
    elif isinstance(part, Distribution | Transform) and id(part) not in seen:
        seen.add(id(part))
        inside = [*vars(part).values()]
    elif isinstance(part, nn.Module):
        own = (each for each in vars(part).values() if isinstance(each, Distribution))
        inside = [*part.parameters(), *part.buffers(), *own]
    for each in inside:
        yield from _tensors_within(each, seen)
