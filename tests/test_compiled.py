"""Compiled layers: the values and gradients of the eager ones, and no compiler.

Each graph takes seconds to compile. These are few and small, and one process shares them.
"""

import shutil

import pytest
import torch
from helpers import near, pull_gradients
from torch.testing import assert_close

from cnf.fields import ConcatSquash
from cnf.fields.analytic import compiled_functions
from cnf.layers import CNF, Steps

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiles"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # By the compiler itself.
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
# The methods of the fewest stages, which are compiled soonest.
JOINT = {"step": "joint", "method": "midpoint", "step_size": 1.0}
PER_SAMPLE = {"step": "per_sample", "method": "adaptive_heun", "rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(autouse=True)
def _vectors():
    """The processor's vector instructions, without six programs that try the compiler with them."""
    from torch._inductor import config

    with config.patch({"cpp.vec_isa_ok": True}):
        yield


@pytest.fixture
def uncached():
    """Functions that are compiled anew."""
    compiled_functions.cache_clear()
    yield
    compiled_functions.cache_clear()


def assert_compiled_is_eager(hidden, options):
    field, x = ConcatSquash(2, hidden), torch.randn(7, 2)
    eager, compiled = (
        pull_gradients(CNF(field, compile=compiled, **options), x)[1] for compiled in (False, True)
    )
    assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


CHUNKED = ((5,), {**PER_SAMPLE, "activation_bytes": 0})
CASES = [CHUNKED, pytest.param((5, 6), JOINT, marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "options"), CASES)
def test_compiled_code_gives_the_same(hidden, options):
    assert_compiled_is_eager(hidden, options)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(("hidden", "options"), CASES)
def test_captured_graphs_give_the_same(hidden, options, monkeypatch):
    """Without the translation to C++, which takes most of the time."""

    def capture(function, dynamic, options):
        captured.append(function)
        return compiler(function, dynamic=dynamic, backend="aot_eager")

    compiler, captured = torch.compile, []
    monkeypatch.setattr(torch, "compile", capture)
    assert_compiled_is_eager(hidden, options)
    assert len(captured) > 1


def test_explicit_steps_share_their_parameters_and_agree():
    layer = Steps(ConcatSquash(2, (5,)), 1, learnt=True)
    compiled = layer.with_solver(compile=True)
    assert compiled.log_sizes is layer.log_sizes
    x = torch.randn(300, 2)
    with torch.no_grad():
        near(compiled.pull(x).log_det, layer.pull(x).log_det, 1e-5)


@pytest.mark.usefixtures("uncached")
def test_without_a_compiler_there_is_a_warning_and_a_result(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    field, x = ConcatSquash(2, (4, 4)), torch.randn(3, 2)
    with pytest.warns(RuntimeWarning, match="compile=True has no effect.*no C\\+\\+ compiler"):
        layer = CNF(field, compile=True)
    assert_close(layer(x), CNF(field)(x))
