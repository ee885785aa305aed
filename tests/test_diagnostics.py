"""The checks of a flow, their report and the two-sample test: what is right passes."""

import json
from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np
import pytest
import torch
from torch import nn

import cnf
from cnf.datasets import TOYS
from cnf.diagnostics.checks import CHECKS, check
from cnf.diagnostics.context import CheckContext
from cnf.diagnostics.report import Finding, Limit, Report
from cnf.diagnostics.solves import check_effort
from cnf.diagnostics.two_sample import TwoSample, two_sample_test
from cnf.fields.divergence import Hutchinson, TangentTrace
from cnf.fields.field import Traced
from cnf.layers import Bounded, Concatenate, Dequantize, Layer, Positive, Standardize
from cnf.layers.layer import TransformResult
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import RECIPES

SMALL = {"rows": 10, "points": 500}
FAST = ("table-tiny",)  # of the recipes
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name not in FAST]


def curved(dim=2, strength=1.0, **options):
    """A flow with a random field, on a scaling that takes some volume."""
    torch.manual_seed(1)
    flow = cnf.ffjord(dim, hidden=(8, 8), zero_last=False, **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(strength)
    for layer in flow.layers:
        if isinstance(layer, Standardize):
            layer.fit(torch.tensor([3.0, 0.5, 2.0])[:dim] * torch.randn(50, dim) + 5)
    return flow


def on(flow, layer):
    """The flow with another layer next to the data."""
    return cnf.Flow(flow.base, [*list(flow.layers)[:-1], layer])


def drawn(flow, rows=200, context=None):
    torch.manual_seed(2)
    return flow.sample(rows if context is None else (), context)


def only(monkeypatch, *names):
    """Only these checks, and the one of rows, are made."""
    chosen = {name: CHECKS[name] for name in names}
    monkeypatch.setattr("cnf.diagnostics.checks.CHECKS", chosen)


def verdicts(report):
    return {found.name: found.verdict for found in report.findings}


def failed(report):
    return {found.name for found in report.findings if found.verdict == "fail"}


BOUNDED = Concatenate([Bounded([0.0], [10.0]), Positive([1.0])], [[1], [0]])
RIGHT = {
    "one column": lambda: curved(1),
    "circular": lambda: curved(2, circular=(0,)),
    "bounded and positive": lambda: on(curved(2), BOUNDED),
    "conditional": lambda: curved(2, context_dim=1),
    "double": lambda: curved(2).double(),
    "estimated trace": lambda: curved(3, divergence="hutchinson"),
    "Hutch++, several layers": lambda: curved(3, divergence="hutch++", blocks=2),
    "fixed steps": lambda: curved(2, method="rk4", step_size=0.1),
    "backsolve": lambda: curved(2, gradient="backsolve"),
    "explicit steps": lambda: curved(2).discretized(4, "rk4", learnt=True),
    "explicit steps given a context": lambda: curved(2, context_dim=1).discretized(2),
    "joint steps": lambda: curved(2, step="joint", rtol=1e-7, atol=1e-7),
}


# These are checked as others are: Hutch++, adaptive steps, and steps or a context alone.
ALIKE = ("estimated trace", "double", "joint steps", "explicit steps given a context")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ALIKE)) for kind in RIGHT],
)
def test_right_flows_pass(kind, monkeypatch):
    conditional = kind in ("conditional", "explicit steps given a context")
    if kind != "conditional":
        only(monkeypatch, *(name for name in CHECKS if name != "two-sample"))
    flow = RIGHT[kind]()
    context = torch.randn(200, 1) if conditional else None
    data = drawn(flow, context=context)
    if kind == "circular":
        data[-2:, 0] += 2 * torch.pi
    report = check(flow, data, context, **SMALL)
    assert set(verdicts(report).values()) == {"pass"}, str(report)
    assert report.rows == SMALL["rows"]
    assert ("the worst of 3" in str(report)) == conditional
    assert ("mass of folds" in verdicts(report)) == kind.startswith("explicit steps")


