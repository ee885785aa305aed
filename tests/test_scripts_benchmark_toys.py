"""The benchmark of toys: what is measured, what is cached, and when a race is over."""

import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from helpers import enlarged
from test_scripts_running import complaint, done

import cnf
from cnf.datasets import TOYS
from cnf.datasets.toys import Gaussians
from cnf.scripts import data
from cnf.scripts.benchmarks import busy, density, race, toys
from cnf.scripts.benchmarks.compared import METHODS
from cnf.scripts.benchmarks.density import FittedDensity
from cnf.scripts.benchmarks.measure import Average
from cnf.scripts.benchmarks.options import BenchmarkOptions, ResultCache
from cnf.scripts.benchmarks.toys import distance_of, fresh_rows
from cnf.training.recipes import RECIPES

BUDGET, FILE, NAN = 0.1, "toys.jsonl", math.nan


@pytest.fixture
def small(monkeypatch):
    """Small recipes, rows and figures; the trainings are counted."""
    monkeypatch.setitem(data.TOY_ROWS, "train", 300)
    monkeypatch.setitem(data.TOY_ROWS, "validation", 50)
    monkeypatch.setitem(RECIPES, "toy", replace(RECIPES["toy"], hidden=(8, 8)))
    for module in (toys, race):
        monkeypatch.setattr(module, "KL_ROWS", 60)
    monkeypatch.setattr(toys, "PANEL_PIXELS", 10)
    monkeypatch.setitem(sys.modules, "zuko", ModuleType("zuko"))
    monkeypatch.setitem(METHODS, "spline", Mock(return_value=unfitted()))
    with patch.object(density, "fit", wraps=density.fit) as trained:
        yield trained


def unfitted(level: float = -2.0) -> FittedDensity:
    """A density that is the same everywhere."""
    return FittedDensity(lambda rows: np.full(len(rows), level), Mock(), "")


class Normal(torch.nn.Module):
    """A normal distribution with a mean, in place of a flow of FFJORD's own code."""

    def __init__(self, *mean: float) -> None:
        super().__init__()
        self.mean, self.module = torch.nn.Parameter(torch.tensor(mean)), self
        self.log_prob = Mock(side_effect=self.forward)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(self.mean, 1.0).log_prob(x).sum(1)


@pytest.fixture
def normal():
    """A flow that is the standard normal."""
    flow = cnf.ffjord(2, hidden=(8,)).double()
    for layer in flow.layers:
        if isinstance(layer, cnf.Standardize):
            layer.get_buffer("fitted").fill_(True)
    return flow


def options(**given) -> BenchmarkOptions:
    return BenchmarkOptions("toys", **{"budget": BUDGET, **given})


def command(folder):
    given = ("--section", "fit", "--budget", BUDGET, "--out", folder, "--toys", "moons,rings")
    return ("benchmark", "toys", *given)


@pytest.mark.parametrize(("center", "noise"), [((0.0, 0.0), 1.0), ((1.0, -0.5), 0.5)])
def test_distance_is_the_closed_form_of_two_gaussians(normal, center, noise, monkeypatch):
    """KL(N(m, s² I) || N(0, I)) = |m|²/2 + s² − 1 − 2 log s in two dimensions."""
    monkeypatch.setitem(TOYS, "normal", Gaussians(name="normal", centers=(center,), noise=noise))
    distance, evaluations = distance_of(normal, "normal", fresh_rows("normal", 3000, seed=0))
    exact = np.dot(center, center) / 2 + noise**2 - 1 - 2 * math.log(noise)
    assert abs(distance.mean - exact) <= 4 * distance.stderr + 1e-12
    assert distance.stderr < (0.05 if noise < 1 else 1e-12)
    assert evaluations > 0


