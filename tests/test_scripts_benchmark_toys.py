"""The benchmark of toys: what is measured, what is kept, and when a race is over."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from test_scripts_running import complaint, done, run

import cnf
from cnf.datasets import TOYS
from cnf.datasets.toys import Gaussians
from cnf.scripts import data
from cnf.scripts.benchmarks import fits, race, toys, truth
from cnf.scripts.benchmarks.contact_sheet import SheetPanel, contact_sheet
from cnf.scripts.benchmarks.contenders import FFJORD
from cnf.scripts.benchmarks.fits import ToyFit, ToyTrial, fit_of, mean_evaluations, trial_of
from cnf.scripts.benchmarks.options import TOY_RESULTS as FILE
from cnf.scripts.benchmarks.options import BenchmarkOptions
from cnf.scripts.benchmarks.race import RacePoint, RaceRules, race_result
from cnf.scripts.benchmarks.reference import PUBLISHED_SETTINGS, FFJORDReference
from cnf.scripts.benchmarks.result_cache import ResultCache, fingerprint
from cnf.scripts.benchmarks.truth import Distance, distance_of, fresh_rows
from cnf.training.recipes import RECIPES

BUDGET = 0.15
TINY = ("--budget", BUDGET)


@pytest.fixture
def small(monkeypatch):
    """Everything in small; counts the trainings."""
    monkeypatch.setitem(data.TOY_ROWS, "train", 300)
    monkeypatch.setitem(data.TOY_ROWS, "validation", 50)
    monkeypatch.setitem(RECIPES, "toy", dataclasses.replace(RECIPES["toy"], hidden=(8, 8)))
    for module in (truth, fits, toys, race):
        monkeypatch.setattr(module, "KL_ROWS", 60)
    monkeypatch.setattr(race, "WATCH_ROWS", 40)
    monkeypatch.setattr(race, "MEASURE_SECONDS", 0.05)
    trained = []
    fit = fits.fit
    monkeypatch.setattr(
        fits, "fit", lambda *given, **more: trained.append(1) or fit(*given, **more)
    )
    return trained


@pytest.fixture
def normal(monkeypatch):
    """A flow that is the standard normal, to the bit, and a toy that can be made so."""

    def register(center=(0.0, 0.0), noise=1.0):
        monkeypatch.setitem(
            TOYS, "normal", Gaussians(name="normal", centers=(center,), noise=noise)
        )

    flow = cnf.ffjord(2, hidden=(8,)).double()
    for layer in flow.layers:
        if isinstance(layer, cnf.Standardize):
            layer.get_buffer("fitted").fill_(True)
    return flow, register


def made(kl: float, **changes) -> ToyFit:
    """A fit that nobody trained."""
    return dataclasses.replace(ToyFit(kl, 0.001, 60.0, 900, 20.0, 40.0, "budget"), **changes)


# --- The distance ---------------------------------------------------------------------------------


def test_flow_that_is_the_truth_has_no_distance_to_it(normal):
    flow, register = normal
    register()
    distance, evaluations = distance_of(flow, "normal", fresh_rows("normal", 500, seed=0))
    assert abs(distance.kl) < 1e-12
    assert distance.stderr < 1e-12
    assert evaluations > 0


def test_distance_is_the_closed_form_of_two_gaussians(normal):
    """KL(N(m, s² I) || N(0, I)) = |m|²/2 + s² − 1 − 2 log s in two dimensions."""
    flow, register = normal
    register(center=(1.0, -0.5), noise=0.5)
    distance, _ = distance_of(flow, "normal", fresh_rows("normal", 4000, seed=0))
    exact = 1.25 / 2 + 0.25 - 1 - 2 * math.log(0.5)
    assert abs(distance.kl - exact) < 4 * distance.stderr
    assert 0 < distance.stderr < 0.05


def test_distance_is_taken_by_tight_solves_whatever_the_flows_own_are():
    flow = cnf.ffjord(
        2, hidden=(16, 16), zero_last=False, rtol=0.3, atol=0.3, step="joint"
    ).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(3)
    rows = fresh_rows("moons", 200, seed=0)
    distance, evaluations = distance_of(flow, "moons", rows)
    with torch.no_grad():
        tight = flow.with_solver(rtol=1e-9, atol=1e-9).log_prob(torch.from_numpy(rows)).numpy()
    assert abs(distance.kl - (TOYS["moons"].log_prob(rows) - tight).mean()) < 1e-5
    loose = flow.score_rows(torch.from_numpy(rows)).log_prob.detach().numpy()
    assert abs(distance.kl - (TOYS["moons"].log_prob(rows) - loose).mean()) > 1e-3
    assert evaluations > 20


def test_rows_to_score_are_those_of_no_training_and_no_watching():
    open_data = data.open_data("moons", seed=3)
    drawn = [
        open_data.train.x[:10],
        open_data.validation.x[:10],
        open_data.test.x[:10],
        *(
            fresh_rows("moons", 10, 3, stream)
            for stream in (truth.KL_STREAM, truth.WATCH_STREAM, truth.BATCH_STREAM)
        ),
        TOYS["moons"].sample(10, np.random.default_rng([3, len(data.TOY_ROWS)])),
    ]
    assert len({part[0, 0] for part in drawn}) == len(drawn)


def test_mean_evaluations_are_those_of_solves():
    history = SimpleNamespace(nfe=np.array([0.0, math.nan, 20.0, 26.0]))
    assert mean_evaluations(history) == 23.0
    assert mean_evaluations(SimpleNamespace(nfe=np.zeros(3))) == 0.0


# --- Cells ----------------------------------------------------------------------------------------


def test_cells_are_found_by_their_whole_key(tmp_path):
    cache = ResultCache(tmp_path, FILE)
    cache.add({"toy": "moons", "seed": 0}, {"kl": 0.1})
    cache.add({"toy": "moons", "seed": 1}, {"kl": math.nan, "points": [{"kl": math.inf}]})
    again = ResultCache(tmp_path, FILE)
    assert again.find({"toy": "moons", "seed": 0})["kl"] == 0.1
    assert again.find({"toy": "moons", "seed": 1})["points"] == [{"kl": None}]
    assert again.find({"toy": "moons", "seed": 2}) is None
    assert again.find({"toy": "moons", "seed": 0, "threads": 1}) is None
    assert again.find({"toy": "moons", "seed": 0}, ["kl"]) is not None
    assert again.find({"toy": "moons", "seed": 0}, ["kl", "stderr"]) is None


def test_interrupted_append_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    cache = ResultCache(tmp_path, FILE)
    cache.add({"toy": "moons"}, {"kl": 0.1})
    before = (tmp_path / FILE).read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cnf.utils.serialization.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.add({"toy": "rings"}, {"kl": 0.2})
    assert (tmp_path / FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("line", ['{"toy": "moo', "[1, 2]"])
def test_damaged_file_is_one_line_before_anything_is_trained(line, small, tmp_path):
    (tmp_path / FILE).write_text(f'{{"toy": "rings"}}\n{line}\n')
    message = complaint("benchmark", "toys", "--section", "fit", *TINY, "--out", tmp_path)
    assert f"line 2 of {tmp_path / FILE}" in message
    assert not small


def test_second_run_trains_nothing_and_says_so(small, tmp_path):
    command = ("benchmark", "toys", "--section", "fit", "--toys", "moons,rings", "--out", tmp_path)
    first = done(*command, *TINY)
    assert len(small) == 2
    assert "cached" not in first
    second = done(*command, *TINY)
    assert len(small) == 2
    assert second.count("cached") == 2
    assert second.replace(toys.CACHED_NOTE, "") == first


def test_changed_budget_threads_or_recipe_train_again(small, tmp_path, monkeypatch):
    options = BenchmarkOptions(out=tmp_path, budget=BUDGET)
    assert not fit_of(options, trial_of(options, "moons")).cached
    assert fit_of(options, trial_of(options, "moons")).cached
    longer = dataclasses.replace(options, budget=2 * BUDGET)
    assert not fit_of(longer, trial_of(longer, "moons")).cached
    changed = dataclasses.replace(RECIPES["toy"], learning_rate=1e-3)
    with monkeypatch.context() as patch:
        patch.setitem(RECIPES, "toy", changed)
        assert not fit_of(options, trial_of(options, "moons")).cached
    monkeypatch.setattr(fits.torch, "get_num_threads", lambda: 64)
    assert not fit_of(options, trial_of(options, "moons")).cached
    assert len(small) == 4
    assert len((tmp_path / FILE).read_text().splitlines()) == 4


def test_saved_flow_is_the_one_that_was_scored(small, tmp_path):
    options = BenchmarkOptions(out=tmp_path, budget=BUDGET)
    trial = trial_of(options, "moons")
    fit = fit_of(options, trial)
    flow = cnf.load(trial.folder(tmp_path))
    distance, evaluations = distance_of(flow, "moons", fresh_rows("moons", 60, seed=0))
    assert (distance, evaluations) == (fit.distance, fit.scoring)
    assert fit.seconds > 0
    assert fit.steps > 0


def test_training_draws_the_programs_rows_and_leaves_the_generator(small, monkeypatch):
    given = {}

    def spy(flow, rows, **more):
        given.update(more, rows=rows)
        raise cnf.training.TrainingError("enough")

    monkeypatch.setattr(fits, "fit", spy)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    options = BenchmarkOptions(budget=7.0)
    fit_of(options, trial_of(options, "moons", "mle", seed=4))
    assert torch.equal(torch.get_rng_state(), before)
    own = data.open_data("moons", 4)
    assert torch.equal(given["rows"], torch.from_numpy(own.train.x).float())
    assert torch.equal(given["validation"], torch.from_numpy(own.validation.x).float())
    assert (given["seed"], given["budget"], given["recipe"].objective) == (4, 7.0, "mle")


def test_interrupted_training_is_no_cell(small, tmp_path, monkeypatch):
    """`fit` takes Ctrl-C as an early end."""
    fit = fits.fit

    def interrupted(*given, **more):
        return dataclasses.replace(fit(*given, **more), reason="interrupted")

    monkeypatch.setattr(fits, "fit", interrupted)
    result = run("benchmark", "toys", "--section", "fit", *TINY, "--out", tmp_path)
    assert result.status == 1
    assert result.err == "cnf benchmark: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_failed_training_is_a_line_and_is_kept(small, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise cnf.training.TrainingError("nothing to keep")

    monkeypatch.setattr(fits, "fit", fail)
    command = ("benchmark", "toys", "--section", "fit", "--toys", "moons", "--out", tmp_path)
    table = done(*command, *TINY)
    assert "nan" in table
    assert "failed: nothing to keep" in table
    assert (tmp_path / "toys.png").exists()
    assert "cached" in done(*command, *TINY)


# --- Tables ---------------------------------------------------------------------------------------


def test_all_sections_share_the_fits_without_a_folder_too(small, monkeypatch):
    pytest.importorskip("torchdiffeq")
    monkeypatch.setattr(toys, "SEED_COUNT", 3)
    table = done("benchmark", "toys", *TINY, "--toys", "moons", "--cap", "0.1")
    assert len(small) == 1 + 2 + 2  # fit; two more objectives; two more seeds; the race none
    assert table.count(f"threads: {torch.get_num_threads()}") == 4
    assert table.count("\nmoons") == 5
    assert "cached: hybrid" in table
    assert "cached: 1" in table
    assert " times as long" in table


def test_each_section_has_toys_of_its_own(small, monkeypatch):
    asked = []

    def spy(options, trial):
        asked.append((trial.toy, trial.objective, trial.seed))
        return made(math.nan)

    for module in (toys, race):
        monkeypatch.setattr(module, "fit_of", spy)
    for lines, names in (
        (toys.fit_lines, tuple(TOYS)),
        (toys.objective_lines, tuple(TOYS)),
        (toys.seed_lines, ("8gaussians", "checkerboard")),
        (race.lines, ("8gaussians", "moons")),
    ):
        asked.clear()
        list(lines(BenchmarkOptions()))
        assert tuple(dict.fromkeys(toy for toy, _, _ in asked)) == names
    assert {objective for _, objective, _ in asked} == {"hybrid"}


def test_seeds_have_their_median_and_worst(monkeypatch):
    kls = {0: 0.3, 1: 0.1, 2: 0.5, 3: 0.2, 4: 0.4}
    monkeypatch.setattr(toys, "fit_of", lambda options, trial: made(kls[trial.seed]))
    row = list(toys.seed_lines(BenchmarkOptions(toys=("moons",))))[2]
    assert row.split()[:3] == ["moons", "0.3000", "0.5000"]
    kls[1] = math.nan
    row = list(toys.seed_lines(BenchmarkOptions(toys=("moons",))))[2]
    assert row.split()[:3] == ["moons", "0.4000", "nan"]


def test_contact_sheet_shows_flow_and_truth_in_the_same_colours(normal, tmp_path, monkeypatch):
    monkeypatch.setattr("cnf.scripts.benchmarks.contact_sheet.PANEL_PIXELS", 20)
    flow, _ = normal
    panels = [SheetPanel(toy, flow, Distance(0.25, 0.01)) for toy in TOYS]
    figure = contact_sheet([*panels, SheetPanel("moons", None, Distance(math.nan, math.nan))])
    shown = [ax for ax in figure.axes if ax.get_images()]
    assert len(shown) == 2 * len(TOYS) + 1
    for column in range(4):
        truth_panel, model = figure.axes[column], figure.axes[4 + column]
        assert truth_panel.get_images()[0].get_clim() == model.get_images()[0].get_clim()
        assert model.get_xlabel() == "KL 0.2500 ± 0.0100"
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == [*TOYS, "moons"]
    assert sum(ax.get_xlabel() == "failed" for ax in figure.axes) == 1
    figure.savefig(tmp_path / "sheet.png")
    assert imread(tmp_path / "sheet.png").std() > 0.1


# --- FFJORD's training ----------------------------------------------------------------------------


def test_reference_learns():
    pytest.importorskip("torchdiffeq")
    quick = dataclasses.replace(
        PUBLISHED_SETTINGS, hidden=(16,), learning_rate=3e-2, tolerance=1e-3
    )
    reference = FFJORDReference("moons", settings=quick)
    rows = fresh_rows("moons", 300, seed=0)
    before = reference.distance(rows)
    losses = [reference.step() for _ in range(25)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    assert reference.distance(rows).kl < before.kl - 0.3
    assert reference.steps == 25


def test_reference_is_train_toy_s():
    """Its defaults: https://github.com/rtqichen/ffjord, train_toy.py."""
    reference = FFJORDReference("moons")
    network = reference.flow.network
    assert [layer.linear.out_features for layer in network.layers] == [64, 64, 64, 2]
    assert network.layers[-1].gate is not None
    assert isinstance(network.activation, torch.nn.Tanh)
    assert (reference.flow.rtol, reference.flow.atol, reference.flow.end) == (1e-5, 1e-5, 0.5)
    assert (reference.flow.exact, reference.batch) == (True, 100)
    assert type(reference.optimizer) is torch.optim.Adam
    (group,) = reference.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-5)


