"""The checks of a flow: they pass on what is right, and each fails on what is broken for it."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import cnf
from cnf.datasets import TOYS
from cnf.diagnostics import checks
from cnf.diagnostics.checks import check
from cnf.diagnostics.context import context_of
from cnf.diagnostics.solves import check_effort
from cnf.fields.divergence import Hutchinson, TangentTrace
from cnf.fields.field import Traced
from cnf.layers import Bounded, Concatenate, Dequantize, Layer, Positive, Standardize
from cnf.layers.layer import TransformResult
from cnf.tables.schema import Column, Schema
from cnf.training.recipes import RECIPES

SMALL = {"rows": 30, "points": 900}
FAST = ("toy", "table-tiny")  # of the recipes


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
    return cnf.Flow(flow.base, [*list(flow.layers)[:-1], layer], flow.context)


def drawn(flow, rows=200, context=None):
    torch.manual_seed(2)
    return flow.sample(rows if context is None else (), context)


def only(monkeypatch, *names):
    """Only these checks, and the one of rows, are made."""
    chosen = {name: checks.CHECKS[name] for name in names}
    monkeypatch.setattr("cnf.diagnostics.checks.CHECKS", chosen)


def verdicts(report):
    return {found.name: found.verdict for found in report.findings}


def failed(report):
    return {found.name for found in report.findings if found.verdict == "fail"}


# --- what is right --------------------------------------------------------------------------------


def circular():
    return curved(2, circular=(0,))


def bounded():
    columns = Concatenate([Bounded([0.0], [10.0]), Positive([1.0])], [[1], [0]])
    return cnf.Flow(curved(2).base, [*list(curved(2).layers)[:1], columns])


RIGHT = {
    "one column": lambda: curved(1),
    "two columns": lambda: curved(2),
    "three columns": lambda: curved(3),
    "circular": circular,
    "bounded and positive": bounded,
    "double": lambda: curved(2).double(),
    "estimated trace": lambda: curved(3, divergence="hutchinson"),
    "Hutch++, several layers": lambda: curved(3, divergence="hutch++", blocks=2),
    "fixed steps": lambda: curved(2, method="rk4", step_size=0.1),
    "backsolve": lambda: curved(2, gradient="backsolve"),
    "joint steps": lambda: curved(2, step="joint", rtol=1e-7, atol=1e-7),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_passes(kind, monkeypatch):
    only(monkeypatch, *(name for name in checks.CHECKS if name != "two-sample"))
    flow = RIGHT[kind]()
    # The last two rows are hundreds of turns away, where the column is a circle.
    data = drawn(flow)
    if kind == "circular":
        data[-2:, 0] += 2 * torch.pi
    report = check(flow, data, **SMALL)
    assert set(verdicts(report).values()) == {"pass"}, str(report)
    assert report.rows == 30


def test_a_conditional_flow_passes():
    flow, context = curved(2, context_dim=1), torch.randn(200, 1)
    report = check(flow, drawn(flow, context=context), context, **SMALL)
    assert set(verdicts(report).values()) == {"pass"}, str(report)
    assert "the worst of 3" in str(report)


def test_a_table_of_mixed_columns_passes():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.poisson(20, 200), rng.integers(0, 3, 200), rng.gamma(2.0, size=200)], 1)
    rows = np.concatenate([rows, np.full((200, 1), 0.1)], 1)
    kinds = [
        Column("count", "integer", 0),
        Column("colour", "categorical", categories=tuple("abc")),
    ]
    schema = Schema((*kinds, Column("size", "positive"), Column("unit", "constant", 0.1)))
    torch.manual_seed(0)
    flow = RECIPES["table-tiny"].flow(schema.width, columns=schema.layers(rows))
    data = torch.from_numpy(rows)
    cnf.fit(flow, data, steps=10)
    report = check(flow, data, **SMALL)
    assert failed(report) == set(), str(report)
    assert verdicts(report)["whole numbers, categories, constants"] == "pass"
    assert any("noise, drawn once" in note for note in report.notes)


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES],
)
def test_every_recipes_flow_passes(name):
    rows = torch.from_numpy(TOYS["moons"].sample(300, seed=0))
    rows = rows if name in ("toy", "ffjord-paper") else torch.cat([rows, rows[:, :1] ** 2], 1)
    rows = rows + 0.05 * torch.randn(rows.shape)
    recipe = replace(RECIPES[name], batch_size=64, matching_batch=64)
    flow = recipe.flow(rows.shape[1])
    cnf.fit(flow, rows, recipe=recipe, steps=10)
    report = check(flow, rows, rows=20, points=2500)
    poor = {"samples against data"}  # after ten steps
    assert {one for one, verdict in verdicts(report).items() if verdict != "pass"} <= poor, str(
        report
    )
    assert report.verdict != "fail"


# --- what is broken -------------------------------------------------------------------------------


class Negated(Standardize):
    """A wrong sign, both ways."""

    def push(self, z, context=None):
        mapped = super().push(z, context)
        return TransformResult(mapped.value, -mapped.log_det)

    def pull(self, x, context=None):
        mapped = super().pull(x, context)
        return TransformResult(mapped.value, -mapped.log_det)


class NegatedBack(Standardize):
    """A wrong sign on the way from the data alone."""

    def pull(self, x, context=None):
        mapped = super().pull(x, context)
        return TransformResult(mapped.value, -mapped.log_det)


class Forgotten(Standardize):
    """A missing log-determinant."""

    def push(self, z, context=None):
        return TransformResult(super().push(z, context).value, z.new_zeros(len(z)))

    def pull(self, x, context=None):
        return TransformResult(super().pull(x, context).value, x.new_zeros(len(x)))


class Elsewhere(Standardize):
    """Another way back."""

    def push(self, z, context=None):
        mapped = super().push(z, context)
        return TransformResult(mapped.value + 1.0, mapped.log_det)


class OfTheBatch(Standardize):
    """Normalises by the rows beside."""

    def pull(self, x, context=None):
        mapped = super().pull(x, context)
        return TransformResult(mapped.value - 0.01 * mapped.value.mean(0), mapped.log_det)


class Coarse(Standardize):
    """Loses digits in single precision."""

    def pull(self, x, context=None):
        return super().pull((x + 3e6) - 3e6, context)


class Detached(Layer):
    """Its parameter's gradient is lost on the way from the data."""

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


