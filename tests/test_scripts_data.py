"""Rows to train on and rows to score share nothing."""

import numpy as np
import pytest

from cnf.datasets import TOYS
from cnf.scripts.data import open_data, open_rows


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("seed", [0, 5])
def test_fresh_rows_of_a_toy_share_no_number_with_the_others(name, seed):
    """Not a coordinate: the same stream of random numbers would show in one."""
    data = open_data(name, seed)
    fresh, toy = open_rows(name, ("x", "y"), seed)
    assert toy is TOYS[name]
    parts = [data.train, data.validation, data.test, fresh]
    for i, part in enumerate(parts):
        for other in parts[:i]:
            assert not np.isin(part[:, 0], other[:, 0]).any()
