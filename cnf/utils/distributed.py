"""Processes of a distributed run: ranks, collective operations and data parallelism.

Every function is the identity where there is one process, so that callers need not distinguish.
`torchrun` starts the processes; `process_group` joins them.
"""

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

from cnf.utils.launch import is_alone


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, and leave their group at the end.

    The backend is nccl where there is a GPU for each process, which becomes the current one, and
    gloo otherwise. Does nothing where there is one process, or a group already.

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
    # Functions of this module have the current group as a default, fixed at import. An import after
    # the group exists, as by DistributedDataParallel, would keep the group and its threads alive.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        barrier()  # one that fails and leaves while others still connect would have them hang
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Grad strides do not match")  # users cannot fix it
            yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_slice(count: int) -> slice:
    """Return the consecutive part of `count` items for this process.

    The parts of all processes differ in length by at most one.

    Example:
        >>> local_slice(10)
        slice(0, 10, None)
    """
    bounds = (count * process // world_size() for process in (rank(), rank() + 1))
    return slice(*bounds)


def mean(values: Sequence[float], like: Tensor) -> list[float]:
    """Return the means over all processes, the same in each, computed on the device of `like`."""
    if world_size() == 1:
        return list(values)
    summed = total(torch.tensor(values, dtype=torch.float64, device=like.device))
    return [value / world_size() for value in summed.tolist()]


def total(tensor: Tensor) -> Tensor:
    """Return the sum over all processes, the same in each."""
    if world_size() == 1:
        return tensor
    summed = tensor.clone()
    dist.all_reduce(summed)
    return summed


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in their order, in each."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        dist.barrier()


def parallel(module: nn.Module) -> nn.Module:
    """Return a module with rank 0's weights whose gradients are averaged over the processes."""
    if world_size() == 1:
        return module
    devices = [torch.cuda.current_device()] if next(module.parameters()).is_cuda else None
    # Not every objective reaches every parameter.
    return DistributedDataParallel(module, devices, find_unused_parameters=True)
