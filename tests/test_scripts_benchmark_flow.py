"""The benchmark of flows: that all contenders compute one thing, and what the tables print."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from helpers import DOUBLE, Linear
from test_scripts_running import done

from cnf.fields import gated_perceptron
from cnf.fields.analytic import EAGER
from cnf.scripts.benchmarks import contenders, flow_cost
from cnf.scripts.benchmarks.contenders import FFJORD, BenchmarkNetwork, check_agreement

pytest.importorskip("torchdiffeq")

SMALL = BenchmarkNetwork(3, (8, 7, 6), "softplus", rtol=1e-5, atol=1e-5)
TABLE = replace(SMALL, hidden=(8, 7))
TOY = replace(TABLE, dim=2, activation="tanh", rtol=1e-4)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    """Compiled code is tested with the layers: here it would only take long."""
    monkeypatch.setattr(gated_perceptron, "compiled_functions", lambda sizes, device: EAGER)


def pair(network: BenchmarkNetwork) -> tuple[contenders.Ours, FFJORD]:
    """Ours and FFJORD's method on the same weights, in float64."""
    ours = contenders.initial_flow(network)
    ours.module.double()
    return ours, contenders.same_field(ours, exact=True)


def rows(count: int = 20) -> torch.Tensor:
    return 2 * SMALL.rows(count, seed=1).double()


@pytest.mark.parametrize(("activation", "hidden"), [("tanh", (8, 7)), ("softplus", (8, 7, 6))])
def test_ffjords_method_has_our_log_prob_and_gradient_and_about_as_many_evaluations(
    activation, hidden
):
    found = []
    network = BenchmarkNetwork(3, hidden, activation, rtol=1e-9, atol=1e-9)
    for contender in pair(network):
        for _ in range(2):  # the second step does not add to the gradient before
            counts = flow_cost.count_evaluations(contender, rows(10))
        gradient = torch.cat([each.grad.flatten() for each in contender.module.parameters()])
        with torch.no_grad():
            found.append((contender.log_prob(rows(10)), gradient, counts))
    (ours, our_gradient, our_counts), (theirs, their_gradient, their_counts) = found
    torch.testing.assert_close(theirs, ours, rtol=1e-7, atol=1e-7)
    assert (their_gradient - our_gradient).norm() < 1e-3 * our_gradient.norm()
    assert 0.5 < their_counts[0] / our_counts[0] < 2
    assert their_counts[1] > 0


def test_agreement_is_demanded():
    ours, theirs = pair(SMALL)
    check_agreement(ours, theirs, rows())
    with torch.no_grad():
        theirs.module.layers[-1].linear.weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="Expected cnf and FFJORD's method to agree"):
        check_agreement(ours, theirs, rows())


def test_mean_estimate_is_the_exact_divergence():
    ours, exact = pair(SMALL)
    estimate, x = contenders.same_field(ours, exact=False), rows(1).expand(20_000, -1)
    estimate.probe = torch.randint_like(x, 0, 2) * 2 - 1
    given = torch.tensor(0.5, dtype=DOUBLE), (x, x.new_zeros(len(x)))
    (_, found), (_, expected) = estimate(*given), exact(*given)
    assert (found.mean() - expected[0]).abs() < 4 * found.std() / len(x) ** 0.5
    assert found.std() > 0
    # Where the Jacobian is diagonal, one probe is enough: signs square to one.
    tripled = Linear(3 * torch.eye(3, dtype=DOUBLE))
    once, each = (FFJORD(tripled, 1e-9, 1e-9, exact=exact) for exact in (False, True))
    torch.testing.assert_close(once.log_prob(rows()), each.log_prob(rows()))


@patch.object(contenders, "TRAINING_STEPS", 1)
def test_zuko_is_scored_trained_and_counted():
    pytest.importorskip("zuko")
    trained = contenders.trained(contenders.initial_zuko, SMALL)
    initial = contenders.initial_zuko(SMALL)
    forward, backward = flow_cost.count_evaluations(trained, rows().float())
    assert min(forward, backward) > 0
    for own, before in zip(trained.module.parameters(), initial.module.parameters(), strict=True):
        assert own.grad is not None
        assert not torch.equal(own, before)
    assert trained.module.transform.rtol == SMALL.rtol


@pytest.mark.parametrize(
    ("section", "tables", "names"),
    [
        ("toy", 2, ["cnf", "FFJORD's method", "zuko", "cnf, compiled", "floor"]),
        ("table", 1, ["cnf", "cnf, hutchinson", "FFJORD's, hutchinson", "cnf, compiled"]),
        ("log_prob", 1, ["cnf", "cnf, compiled", "FFJORD's method"]),
    ],
)
@patch.multiple(contenders, TRAINING_STEPS=2, TRAINING_BATCH=20)
@patch.multiple(flow_cost, MINIBOONE_NETWORK=TABLE, SCORED_NETWORKS=(TABLE,), TOY_NETWORK=TOY)
@patch.multiple(flow_cost, TABLE_ROWS=20, SCORED_ROWS=20, TOY_BATCH_SIZES=(20,))
def test_tables_have_a_line_for_each_contender(section, tables, names):
    pytest.importorskip("zuko")
    lines = done("benchmark", "flow", "--section", section, "--repeats", "1").splitlines()
    assert sum("threads: 1, median of 1" in line for line in lines) == tables
    found = [line.split("  ")[0] for line in lines if "  " in line.strip()]
    assert [each for each in found if each in names] == tables * names
