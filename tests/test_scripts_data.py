"""Rows to train on and rows to score share nothing."""

import numpy as np
import pytest

from cnf.datasets import CONDITIONAL_TOYS, TOYS
from cnf.scripts.data import ColumnChoices, open_data, open_rows, true_log_prob
from cnf.tables.schema import Column, Schema


def real(names):
    """Columns of real numbers."""
    return Schema(tuple(Column(name) for name in names))


@pytest.mark.parametrize("name", [*TOYS, *CONDITIONAL_TOYS])
@pytest.mark.parametrize("seed", [0, 5])
def test_fresh_rows_of_a_toy_share_no_number_with_the_others(name, seed):
    """Not a coordinate: the same stream of random numbers would show in one."""
    data = open_data(name, seed)
    fresh, toy = open_rows(name, data.schema, data.context_columns, seed)
    assert toy is data.toy is {**TOYS, **CONDITIONAL_TOYS}[name]
    parts = [rows.joined() for rows in (data.train, data.validation, data.test, fresh)]
    for i, part in enumerate(parts):
        for other in parts[:i]:
            assert not np.isin(part[:, 0], other[:, 0]).any()


@pytest.mark.parametrize("columns", [("y",), ("x",)])
def test_a_toy_has_no_known_truth_given_one_of_its_own_columns(columns):
    context = tuple({"x", "y"} - set(columns))
    data = open_data("moons", 0, ColumnChoices(context))
    assert (data.schema.names, data.context_columns, data.toy) == (columns, context, None)
    assert open_rows("moons", real(columns), context, 0)[1] is None
    plain = open_data("moons", 0).test.x
    place = "xy".index(columns[0])
    np.testing.assert_array_equal(data.test.x, plain[:, [place]])
    np.testing.assert_array_equal(data.test.context, plain[:, [1 - place]])


@pytest.mark.parametrize(
    ("columns", "context"), [(("y", "x"), ()), (("x",), ()), (("c", "x"), ("y",)), (("c",), ())]
)
def test_a_toy_is_the_truth_of_its_own_columns_only(columns, context):
    """In another order or given something else they have another density."""
    name = "rotor" if "c" in columns else "moons"
    assert open_rows(name, real(columns), context, 0)[1] is None


@pytest.mark.parametrize("name", ["moons", "rotor"])
def test_true_log_density_is_the_toys(name):
    data = open_data(name, 0)
    rows = data.test[:20]
    given = (rows.context,) if data.context_columns else ()
    np.testing.assert_array_equal(true_log_prob(data.toy, rows), data.toy.log_prob(rows.x, *given))
