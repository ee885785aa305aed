"""Memory: of the process, which the C library may return too eagerly, and of tensors."""

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


class PeakMemory(TorchDispatchMode):
    """The memory of the tensors that are made while this context is open.

    Attributes:
        live: Bytes of those that are alive.
        peak: The most that were alive at a time.

    Example:
        >>> with PeakMemory() as memory:
        ...     total = (torch.ones(1000) + torch.ones(1000)).sum()
        >>> memory.peak, memory.live
        (12000, 4)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # whose import takes seconds, and its wrapper longer than the counting

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def forget(_: Any) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, forget)
