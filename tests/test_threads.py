"""The number of threads: measured on steps of a simulated machine, kept, recorded and restored."""

import json

import numpy as np
import pytest
import torch
from helpers import Stop, refused, stopping
from test_scripts_running import complaint, done, rows_of_table, write_csv

import cnf
from cnf.utils import threads as module
from cnf.utils.threads import ThreadChooser, candidates, check_threads
from cnf.vae import VAE, Architecture, Plan
from cnf.vae import fit as fit_vae

ROWS = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))


class Machine:
    """A simulated machine, on which a step takes a number of seconds for each number of threads."""

    def __init__(self, numbers, seconds, choice=1, noise=0.05):
        self.seconds, self.noise, self.stalled, self.taken = seconds, noise, set(), []
        self.random, self.clock = np.random.default_rng(0), 0.0
        self.chooser = ThreadChooser(numbers, choice, lambda threads: threads in self.stalled)

    def run(self, seconds, work=lambda: 1.0):
        """Take steps for some seconds; return the share of time beyond that of the choice."""
        end, begin, steps = self.clock + seconds, self.clock, 0.0
        while self.clock < end:
            number, done = self.chooser.threads, work()
            took = self.seconds[number] * done * (1 + self.noise * self.random.exponential())
            self.clock, steps = self.clock + took, steps + done
            self.taken.append(number)
            self.chooser.add(took, done)
        spent, chosen = self.clock - begin, self.seconds[self.chooser.choice]
        return (spent - steps * chosen * (1 + self.noise)) / spent


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.003, 2: 0.004}, 1),
        ({1: 0.003, 2: 0.06}, 1),  # a collapse
        ({1: 0.1, 2: 0.06}, 2),
        ({1: 0.1, 2: 0.092}, 1),  # too little for another thread
        ({1: 8.0, 2: 4.4, 4: 2.5, 8: 1.5, 12: 1.2}, 12),
        ({1: 0.02, 2: 0.012, 4: 0.009, 8: 0.03, 12: 0.09}, 4),
    ],
)
def test_the_fastest_number_is_found_at_little_cost(seconds, best):
    machine = Machine([*seconds], seconds)
    machine.run(max(1.0, 12 * max(seconds.values())))
    assert machine.chooser.choice == best
    assert machine.run(max(60.0, 100 * max(seconds.values()))) < 0.06
    assert machine.chooser.choice == best
    if seconds == {1: 0.003, 2: 0.06}:  # in each look a step shows it
        assert machine.taken.count(2) < 0.01 * len(machine.taken)


def test_a_number_that_stalls_is_not_tried():
    machine = Machine([1, 2], {1: 0.004, 2: 0.002})
    machine.stalled = {2}
    machine.run(30)
    assert {*machine.taken} == {1}
    machine.stalled = set()
    machine.run(5)
    assert machine.chooser.choice == 2
    machine.stalled, machine.seconds = {2}, {1: 0.005, 2: 5.0}
    machine.run(60)  # a sudden collapse is seen within a few steps
    assert machine.chooser.choice == 1
    assert machine.taken[-5000:].count(2) == 0


def test_other_processes_come_and_go():
    machine = Machine([1, 2], {1: 0.1, 2: 0.06}, noise=0.3)
    machine.run(20)
    assert machine.chooser.choice == 2
    machine.seconds = {1: 0.1, 2: 0.5}
    machine.run(10)
    assert machine.chooser.choice == 1
    machine.seconds = {1: 0.1, 2: 0.06}
    machine.run(120)
    assert machine.chooser.choice == 2


def test_times_are_of_a_unit_of_work_and_stages_are_measured_anew():
    machine = Machine([1, 2], {1: 0.010, 2: 0.008})
    work = iter(np.tile([1.0, 5.0, 1.0, 9.0, 2.0, 1.0, 7.0], 10_000))
    machine.run(30, lambda: next(work))
    assert machine.chooser.choice == 2
    machine.seconds = {1: 0.001, 2: 0.004}
    machine.chooser.restart()
    machine.run(1)
    assert machine.chooser.choice == 1


def test_a_probe_measures_operations(monkeypatch):
    for seconds, expected in ((1e-5, False), (5e-4, False), (6e-3, True)):  # of an operation
        clock = iter(np.arange(0.0, 1000 * seconds, seconds))
        monkeypatch.setattr(module, "perf_counter", lambda clock=clock: next(clock))
        assert module.stalls(1) == expected


@pytest.fixture
def free(monkeypatch):
    """Threads that nobody set, of a machine with four cores."""
    for name in module.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_cores", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(module, "_defaults", lambda: {4})
    monkeypatch.setattr(module, "stalls", lambda threads: False)
    torch.set_num_threads(4)
    yield monkeypatch
    torch.set_num_threads(1)


