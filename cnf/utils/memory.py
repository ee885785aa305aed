"""Memory of the process, which the C library may return to the system too eagerly."""

from functools import cache

import torch

HEAP_BLOCK = 2**25 - 2**16  # bytes; a little less than the largest that glibc has in its heap


@cache
def hold_freed_memory() -> None:
    """Make the C library hold freed memory for later tensors instead of returning it.

    It returns a free end of its heap that is longer than twice the largest block freed so far, up
    to 64 MiB (mallopt(3), M_TRIM_THRESHOLD of glibc), so it has to have seen such a block, which
    takes no memory as nothing is written to it. Getting the pages of a freed tape again took up to
    a quarter of the forward time of a toy network's training step with 512 rows, and half of the
    time of two explicit steps. Elsewhere this does nothing, nor where the environment sets it.
    """
    torch.empty(HEAP_BLOCK, dtype=torch.uint8, device="cpu")
