"""Training, validation and test rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Split", "split"]

MIN_SPLIT_ROWS = 10  # a tenth of fewer rows would be empty


@dataclass(frozen=True, eq=False)
class Split:
    """A partition of row indices, each part in random order.

    Attributes:
        train: Indices of the training rows.
        validation: Indices of the validation rows.
        test: Indices of the test rows.

    Example:
        >>> import numpy as np
        >>> Split(train=np.arange(8), validation=np.array([8]), test=np.array([9])).test
        array([9])
    """

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]


def split(rows: int, seed: int) -> Split:
    """Divide rows at random into 80 % training, 10 % validation and 10 % test.

    The two tenths are rounded down; the parts depend on the number of rows and the seed alone.

    Args:
        rows: Number of rows, at least 10.
        seed: Seed of the permutation, zero or more.

    Returns:
        Indices of the parts.

    Raises:
        ValueError: If there are too few rows, or the seed is negative.

    Example:
        >>> parts = split(25, seed=0)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (21, 2, 2)
    """
    if rows < MIN_SPLIT_ROWS:
        raise ValueError(
            f"Expected at least {MIN_SPLIT_ROWS} rows, to split them 80/10/10; got {rows}: add "
            "rows."
        )
    if seed < 0:
        raise ValueError(f"Expected a seed; got {seed}: give 0 or more.")
    order = np.random.default_rng(seed).permutation(rows)
    tenth = rows // 10
    return Split(train=order[2 * tenth :], validation=order[tenth : 2 * tenth], test=order[:tenth])