def test_distance_does_not_depend_on_the_flows_own_tolerance():
    solver = {"rtol": 0.3, "atol": 0.3, "step": "joint"}
    flow = cnf.ffjord(2, hidden=(16, 16), zero_last=False, **solver).double()
    rows, flow = fresh_rows("moons", 50, seed=0), enlarged(flow, 3)
    with torch.no_grad():
        tight, loose = (
            (TOYS["moons"].log_prob(rows) - each.log_prob(torch.from_numpy(rows)).numpy()).mean()
            for each in (flow.with_solver(rtol=1e-9, atol=1e-9), flow)
        )
    distance, evaluations = distance_of(flow, "moons", rows)
    assert abs(distance.mean - tight) < 1e-5
    assert abs(distance.mean - loose) > 1e-3
    assert evaluations > 20


def test_scored_rows_are_those_of_no_training(small):
    own = data.open_data("moons", seed=3)
    streams = (len(data.TOY_ROWS), toys.KL_STREAM, toys.BATCH_STREAM)
    drawn = [own.train.x, own.validation.x, own.test.x]
    drawn += [fresh_rows("moons", 10, 3, stream) for stream in streams]
    assert len({part[0, 0] for part in drawn}) == len(drawn)


def test_average_of_several_one_or_failed_values():
    assert Average.of([1.0, 2.0, 6.0]) == Average(3.0, pytest.approx(math.sqrt(7 / 3)))
    shown = [str(Average.of(values)) for values in ([1.0, 3.0], [1.25], [1.0, NAN], [])]
    assert shown == ["2.0000 ± 1.0000", "1.2500", "failed", "failed"]


