"""The benchmark of flows: that all contenders compute one thing, and what the tables print."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from helpers import DOUBLE, Linear
from test_scripts_running import complaint, done

from cnf.fields import gated_perceptron
from cnf.fields.analytic import EAGER
from cnf.scripts.benchmarks import contenders, flow_cost
from cnf.scripts.benchmarks.contenders import FFJORD, BenchmarkNetwork, check_agreement
from cnf.scripts.benchmarks.ffjord_repository import (
    COPIED_NAME,
    OWN_NAME,
    FFJORDRepository,
    import_repository,
)

pytest.importorskip("torchdiffeq")

SMALL = BenchmarkNetwork(3, (8, 7, 6), "softplus", rtol=1e-5, atol=1e-5)
TABLE = replace(SMALL, hidden=(8, 7))
TOY = replace(TABLE, dim=2, activation="tanh", rtol=1e-4)


# The least code with the interface of FFJORD's repository: what is not tested here is left out.
MISC = """
import math
import six
import torch
import lib.layers as layers


def standard_normal_logprob(z):
    return -0.5 * math.log(2 * math.pi) - z.pow(2) / 2


def count_nfe(model):
    return model.chain[0].odefunc._num_evals.item()


def build_model_tabular(args, dims, regularization_fns=None):
    assert dict(six.iteritems({1: 2})) == {1: 2}
    assert (args.layer_type, args.divergence_fn) == ("concatsquash", "brute_force")
    return layers.SequentialFlow(args, dims)
"""
LAYERS = """
import torch
from torch import nn
from torchdiffeq import odeint_adjoint


class Gated(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self._layer = nn.Linear(inputs, outputs)
        self._hyper_bias = nn.Linear(1, outputs, bias=False)
        self._hyper_gate = nn.Linear(1, outputs)

    def forward(self, t, x):
        t = t.view(1, 1)
        return self._layer(x) * torch.sigmoid(self._hyper_gate(t)) + self._hyper_bias(t)


class Network(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layers = nn.ModuleList(Gated(*pair) for pair in zip(sizes, sizes[1:]))

    def forward(self, t, x):
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(t, x))
        return self.layers[-1](t, x)


class ODEfunc(nn.Module):
    def __init__(self, diffeq):
        super().__init__()
        self.diffeq = diffeq
        self.register_buffer("_num_evals", torch.tensor(0.0))

    def forward(self, t, states):
        self._num_evals += 1
        with torch.enable_grad():
            x = states[0].requires_grad_(True)
            v = self.diffeq(t, x)
            div = sum(
                torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i]
                for i in range(x.shape[1])
            )
        return v, -div.view(-1, 1)


class CNF(nn.Module):
    def __init__(self, args, dims):
        super().__init__()
        sizes = [dims, *map(int, args.dims.split("-")), dims]
        self.odefunc, self.args = ODEfunc(Network(sizes)), args

    def forward(self, z, logpz, reverse=False):
        self.odefunc._num_evals.fill_(0)
        times = [self.args.time_length, 0.0] if reverse else [0.0, self.args.time_length]
        tolerances = {"rtol": self.args.rtol, "atol": self.args.atol}
        z, logpz = odeint_adjoint(self.odefunc, (z, logpz), torch.tensor(times), **tolerances)
        return z[1], logpz[1]
"""
CONTAINER = """
from torch import nn
from .cnf import CNF


class SequentialFlow(nn.Module):
    def __init__(self, args, dims):
        super().__init__()
        self.chain = nn.ModuleList([CNF(args, dims)])

    def forward(self, x, logpx, reverse=False):
        return self.chain[0](x, logpx, reverse=reverse)
"""


def write_repository(folder: Path) -> Path:
    (folder / "lib" / "layers").mkdir(parents=True)
    for name, text in (("__init__.py", CONTAINER), ("cnf.py", LAYERS)):
        (folder / "lib" / "layers" / name).write_text(text)
    (folder / "train_misc.py").write_text(MISC)
    return folder


@pytest.fixture(scope="module", params=["made", "CNF_FFJORD"])
def repository(request, tmp_path_factory):
    """A folder with the interface of FFJORD's repository, and a real one where it is named."""
    if request.param == "made":
        return write_repository(tmp_path_factory.mktemp("ffjord"))
    if request.param not in os.environ:
        pytest.skip("a copy of FFJORD's repository is needed: set CNF_FFJORD to its folder")
    return Path(os.environ[request.param]).absolute()


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
    with pytest.raises(RuntimeError, match="Expected cnf, joint and FFJORD rewritten to agree"):
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
        ("table", 1, ["cnf, joint", "cnf, hutchinson", "rewritten, hutchinson", "cnf, compiled"]),
        ("log_prob", 1, ["cnf, joint", "cnf, compiled", "FFJORD rewritten"]),
    ],
)
@patch.multiple(flow_cost, MINIBOONE_NETWORK=TABLE, SCORED_NETWORKS=(TABLE,))
@patch.multiple(flow_cost, TABLE_ROWS=20, SCORED_ROWS=20)
def test_tables_have_a_line_for_each_contender(section, tables, names):
    lines = done("benchmark", "flow", "--section", section, "--repeats", "1").splitlines()
    assert sum("threads: 1, median of 1" in line for line in lines) == tables
    found = [line.split("  ")[0] for line in lines if "  " in line.strip()]
    assert [each for each in found if each in names] == tables * names


