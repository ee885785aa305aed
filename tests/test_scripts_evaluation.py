"""Standard errors of rows that repeat each other, and the Gaussian baseline of few rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import sem

from cnf.scripts.evaluation import clustered_stderr
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.rows import ContextRows, no_context

RNG = np.random.default_rng(0)


@given(
    values=st.lists(st.floats(-100, 100), min_size=2, max_size=30),
    copies=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_copies_of_rows_leave_the_standard_error_as_it_is(values, copies, seed):
    values, order = np.array(values), np.random.default_rng(seed).permutation(len(values) * copies)
    expected, groups = sem(values), np.arange(len(values))
    found = clustered_stderr(np.tile(values, copies)[order], np.tile(groups, copies)[order])
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_error_of_unequal_groups_covers_the_scatter_of_means():
    groups = np.repeat(np.arange(40), RNG.integers(1, 6, 40))
    drawn = RNG.normal(size=(2000, 40))[:, groups]
    found = [clustered_stderr(values, groups) for values in drawn]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(drawn.mean(1).std(), rel=0.05)
    assert clustered_stderr(drawn[0], np.zeros(len(groups))) is None


def baseline_nll(rows, count):
    """The NLL of the rest by the baseline of the first rows, and by the plain Gaussian of them."""
    train, test = (ContextRows(part, no_context(len(part))) for part in np.split(rows, [count]))
    plain = GaussianBaseline(train.x.mean(0), np.cov(train.x.T, bias=True))
    return tuple(-each.log_prob(test).mean() for each in (GaussianBaseline.fit(train), plain))


def test_the_baseline_is_shrunk_where_rows_are_few_and_only_there():
    mixing, units = RNG.normal(size=(10, 10)), 10.0 ** RNG.integers(-3, 4, 200)
    many = RNG.normal(size=(12_000, 10)) @ mixing
    shrunk, plain = baseline_nll(many, 10_000)
    assert shrunk == pytest.approx(plain, abs=1e-6)
    near = np.column_stack([many, many[:, 0] + 1e-3 * RNG.normal(size=12_000)])
    shrunk, plain = baseline_nll(near, 2000)
    assert shrunk == pytest.approx(plain, abs=1e-2)
    # 240 rows of 200 columns: the entropy is that of the units and 200 normal columns.
    shrunk, plain = baseline_nll(RNG.normal(size=(1240, 200)) * units, 240)
    entropy = np.log(units).sum() + 100 * np.log(2 * np.pi * np.e)
    assert entropy - 1 < shrunk < entropy + 2 < plain - 100
