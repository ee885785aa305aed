"""Random numbers of rows that are processed in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOISE_BLOCK_ROWS = 64  # rows whose numbers are drawn together, independent of chunks


class RowNoise:
    """A source of random numbers for the rows of a batch, independent of its chunks.

    A counter-based generator makes a row's numbers a function of the seed, the number of the draw
    and the row's index in the batch. So a second `RowNoise` of the same seed repeats the same draws
    in the same order.

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
        self.draws = 0

    def rademacher(self, shape: Sequence[int]) -> Tensor:
        """Draw −1 or 1 with equal probability, shape (rows, …), on the CPU."""
        return self._draw(shape, lambda rng, size: 2.0 * rng.integers(0, 2, size) - 1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw from N(0, 1), shape (rows, …), on the CPU."""
        return self._draw(shape, lambda rng, size: rng.standard_normal(size, self._numpy_dtype))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw from U[0, 1), shape (rows, …), on the CPU."""
        return self._draw(shape, lambda rng, size: rng.random(size, self._numpy_dtype))

    @property
    def _numpy_dtype(self) -> type[np.float32] | type[np.float64]:
        return np.float64 if self.dtype == torch.float64 else np.float32

    def _draw(
        self,
        shape: Sequence[int],
        sample: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.floating]],
    ) -> Tensor:
        """Draw numbers block by block of rows."""
        rows, *rest = shape
        start = self.first_row // NOISE_BLOCK_ROWS
        end = max(start + 1, -(-(self.first_row + rows) // NOISE_BLOCK_ROWS))
        blocks = [
            sample(self._generator(block), (NOISE_BLOCK_ROWS, *rest)) for block in range(start, end)
        ]
        self.draws += 1
        skipped = self.first_row - start * NOISE_BLOCK_ROWS
        numbers = np.concatenate(blocks)[skipped : skipped + rows]
        return torch.from_numpy(numbers).to(self.dtype)

    def _generator(self, block: int) -> np.random.Generator:
        counter = np.array([0, 0, 0, block], dtype=np.uint64)
        key = np.array([self.seed, self.draws], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=key))