def test_shorter_time_is_a_slower_field():
    """Up to T at the velocity f(t, x) is up to 1 at T f(T t, x)."""
    pytest.importorskip("torchdiffeq")
    short = FFJORDReference(
        "moons", settings=dataclasses.replace(PUBLISHED_SETTINGS, hidden=(8,))
    ).flow

    class Slowed(torch.nn.Module):
        def forward(self, t, x):
            return 0.5 * short.network(0.5 * t, x)

    slowed = FFJORD("slowed", Slowed(), 1e-6, 1e-6, exact=True)
    x = torch.randn(20, 2)
    torch.testing.assert_close(
        slowed.score(x).log_prob, short.score(x).log_prob, rtol=1e-4, atol=1e-4
    )
    short.end = 1.0
    assert (slowed.score(x).log_prob - short.score(x).log_prob).abs().max() > 1e-2


class Runner:
    """A training whose KL falls by a tenth with each step of a second; measuring takes an hour."""

    def __init__(self, breaks_at: int = 10**9) -> None:
        self.now, self.steps, self.breaks_at = 0.0, 0, breaks_at
        self.confirmed = []

    def clock(self) -> float:
        return self.now

    def step(self) -> None:
        if self.steps == self.breaks_at:
            raise AssertionError("underflow in dt")
        self.now += 1.0
        self.steps += 1

    def watch(self) -> Distance:
        self.now += 3600.0
        return Distance(1.0 - self.steps / 10, 0.01)

    def confirm(self) -> Distance:
        """On more rows it does worse, by a tenth and a half."""
        self.now += 3600.0
        self.confirmed.append(self.steps)
        return Distance(1.15 - self.steps / 10, 0.001)

    def points(self, target: float, cap: float, every: float = 1.0) -> list[RacePoint]:
        rules = RaceRules(target, cap, every)
        return list(race.race(self.step, self.watch, self.confirm, rules, self.clock))


