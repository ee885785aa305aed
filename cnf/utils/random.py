"""Random numbers: PyTorch's generators seeded for a block of code, and noise by row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]

# Digits of random fractions: half a last one more is still exact in double precision.
DOUBLE_BITS, SINGLE_BITS = 52, 24
# SplitMix64's increment, and the shifts and factors of its output function.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)


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
    """A source of random numbers for rows, which are functions of the rows' values.

    A row's numbers depend on the seed, the number of the draw and the values of the row and its
    context: to the bit, whatever batch, chunk or position it stands in, and whatever process draws
    them. Rows that are equal in single precision have equal numbers, in any dtype; −0 is 0. A
    second `RowNoise` of the same seed and rows repeats the draws.

    Args:
        seed: Any whole number, of which the last 64 bits count.
        x: The rows, shape (rows, columns), whose dtype is that of the draws; callers cast them to
            another one.
        context: Their contexts, shape (rows, context_dim).

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators
    (SplitMix64), of which each row is a generator that starts at the hash of its values.

    Example:
        >>> x = torch.randn(5, 2)
        >>> whole, rest = RowNoise(0, x), RowNoise(0, x[3:])
        >>> torch.equal(whole.normal((5, 4))[3:], rest.normal((2, 4)))
        True
    """

    def __init__(self, seed: int, x: Tensor, context: Tensor | None = None) -> None:
        self.seed, self.dtype = seed, x.dtype
        self.rows = [part for part in (x, context) if part is not None]
        self.draws = 0

    @cached_property
    def keys(self) -> Words:
        """A number for each row, computed where any noise is drawn."""
        return _hash_rows(*map(_bits, self.rows))

    def rademacher(self, shape: Sequence[int]) -> Tensor:
        """Draw −1 or 1 with equal probability, shape (rows, …), on the CPU."""
        count = prod(shape[1:])
        words = self._words(shape[0], -(-count // 64))
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=count)
        return self._tensor(1 - 2 * bits.view(np.int8), shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw from N(0, 1), shape (rows, …), on the CPU."""
        from scipy.special import ndtri  # here, since it takes long to import

        middles = self._fractions(shape, DOUBLE_BITS)
        middles += 0.5 * 2.0**-DOUBLE_BITS
        return self._tensor(ndtri(middles, out=middles), shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw from U[0, 1), shape (rows, …), on the CPU."""
        bits = DOUBLE_BITS if self.dtype == torch.float64 else SINGLE_BITS
        return self._tensor(self._fractions(shape, bits), shape)

    def _fractions(self, shape: Sequence[int], bits: int) -> NDArray[np.floating[Any]]:
        """Draw numbers in [0, 1) of so many bits, shape (rows, numbers)."""
        words = self._words(shape[0], prod(shape[1:]))
        words >>= np.uint64(64 - bits)
        return words.view(np.int64) * 2.0**-bits

    def _words(self, rows: int, count: int) -> Words:
        """Return words of 64 random bits, shape (rows, count)."""
        self.draws += 1
        salt = _hash_rows(np.array([[self.seed % 2**64, self.draws]], dtype=np.uint64))
        keys = np.resize(self.keys, rows)  # copies that pad a batch follow its rows in their order
        places = np.arange(1, count + 1, dtype=np.uint64) * _INCREMENT
        return _mix(_mix(keys + salt)[:, None] + places)

    def _tensor(self, numbers: NDArray[Any], shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(numbers).to(self.dtype).reshape(tuple(shape))


def _bits(values: Tensor) -> Words:
    """Return the bits of numbers in single precision: one pattern for zeros, one for NaNs."""
    numbers = values.detach().cpu().float().numpy() + np.float32(0)  # a copy, in which −0 is 0
    numbers[np.isnan(numbers)] = np.nan
    return numbers.view(np.uint32).astype(np.uint64)


def _hash_rows(*parts: Words) -> Words:
    """Return a number for each row of words, (rows, columns) → (rows,)."""
    words = np.concatenate(parts, axis=1)
    places = _mix(np.arange(1, words.shape[1] + 1, dtype=np.uint64) * _INCREMENT)
    return _mix(_mix(words + places).sum(axis=1, dtype=np.uint64))


def _mix(words: Words) -> Words:
    """Apply SplitMix64's output function, a bijection, in place."""
    shifted = np.empty_like(words)
    for shift, factor in _ROUNDS:
        words ^= np.right_shift(words, shift, out=shifted)
        words *= factor
    words ^= np.right_shift(words, _LAST_SHIFT, out=shifted)
    return words
