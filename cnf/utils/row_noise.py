"""Random numbers for rows that are gone through in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 64  # rows whose numbers are drawn together, wherever chunks begin


class RowNoise:
    """Random numbers that belong to the rows of a batch, whatever the chunks it comes in.

    Each time that it is asked is another place with numbers of its own. Those of a row depend on
    the seed, the place and the row's number in the batch alone, by a generator that counts: so a
    second pass through the same places, with another `RowNoise` of the same seed, meets the same.

    Args:
        seed: At least 0.
        dtype: In which precision they are drawn; what needs them in another one casts them.
        first: The number in the batch of the first row of the chunk.

    Source: Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3 (Philox).

    Example:
        >>> whole, rest = (RowNoise(0, torch.float32, first) for first in (0, 3))
        >>> torch.equal(whole.normal((5, 2))[3:], rest.normal((2, 2)))
        True
    """

    def __init__(self, seed: int, dtype: torch.dtype, first: int = 0) -> None:
        self.seed, self.dtype, self.first = seed, dtype, first
        self.place = 0

    def signs(self, shape: Sequence[int]) -> Tensor:
        """−1 or 1 alike, of a shape (rows, …), on the CPU."""
        return self._drawn(shape, lambda rng, size: 2.0 * rng.integers(0, 2, size) - 1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """From N(0, 1), of a shape (rows, …), on the CPU."""
        return self._drawn(shape, lambda rng, size: rng.standard_normal(size, self._kind))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """From U[0, 1), of a shape (rows, …), on the CPU."""
        return self._drawn(shape, lambda rng, size: rng.random(size, self._kind))

    @property
    def _kind(self) -> type[np.float32] | type[np.float64]:
        return np.float64 if self.dtype == torch.float64 else np.float32

    def _drawn(
        self,
        shape: Sequence[int],
        draw: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.floating]],
    ) -> Tensor:
        """The next place's numbers, block by block of rows."""
        rows, *rest = shape
        start = self.first // BLOCK
        end = max(start + 1, -(-(self.first + rows) // BLOCK))
        blocks = [draw(self._generator(block), (BLOCK, *rest)) for block in range(start, end)]
        self.place += 1
        skipped = self.first - start * BLOCK
        numbers = np.concatenate(blocks)[skipped : skipped + rows]
        return torch.from_numpy(numbers).to(self.dtype)

    def _generator(self, block: int) -> np.random.Generator:
        counter = np.array([0, 0, 0, block], dtype=np.uint64)
        key = np.array([self.seed, self.place], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=key))
