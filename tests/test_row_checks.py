"""The checks of a model of mixed rows: a good one passes, and each finds what is broken for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cnf
from cnf.datasets import Table
from cnf.diagnostics.checks import CHECKS, ROW_CHECKS
from cnf.diagnostics.report import Report
from cnf.diagnostics.row_checks import bin_masses
from cnf.tables import Column, RowModel, Schema, fit_rows
from cnf.tables.row_training import new_row_model

ROWS = 800
CHECKED = {"rows": 60, "points": 2000}


def _table(rows: int = ROWS, seed: int = 0) -> Table:
    """Rows of a category, a spike at 0, a count of many values and a constant."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, rows).astype(float)
    spike = np.where(rng.random(rows) < 0.3, 0.0, rng.normal(group, 0.5))
    count = np.where(rng.random(rows) < 0.2, 7.0, rng.integers(-900, 900, rows))
    values = np.column_stack([group, spike, count, np.full(rows, 0.1)])
    return Table(
        "t", values, ("group", "spike", "count", "unit"), categories={"group": ("a", "b", "c")}
    )


def _fitted(context: int = 0, flow: bool = False) -> tuple[RowModel, Tensor, Tensor | None]:
    """A model trained for a little while, and other rows; the last columns may be a context."""
    table, other = _table(), _table(seed=1)
    bounds = {"low": -900.0, "high": 900.0}
    columns = Schema.infer(table).columns
    schema = Schema((*columns[:2], replace(columns[2], **bounds), columns[3]))
    both = [schema.numbers(each.values, each.categories, each.types) for each in (table, other)]
    options: dict[str, Any] = {"hidden": 24, "bins": 6, "flow": flow}
    if not context:
        model = new_row_model(schema, both[0], **options)
        fit_rows(model, both[0], steps=20, threads=1)
        return model, torch.tensor(both[1]), None
    parts = [(each[:, 1:], each[:, :1]) for each in both]
    x, given = Schema(schema.columns[1:]), Schema(schema.columns[:1])
    model = new_row_model(x, parts[0][0], context=(given, parts[0][1]), **options)
    fit_rows(model, parts[0][0], context=parts[0][1], steps=20, threads=1)
    return model, torch.tensor(parts[1][0]), torch.tensor(parts[1][1])


@pytest.fixture(scope="module")
def fitted() -> tuple[RowModel, Tensor, Tensor | None]:
    return _fitted()


@pytest.fixture(scope="module")
def given() -> tuple[RowModel, Tensor, Tensor | None]:
    return _fitted(context=1, flow=True)


def _only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    chosen = {name: ROW_CHECKS[name] for name in names}
    monkeypatch.setattr("cnf.diagnostics.checks.ROW_CHECKS", chosen)


def _failed(report: Report) -> set[str]:
    return {found.name for found in report.findings if found.verdict != "pass"}


QUICK = [name for name in ROW_CHECKS if name not in ("two-sample", "flow")]


