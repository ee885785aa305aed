"""The state of tensors, by which a result that was computed from them is reused or not."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Snapshot:
    """The state of tensors at the time of a computation, with copies of what they hold.

    Args:
        tensors: All tensors that the computation depends on.

    Example:
        >>> x = torch.zeros(2)
        >>> snapshot = Snapshot([x])
        >>> snapshot.matches([x]), snapshot.matches([x.clone()])
        (True, False)
        >>> x.data.add_(1.0)  # as optimizers may
        tensor([1., 1.])
        >>> snapshot.matches([x])
        False
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        given = [*tensors]
        self._marks = [_mark(each) for each in given]
        self._contents = [each.detach().clone() for each in given]
        self._with_grad = torch.is_grad_enabled()

    def matches(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether the same computation of these tensors would give the same result.

        It would not where they are others, or have changed in place, or where gradients are wanted
        that were not recorded.
        """
        if torch.is_grad_enabled() and not self._with_grad:
            return False
        given = [*tensors]
        if [_mark(each) for each in given] != self._marks:
            return False
        # Changes by way of `.data` are counted nowhere: they show in the contents alone.
        return all(map(torch.equal, given, self._contents))


def _mark(tensor: Tensor) -> tuple[object, ...]:
    """Return which tensor this is, and how often it has been changed in place."""
    version = 0 if tensor.is_inference() else tensor._version  # not counted for inference tensors
    return id(tensor), tensor.requires_grad, tensor.dtype, tensor.device, version
