"""The benchmark: what it prints, what it measures, and what it says without its peers."""

import sys

import pytest
import torch
from test_scripts_running import complaint, done

from cnf.ode import GRADIENTS
from cnf.scripts.benchmarks import accuracy, memory, rows, trade_off
from cnf.scripts.benchmarks.detest import DETEST

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_overhead_names_every_solver_and_the_threads():
    pytest.importorskip("torchode")
    threads = torch.get_num_threads()
    table = done("benchmark", "solver", "--section", "overhead", "--repeats", "1")
    assert all(name in table for name in ("cnf", "torchdiffeq", "torchode", "bare field"))
    assert "threads: 1" in table
    assert torch.get_num_threads() == threads


def test_detest_has_a_line_for_each_method_and_tolerance(monkeypatch):
    monkeypatch.setattr(accuracy, "DETEST", {"A1": DETEST["A1"]})
    monkeypatch.setattr(accuracy, "DETEST_TOLERANCES", (1e-3, 1e-4))
    lines = done("benchmark", "solver", "--section", "detest").splitlines()
    for method in accuracy.shared_methods():
        assert sum(line.startswith(method) for line in lines) == 2


def test_memory_is_measured_at_every_point_and_drawn(tmp_path, monkeypatch):
    """With points made up: what a process of its own measures is tested below."""
    made = [
        memory.SolveMemory(mode, steps, steps * 2**20) for mode in GRADIENTS for steps in (2, 7)
    ]
    monkeypatch.setattr(memory, "measure_memory", lambda _: iter(made))
    table = done("benchmark", "solver", "--section", "memory", "--out", tmp_path / "new")
    assert all(mode in table for mode in GRADIENTS)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["memory.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_checkpointed_step_costs_about_one_state(monkeypatch):
    monkeypatch.setattr(memory, "GRADIENTS", {"checkpoint": GRADIENTS["checkpoint"]})
    (peak,) = memory.measure_memory([200])
    assert peak.steps in (200, 201)
    assert 0.8 < peak.bytes / (peak.steps * 4 * memory.STATE_NUMBERS) < 1.5


def test_rows_do_not_pay_for_one_another(monkeypatch):
    """In small: the numbers themselves are the benchmark's."""
    monkeypatch.setattr(rows, "BATCH_ROWS", 40)
    monkeypatch.setattr(rows, "CURVED_ROWS", 4)
    table = [line.split() for line in done("benchmark", "solver", "--section", "rows").splitlines()]
    own, joint = (
        next(line for line in table if line[:1] == [step]) for step in ("per_sample", "joint")
    )
    assert int(own[1]) < int(joint[1])
    assert float(own[3]) < 1e-9 < float(joint[3])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_backsolve_does_not_grow(monkeypatch):
    monkeypatch.setattr(memory, "GRADIENTS", {"backsolve": GRADIENTS["backsolve"]})
    few, many = memory.measure_memory([10, 300])
    assert many.bytes - few.bytes < 5 * 4 * memory.STATE_NUMBERS


@pytest.mark.parametrize("library", ["torchdiffeq", "torchode"])
def test_missing_library_is_one_line(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    line = complaint("benchmark", "solver", "--section", "overhead")
    assert library in line
    assert "cnf-flows[bench]" in line


def test_memory_needs_no_other_library(monkeypatch):
    for library in ("torchdiffeq", "torchode"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(memory, "STEP_COUNTS", (1,))
    monkeypatch.setattr(
        memory, "measure_memory", lambda _: iter([memory.SolveMemory("backprop", 1, 2**20)])
    )
    assert "backprop" in done("benchmark", "solver", "--section", "memory")


def test_the_trade_off_has_a_line_for_each_weight_and_a_figure(tmp_path, monkeypatch):
    for name, small in {
        "REGULARIZER_WEIGHTS": (0.0, 0.1),
        "TRADE_OFF_STEPS": 3,
        "TRADE_OFF_ROWS": 50,
    }.items():
        monkeypatch.setattr(trade_off, name, small)
    table = done("benchmark", "flow", "--section", "regularizers", "--out", tmp_path)
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["0.0", "0.1"]
    assert [path.name for path in tmp_path.iterdir()] == ["trade_off.png"]


def test_tables_are_put_into_a_page_each_in_its_place(tmp_path, monkeypatch):
    """Measured again, a table takes the place of the old one, and other parts stay."""
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n## solver: memory\n\nold\n\n## by hand\n\nkept\n")
    made = [memory.SolveMemory("backprop", 1, 2**20)]
    monkeypatch.setattr(memory, "measure_memory", lambda _: iter(made))
    monkeypatch.setattr(memory, "STEP_COUNTS", (1,))
    for _ in range(2):
        table = done("benchmark", "solver", "--section", "memory", "--page", page)
    opening, ours, other = page.read_text().split("## ")
    assert opening.strip() == "# Mine"
    assert other == "by hand\n\nkept\n"
    assert ours.startswith("solver: memory\n\n```sh\ncnf benchmark solver --section memory\n```\n")
    shown = "\n".join(line.rstrip() for line in table.splitlines()).strip()
    assert f"```text\n{shown}\n```" in ours
    assert f"PyTorch {torch.__version__}" in ours


def test_the_command_above_a_table_has_its_options(tmp_path, monkeypatch):
    made = [memory.SolveMemory("backprop", 1, 2**20)]
    monkeypatch.setattr(memory, "measure_memory", lambda _: iter(made))
    monkeypatch.setattr(memory, "STEP_COUNTS", (1,))
    page, out = tmp_path / "page.md", tmp_path / "figures of mine"
    done("benchmark", "solver", "--section", "memory", "--page", page, "--out", out)
    assert f"cnf benchmark solver --section memory --out '{out}'" in page.read_text()
