"""The support of a flow: the exact range of its layers."""

import pytest
import torch
from helpers import DOUBLE, refused, scaled, standard
from torch.distributions import Exponential, Independent, Uniform, constraints

import cnf
from cnf.flow.cylinder import Cylinder
from cnf.layers import Argmax, Bounded, Concatenate, Constant, Dequantize, Identity, Positive
from cnf.tables.schema import Column, Schema

pytestmark = pytest.mark.usefixtures("validating")

COUNTS = [Bounded([0.0], [4.0]), Dequantize(1)]  # 0 to 3
CONSTANT = Concatenate([Identity(1), Constant([0.1])], [[1], [0]])
SIDE_BY_SIDE = Concatenate([Positive([0.0]), Identity(1)], [[1], [0]])
SQUARE = Independent(Uniform(torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)), 1)
EXPONENTIAL = Independent(Exponential(torch.ones(1, dtype=DOUBLE)), 1)
# Layers, base, rows in the support and rows outside.
CASES = {
    "positive": ([Positive([2.0])], standard(1), [[2.1], [1e6]], [[2.0], [1.0], [float("nan")]]),
    "bounded": ([Bounded([0.0], [1.0])], standard(1), [[0.0], [0.5], [1.0]], [[-1e-9], [1.1]]),
    "whole": ([Dequantize(1)], standard(1), [[-7.0], [0.0]], [[0.5]]),
    "counts": (COUNTS, standard(1), [[0.0], [3.0]], [[-1.0], [4.0], [1.5]]),
    "category": ([Argmax([0.5, 0.3, 0.2])], standard(2), [[0.0], [2.0]], [[3.0], [-1.0], [0.5]]),
    "constant": ([CONSTANT], standard(1), [[0.1, 5.0], [0.1, -5.0]], [[0.2, 5.0]]),
    "side by side": ([SIDE_BY_SIDE], standard(2), [[-3.0, 1.0]], [[1.0, -3.0], [1.0, 0.0]]),
    "10 + 2 (0, ∞)": ([Positive([0.0]), scaled([10.0], [2.0])], standard(1), [[11.0]], [[9.0]]),
    "1 + 2 (0, 1)": ([scaled([1, 1], [2, 2])], SQUARE, [[1.1, 2.9]], [[0.9, 2.0], [2.0, 3.1]]),
    "e^(0, ∞)": ([Positive([0.0])], EXPONENTIAL, [[1.1]], [[0.9], [-1.0]]),
}


@pytest.mark.parametrize("name", CASES)
def test_support_contains_the_rows_in_range_which_have_a_density_and_preimages(name):
    layers, base, inside, outside = CASES[name]
    flow = cnf.Flow(base, layers).double()
    support = flow.support()
    assert support.event_dim == 1
    assert support.is_discrete == flow.noisy
    rows = torch.tensor([*inside, *outside], dtype=DOUBLE)
    expected = torch.tensor([True] * len(inside) + [False] * len(outside))
    state = torch.get_rng_state()
    assert torch.equal(support.check(rows), expected)
    assert torch.equal(support.check(rows.unsqueeze(1)), expected.unsqueeze(1))
    assert torch.equal(torch.get_rng_state(), state)  # noise is not drawn
    assert support.check(rows[0]).shape == ()
    assert support.check(rows[:0]).shape == (0,)
    assert support.check(flow.sample(200)).all()
    x = torch.tensor(inside, dtype=DOUBLE)
    assert flow.log_prob(x).isfinite().all()
    if name in ("positive", "bounded", "whole", "counts", "category", "side by side"):
        without = rows[~expected & rows.isfinite().all(1)]
        assert (flow.log_prob(without) == -torch.inf).all()
        assert (flow.score(without).log_prob == -torch.inf).all()
    for layer in reversed(flow.layers):  # preimages are taken to their rows
        z = layer.preimage(x)
        torch.testing.assert_close(layer(z)[0], x, rtol=1e-6, atol=1e-9)
        assert layer.in_range(x).all()
        x = z


def test_real_vectors_are_called_so_and_angles_are_in_every_turn():
    layers = [cnf.CNF(cnf.ConcatSquash(2, (4,))), cnf.Whiten(2), Identity(2)]
    assert cnf.Flow(standard(2), layers).support() is constraints.real_vector
    assert cnf.ffjord(2, hidden=(4,), batch_norm=True).support() is constraints.real_vector
    base = Cylinder(torch.zeros(1), torch.ones(1), circular=(0,))
    layers = [cnf.layers.Circular(1, 0.0, 360.0), Identity(1)]
    flow = cnf.Flow(base, [Concatenate(layers, [[0], [1]])])
    assert flow.support() is constraints.real_vector
    assert flow.log_prob(torch.tensor([[400.0, 0.0]])).isfinite()


def test_a_table_of_every_kind():
    columns = (
        Column("real"),
        Column("positive", "positive"),
        Column("bounded", "bounded", 0.0, 1.0),
        Column("hour", "circular", 0.0, 24.0),
        Column("count", "integer", 0.0),
        Column("dice", "integer", 1.0, 6.0),
        Column("colour", "categorical", categories=("red", "green", "blue")),
        Column("same", "constant", 7.0),
    )
    good = torch.tensor([0.0, 1.0, 0.5, 25.0, 3.0, 6.0, 2.0, 7.0], dtype=DOUBLE)
    schema = Schema(columns)
    layers = schema.layers(good.repeat(3, 1).numpy())
    flow = cnf.ffjord(schema.width, hidden=(4,), columns=layers).double()
    support = flow.support()
    assert support.check(good)
    for i, value in {1: -1.0, 2: 1.5, 4: -1.0, 5: 7.0, 6: 3.0, 7: 8.0}.items():
        row = good.clone()
        row[i] = value
        assert not support.check(row)
    drawn = flow.sample(500)
    assert support.check(drawn).all()
    schema.check(drawn.numpy())
    assert ((drawn[:, 3] >= 0) & (drawn[:, 3] < 24)).all()
    assert flow.circular == (3,)
    assert "'positive', 'low': [0.0]" in repr(support)


def test_where_a_solve_stands_between_it_is_of_the_context():
    """Positive on the base's side of a flow that moves by the context: x > context."""

    class Drift(torch.nn.Module):
        def forward(self, t, x, context):
            return context.expand_as(x)

    flow = cnf.Flow(standard(1), [Positive([0.0]), cnf.CNF(Drift())], scaled([1.0], [2.0])).double()
    context = torch.tensor([[1.0], [5.0]], dtype=DOUBLE)  # as the layers get it 0 and 2
    x = torch.tensor([[[1.0]], [[3.0]], [[-1.0]]], dtype=DOUBLE)
    expected = torch.tensor([[True, False], [True, True], [False, False]])
    assert torch.equal(flow.support(context).check(x), expected)
    assert flow.distribution(context).log_prob(x[1]).isfinite().all()
    refused("support", flow.distribution(context).log_prob, x[0])
