"""Several processes on one run: who this one is, and what they tell one another.

Everything here is the identity where there is one process, so that its callers need not ask.
`torchrun` starts the processes; `process_group` joins them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, and part from them in the end.

    They talk by nccl where there is a GPU for each, which becomes the current one, by gloo
    otherwise. Does nothing where there is one process, or a group already.

    Example:
        >>> with process_group():
        ...     rank(), world_size()
        (0, 1)
    """
    if is_alone() or dist.is_initialized():
        yield
        return
    on_gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 0
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Functions of this module have as a default the group that is there when it is imported, as
    # DistributedDataParallel does: the group, and its threads, would live on beyond their end.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Grad strides do not match")  # not the user's to mend
            yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_alone() -> bool:
    """Whether this is the only process, joined or not.

    Example:
        >>> is_alone()
        True
    """
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_first() -> bool:
    """Whether this is the first of the processes that `torchrun` started, joined or not, or alone.

    Example:
        >>> is_first()
        True
    """
    return is_alone() or os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int) -> slice:
    """This process's part of `count` things: consecutive, and as long as the others' but for one.

    Example:
        >>> share(10)
        slice(0, 10, None)
    """
    bounds = (count * process // world_size() for process in (rank(), rank() + 1))
    return slice(*bounds)


def mean(values: Sequence[float], like: Tensor) -> list[float]:
    """The means over all processes, the same in each, computed where `like` lies."""
    if world_size() == 1:
        return list(values)
    summed = total(torch.tensor(values, dtype=torch.float64, device=like.device))
    found: list[float] = (summed / world_size()).tolist()
    return found


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, the same in each."""
    if world_size() == 1:
        return tensor
    summed = tensor.clone()
    dist.all_reduce(summed)
    return summed


def gather(value: Any) -> list[Any]:
    """Every process's value, in their order, in each."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def parallel(module: nn.Module) -> nn.Module:
    """A module whose gradients are averaged over the processes, and that is what rank 0's is."""
    if world_size() == 1:
        return module
    devices = [torch.cuda.current_device()] if next(module.parameters()).is_cuda else None
    # Not every objective reaches every parameter.
    return DistributedDataParallel(module, devices, find_unused_parameters=True)
