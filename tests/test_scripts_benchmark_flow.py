"""The benchmark of flows: that all contenders compute one thing, and what the tables print."""

import dataclasses
import sys

import pytest
import torch
from test_scripts_running import complaint, done
from torch import nn

from cnf.fields import gated_perceptron
from cnf.fields.analytic import EAGER
from cnf.scripts.benchmarks import networks, scoring, step_memory, training_step
from cnf.scripts.benchmarks.contenders import FFJORD, Ours, Zuko, check_agreement
from cnf.scripts.benchmarks.ffjord import (
    AugmentedDynamics,
    ConcatSquashNetwork,
    estimated_divergence,
    rademacher,
)
from cnf.scripts.benchmarks.networks import BenchmarkNetwork, initial_flow, initial_zuko, same_field

pytest.importorskip("torchdiffeq")

SMALL = BenchmarkNetwork(3, (8, 7, 6), "softplus", rtol=1e-5, atol=1e-5)
TIGHT = dataclasses.replace(SMALL, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    """Compiled code is tested with the layers: here it would only take long."""
    monkeypatch.setattr(gated_perceptron, "compiled_functions", lambda sizes, device: EAGER)


def pair(network: BenchmarkNetwork) -> tuple[Ours, FFJORD]:
    """Ours and FFJORD's method on the same weights, in float64."""
    flow = initial_flow(network).double()
    return Ours("cnf", flow), same_field(flow, network, exact=True)


def rows(count: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(count, SMALL.dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("activation", networks.ACTIVATION_MODULES)
def test_log_prob_of_ffjords_method_is_ours(activation):
    ours, theirs = pair(dataclasses.replace(TIGHT, activation=activation))
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.score(rows()).log_prob, ours.score(rows()).log_prob, rtol=1e-7, atol=1e-7
        )


@pytest.mark.parametrize("hidden", [(8, 7), (8, 7, 6)])
def test_gradient_of_ffjords_method_is_ours(hidden):
    gradients = []
    for contender in pair(dataclasses.replace(TIGHT, hidden=hidden)):
        training_step.count_evaluations(contender, rows())
        gradients.append([parameter.grad for parameter in contender.module.parameters()])
    for expected, found in zip(*gradients, strict=True):
        assert (found - expected).norm() < 1e-3 * expected.norm()


def test_ffjords_method_takes_about_as_many_evaluations_as_ours():
    ours, theirs = (
        training_step.count_evaluations(each, rows().float().double()) for each in pair(SMALL)
    )
    assert 0.5 < theirs[0] / ours[0] < 2
    assert theirs[1] > 0


def test_agreement_is_demanded():
    ours, theirs = pair(SMALL)
    check_agreement(ours, theirs, rows())
    with torch.no_grad():
        theirs.network.layers[-1].linear.weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="Expected cnf and FFJORD's method to agree"):
        check_agreement(ours, theirs, rows())


def test_ffjords_own_network_gates_its_last_layer():
    gated = ConcatSquashNetwork((2, 4, 2), nn.Tanh())
    assert gated.layers[-1].gate is not None
    assert gated(torch.tensor(0.5), torch.zeros(5, 2)).shape == (5, 2)


def test_estimate_of_a_diagonal_jacobian_is_exact():
    """The probe's signs square to one."""
    x = rows().requires_grad_()
    estimate = estimated_divergence(3 * x, x, rademacher(x))
    torch.testing.assert_close(estimate, torch.full_like(estimate, 9.0))


def test_mean_estimate_is_the_exact_divergence():
    _, theirs = pair(SMALL)
    x = rows(1).expand(20_000, -1)
    t, state = torch.tensor(0.5, dtype=torch.float64), (x, x.new_zeros(len(x)))
    _, estimate = AugmentedDynamics(theirs.network, rademacher(x))(t, state)
    _, exact = AugmentedDynamics(theirs.network)(t, state)
    error = estimate.std() / len(x) ** 0.5
    assert (estimate.mean() - exact[0]).abs() < 4 * error


def test_zuko_is_scored_trained_and_counted():
    pytest.importorskip("zuko")
    contender = Zuko("zuko", initial_zuko(SMALL))
    forward, backward = training_step.count_evaluations(contender, rows().float())
    assert forward > 0
    assert backward > 0
    assert all(parameter.grad is not None for parameter in contender.module.parameters())


def test_a_step_does_not_add_to_the_gradient_before():
    ours, theirs = pair(SMALL)
    for contender in (ours, theirs):
        training_step.time_step(contender, rows())
        first = [parameter.grad.clone() for parameter in contender.module.parameters()]
        training_step.time_step(contender, rows())
        again = [parameter.grad for parameter in contender.module.parameters()]
        torch.testing.assert_close(again, first)


def test_initial_flow_is_in_the_rows_own_units():
    x = rows().float()
    torch.testing.assert_close(initial_flow(SMALL).layers[-1].pull(x).value, x)


def test_training_leaves_the_standardisation_alone(monkeypatch):
    monkeypatch.setattr(networks, "TRAINING_STEPS", 2)
    small = dataclasses.replace(SMALL, dim=2)
    flow = networks.trained_flow(small, 5 + 3 * networks.toy_rows(100))
    standardize = flow.layers[-1]
    assert standardize.scale.tolist() == [1.0, 1.0]
    assert standardize.loc.tolist() == [0.0, 0.0]


@pytest.fixture
def small(monkeypatch):
    """Everything in small."""
    toy = dataclasses.replace(SMALL, dim=2, activation="tanh")
    table = dataclasses.replace(SMALL, hidden=(8, 7))
    monkeypatch.setattr(training_step, "TOY_NETWORK", toy)
    monkeypatch.setattr(training_step, "MINIBOONE_NETWORK", table)
    monkeypatch.setattr(training_step, "TOY_BATCH_SIZES", (20,))
    monkeypatch.setattr(training_step, "TABLE_ROWS", 20)
    monkeypatch.setattr(training_step, "TRAINING_ROWS", 100)
    monkeypatch.setattr(networks, "TRAINING_STEPS", 2)
    monkeypatch.setattr(networks, "TRAINING_BATCH", 20)
    monkeypatch.setattr(scoring, "SCORED_NETWORKS", (table,))
    monkeypatch.setattr(scoring, "SCORED_ROWS", 20)


def test_toy_has_a_line_for_each_contender_and_the_floor(small, tmp_path):
    pytest.importorskip("zuko")
    threads = torch.get_num_threads()
    table = done(
        "benchmark", "flow", "--section", "toy", "--repeats", "1", "--out", tmp_path
    ).splitlines()
    for name in ("cnf ", "FFJORD's method  ", "zuko ", "floor "):
        assert sum(line.startswith(name) for line in table) == 2, name
    assert sum("threads: 1" in line for line in table) == 2
    assert torch.get_num_threads() == threads
    assert [path.name for path in tmp_path.iterdir()] == ["training_step.png"]


def test_table_has_a_line_for_each_contender(small):
    table = done("benchmark", "flow", "--section", "table", "--repeats", "1")
    assert all(name in table for name in ("cnf, exact", "cnf, hutch", "FFJORD's, hutch"))


def test_log_prob_has_a_line_for_each_contender(small):
    table = done("benchmark", "flow", "--section", "log_prob", "--repeats", "1")
    assert "cnf" in table
    assert "FFJORD's method" in table


def test_memory_has_a_line_for_each_peak(monkeypatch):
    """With peaks made up: what a process of its own measures is tested below."""
    case = step_memory.MemoryCase(SMALL, 20)
    made = [step_memory.StepMemory(case, name, 2**20, 3 * 2**20) for name in ("cnf", "zuko")]
    monkeypatch.setattr(step_memory, "measure_memory", lambda: iter(made))
    table = done("benchmark", "flow", "--section", "memory").splitlines()
    assert [line.split() for line in table[3:5]] == [["cnf", "3.0", "2.0"], ["zuko", "3.0", "2.0"]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    """Of one contender, as each process takes seconds to start."""
    case = step_memory.MemoryCase(dataclasses.replace(SMALL, hidden=(400,)), 2000)
    contenders, x = step_memory.lineup(case)
    monkeypatch.setattr(step_memory, "MEMORY_CASES", (case,))
    monkeypatch.setattr(step_memory, "lineup", lambda _: (contenders[-1:], x))
    (peak,) = step_memory.measure_memory()
    assert peak.name == contenders[-1].name
    assert peak.after - peak.before > 4 * 2000 * 400  # the hidden layer in float32


@pytest.mark.parametrize("library", ["torchdiffeq", "zuko"])
def test_missing_library_is_one_line(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    line = complaint("benchmark", "flow", "--section", "toy")
    assert library in line
    assert "cnf-flows[bench]" in line


def test_section_of_the_other_subject_is_refused():
    line = complaint("benchmark", "flow", "--section", "detest")
    assert "toy, table, log_prob, memory" in line
