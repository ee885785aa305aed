"""The benchmark program: its options and errors, its page, and its tables of solvers."""

import sys
from unittest.mock import patch

import pytest
import torch
from test_scripts_running import complaint, done

from cnf.ode import GRADIENTS
from cnf.scripts.benchmarks import accuracy, memory, solves, toys, vae
from cnf.scripts.benchmarks.compared import UCI_FILE, UCI_TABLES
from cnf.scripts.benchmarks.detest import DETEST

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
# A process's own peak is tested below.
made_peaks = patch.object(memory, "measure_memory", lambda gradient: {2: 2**20, 7: 3 * 2**20})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("flow --section detest", ["expected a section of flow among toy, table", "got 'detest'"]),
        ("toys --toys moons,moon", ["'moon'", "swissroll"]),
        ("toys --repeats 3", ["expected for toys only", "got --repeats, which it does not read"]),
        ("flow --steps=0", ["--steps"]),
        ("flow --ffjord /nowhere", ["Expected --ffjord to be a copy of", "no train_misc.py"]),
        ("solver --toys moons", ["expected for solver only", "got --toys"]),
        *((f"toys --budget={value}", ["--budget"]) for value in ("0", "-1", "nan", "soon")),
        ("toys --cap=inf", ["--cap"]),
        ("tables --tables wine,nonesuch", ["'nonesuch'", ", ".join(UCI_TABLES)]),
        ("tables --methods cnf,nonesuch", ["'nonesuch'", "mixture"]),
        *((f"tables --splits={value}", ["--splits"]) for value in ("1.5", "0")),
        ("tables --data-dir /nowhere", [f"Expected a folder with {UCI_FILE}", "an array (rows,"]),
        ("tables", ["got none: give --data-dir DIR, or set CNF_DATA"]),
        ("vae --data-dir /nowhere", ["Expected mnist.npz"]),
        ("vae --images mnits", ["'mnits'"]),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(given, told, monkeypatch):
    monkeypatch.delenv("CNF_DATA", raising=False)
    monkeypatch.setattr(vae, "bounds_of", None)
    line = complaint("benchmark", *given.split())
    assert all(each in line for each in told)


def test_missing_library_is_one_line(monkeypatch):
    for library, subject, section in (
        ("torchode", "solver", "overhead"),
        ("zuko", "flow", "toy"),
        ("pyro", "vae", "bounds"),
        ("torchdiffeq", "solver", "overhead"),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        line = complaint("benchmark", subject, "--section", section)
        assert f"Expected {library} to compare with" in line
        assert "cnf-flows[bench]" in line


def table_of(section: str, *more: object) -> list[str]:
    return done("benchmark", "solver", "--section", section, *more).splitlines()


def test_overhead_names_every_solver_and_the_threads():
    pytest.importorskip("torchode")
    threads = torch.get_num_threads()
    table = table_of("overhead", "--repeats", "1")
    assert "threads: 1, median of 1" in table[0]
    names = [line[:14].strip() for line in table[2:6]]
    assert names == ["cnf", "torchdiffeq", "torchode", "bare field"]
    assert torch.get_num_threads() == threads


@patch.multiple(accuracy, DETEST={"A1": DETEST["A1"]}, DETEST_TOLERANCES=(1e-2, 1e-3))
def test_detest_has_a_line_for_each_method_and_tolerance():
    accuracy.compare_all.cache_clear()  # whose values depend on the problems
    lines = table_of("detest")
    accuracy.compare_all.cache_clear()
    for method in accuracy.shared_methods():
        assert sum(line.startswith(method) for line in lines) == 2


@patch.multiple(solves, BATCH_ROWS=4, CURVED_ROWS=1, ROW_TOLERANCE=1e-4)
def test_rows_do_not_pay_for_one_another():
    table = table_of("rows", "--repeats", "1")
    (step, own, _, influence), (other, joint, _, more) = (line.split() for line in table[2:4])
    assert (step, other) == ("per_sample", "joint")
    assert int(own) < int(joint)
    assert float(influence) < 1e-9 < float(more)


@made_peaks
def test_memory_is_printed_and_drawn_without_other_libraries(tmp_path, monkeypatch):
    for library in ("torchdiffeq", "torchode"):
        monkeypatch.setitem(sys.modules, library, None)
    table = [line.split() for line in table_of("memory", "--out", tmp_path / "new")]
    assert table[1] == ["steps", *GRADIENTS]
    assert table[2:4] == [["2", *["1"] * len(GRADIENTS)], ["7", *["3"] * len(GRADIENTS)]]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["memory.png"]
    monkeypatch.setattr(memory, "PROCESS_STATUS", tmp_path / "none")
    assert table_of("memory")[0].startswith("Memory: skipped")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@patch.object(memory, "STEP_COUNTS", (100,))
def test_states_that_a_step_costs():
    for gradient, least, most in (("checkpoint", 0.8, 1.5), ("backsolve", -0.01, 0.1)):
        ((steps, peak),) = memory.measure_memory(gradient).items()
        assert steps in (100, 101)
        assert least < peak / (steps * 4 * memory.STATE_NUMBERS) < most


@patch.multiple(toys, REGULARIZER_WEIGHTS=(0.0, 0.1), TRADE_OFF_STEPS=1, KL_ROWS=20)
def test_the_trade_off_has_a_line_for_each_weight_and_a_figure(tmp_path):
    table = done("benchmark", "flow", "--section", "regularizers", "--out", tmp_path)
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["0", "0.1"]
    assert [path.name for path in tmp_path.iterdir()] == ["trade_off.png"]


@made_peaks
def test_tables_are_put_into_a_page_each_in_its_place(tmp_path):
    """Measured again, a table takes the place of the old one, and other parts stay."""
    page, out = tmp_path / "page.md", tmp_path / "figures of mine"
    page.write_text("# Mine\n\n## solver: memory\n\nold\n\n## by hand\n\nkept\n")
    for _ in range(2):
        table = table_of("memory", "--page", page, "--out", out)
    opening, ours, other = page.read_text().split("## ")
    assert opening.strip() == "# Mine"
    assert other == "by hand\n\nkept\n"
    command = f"cnf benchmark solver --section memory --out '{out}'"
    assert ours.startswith(f"solver: memory\n\n```sh\n{command}\n```\n")
    text = "\n".join(table).strip()
    assert f"```text\n{text}\n```" in ours
    assert f"PyTorch {torch.__version__}" in ours
