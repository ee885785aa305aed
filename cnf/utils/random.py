"""PyTorch's random generators, seeded for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed PyTorch's generators within a block, and restore their states after it.

    Args:
        seed: Any that `torch.manual_seed` takes.
        device: A CUDA device whose generator is seeded and restored as well as the CPU's.

    Example:
        >>> state = torch.get_rng_state()
        >>> with seeded(0):
        ...     one = torch.randn(3)
        >>> with seeded(0):
        ...     assert torch.equal(torch.randn(3), one)
        >>> torch.equal(torch.get_rng_state(), state)
        True
    """
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield
