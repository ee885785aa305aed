"""The two-sample test: it cannot tell what is alike, and tells what is not."""

import numpy as np
import pytest

from cnf.diagnostics.two_sample import two_sample_test


def normal(rows, loc=0.0, seed=0):
    return np.random.default_rng(seed).normal(loc, size=(rows, 3))


def test_what_is_alike_cannot_be_told():
    found = two_sample_test(normal(1000), normal(1000, seed=1))
    assert abs(found.accuracy - 0.5) < 4 * found.stderr
    assert found.stderr == pytest.approx(0.5 / np.sqrt(2000), rel=0.05)


def test_a_shift_is_told_about_as_well_as_it_can_be():
    # The best rule is right with probability Φ(‖μ‖ / 2), here Φ(√3 / 2) = 0.807.
    found = two_sample_test(normal(3000), normal(3000, loc=1.0, seed=1))
    assert 0.77 < found.accuracy < 0.82


def test_as_many_rows_of_each_are_taken_and_the_seed_says_which():
    data, samples = normal(400), normal(100, seed=1)
    assert two_sample_test(data, samples).rows == 200
    assert two_sample_test(data, samples) == two_sample_test(data, samples)


@pytest.mark.parametrize("shape", [(100, 2), (4, 3)])
def test_mistakes(shape):
    with pytest.raises(ValueError, match="the same columns and at least 5 rows each; got shapes"):
        two_sample_test(normal(100), np.zeros(shape))