def test_race_ends_where_all_rows_confirm_the_target():
    runner = Runner()
    points = runner.points(target=0.55, cap=100.0)
    assert [point.seconds for point in points] == [1, 2, 3, 4, 5, 6]
    assert runner.confirmed == [5, 6]
    assert [point.reached for point in points] == [False] * 5 + [True]
    assert [point.confirmed for point in points] == [False] * 4 + [True, True]
    assert points[-1].kl == pytest.approx(0.55)
    assert points[4].kl == pytest.approx(0.65)


def test_race_ends_at_the_cap():
    points = Runner().points(target=-100.0, cap=7.0, every=3.0)
    assert [point.seconds for point in points] == [3, 6, 7]
    assert not any(point.reached for point in points)
    assert "more than 7 s" in race_result("moons", made(0.1, seconds=2.0), points[-1])
    assert "more than 3.5 times" in race_result("moons", made(0.1, seconds=2.0), points[-1])


def test_race_ends_where_training_breaks():
    points = Runner(breaks_at=4).points(target=0.0, cap=100.0, every=3.0)
    assert [point.seconds for point in points] == [3, 4]
    assert math.isnan(points[-1].kl)
    assert not points[-1].reached
    said = race_result("moons", made(0.1, seconds=2.0), points[-1])
    assert said == "moons: FFJORD's training failed after 4 s"