def test_a_table_of_mixed_columns_passes():
    rng = np.random.default_rng(0)
    columns = [rng.poisson(20, 200), rng.integers(0, 3, 200), rng.gamma(2.0, size=200)]
    rows = np.stack([*columns, np.full(200, 0.1)], 1)
    colour = Column("colour", "categorical", categories=tuple("abc"))
    numbers = Column("size", "positive"), Column("unit", "constant", 0.1)
    schema = Schema((Column("count", "integer", 0), colour, *numbers))
    torch.manual_seed(0)
    flow = RECIPES["table-tiny"].flow(schema.width, columns=schema.layers(rows))
    data = torch.from_numpy(rows)
    cnf.fit(flow, data, steps=3)
    report = check(flow, data, **SMALL)
    assert failed(report) == set(), str(report)
    assert verdicts(report)[NOISE] == "pass"
    assert any("noise, drawn once" in note for note in report.notes)


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_every_recipes_flow_passes(name):
    rows = torch.from_numpy(TOYS["moons"].sample(300, seed=0))
    rows = rows if name in ("toy", "ffjord-paper") else torch.cat([rows, rows[:, :1] ** 2], 1)
    rows = rows + 0.05 * torch.randn(rows.shape)
    recipe = replace(RECIPES[name], batch_size=64, matching_batch=64)
    flow = recipe.flow(rows.shape[1])
    cnf.fit(flow, rows, recipe=recipe, steps=3)
    report = check(flow, rows, rows=15, points=1500)
    found = verdicts(report)
    assert found.pop("samples against data") != "fail"  # after three steps
    assert set(found.values()) == {"pass"}, str(report)


class Broken(Standardize):
    """A scaling whose results are changed on the way to the data, to the base or both."""

    def __init__(self, ways, value, factor):
        super().__init__(3)
        self.ways, self.value, self.factor = ways, value, factor

    def push(self, z, context=None):
        return self.changed("push", super().push(z, context))

    def pull(self, x, context=None):
        return self.changed("pull", super().pull(x, context))

    def changed(self, way, result):
        if way not in self.ways:
            return result
        return TransformResult(self.value(result.value), self.factor * result.log_det)


class Detached(Layer):
    """A shift whose parameter's gradient is lost towards the base."""

    name = "detached"

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.3))

    def push(self, z, context=None):
        return TransformResult(z + self.shift, z.new_zeros(len(z)))

    def pull(self, x, context=None):
        return TransformResult(x - self.shift.detach(), x.new_zeros(len(x)))

    def config(self):
        return {}


class Above(Dequantize):
    """Whole numbers that come back one too large."""

    def push(self, z, context=None):
        mapped = super().push(z, context)
        return TransformResult(mapped.value + 1, mapped.log_det)


@dataclass(frozen=True)
class Flipped(TangentTrace):
    """A trace of the wrong sign."""

    def __call__(self, vector_field, stage, x, probes):
        found = super().__call__(vector_field, stage, x, probes)
        return Traced(found.velocity, -found.trace)


@dataclass(frozen=True)
class Redrawn(Hutchinson):
    """Probes that are drawn anew at each evaluation."""

    def __call__(self, vector_field, stage, x, probes):
        return super().__call__(vector_field, stage, x, self.probes(vector_field, stage, x))


def scaled_by(ways, value=torch.clone, factor=1):
    """A flow with a broken scaling in the place of its own, and draws of it as it was."""
    flow = curved(3)
    layer = Broken(ways, value, factor)
    layer.load_state_dict(flow.layers[-1].state_dict())
    return on(flow, layer), drawn(flow)


def solved(flow=None, **changes):
    """A flow that is solved otherwise, and draws of it as it was."""
    flow = curved(2, strength=5.0) if flow is None else flow
    return flow.with_solver(**changes), drawn(flow)


def fixed(divergence):
    return solved(curved(3, strength=2.0, method="rk4", step_size=0.1), divergence=divergence)


def followed_by(layer, data=None):
    flow = curved(2)
    flow = cnf.Flow(flow.base, [*flow.layers, layer])
    return flow, drawn(flow) if data is None else data