def test_candidates_are_the_callers_number_where_there_is_one(free):
    assert candidates("auto", True) == [1, 2, 4]
    assert candidates("auto", False) == candidates(None, True) == [4]
    assert candidates(3, True) == [3]
    torch.set_num_threads(3)
    assert candidates("auto", True) == [3]
    torch.set_num_threads(4)
    for name in module.VARIABLES:
        free.setenv(name, "4")
        assert candidates("auto", True) == [4]
        free.delenv(name)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "many", True, "2"])
def test_other_numbers_are_refused(wrong):
    refused("Expected threads to be a whole number above 0, or 'auto'; got", check_threads, wrong)
    with pytest.raises(ValueError, match="Expected threads"):
        cnf.fit(cnf.ffjord(2, hidden=(4,)), ROWS, steps=1, threads=wrong)
    with pytest.raises(ValueError, match="Expected threads"):
        cnf.CNFDensity(max_steps=1, threads=wrong).fit(ROWS.numpy())


def test_more_threads_than_cores_are_cores(free):
    with pytest.warns(UserWarning, match="at most 4 threads, one for each core; got 9: 4 are used"):
        assert check_threads(9) == 4


def fit(**options):
    torch.manual_seed(0)
    return cnf.fit(cnf.ffjord(2, hidden=(4,)), ROWS, **{"steps": 4, **options})


def test_a_run_has_its_number_and_the_caller_gets_theirs_back(free):
    used = []
    history = fit(threads=2, callbacks=[lambda event: used.append(torch.get_num_threads())])
    assert {*used} == {*history.threads.tolist()} == {2}
    assert torch.get_num_threads() == 4
    assert {*fit(threads=None).threads.tolist()} == {4}
    assert {*fit().threads.tolist()} <= {1, 2, 4}
    assert {*cnf.CNFDensity(max_steps=2, threads=3).fit(ROWS.numpy()).history_.threads} == {3}
    with pytest.raises(Stop):
        fit(threads=2, callbacks=[stopping(2)])
    assert torch.get_num_threads() == 4
    interrupted = fit(threads=2, callbacks=[stopping(2, KeyboardInterrupt)])
    assert (interrupted.reason, torch.get_num_threads()) == ("interrupted", 4)


def test_a_resumed_run_keeps_a_number_and_starts_from_the_last_choice(free, tmp_path):
    for begun, resumed, expected in ((3, "auto", 3), (3, 2, 2), ("auto", 2, 2)):
        state = tmp_path / f"{begun} {resumed}"
        with pytest.raises(Stop):
            fit(threads=begun, state=state, state_seconds=0, callbacks=[stopping(3)])
        assert fit(threads=resumed, state=state).threads[-1] == expected
    seen = []
    free.setattr(
        "cnf.training.run.ThreadChooser",
        lambda numbers, choice: seen.append(choice) or ThreadChooser([2], 2),
    )
    with pytest.raises(Stop):
        fit(state=tmp_path / "last", state_seconds=0, callbacks=[stopping(3)])
    assert set(fit(state=tmp_path / "last").threads.tolist()) == {2}
    assert seen == [1, 2]


def test_a_number_repeats_to_the_bit(free):
    first, second = (fit(threads=2).loss for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_vae_has_its_number(free):
    vae = VAE(Architecture((8, 8), 16, hidden=(4,), latent_dim=2))
    images = torch.rand(8, 64), torch.rand(4, 64)
    assert [record.threads for record in fit_vae(vae, *images, Plan(epochs=2), threads=2)] == [2, 2]
    assert torch.get_num_threads() == 4
    with pytest.raises(ValueError, match="Expected threads"):
        fit_vae(vae, *images, Plan(epochs=1), threads=0)


def test_the_programs_say_and_record_it(free, undrawn, tmp_path):
    data, out = write_csv(tmp_path / "rows.csv", rows_of_table(60)), tmp_path / "out"
    words = ("train", data, "--out", out, "--steps", "2", "--hidden", "4", "--flows", "1")
    said = done(*words, "--threads", "2")
    assert "2 steps in" in said
    assert " by 2 threads, ended by steps" in said
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {record["threads"] for record in records} == {2}
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("name", ["train", "train-vae"])
@pytest.mark.parametrize("wrong", ["0", "many", "-3", "1.5"])
def test_the_programs_refuse_other_numbers(name, wrong, tmp_path):
    line = complaint(name, "moons", "--out", tmp_path / "out", f"--threads={wrong}")
    assert "argument --threads: expected auto or a whole number from 1 to 1024" in line
    assert not (tmp_path / "out").exists()


def test_waiting_threads_of_programs_sleep_unless_the_user_decides(monkeypatch):
    from cnf.scripts.program import _let_threads_sleep

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # restored at the end, also what the programs set
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    _let_threads_sleep()
    assert "OMP_WAIT_POLICY" not in module.os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    _let_threads_sleep()
    assert module.os.environ["OMP_WAIT_POLICY"] == "passive"