def test_a_good_model_passes(
    fitted: tuple[RowModel, Tensor, None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnf.diagnostics.two_sample.FOLDS", 2)
    state = torch.get_rng_state()
    report = cnf.check(*fitted, **CHECKED)
    assert _failed(report) <= {"samples against data"}, str(report)
    assert {found.name for found in report.findings} == {
        "rows without a log p",
        "log p in single precision, median",
        "log p in single precision, 99 %",
        "log p beside other rows",
        "whole numbers, categories, constants",
        "round trip of numbers in bins",
        "total mass of the codes",
        "sums of conditionals",
        "integrals over bins",
        "log p in other orders",
        "consistency gap",
        "integrals of conditionals",
        "draws of conditionals",
        "rows that imputing does not complete",
        "draws without a log p",
        "log p of data against draws",
        "samples against data",
    }
    assert report.rows == CHECKED["rows"]
    assert "by the sum over all" in str(report)
    assert torch.equal(torch.get_rng_state(), state)
    _only(monkeypatch, "total mass")
    by_draws = cnf.check(*fitted, rows=10, points=80)
    assert not _failed(by_draws)
    assert "by 80 draws, as good as 80 " in str(by_draws)


def test_a_conditional_model_with_a_flow_passes(
    given: tuple[RowModel, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cnf.diagnostics.checks.CHECKS", {name: CHECKS[name] for name in ("batch", "effort")}
    )
    _only(monkeypatch, *QUICK, "flow")
    report = cnf.check(*given, **CHECKED)
    assert not _failed(report), str(report)
    assert "A flow within bins answers no questions" in report.notes[0]
    names = {found.name for found in report.findings}
    assert {"flow: rows without a log p", "flow: log p beside other rows"} <= names
    assert "the worst of 3 contexts" in str(report)
    by_draws = cnf.check(*given, rows=10, points=80)
    assert "by 80 draws, as good as 80 " in str(by_draws)
    chosen = {name: CHECKS[name] for name in ("effort", "two-sample")}
    monkeypatch.setattr("cnf.diagnostics.checks.CHECKS", chosen)
    _only(monkeypatch, "flow")
    model, x, context = given
    atoms, context = x[:40].clone(), context[:40]
    atoms[:, :2] = torch.tensor([0.0, 7.0])
    few = cnf.check(model, torch.cat([atoms, x[:40]]), torch.cat([context, context]), **CHECKED)
    assert "Of the flow: There are too few rows for the two-sample test" in few.notes[0]
    (stiffest,) = (found.rows for found in few.findings if "stiffest" in found.name)
    assert min(stiffest) >= 40  # places in the data, of rows with a value in a bin
    (note,) = cnf.check(model, atoms, context, **CHECKED).notes
    assert note == "No row has a value within a bin: the flow is not checked."


def _network(name: str, change: Callable[..., Tensor]) -> Callable[[RowModel], RowModel]:
    """Another method of the network, by itself, the right method and the arguments."""

    def changed(model: RowModel) -> RowModel:
        network = copy.deepcopy(model.network)
        right = getattr(type(network), name)
        other = {name: lambda self, *arguments: change(self, right, *arguments)}
        network.__class__ = type("OtherNetwork", (type(network),), other)
        return model.with_parts(network, model.flow)

    return changed


def _methods(place: int, **methods: Any) -> Callable[[RowModel], RowModel]:
    """Other methods of a coordinate."""

    def changed(model: RowModel) -> RowModel:
        coordinates = [copy.copy(each) for each in model.coding.coordinates]
        each = coordinates[place]
        object.__setattr__(each, "__class__", type("Other", (type(each),), methods))
        coding = replace(model.coding, coordinates=tuple(coordinates))
        return type(model)(coding, model.network, model.flow, model.given)

    return changed


def _few_digits(network: Any, log_prob: Tensor) -> Tensor:
    single = network.bias.dtype == torch.float32
    return log_prob.round(decimals=1) if single else log_prob


# The check, a change of a model that breaks it for this check, and the findings that do not pass.
BROKEN: dict[str, tuple[str, Callable[[RowModel], RowModel], set[str]]] = {
    "few digits": (
        "precision",
        _network("log_prob", lambda net, right, *d: _few_digits(net, right(net, *d))),
        {f"log p in single precision, {which}" for which in ("median", "99 %")},
    ),
    "the batch's mean": (
        "batch",
        _network("log_prob", lambda net, right, *d: right(net, *d) + 0.01 * right(net, *d).mean()),
        {"log p beside other rows"},
    ),
    "categories one too large": (
        "round trip",
        _methods(0, decode=lambda self, codes, z: np.asarray(self.values)[codes] + 1),
        {"whole numbers, categories, constants"},
    ),
    "constants of another value": (
        "round trip",
        lambda model: _with_filling(model, 0.2),
        {"whole numbers, categories, constants"},
    ),
    "places rounded": (
        "round trip",
        _methods(1, _numbers=lambda self, points, least, most: points.round(2)),
        {"round trip of numbers in bins"},
    ),
    "log p shifted": (
        "total mass",
        _network("log_prob", lambda net, right, *d: right(net, *d) + 0.1),
        {"total mass of the codes"},
    ),
    "costs of more than all": (
        "conditionals",
        _network("forward", lambda net, right, *seen: right(net, *seen) - 0.1),
        {"sums of conditionals"},
    ),
    "no bins' masses": (
        "bins",
        _methods(1, _alone=lambda self, points, bins, z, log_det: log_det - z * z),
        {"integrals over bins"},
    ),
    "a shifted marginal": (
        "bins",
        _methods(2, _points=lambda self, numbers, uniforms: _shifted(self, numbers)),
        {"integrals over bins"},
    ),
    "orders of less": (
        "orders",
        _network("forward", lambda net, right, *seen: right(net, *seen) + 1.0),
        {"log p in other orders"},
    ),
    "an overfit model": (
        "draws",
        lambda model: _sampling(model, lambda x: x[:1].repeat(len(x), 1)),
        {"log p of data against draws"},
    ),
    "draws out of bounds": (
        "draws",
        lambda model: _sampling(model, lambda x: x - torch.tensor([4.0, 0.0, 0.0, 0.0])),
        {"draws without a log p"},
    ),
    "conditionals of more": (
        "consistency",
        lambda model: _answering(model, 1.0),
        {"consistency gap"},
    ),
    "conditionals of more than all": (
        "answers",
        lambda model: _answering(model, 0.05),
        {"integrals of conditionals"},
    ),
    "the same in all gaps": (
        "answers",
        lambda model: _imputing(model, lambda x: x[:1].expand(len(x), -1)),
        {"draws of conditionals"},
    ),
    "other cells imputed": (
        "imputation",
        lambda model: _imputing(model, lambda x: x.flip(0)),
        {"rows that imputing does not complete"},
    ),
    "gaps left": (
        "imputation",
        lambda model: _imputing(model, lambda x: torch.where(x == 7.0, torch.nan, x)),
        {"rows that imputing does not complete"},
    ),
    "draws of one value": (
        "two-sample",
        lambda model: _sampling(model, lambda x: 0 * x),
        {"samples against data"},
    ),
}


def _with_filling(model: RowModel, value: float) -> RowModel:
    coding = replace(model.coding, filling=(*model.coding.filling[:-1], value))
    return type(model)(coding, model.network, model.flow, model.given)


def _shifted(coordinate: Any, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All whole numbers in one cell: their masses sum to more than one."""
    points = np.full(len(numbers), float(coordinate.marginal.loc))
    return points, np.ones(len(numbers), np.bool_)


def _sampling(model: RowModel, change: Callable[[Tensor], Tensor]) -> RowModel:
    """A model with other draws."""

    class Other(RowModel):
        def sample(self, *args: Any, **options: Any) -> Tensor:
            return change(super().sample(*args, **options))

    return Other(model.coding, model.network, model.flow, model.given)


def _answering(model: RowModel, more: float) -> RowModel:
    """A model with more nats of what is given other cells."""

    class Other(RowModel):
        def log_prob(self, *args: Any, given: Tensor | None = None, **options: Any) -> Tensor:
            found = super().log_prob(*args, given=given, **options)
            return found + (0.0 if given is None else more)

    return Other(model.coding, model.network)


def _imputing(model: RowModel, change: Callable[[Tensor], Tensor]) -> RowModel:
    """A model with other rows after imputing."""

    class Other(RowModel):
        def impute(self, *args: Any, **options: Any) -> Tensor:
            return change(super().impute(*args, **options))

    return Other(model.coding, model.network)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_does_not_pass(
    kind: str, fitted: tuple[RowModel, Tensor, None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check, change, expected = BROKEN[kind]
    monkeypatch.setattr("cnf.diagnostics.two_sample.FOLDS", 2)
    _only(monkeypatch, check)
    model, data, _ = fitted
    report = cnf.check(change(model), data, rows=60, points=200)
    assert _failed(report) == expected, str(report)


def test_rows_without_a_code_fail_and_are_named(
    fitted: tuple[RowModel, Tensor, None],
    given: tuple[RowModel, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _only(monkeypatch, "round trip")
    model, data, _ = fitted
    bad = data[:40].clone()
    bad[3, 0], bad[8, 0], bad[5, 2], bad[6, 2] = -1.0, 7.0, 901.0, 0.5
    report = cnf.check(model, bad, **CHECKED)
    (found, *others) = report.findings
    assert (found.verdict, found.rows, found.value) == ("fail", (3, 5, 8), 3 / 40)
    assert "In column 0, counted from 0, 2 have no code: new categories." in found.sentence
    assert "In column 2, counted from 0, 1 have no code: out of bounds." in found.sentence
    assert {other.verdict for other in others} == {"pass"}  # on the rows with a log p
    conditional, x, context = given
    context = context[:40].clone()
    context[4] = -1.0
    found = cnf.check(conditional, x[:40], context, **CHECKED).findings[0]
    assert (found.verdict, found.rows) == ("fail", (4,))
    assert "In column of the context 0, counted from 0, 1 have no code" in found.sentence


def test_notes_say_what_was_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 3, (200, 2)).astype(float)
    schema = Schema.infer(Table("t", values, ("a", "b")))
    for flow in (False, True):
        model = new_row_model(schema, values, hidden=8, flow=flow).in_double()
        _only(monkeypatch, "precision", "bins", "flow")
        report = cnf.check(model, torch.tensor(values), **CHECKED)
        assert report.verdict == "pass"
        assert "single precision is not checked" in report.notes[0]
        assert "No column has bins" in report.notes[1]


def test_rows_with_gaps_are_completed_first(
    fitted: tuple[RowModel, Tensor, None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnf.diagnostics.two_sample.FOLDS", 2)
    model, data, _ = fitted
    gaps = data[:300].clone()
    gaps[::2, 0] = gaps[1::3, 1] = torch.nan
    report = cnf.check(model, gaps, **CHECKED)
    assert report.notes[0].startswith("250 cells of the data are missing")
    assert not _failed(report), str(report)


def test_gaps_that_are_a_value_are_checked_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnf.diagnostics.two_sample.FOLDS", 2)
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(800, 3))
    numbers[:, 1] = rng.integers(0, 2, 800)
    for column in range(2):
        numbers[rng.random(800) < 0.3, column] = np.nan
    columns = Schema.infer(Table("t", np.nan_to_num(numbers), ("x", "flag", "y"))).columns
    schema = Schema((*(replace(each, gaps="value") for each in columns[:2]), columns[2]))
    model = new_row_model(schema, numbers[:400], hidden=8, bins=6)
    fit_rows(model, numbers[:400], steps=20, threads=1)
    report = cnf.check(model, torch.tensor(numbers[400:]), **CHECKED)
    assert not report.notes
    assert not _failed(report), str(report)


def test_a_model_of_values_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose field moves, but does not fit the data."""
    monkeypatch.setattr("cnf.diagnostics.row_checks.ANSWER_DRAWS", 100)
    numbers = np.random.default_rng(0).normal(size=(200, 2)).cumsum(1)
    schema = Schema(tuple(Column(name, "real") for name in "xy"))
    model = new_row_model(schema, numbers, values=True)
    torch.manual_seed(0)
    assert model.values is not None
    torch.nn.init.normal_(model.values.field.last.linear.weight, std=0.05)
    _only(monkeypatch, *QUICK)
    report = cnf.check(model, torch.tensor(numbers), **CHECKED)
    assert _failed(report) <= {"log p of data against draws", "consistency gap"}, str(report)
    assert "log p in other orders" not in str(report)
    (gap,) = (found.value for found in report.findings if found.name == "consistency gap")
    assert gap > 1e-3


@pytest.mark.parametrize("by_noise", [False, True])
def test_the_mass_of_each_bin_is_one(by_noise: bool) -> None:
    rng = np.random.default_rng(0)
    count = np.where(rng.random(900) < 0.2, 7.0, rng.poisson(rng.gamma(1.0, 2000.0, 900)))
    model = new_row_model(
        Schema.infer(Table("t", count[:, None], ("n",))), count[:, None], hidden=8, bins=20
    )
    (coordinate,) = model.coding.coordinates
    assert coordinate.noisy
    np.testing.assert_allclose(bin_masses(coordinate, by_noise), 1.0, atol=1e-3)


def test_mistakes(fitted: tuple[RowModel, Tensor, None]) -> None:
    model, data, _ = fitted
    for change, message in (
        ({"data": data[:, :2]}, r"data of shape \(rows, 4\)"),
        ({"data": data * torch.inf}, "finite numbers in data"),
        ({"rows": 0}, "rows of at least 1; got 0"),
        ({"points": 0}, "points of at least 1; got 0"),
        ({"context": data[:, :1]}, "Expected no context"),
    ):
        with pytest.raises(ValueError, match=message):
            cnf.check(**{"model": model, "data": data, **change})