def scaled_by(kind):
    """A flow with this scaling in the place of its own."""
    flow = curved(3)
    layer = kind(3)
    layer.load_state_dict(flow.layers[-1].state_dict())
    return on(flow, layer), drawn(flow)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Negated, {"integral of the density", "log-determinant"}),
        (Forgotten, {"integral of the density", "log-determinant"}),
        (
            NegatedBack,
            {
                "integral of the density",
                "log p of samples there and back, median",
                "log p of samples there and back, 99 %",
            },
        ),
        (
            Elsewhere,
            {
                "round trip x → z → x",
                "round trip z → x → z",
                "log p of samples there and back, median",
                "log p of samples there and back, 99 %",
            },
        ),
    ],
)
def test_broken_scalings_fail(kind, expected, monkeypatch):
    only(monkeypatch, "round trip", "log p there and back", "log-determinant", "integral")
    report = check(*scaled_by(kind), **SMALL)
    assert failed(report) == expected, str(report)
    assert report.verdict == "fail"


def test_a_trace_of_the_wrong_sign_fails(monkeypatch):
    only(monkeypatch, "traces", "log-determinant", "integral", "log p there and back", "tolerance")
    flow = curved(2, strength=2.0)
    report = check(flow.with_solver(divergence=Flipped()), drawn(flow), **SMALL)
    expected = {"exact and estimated traces", "log-determinant", "integral of the density"}
    assert failed(report) == expected, str(report)


def test_probes_redrawn_within_a_solve_fail(monkeypatch):
    """With fixed steps log p is another at half the step, though the probes should be the same."""
    only(monkeypatch, "tolerance")
    flow = curved(3, strength=2.0, method="rk4", step_size=0.1)
    data = drawn(flow)
    held = check(flow.with_solver(divergence=Hutchinson()), data, **SMALL)
    assert held.verdict == "pass", str(held)
    report = check(flow.with_solver(divergence=Redrawn()), data, **SMALL)
    assert "log p against a tight solve, median" in failed(report)


def test_probes_redrawn_where_steps_are_adaptive_leave_no_row(monkeypatch):
    """No step is small enough for noise: the rows are not solved, and nothing else is checked."""
    flow = curved(3, divergence=Redrawn(), max_steps=40, strength=2.0)
    report = check(flow, drawn(curved(3)), rows=4)
    assert failed(report) == {"rows without a log p"}
    assert report.findings[0].value == 1.0
    assert len(report.findings[0].rows) == 4
    assert report.notes == ("No row has a log p: nothing else was checked.",)


def test_a_tolerance_of_a_tenth_fails(monkeypatch):
    only(monkeypatch, "tolerance", "round trip", "log p there and back")
    flow = curved(2, strength=5.0)
    data = drawn(flow)
    assert check(flow, data, **SMALL).verdict == "pass"
    report = check(flow.with_solver(rtol=1e-1, atol=1e-1), data, **SMALL)
    assert {"round trip x → z → x", "log p against a tight solve, 99 %"} <= failed(report), str(
        report
    )


def test_a_log_p_of_the_batch_fails(monkeypatch):
    only(monkeypatch, "batch")
    assert failed(check(*scaled_by(OfTheBatch), **SMALL)) == {"log p beside other rows"}