def test_race_s_measurements_do_not_wait_for_one_another():
    """Where a step takes longer than the time between two of them, one a step."""
    runner = Runner()
    assert [point.steps for point in runner.points(-1.0, cap=3.0, every=0.1)] == [1, 2, 3]


def test_finished_race_is_not_run_again(tmp_path, monkeypatch):
    runs = []

    def runner(contest):
        runs.append(contest)
        return iter(Runner().points(target=contest.target, cap=contest.cap))

    monkeypatch.setattr(race, "_races", runner)
    monkeypatch.setattr(race, "fit_of", lambda options, trial: made(0.55))
    options = BenchmarkOptions(out=tmp_path, toys=("moons",), cap=50.0)
    first = list(race.lines(options))
    second = list(race.lines(BenchmarkOptions(out=tmp_path, toys=("moons",), cap=50.0)))
    assert len(runs) == 1
    assert second == [*first[:-1], f"{first[-1]}, cached"]
    assert "FFJORD's method 6 s: 0.1 times as long" in first[-1]
    list(race.lines(dataclasses.replace(options, cap=40.0)))
    monkeypatch.setattr(race, "fit_of", lambda options, trial: made(0.45))
    list(race.lines(options))
    assert [(contest.target, contest.cap) for contest in runs] == [
        (0.55, 50),
        (0.55, 40),
        (0.45, 50),
    ]


