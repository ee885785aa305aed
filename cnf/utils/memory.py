"""Memory of the process, which the C library may return to the system too eagerly."""

from functools import cache

import torch

LARGEST_KEPT = 2**25 - 2**16  # bytes: the largest block that changes glibc's thresholds


@cache
def keep_freed_memory() -> None:
    """Have freed memory of up to 64 MiB stay with the process, once.

    Where the C library returns the memory of each intermediate tensor to the system, the next one
    is mapped and cleared page by page, which takes several times as long as its arithmetic. glibc
    raises the thresholds of that to the size of blocks that were freed: one block, never touched,
    raises them to their largest. Elsewhere this does nothing, nor where the environment sets them.
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8)