def test_cached_results_are_found_by_their_whole_key(tmp_path, monkeypatch):
    key = {"toy": "moons", "seed": 0}
    row = {"KL": [NAN, math.inf], "note": "failed"}
    assert ResultCache(tmp_path, FILE).recall(key, lambda: row) == row
    cache = ResultCache(tmp_path, FILE)
    found = cache.recall(key, lambda: pytest.fail("measured again"))
    assert (str(found["KL"]), found["note"]) == ("[nan, inf]", "failed, cached")
    others = ({**key, "seed": 1}, {**key, "threads": 1}, {"toy": "moons"})
    assert all(cache.recall(other, lambda: {"note": ""})["note"] == "" for other in others)
    assert len({cache.model_folder(each) for each in (key, *others)}) == 4
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr("cnf.utils.serialization.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # an interrupted append
        cache.recall({"toy": "rings"}, lambda: {"note": ""})
    assert (tmp_path / FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("line", ['{"toy": "moo', "[1, 2]"])
def test_damaged_file_is_one_line_before_anything_is_trained(line, small, tmp_path):
    (tmp_path / FILE).write_text(f'{{"toy": "rings"}}\n{line}\n')
    assert f"line 2 of {tmp_path / FILE}" in complaint(*command(tmp_path))
    small.assert_not_called()


def test_second_run_trains_nothing_and_draws_the_saved_flows(small, tmp_path):
    first, trained = done(*command(tmp_path)), small.call_count
    assert (tmp_path / "toys.png").stat().st_size > 1000
    second = done(*command(tmp_path))
    assert (trained, small.call_count) == (2, 2)
    assert (first.count("cached"), second.count("cached")) == (0, 2)
    assert second.replace("cached", "").split() == first.split()
    row = toys.fit_of(options(out=tmp_path), "moons")
    flow = cnf.load(options(out=tmp_path).results.model_folder(toys.fit_key(options(), "moons")))
    distance, evaluations = distance_of(flow, "moons", fresh_rows("moons", 60, seed=0))
    assert [distance.mean, evaluations] == [row["KL"], row["scoring"]]
    assert min(row["seconds"], row["steps"]) > 0


def test_another_budget_seed_objective_recipe_or_thread_count_is_another_key(monkeypatch):
    keys = [toys.fit_key(options(budget=budget), "moons") for budget in (1.0, 2.0)]
    keys += [toys.fit_key(options(), "moons", *more) for more in ((), (None, 1), ("mle",))]
    monkeypatch.setitem(RECIPES, "toy", replace(RECIPES["toy"], learning_rate=1e-3))
    keys.append(toys.fit_key(options(), "moons"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    keys.append(toys.fit_key(options(), "moons"))
    assert len(set(map(str, keys))) == len(keys)


def test_training_draws_the_programs_rows_and_keeps_the_generator(small, monkeypatch):
    """Its evaluations are the mean over the records that have solves."""
    small.return_value = history = SimpleNamespace(reason="budget", duration=1.0, steps=3)
    monkeypatch.setattr(toys, "distance_of", lambda *_: (Average(0.1, 0.01), 5.0))
    before = torch.get_rng_state()
    for nfe, mean in (([0.0, NAN, 20.0, 26.0], 23.0), ([0.0], 0.0)):
        history.nfe = np.array(nfe)
        assert toys.fit_of(options(), "moons", "mle", seed=4)["evals"] == mean
    assert torch.equal(torch.get_rng_state(), before)
    own, ((_, rows), given) = data.open_data("moons", 4), small.call_args
    for found, part in ((rows, own.train), (given["validation"], own.validation)):
        assert torch.equal(found, torch.from_numpy(part.x).float())
    assert (given["seed"], given["budget"], given["recipe"].objective) == (4, BUDGET, "mle")


def test_interrupted_training_is_not_cached_and_a_failed_one_is(small, tmp_path):
    """`fit` takes Ctrl-C as early stopping."""
    small.return_value = SimpleNamespace(reason="interrupted")
    assert complaint(*command(tmp_path), status=1) == "cnf benchmark: interrupted\n"
    assert list(tmp_path.iterdir()) == []
    small.side_effect = cnf.training.TrainingError("nothing to keep")
    table = done(*command(tmp_path))
    assert (table.count("nan"), table.count("failed: nothing to keep")) == (12, 2)
    assert (tmp_path / "toys.png").exists()
    assert "keep, cached" in done(*command(tmp_path))


def test_all_sections_share_the_fits_without_a_folder_too(small, monkeypatch):
    pytest.importorskip("torchdiffeq")
    monkeypatch.setattr(toys, "SEED_COUNT", 3)
    monkeypatch.setattr(busy, "BUSY_COUNTS", ())  # whose trainings are processes
    table = done("benchmark", "toys", "--budget", BUDGET, "--toys", "moons")
    assert small.call_count == 1 + 2 + 2  # fit; two more objectives; two more seeds
    assert table.count(f"threads: {torch.get_num_threads()}") == 3
    assert table.count("\nmoons") == 3
    assert table.count("cached") == 2
    assert table.endswith(
        "git clone https://github.com/rtqichen/ffjord DIR, and give --ffjord DIR\n\n"
    )


def test_each_section_has_its_default_toys(monkeypatch):
    spy = Mock(return_value=dict.fromkeys(toys.FIT_COLUMNS, NAN) | {"note": "failed"})
    for module, name in ((toys, "fit_of"), (toys, "spline_of"), (race, "fit_of")):
        monkeypatch.setattr(module, name, spy)
    for lines, names in (
        (toys.fit_lines, tuple(TOYS)),
        (toys.objective_lines, tuple(TOYS)),
        (toys.seed_lines, ("8gaussians", "checkerboard")),
        (race.lines, ("8gaussians", "moons")),
    ):
        spy.reset_mock()
        shown = list(lines(options(ffjord="unread")))
        assert tuple(dict.fromkeys(call.args[1] for call in spy.call_args_list)) == names
    assert shown[-1] == "moons: no race"


def test_spline_flow_has_standardised_rows_and_its_distance_is_in_the_toys_units(monkeypatch):
    """The truth in units of the training rows' deviations is at a KL of zero."""
    monkeypatch.setattr(toys, "KL_ROWS", 60)
    own, toy, given = data.open_data("moons", seed=3), TOYS["moons"], []
    center, scale = own.train.x.mean(0), own.train.x.std(0)

    def exact(parts, *others):
        given.extend((parts, others))
        log_det = np.log(scale).sum()
        return replace(unfitted(), log_prob=lambda z: toy.log_prob(z * scale + center) + log_det)

    monkeypatch.setitem(METHODS, "spline", exact)
    row = toys.spline_of(options(), "moons", seed=3)
    assert row == {
        "KL": pytest.approx(0, abs=1e-9),
        "stderr": pytest.approx(0, abs=1e-9),
        "note": "",
    }
    parts, others = given
    assert others == (BUDGET, 3)
    expected = (own.train.x, own.validation.x, fresh_rows("moons", 60, 3))
    for found, rows in zip(parts, expected, strict=True):
        np.testing.assert_allclose(found * scale + center, rows)


def test_failed_spline_flow_stands_beside_our_fit(small, tmp_path):
    METHODS["spline"].side_effect = ValueError("none finite")
    assert done(*command(tmp_path)).count("NSF failed: none finite") == 2
    assert done(*command(tmp_path)).count("NSF failed: none finite, cached") == 2
    assert METHODS["spline"].call_count == 2


def test_seeds_have_their_median_and_worst(monkeypatch):
    for second, shown in (
        (0.1, ["0.3", "0.5", "0.1000 0.2000 0.3000 0.4000 0.5000"]),
        (NAN, ["0.4", "nan", "0.2000 0.3000 0.4000 0.5000 nan"]),
    ):
        kls = [0.3, second, 0.5, 0.2, 0.4]
        monkeypatch.setattr(toys, "fit_of", lambda *_, seed, kl=kls: {"KL": kl[seed], "note": ""})
        *_, row = toys.seed_lines(options(toys=("moons",)))
        assert [str(row[name]) for name in ("median", "worst", "all")] == shown


def test_contact_sheet_shows_flow_and_truth_in_the_same_colours(normal, monkeypatch):
    monkeypatch.setattr(toys, "PANEL_PIXELS", 10)
    names = list(TOYS)[:5]
    flows = dict.fromkeys(names, (normal, Average(0.25, 0.01)))
    flows[names[-1]] = (None, Average(NAN, NAN))
    figure = toys.contact_sheet(flows)
    assert sum(bool(ax.get_images()) for ax in figure.axes) == 2 * len(names) - 1
    for truth, model in zip(figure.axes[:4], figure.axes[4:8], strict=True):
        assert truth.get_images()[0].get_clim() == model.get_images()[0].get_clim()
        assert model.get_xlabel() == "KL 0.2500 ± 0.0100"
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == names
    assert sum(ax.get_xlabel() == "failed" for ax in figure.axes) == 1


def test_ffjords_training_has_the_settings_of_train_toy(monkeypatch):
    """Its defaults: https://github.com/rtqichen/ffjord, train_toy.py."""
    network = race.TOY_NETWORK
    assert (network.hidden, network.activation) == ((64, 64, 64), "tanh")
    assert (network.rtol, network.atol) == (1e-5, 1e-5)
    monkeypatch.setattr(race, "KL_ROWS", 5000)
    monkeypatch.setitem(TOYS, "normal", Gaussians(name="normal", centers=((0.0, 0.0),), noise=1.0))
    flow = Normal(2.0, -1.0)
    training = race.FFJORDTraining(flow, "normal")
    (group,) = training.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-5)
    before = training.distance()
    assert abs(before.mean - 2.5) < 4 * before.stderr  # half the square of the mean
    flow.log_prob.reset_mock()
    for _ in range(20):
        training.step()
    first, *others = (call.args[0] for call in flow.log_prob.call_args_list)
    assert first.shape == (100, 2)
    assert not any(torch.equal(first, each) for each in others)
    assert flow.mean.tolist() == pytest.approx([1.98, -0.98], abs=2e-3)  # Adam's steps are 1e-3
    assert training.distance().mean < before.mean - 0.03


def test_training_is_measured_at_its_times_up_to_a_failure(monkeypatch):
    """A step takes a second and lowers the KL by a tenth; a measurement takes an hour."""
    training = race.FFJORDTraining(Normal(0.0, 0.0), "moons")
    training.step = step = Mock(side_effect=[*[None] * 7, AssertionError("underflow in dt 0.0")])
    training.distance = far = Mock(side_effect=lambda: Average(1.0 - step.call_count / 10, 0.01))
    training.clock = lambda: step.call_count + 3600.0 * far.call_count
    first, second, third = (list(training.until(mark).values()) for mark in (3.0, 5.5, 9.0))
    assert first == [3.0, 3, pytest.approx(0.7), 0.01, ""]
    assert second == [6.0, 6, pytest.approx(0.4), 0.01, ""]
    assert [str(each) for each in third] == [
        "7.0",
        "7",
        "nan",
        "nan",
        "failed: underflow in dt 0.0",
    ]


@pytest.mark.parametrize(
    ("kls", "result"),
    [
        ((0.8, 0.5, 0.3), "takes 1.5 to 3.0 times as long"),
        ((0.4, NAN), "takes at most 1.5 times as long"),
        ((0.8, 0.6, 0.51), "takes more than 4.5 times as long"),
        ((0.8, NAN), "failed, after 3.0 times as long"),
        ((NAN,), "failed, after 1.5 times as long"),
    ],
)
def test_race_has_the_times_between_which_the_target_is_reached(kls, result):
    theirs = [{"KL": kl, "seconds": 3.0 * (i + 1)} for i, kl in enumerate(kls)]
    ours = {"KL": 0.5, "seconds": 2.0}
    assert race.race_result("moons", ours, theirs) == f"moons: FFJORD's own training {result}"


def test_each_measurement_is_cached_and_a_failure_ends_the_race(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "RACE_MARKS", (2.0, 4.0, 6.0))
    monkeypatch.setattr(race, "FFJORDRepository", lambda *_: Normal(0.0, 0.0))
    kls = {2.0: 0.9, 3.0: 0.8, 4.0: 0.7, 6.0: 0.6, 9.0: NAN}
    until = Mock(side_effect=lambda mark: {"seconds": mark, "KL": kls[mark], "note": ""})
    monkeypatch.setattr(race.FFJORDTraining, "until", until)

    def measured(cap):
        given = options(out=tmp_path, cap=cap)
        return [row["seconds"] for row in race.measured_rows(given, tmp_path, "moons")]

    assert measured(3.0) == [2.0, 3.0]
    assert measured(9.0) == measured(9.0) == [2.0, 4.0, 6.0, 9.0]
    assert [call.args[0] for call in until.call_args_list] == [2.0, 3.0, 4.0, 6.0, 9.0]
    kls[8.0] = kls[4.5] = NAN
    monkeypatch.setattr(race, "RACE_MARKS", (2.0, 4.5, 6.0))
    assert measured(8.0) == [2.0, 4.5]


def test_ffjords_own_code_is_trained_beside_our_fit(small, tmp_path, monkeypatch):
    pytest.importorskip("torchdiffeq")
    from test_scripts_benchmark_flow import write_repository

    repository = write_repository(tmp_path)
    network = replace(race.TOY_NETWORK, hidden=(8,), rtol=1e-2, atol=1e-2)
    monkeypatch.setattr(race, "TOY_NETWORK", network)
    monkeypatch.setattr(race, "RACE_MARKS", (0.05, 99.0))
    given = ("--budget", BUDGET, "--toys", "moons", "--cap", "0.1", "--ffjord", repository)
    table = done("benchmark", "toys", "--section", "ffjord", *given)
    assert small.call_count == 1
    ours, *theirs, result = table.strip().splitlines()[3:]
    assert ours.startswith("cnf, moons")
    for line, mark in zip(theirs, (0.05, 0.1), strict=True):
        assert line.startswith("FFJORD's, moons")
        seconds, _, kl, *_ = map(float, line.split()[2:])
        assert seconds > 0.99 * mark
        assert math.isfinite(kl)
    assert result.endswith("times as long")