BACK = "log p there and back"
BOTH_WAYS = f"round trip, {BACK}, log-determinant, integral"
NOISE = "whole numbers, categories, constants"
INTEGRAL = {"integral of the density"}
VOLUME = {*INTEGRAL, "log-determinant"}
THERE_AND_BACK = {f"log p of samples there and back, {which}" for which in ("median", "99 %")}
NO_INVERSE = {"round trip x → z → x", "round trip z → x → z", *THERE_AND_BACK}
PRECISION = {f"log p in single precision, {which}" for which in ("median", "99 %")}
BESIDE = {"log p beside other rows"}
TRACES = {"exact and estimated traces", *VOLUME}
REDRAWN = {"log p against a tight solve, median"}
LOOSE = {"round trip x → z → x", "log p against a tight solve, 99 %"}
WHOLE = torch.randint(0, 9, (50, 2)).float()
# The checks, a flow with data, and the findings that fail; none where the flow is right.
BROKEN = {
    "wrong sign": (BOTH_WAYS, lambda: scaled_by("push pull", factor=-1), VOLUME),
    "no log-determinant": (BOTH_WAYS, lambda: scaled_by("push pull", factor=0), VOLUME),
    "sign of pull": (BOTH_WAYS, lambda: scaled_by("pull", factor=-1), INTEGRAL | THERE_AND_BACK),
    "no inverse": (BOTH_WAYS, lambda: scaled_by("push", lambda x: x + 1), NO_INVERSE),
    "trace of the wrong sign": (
        f"traces, log-determinant, integral, {BACK}, tolerance",
        lambda: solved(curved(2, strength=2.0), divergence=Flipped()),
        TRACES,
    ),
    "probes held in a solve": ("tolerance", lambda: fixed(Hutchinson()), set()),
    # With fixed steps log p is another at half the step, though the probes should be the same.
    "probes redrawn in a solve": ("tolerance", lambda: fixed(Redrawn()), REDRAWN),
    "tight tolerance": (f"tolerance, round trip, {BACK}", solved, set()),
    "loose solves": ("tolerance, round trip", lambda: solved(rtol=1e-1, atol=1e-1), LOOSE),
    "batch's mean": ("batch", lambda: scaled_by("pull", lambda x: x - 0.01 * x.mean(0)), BESIDE),
    "loose joint steps": ("batch", lambda: solved(step="joint", rtol=1e-3, atol=1e-3), BESIDE),
    "lost digits": ("precision", lambda: scaled_by("pull", lambda x: (x + 2e7) - 2e7), PRECISION),
    "lost gradient": ("gradient", lambda: followed_by(Detached()), {"gradient"}),
    "whole numbers": ("noise", lambda: followed_by(Dequantize(2), WHOLE), set()),
    "whole numbers one too large": ("noise", lambda: followed_by(Above(2), WHOLE), {NOISE}),
}
OTHERS_MAY_FAIL = ("loose solves", "probes redrawn in a solve")


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_flows_fail(kind, monkeypatch):
    names, made, expected = BROKEN[kind]
    only(monkeypatch, *names.split(", "))
    report = check(*made(), **SMALL)
    found = failed(report)
    assert expected == (found & expected if kind in OTHERS_MAY_FAIL else found), str(report)
    assert report.verdict == ("fail" if expected else "pass"), str(report)


class Waves(nn.Module):
    """A field along which one explicit step folds."""

    def forward(self, t, x):
        return torch.sin(2 * x)


def test_explicit_steps_that_fold_fail(monkeypatch):
    flow = cnf.Flow(curved(2).base, [cnf.CNF(Waves())])
    only(monkeypatch, "effort", "tolerance", "integral", "folds")
    data, steps = drawn(flow), flow.discretized(1)
    report = check(steps, data, rows=50, points=10_000)
    folds = "mass of folds"
    assert failed(report) == {"rows without a log p", *INTEGRAL, folds}, str(report)
    assert "fold space here" in report.findings[0].sentence
    assert report.findings[-1].value > 0.05
    assert any("no tolerance to tighten" in note for note in report.notes)
    assert any("take 2 evaluations a row" in note for note in report.notes)
    fine = check(flow.discretized(8), data, rows=50, points=10_000)
    assert set(verdicts(fine).values()) == {"pass"}, str(fine)
    monkeypatch.setattr("cnf.flow.folds.MIN_EFFECTIVE", 10**6)
    unknown = check(flow.discretized(8), data, rows=50, points=10_000).findings[-1]
    assert (unknown.name, unknown.verdict) == (folds, "warn")
    assert "too few to tell" in unknown.sentence