def test_no_race_without_a_target(monkeypatch):
    monkeypatch.setattr(race, "fit_of", lambda options, trial: made(math.nan, reason="failed: it"))
    monkeypatch.setattr(race, "_races", lambda contest: pytest.fail("a race was run"))
    assert (
        list(race.lines(BenchmarkOptions(toys=("moons",))))[-1]
        == "moons: no race; cnf's training failed: it"
    )


# --- The command line -----------------------------------------------------------------------------


def test_unknown_toy_is_refused():
    line = complaint("benchmark", "toys", "--toys", "moons,moon")
    assert "'moon'" in line
    assert "swissroll" in line


@pytest.mark.parametrize(
    ("subject", "option"),
    [
        ("toys", ("--repeats", "3")),
        ("solver", ("--budget", "3")),
        ("solver", ("--toys", "moons")),
        ("flow", ("--cap", "3")),
    ],
)
def test_option_of_another_subject_is_refused(subject, option):
    line = complaint("benchmark", subject, *option)
    assert f"expected for {subject} only" in line
    assert f"got {option[0]}" in line


@pytest.mark.parametrize("option", ["--budget", "--cap"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_times_are_positive(option, value):
    assert option in complaint("benchmark", "toys", f"{option}={value}")


def test_fingerprints_tell_every_recipe():
    marks = {fingerprint(dataclasses.asdict(recipe)) for recipe in RECIPES.values()}
    assert len(marks) == len(RECIPES)
    options = BenchmarkOptions()
    assert trial_of(options, "moons", "mle").recipe != trial_of(options, "moons", "hybrid").recipe


def test_cells_of_one_key_have_one_folder_each(tmp_path):
    trial = ToyTrial("moons", "mle", 60.0, 0, 1, "abc")
    others = [
        dataclasses.replace(trial, **{name: value})
        for name, value in {
            "toy": "rings",
            "objective": "hybrid",
            "budget": 0.5,
            "seed": 1,
            "threads": 2,
            "recipe": "def",
        }.items()
    ]
    assert len({each.folder(tmp_path) for each in (trial, *others)}) == 7
    assert json.loads(json.dumps(dataclasses.asdict(trial))) == dataclasses.asdict(trial)