def test_joint_steps_at_a_loose_tolerance_do_not_pass(monkeypatch):
    only(monkeypatch, "batch")
    flow = curved(2, strength=5.0)
    data = drawn(flow)
    report = check(flow.with_solver(step="joint", rtol=1e-3, atol=1e-3), data, **SMALL)
    assert failed(report) == {"log p beside other rows"}, str(report)


def test_lost_digits_fail(monkeypatch):
    only(monkeypatch, "precision")
    expected = {"log p in single precision, median", "log p in single precision, 99 %"}
    assert failed(check(*scaled_by(Coarse), **SMALL)) == expected


def test_a_lost_gradient_fails(monkeypatch):
    only(monkeypatch, "gradient")
    flow = curved(2)
    broken = cnf.Flow(flow.base, [*flow.layers, Detached()])
    assert failed(check(broken, drawn(broken), **SMALL)) == {"gradient"}


def test_samples_from_elsewhere_fail_and_poor_ones_warn(monkeypatch):
    only(monkeypatch, "two-sample")
    flow = curved(2)
    data = drawn(flow)
    assert verdicts(check(flow, data, **SMALL))["samples against data"] == "pass"
    far, near = data + torch.tensor([50.0, 0.0]), data + torch.tensor([3.0, 0.0])
    assert failed(check(flow, far, **SMALL)) == {"samples against data"}
    assert verdicts(check(flow, near, **SMALL))["samples against data"] == "warn"


def test_whole_numbers_that_do_not_come_back_fail(monkeypatch):
    only(monkeypatch, "noise")
    data = torch.randint(0, 9, (50, 2)).float()
    flow = curved(2)
    right = cnf.Flow(flow.base, [*flow.layers, Dequantize(2)])
    assert check(right, data, **SMALL).verdict == "pass"
    broken = cnf.Flow(flow.base, [*flow.layers, Above(2)])
    assert failed(check(broken, data, **SMALL)) == {"whole numbers, categories, constants"}


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
    """Rows far out turn faster."""

    class Spin(nn.Module):
        def forward(self, t, x):
            speed = x.square().sum(1, keepdim=True)
            return speed * torch.stack([-x[:, 1], x[:, 0]], 1)

    flow = cnf.Flow(curved(2).base, [cnf.CNF(Spin(), max_steps=200)])
    data = 0.3 * torch.randn(60, 2).clamp(-2, 2)
    data[[5, 17]] = torch.tensor([[0.0, 4.0], [0.0, 5.0]])
    ctx = context_of(flow, data, None, 60, 0, 4)
    steps, rejected = check_effort(ctx)
    assert steps.rows[:2] == (17, 5)
    assert (steps.verdict, rejected.verdict) == ("warn", "pass")
    assert f"to {ctx.evaluations.max()}" in steps.sentence
    noisy = replace(ctx, rejected=2 * ctx.accepted)
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


# --- what is not checked, and mistakes ------------------------------------------------------------


def test_too_few_points_to_tell_warn(monkeypatch):
    only(monkeypatch, "integral")
    flow = curved(3)
    report = check(flow, drawn(flow), rows=10, points=50)
    assert verdicts(report)["integral of the density"] == "warn"
    assert "too few to tell" in str(report)


def test_notes_say_what_was_not_checked():
    flow = curved(2).double().requires_grad_(False)
    report = check(flow, drawn(flow, 40), rows=10, points=400)
    told = " ".join(report.notes)
    assert "float64: single precision is not checked" in told
    assert "No parameter wants a gradient" in told
    assert "too few rows for the two-sample test: it takes 50" in told


def test_a_flow_without_solves_is_checked_still():
    flow = on(curved(2), Standardize(2))
    flow = cnf.Flow(flow.base, [Standardize(2).fit(3 * torch.randn(50, 2))])
    report = check(flow, drawn(flow), **SMALL)
    assert report.verdict == "pass", str(report)
    assert any("There is no CNF layer" in note for note in report.notes)


def test_the_flow_and_the_random_numbers_are_left_alone():
    flow = curved(2)
    data = drawn(flow, 60)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    torch.manual_seed(5)
    report = check(flow, data, rows=10, points=100)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    assert next(flow.parameters()).grad is None
    assert check(flow, data, rows=10, points=100) == report
    assert check(flow, data, rows=10, points=100, seed=1) != report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": torch.zeros(5, 3)}, r"data of shape \(rows, 2\)"),
        ({"data": torch.full((5, 2), torch.nan)}, "finite numbers in data"),
        ({"rows": 0}, "rows of at least 1; got 0"),
        ({"points": 0}, "points of at least 1; got 0"),
        ({"context": torch.zeros(4, 1)}, "a context of shape"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        check(**{"flow": curved(2), "data": torch.zeros(5, 2), **change})


def test_the_report_is_json():
    flow = curved(1)
    report = check(flow, drawn(flow, 20), rows=5, points=50)
    assert len(json.loads(report.json())["findings"]) == len(report.findings)