def test_probes_redrawn_where_steps_are_adaptive_leave_no_row():
    flow = curved(3, divergence=Redrawn(), max_steps=40, strength=2.0)
    report = check(flow, drawn(curved(3)), rows=4)
    assert failed(report) == {"rows without a log p"}
    assert report.findings[0].value == 1.0
    assert len(report.findings[0].rows) == 4
    assert report.notes == ("No row has a log p: nothing else was checked.",)


def test_samples_from_elsewhere_and_too_few_points(monkeypatch):
    flow = curved(3)
    data = drawn(flow)
    only(monkeypatch, "two-sample")
    for shift, verdict in ((0.0, "pass"), (3.0, "warn"), (50.0, "fail")):
        report = check(flow, data + torch.tensor([shift, 0.0, 0.0]), **SMALL)
        assert verdicts(report)["samples against data"] == report.verdict == verdict
    wind = curved(2, circular=(0,))  # angles of another turn are the same rows
    report = check(wind, drawn(wind) + torch.tensor([2 * torch.pi, 0.0]), **SMALL)
    assert verdicts(report)["samples against data"] == "pass"
    only(monkeypatch, "integral")
    report = check(flow, data, rows=10, points=50)
    assert verdicts(report)["integral of the density"] == "warn"
    assert "too few to tell" in str(report)


def test_rows_out_of_bounds_fail_and_are_named(monkeypatch):
    only(monkeypatch, "effort")
    flow = on(curved(2), Positive([0.0, 0.0]))
    data = drawn(flow)
    data[[7, 11], 1] = -1.0
    report = check(flow, data, rows=200, points=4)
    assert failed(report) == {"rows without a log p"}
    assert (report.findings[0].rows, report.findings[0].value) == ((7, 11), 0.01)
    assert "beyond the bounds of a column" in report.findings[0].sentence


def test_stiff_rows_are_named():
    class Spin(nn.Module):  # faster for rows far out
        def forward(self, t, x):
            speed = x.square().sum(1, keepdim=True)
            return speed * torch.stack([-x[:, 1], x[:, 0]], 1)

    flow = cnf.Flow(curved(2).base, [cnf.CNF(Spin(), max_steps=200, first_pass=False)])
    data = 0.3 * torch.randn(20, 2).clamp(-2, 2)
    data[[5, 17]] = torch.tensor([[0.0, 4.0], [0.0, 5.0]])
    ctx = CheckContext.of(flow, data, None, 20, 0, 4)
    steps, rejected = check_effort(ctx)
    assert {*steps.rows[:2]} == {5, 17}
    assert (steps.verdict, rejected.verdict) == ("warn", "pass")
    assert f"to {ctx.solves['evaluations'].max()}" in steps.sentence
    noisy = replace(ctx, solves=ctx.solves.assign(rejected=2 * ctx.solves["accepted"]))
    assert list(check_effort(noisy))[1].verdict == "warn"


def test_a_failed_solve_within_a_check_fails_it(monkeypatch):
    def unsolvable(ctx):
        limited = ctx.flow.with_solver(max_steps=1)
        yield float(limited.log_prob(ctx.rows.x).mean())

    monkeypatch.setattr("cnf.diagnostics.checks.CHECKS", {"solve": unsolvable})
    flow = curved(2, strength=3.0)
    (_, found) = check(flow, drawn(flow), **SMALL).findings
    assert (found.name, found.verdict) == ("solve", "fail")
    assert "The step limit was hit" in found.sentence