OWN_STEPS = ["cnf, default loop", "cnf, for_training", "cnf, fit's step", "cnf, joint"]
OTHERS = ["cnf, compiled", "floor", "zuko's CNF", "zuko's NSF"]


@patch.multiple(contenders, TRAINING_STEPS=2, TRAINING_BATCH=20)
@patch.multiple(flow_cost, TOY_NETWORK=TOY, TOY_BATCH_SIZES=(20,))
def test_steps_of_loops_of_ones_own_stand_beside_ffjords_own_code(repository):
    pytest.importorskip("zuko")
    words = ("benchmark", "flow", "--section", "toy", "--repeats", "1")
    text = done(*words, "--ffjord", repository)
    assert "git clone" not in text
    *tables, _ = text.strip().split("\n\n")
    expected = ([OWN_NAME], [COPIED_NAME], [COPIED_NAME, OWN_NAME])
    for table, ffjords in zip(tables, expected, strict=True):
        _, header, *lines = table.splitlines()
        assert "times as fast as FFJORD's" in header
        found = [line.split("  ")[0] for line in lines]
        assert [each for each in found if each not in ffjords] == OWN_STEPS + OTHERS
        assert [each for each in found if each in ffjords] == ffjords
    with patch.multiple(flow_cost, own_steps=lambda *_: [], _compare=lambda *_: iter(())):
        text = done(*words)
    assert "git clone https://github.com/rtqichen/ffjord DIR" in text


def test_ffjords_own_code_on_our_weights_has_our_log_prob_and_gradient(repository):
    ours, x = contenders.initial_flow(TOY), TOY.rows(20)
    ours = ours.solved("cnf", rtol=1e-6, atol=1e-6)
    network = replace(TOY, rtol=1e-6, atol=1e-6)
    theirs = FFJORDRepository(repository, network, ours)
    check_agreement(ours, theirs, x)
    flow_cost.count_evaluations(ours, x)
    assert min(flow_cost.count_evaluations(theirs, x)) > 5
    torch.testing.assert_close(
        theirs.module.chain[0].odefunc.diffeq.layers[0]._layer.weight.grad,
        ours.field.layers[0].linear.weight.grad,
        rtol=1e-2,
        atol=1e-4,
    )
    with torch.no_grad():
        ours.field.last.linear.weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="to agree on log p"):
        check_agreement(ours, theirs, x)


def test_import_of_the_repository_leaves_no_trace(repository, monkeypatch):
    """Its module `lib` and the package that stands in for six are known to it alone."""
    own = ModuleType("lib")
    monkeypatch.setitem(sys.modules, "lib", own)
    path, six = sys.path[:], sys.modules.get("six")
    misc = import_repository(repository)
    assert Path(misc.__file__).parent == repository
    assert (sys.path, sys.modules["lib"], sys.modules.get("six")) == (path, own, six)
    assert not {"train_misc", "lib.layers"} & set(sys.modules)


@pytest.mark.parametrize("missing", ["train_misc.py", "lib/layers/cnf.py"])
def test_wrong_folder_of_ffjord_is_one_line(missing, tmp_path):
    write_repository(tmp_path)
    (tmp_path / missing).unlink()
    line = complaint("benchmark", "flow", "--section", "toy", "--ffjord", tmp_path)
    assert (
        f"Expected --ffjord to be a copy of https://github.com/rtqichen/ffjord; got {tmp_path}"
        in line
    )
    assert f"which has no {missing}" in line


@patch.multiple(flow_cost, TOY_NETWORK=TOY, TOY_BATCH_SIZES=(20,))
def test_repository_that_cannot_be_imported_is_one_line(tmp_path):
    pytest.importorskip("zuko")
    write_repository(tmp_path)
    (tmp_path / "train_misc.py").write_text("import nonesuch\n")
    line = complaint("benchmark", "flow", "--section", "toy", "--ffjord", tmp_path)
    assert "cannot be imported: No module named 'nonesuch'" in line
