"""Random numbers: PyTorch's generators seeded for a block of code, and noise by row."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOISE_BLOCK_ROWS = 64  # rows whose numbers are drawn together, independent of chunks


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


class RowNoise:
    """A source of random numbers for the rows of a batch, independent of its chunks.

    A counter-based generator makes a row's numbers a function of the seed, the number of the draw
    and the row's index in the batch: a second `RowNoise` of the same seed repeats the draws.

    Args:
        seed: Seed, at least 0.
        dtype: Precision of the draws; callers cast them to another one.
        first_row: Index in the batch of the chunk's first row.

    Source: Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3 (Philox).

    Example:
        >>> whole, rest = (RowNoise(0, torch.float32, row) for row in (0, 3))
        >>> torch.equal(whole.normal((5, 2))[3:], rest.normal((2, 2)))
        True
    """

    def __init__(self, seed: int, dtype: torch.dtype, first_row: int = 0) -> None:
        self.seed, self.dtype, self.first_row = seed, dtype, first_row
        self.numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
        self.draws = 0

    def rademacher(self, shape: Sequence[int]) -> Tensor:
        """Draw −1 or 1 with equal probability, shape (rows, …), on the CPU."""
        return self._draw(shape, lambda rng, size: 2.0 * rng.integers(0, 2, size) - 1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw from N(0, 1), shape (rows, …), on the CPU."""
        return self._draw(shape, lambda rng, size: rng.standard_normal(size, self.numpy_dtype))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw from U[0, 1), shape (rows, …), on the CPU."""
        return self._draw(shape, lambda rng, size: rng.random(size, self.numpy_dtype))

    def _draw(
        self,
        shape: Sequence[int],
        sample: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.floating]],
    ) -> Tensor:
        rows, *rest = shape
        start = self.first_row // NOISE_BLOCK_ROWS
        end = max(start + 1, -(-(self.first_row + rows) // NOISE_BLOCK_ROWS))
        blocks = []
        for block in range(start, end):
            counter = np.array([0, 0, 0, block], dtype=np.uint64)
            key = np.array([self.seed, self.draws], dtype=np.uint64)
            rng = np.random.Generator(np.random.Philox(counter=counter, key=key))
            blocks.append(sample(rng, (NOISE_BLOCK_ROWS, *rest)))
        self.draws += 1
        skipped = self.first_row - start * NOISE_BLOCK_ROWS
        numbers = np.concatenate(blocks)[skipped : skipped + rows]
        return torch.from_numpy(numbers).to(self.dtype)