def test_notes_say_what_was_not_checked():
    flow = curved(2).double().requires_grad_(False)
    flow = cnf.Flow(flow.base, [flow.layers[-1]])
    report = check(flow, drawn(flow, 40), rows=10, points=900)
    for words in (
        "float64: single precision is not checked",
        "No parameter wants a gradient",
        "too few rows for the two-sample test: it takes 50",
        "There is no CNF layer",
    ):
        assert words in " ".join(report.notes)
    assert report.verdict == "pass", str(report)


def test_the_flow_and_the_random_numbers_are_left_alone(monkeypatch):
    # The classifier, which takes long, has a seed: it is tested below.
    monkeypatch.setattr("cnf.diagnostics.solves.two_sample_test", lambda *_: TwoSample(0.5, 0.1, 9))
    flow = curved(2)
    data = drawn(flow, 60)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    torch.manual_seed(5)
    report = check(flow, data, rows=10, points=100)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    assert next(flow.parameters()).grad is None
    assert check(flow, data, rows=10, points=100) == report
    assert len(json.loads(report.json())["findings"]) == len(report.findings)
    only(monkeypatch, "round trip")
    other = check(flow, data, rows=10, points=100, seed=1)
    assert not {*other.findings} <= {*report.findings}


def test_mistakes():
    for change, message in (
        ({"data": torch.zeros(5, 3)}, r"data of shape \(rows, 2\)"),
        ({"data": torch.full((5, 2), torch.nan)}, "finite numbers in data"),
        ({"rows": 0}, "rows of at least 1; got 0"),
        ({"points": 0}, "points of at least 1; got 0"),
        ({"context": torch.zeros(4, 1)}, "a context of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            check(**{"model": curved(2), "data": torch.zeros(5, 2), **change})


def test_two_samples():
    rng = np.random.default_rng(0)
    data, samples = rng.normal(size=(150, 3)), rng.normal(size=(200, 3))
    found = two_sample_test(data, samples)
    assert abs(found.accuracy - 0.5) < 4 * found.stderr
    assert found.stderr == pytest.approx(0.5 / np.sqrt(300), rel=0.05)
    assert found.rows == 300
    assert two_sample_test(data, samples) == found
    # The best rule is right with probability Φ(‖μ‖ / 2), here Φ(√3 / 2) = 0.807.
    shifted = two_sample_test(*(rng.normal(loc, size=(400, 3)) for loc in (0.0, 1.0)))
    assert 0.7 < shifted.accuracy < 0.85
    for shape in ((100, 2), (4, 3)):
        with pytest.raises(ValueError, match="same columns and at least 5 rows each; got shapes"):
            two_sample_test(data, np.zeros(shape))


def finding(value, rows=()):
    return Finding.of(f"a check of {value}", value, Limit(1e-3, 1e-2), "What it means.", rows)


def test_limits_and_the_worst_verdict():
    for verdict, values, *reports in (
        ("pass", (0.0, 1e-3), (), (0,)),
        ("warn", (2e-3, 1e-2), (0, 2e-3)),
        ("fail", (0.1, inf, nan), (1, 0, 2e-3)),
    ):
        for value in values:
            assert (finding(value).verdict, finding(value).limit) == (verdict, 1e-3)
        for findings in reports:
            report = Report(tuple(map(finding, findings)), (), 3)
            assert report.verdict == verdict
            assert report.lines()[-1].startswith(verdict)


def test_a_reports_lines_and_json():
    report = Report((finding(nan, (7, 8, 9, 10, 11, 12)), finding(0.0)), ("Left out.",), 3)
    sentence = "What it means. Rows 7, 8, 9, 10, 11."
    for words in ("fail", "a check of nan", sentence, "note  Left out."):
        assert words in str(report)
    told = json.loads(report.json(), parse_constant=pytest.fail)
    assert (told["verdict"], told["rows"], told["notes"]) == ("fail", 3, ["Left out."])
    assert [one["value"] for one in told["findings"]] == [None, 0.0]
    assert set(told["findings"][0]) == {"name", "verdict", "value", "limit", "sentence", "rows"}
