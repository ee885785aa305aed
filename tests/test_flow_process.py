"""Flow processes: exact densities and conditionals against dense Gaussians and quadrature."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm

from cnf.series.base_process import BASES, BaseProcess
from cnf.series.batch import SeriesBatch
from cnf.series.flow_process import FlowProcess, _Union
from cnf.series.kalman import MarkovChain
from cnf.series.prediction import Prediction
from cnf.series.recipe import SeriesRecipe
from cnf.series.series import Series
from cnf.series.task import Task
from cnf.storage import load, save

Array = NDArray[np.float64]
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
QUICK = {"rtol": 1e-5, "atol": 1e-5}  # for quadrature
START, SPAN = 2.0, 4.0
CENTER, SCALE = np.array([3.0, -1.0]), np.array([2.0, 0.5])
RATE, DEVIATION, NOISE = np.array([1.3, 4.0]), np.array([0.9, 1.2]), np.array([0.3, 0.1])


def process(base: str = "ou", columns: int = 2, bent: float = 0.0, **options: Any) -> FlowProcess:
    """Return a process of known numbers in double precision, whose flow is bent by that much."""
    torch.manual_seed(1)
    names = ["a", "b"][:columns]
    options = {"hidden": (8, 8), "time_features": 3, **TIGHT, **options}
    made = FlowProcess(names, base, **options).double()
    numbers = {"log_rate": RATE, "log_scale": DEVIATION, "log_noise": NOISE}
    for name, value in numbers.items():
        getattr(made.base, name).data = torch.from_numpy(np.log(value[:columns]))
    made.scaling.start.fill_(START)
    made.scaling.span.fill_(SPAN)
    made.scaling.center.copy_(torch.from_numpy(CENTER[:columns]))
    made.scaling.scale.copy_(torch.from_numpy(SCALE[:columns]))
    for parameter in made.flow.parameters():
        parameter.data += bent * torch.randn_like(parameter)
    return made


def series_of(rows: list[list[tuple[float, ...]]]) -> Series:
    """Return series of rows of a time and values."""
    table = np.array([row for each in rows for row in each], dtype=np.float64)
    offsets = np.cumsum([0, *map(len, rows)])
    names = ("a", "b")[: table.shape[1] - 1]
    return Series(names, np.arange(10, 10 + len(rows)), offsets, table[:, 0], table[:, 1:])


def covariance(base: str, column: int, s: Array, t: Array) -> Array:
    """Return the covariance of a process in the data's units at times s and t."""
    s, t = (s[:, None] - START) / SPAN, (t[None] - START) / SPAN
    rate, scale = RATE[column], (DEVIATION * SCALE)[column]
    if base == "ou":
        return scale**2 * np.exp(-rate * abs(s - t))
    return scale**2 * (1 + 2 * rate * np.minimum(s, t))


def dense(base: str, series: Series, place: int, column: int) -> tuple[Array, Array, Array]:
    """Return the times of a column's observations, these, and their covariance."""
    one = series[place]
    seen = one.observed[:, column]
    times, x = one.times[seen], one.values[seen, column]
    noise = (NOISE * SCALE)[column] ** 2
    return times, x, covariance(base, column, times, times) + noise * np.eye(len(times))


nan = np.nan
PARTS = series_of(
    [
        [(2.0, 1.0, -1.2), (2.7, nan, -0.3), (5.5, 4.0, nan), (6.1, 2.0, -1.0)],
        [(3.0, 2.2, nan)],
        [],
        [(2.5, 6.0, 0.0), (2.6, 5.0, 0.3), (7.9, 1.0, -1.9)],
    ]
)
WHOLE = series_of([[(2.0, 1.0, -1.2), (2.7, 0.5, -0.3), (5.5, 4.0, -1.0)], [(2.5, 6.0, 0.0)], []])
MISSING_PART = "got no b at time 2.5 in series 11"


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_gaussian_density_and_conditional(base: str, together: bool) -> None:
    series, model = WHOLE if together else PARTS, process(base, together=together)
    asked = np.array([2.0, 2.4, 5.5, 7.0])
    scores = model.log_prob(series)
    found = model.predict(series, asked, draws=1500)
    assert not scores.stderr.any()
    assert found.quantiles.shape == (3, len(series), 4, 2)
    # Together, quantiles are of draws.
    atol = 0.2 if together else 1e-7
    for place in range(len(series)):
        expected = 0.0
        for column in range(2):
            times, x, total = dense(base, series, place, column)
            ahead = covariance(base, column, asked, asked)
            mean = np.full(4, CENTER[column])
            if len(x):
                cross = covariance(base, column, asked, times)
                expected += multivariate_normal.logpdf(x, np.full(len(x), CENTER[column]), total)
                mean = mean + cross @ np.linalg.solve(total, x - CENTER[column])
                ahead = ahead - cross @ np.linalg.solve(total, cross.T)
            deviation = np.sqrt(np.diag(ahead) + (NOISE * SCALE)[column] ** 2)
            np.testing.assert_allclose(found.mean[place, :, column], mean, atol=atol)
            for level, values in zip(
                found.levels, found.quantiles[:, place, :, column], strict=True
            ):
                np.testing.assert_allclose(
                    values, mean + norm.ppf(level) * deviation, atol=2 * atol
                )
        assert scores.log_prob[place] == pytest.approx(expected, abs=1e-7)


def test_draws_have_the_conditional_covariance() -> None:
    asked = np.array([2.4, 3.0, 6.5])
    drawn = process().predict(PARTS[[0]], asked, draws=5000, paths=True).draws
    assert drawn is not None
    times, _, total = dense("ou", PARTS, 0, 0)
    cross = covariance("ou", 0, asked, times)
    expected = covariance("ou", 0, asked, asked) - cross @ np.linalg.solve(total, cross.T)
    np.testing.assert_allclose(np.cov(drawn[:, 0, :, 0].T), expected, atol=0.06)


def test_density_of_a_bent_flow_integrates_to_one() -> None:
    one = process(columns=1, bent=0.7, **QUICK)
    axis = np.linspace(-13, 19, 81)
    pairs = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    grid = series_of([[(2.5, x), (3.1, y)] for x, y in pairs])
    log_prob = one.log_prob(grid).log_prob
    cell = (axis[1] - axis[0]) ** 2
    assert np.exp(log_prob).sum() * cell == pytest.approx(1, abs=1e-3)
    # Not the Gaussian of the base:
    gap = one.log_prob(grid).log_prob - process(columns=1, **QUICK).log_prob(grid).log_prob
    assert np.abs(gap[log_prob > -8]).max() > 0.3
    # Marginals of p(x, y) are p(y), and quantiles of p(y) those of predictions.
    marginal = np.exp(log_prob).reshape(81, 81).sum(0) * (axis[1] - axis[0])
    alone = np.exp(one.log_prob(series_of([[(3.1, y)] for y in axis])).log_prob)
    np.testing.assert_allclose(marginal, alone, atol=1e-4)
    found = one.predict(series_of([[], [(2.5, axis[40])]]), [3.1])
    assert found.draws is None
    rows = np.stack([alone, np.exp(log_prob).reshape(81, 81)[40]])
    rows = rows / rows.sum(1, keepdims=True)
    np.testing.assert_allclose(found.mean[:, 0, 0], rows @ axis, atol=2e-3)
    for level, values in zip(found.levels, found.quantiles[:, :, 0, 0], strict=True):
        below = [
            np.interp(v, axis + 0.5 * (axis[1] - axis[0]), row.cumsum())
            for v, row in zip(values, rows, strict=True)
        ]
        np.testing.assert_allclose(below, level, atol=5e-3)


def test_joint_flow_integrates_to_one_and_mixes_columns() -> None:
    model = process(bent=0.5, together=True, **QUICK)
    first, second = np.linspace(-12, 18, 61), np.linspace(-5, 3, 61)
    pairs = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(model.log_prob(series_of([[(3.0, *pair)] for pair in pairs])).log_prob)
    mass = mass * (first[1] - first[0]) * (second[1] - second[0])
    assert mass.sum() == pytest.approx(1, abs=2e-3)
    means = mass @ pairs
    assert abs(mass @ np.prod(pairs - means, 1)) > 0.02  # the columns' covariance
    found = model.predict(series_of([[(3.0, 1.0, 0.0)], []])[[1]], [3.0], draws=1500)
    assert (np.abs(found.mean[0, 0] - means) < [0.3, 0.1]).all()


def arrays(prediction: Prediction) -> list[Array]:
    """Return the mean, the quantiles and the draws."""
    assert prediction.draws is not None
    return [prediction.mean, *prediction.quantiles, *prediction.draws]


@pytest.mark.parametrize("together", [False, True])
def test_series_do_not_depend_on_one_another(together: bool) -> None:
    series, model = WHOLE if together else PARTS, process(bent=0.5, together=together)
    order = np.array([2, 0, 1])
    log_prob = model.log_prob(series).log_prob
    np.testing.assert_allclose(model.log_prob(series[order]).log_prob, log_prob[order], atol=1e-8)
    single = [model.log_prob(series[place]).log_prob[0] for place in range(len(series))]
    np.testing.assert_allclose(single, log_prob, atol=1e-8)
    assert log_prob[2] == 0  # of no observation
    options: dict[str, Any] = {"draws": 5, "paths": True}
    for asked in (series, np.array([2.5, 4.0])):
        whole = model.predict(series, asked, **options)
        for place in range(len(series)):
            if not (count := whole.lengths[place]):
                continue
            one = series[[place]]
            alone = model.predict(one, one if asked is series else asked, **options)
            for found, expected in zip(arrays(alone), arrays(whole), strict=True):
                np.testing.assert_allclose(found[0, :count], expected[place, :count], atol=1e-6)


@pytest.mark.parametrize("task", [Task(), Task("extrap", cut=4.0), Task(hide=0.4)])
def test_loss_is_conditional_on_what_is_seen_alone(task: Task) -> None:
    model, series = process(bent=0.3), PARTS[[0, 3]]
    recipe = SeriesRecipe()
    seen, wanted = task.split(series, seed=1)
    if task.hide:  # the loss of those hidden
        wanted = task.split(series, seed=1)[0]
        seen, wanted = wanted, series.hide(0.4, 1)[1]
    parts = [SeriesBatch.of(model.scaled(each), [0, 1], model.like) for each in (seen, wanted)]
    found = model.loss(*parts, 0.5, recipe)
    count = wanted.observed.sum()
    units = (wanted.observed * np.log(SCALE)).sum()
    expected = model.log_prob(series).log_prob.sum()
    if seen is not wanted:
        expected -= model.log_prob(seen).log_prob.sum()
        given = model.log_prob(wanted, given=seen).log_prob.sum()
        assert given == pytest.approx(expected, abs=1e-6)
    if task.cut is not None:  # what a model of the task is asked for
        model.task = task
        assert model.log_prob(series).log_prob.sum() == pytest.approx(expected, abs=1e-6)
        own = model.predict(series, wanted).mean
        model.task = Task()
        np.testing.assert_allclose(own, model.predict(seen, wanted).mean, atol=1e-8)
    assert found.item() * count == pytest.approx(-expected - units, abs=2e-2)
    found.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_hidden_entries_at_shared_times_need_no_sorting() -> None:
    model = process(bent=0.3)
    batch = SeriesBatch.of(model.scaled(PARTS), np.arange(4), model.like)
    shown = SeriesBatch(batch.times, batch.values, batch.mask * 0, batch.static, batch.lengths)
    union = _Union.of(shown, batch)
    assert torch.equal(union.wanted, batch.mask)
    assert not union.given.any()
    moved = SeriesBatch(
        batch.times[:, :3],
        *(each[:, :3] for each in (batch.values, batch.mask)),
        batch.static,
        batch.lengths,
    )
    apart = _Union.of(moved, batch)  # the same observations at times of their own
    assert apart.given.sum() == 0
    found = [model._log_prob(each, model.flow) for each in (union, apart)]
    torch.testing.assert_close(*found)


def test_samples_have_the_process_covariance() -> None:
    times = np.array([2.0, 2.3, 5.0])
    drawn = process().sample(times, n=5000, seed=3)
    assert drawn.columns == ("a", "b")
    values = drawn.values.reshape(5000, 3, 2)[..., 1]
    expected = covariance("ou", 1, times, times) + (NOISE * SCALE)[1] ** 2 * np.eye(3)
    np.testing.assert_allclose(np.cov(values.T), expected, atol=0.02)
    np.testing.assert_allclose(values.mean(0), CENTER[1], atol=0.02)
    again = process().sample(times, n=5000, seed=3)
    assert np.array_equal(drawn.values, again.values)


def test_fit_of_an_ornstein_uhlenbeck_process_reaches_its_likelihood() -> None:
    truth = process(columns=1)
    drawn = [
        truth.sample(np.sort(np.random.default_rng(i).uniform(2, 6, 20)), 12, i) for i in range(15)
    ]
    values = np.concatenate([each.values for each in drawn])
    times = np.concatenate([each.times for each in drawn])
    parts = np.arange(180), np.arange(0, 3601, 20), times
    series = Series(("a",), *parts, values)
    torch.manual_seed(0)
    model = FlowProcess(["a"], hidden=(8, 8))
    assert model.fit(series[:120], steps=3, threads=1).steps == 3
    gap = truth.log_prob(series[120:]).log_prob - model.log_prob(series[120:]).log_prob
    assert abs(gap.sum() / 1200) < 0.02
    assert model.base.log_rate.exp().item() == pytest.approx(RATE[0], rel=0.5)
    skewed = Series(("a",), *parts, np.exp(0.4 * values))
    model.prepare(skewed[:120], Task())
    gaussian = model.log_prob(skewed[120:]).log_prob.sum()
    model.fit(skewed[:120], steps=15, threads=1, recipe=SeriesRecipe(learning_rate=0.03))
    assert model.log_prob(skewed[120:]).log_prob.sum() > gaussian + 0.05 * 1200


def test_long_series_start_from_some_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = process(columns=1)
    drawn = truth.sample(np.linspace(2, 6, 700), 2)
    lengths = []
    chain = BaseProcess.chain

    def count(self: BaseProcess, times: torch.Tensor) -> MarkovChain:
        lengths.append(times.shape[1])
        return chain(self, times)

    monkeypatch.setattr(BaseProcess, "chain", count)
    monkeypatch.setattr("cnf.series.flow_process.START_ROWS", 50)
    model = FlowProcess(["a"], hidden=(4,))
    model.prepare(drawn, Task())
    assert set(lengths) == {50}
    assert len(lengths) < 70
    noise = model.base.log_noise.exp().item() * model.scaling.scale.item()
    assert noise == pytest.approx(0.6, rel=0.4)


@pytest.mark.parametrize("base", BASES)
def test_start_of_columns_that_are_constant_in_each_series(base: str) -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=(30, 2)), 4, axis=0)
    values[:, 1] = np.random.default_rng(1).normal(size=120)  # and of white noise
    times = np.tile(np.linspace(2, 6, 4), 30)
    series = Series(("a", "b"), np.arange(30), np.arange(0, 121, 4), times, values)
    model = FlowProcess(["a", "b"], base)
    model.prepare(series, Task())
    assert all(parameter.isfinite().all() for parameter in model.base.parameters())
    found = model.predict(series, [3.0, 7.9])
    np.testing.assert_allclose(found.mean[:, 0, 0], values[::4, 0], atol=0.05)
    assert np.abs(found.mean[:, :, 1]).max() < 1
    assert np.isfinite(model.log_prob(series).log_prob).all()


def test_save_and_load(tmp_path: Any) -> None:
    model = process("wiener", bent=0.4)
    model.task = Task("extrap", cut=4.0)
    save(model, tmp_path)
    found = load(tmp_path)
    assert isinstance(found, FlowProcess)
    assert found.config() == model.config()
    assert np.array_equal(found.log_prob(PARTS).log_prob, model.log_prob(PARTS).log_prob)


def test_errors() -> None:
    together = process(together=True)
    parts = series_of([[(2.0, 1.0, 1.0)], [(2.5, 1.0, nan)]])
    for call in (together.log_prob, lambda x: together.predict(x, [3.0]), together.scaled):
        with pytest.raises(ValueError, match=f"density of a part is not to be had; {MISSING_PART}"):
            call(parts)
    constant = series_of([[(2.0, 1.0, 5.0)], [(2.5, 2.0, 5.0)]])
    with pytest.raises(ValueError, match="one value"):
        together.prepare(constant, Task())
    with pytest.raises(ValueError, match=r"none hidden, with together=True.*got hide=0\.1"):
        together.prepare(WHOLE, Task(hide=0.1))
    with pytest.raises(ValueError, match="draws of at least 1"):
        together.predict(WHOLE, [3.0], draws=0)
    with pytest.raises(ValueError, match="quantiles between 0 and 1"):
        process().predict(PARTS, [3.0], quantiles=(0.5, 1.0))
    with pytest.raises(ValueError, match="other ids"):
        process().log_prob(PARTS[[0]], given=PARTS[[1]])
    with pytest.raises(ValueError, match="one of a of series 10 in both"):
        process().log_prob(PARTS, given=PARTS)
    with pytest.raises(ValueError, match="Expected times that increase"):
        process().sample([3.0, 2.5])
    with pytest.raises(ValueError, match="n of at least 1"):
        process().sample([3.0, 3.5], n=0)
    with pytest.raises(ValueError, match="got 500 in series 11"):
        process().predict(PARTS[:2], [[3.0], [500.0]])
    with pytest.warns(UserWarning, match="far beyond"):
        process().sample([3.0, 100.0])
    with pytest.raises(ValueError, match="at least one column"):
        FlowProcess([])
    with pytest.raises(ValueError, match="base to be one of"):
        FlowProcess(["a"], base="brownian")
    with pytest.raises(ValueError, match="Expected a flow of 1 columns and a context of 17"):
        FlowProcess(["a"], flow=together.flow)


@pytest.mark.filterwarnings("ignore:Columns of one value")
def test_columns_of_one_value_have_no_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = series_of([[(t, float(t * i % 3), 5.0) for t in range(2, 7)] for i in range(1, 8)])
    model = FlowProcess(["a", "b"], hidden=(4,))
    model.prepare(rows, Task())
    other = Series(
        rows.columns, rows.ids, rows.offsets, rows.times, rows.values + np.array([0.0, 7.0])
    )
    np.testing.assert_allclose(model.log_prob(other).log_prob, model.log_prob(rows).log_prob)
    assert (model.predict(rows, [3.0], draws=3).quantiles[..., 1] == 5.0).all()
    batch = SeriesBatch.of(model.scaled(rows), np.arange(7), model.like)
    alone = replace(batch, mask=batch.mask * torch.tensor([1.0, 0.0]))
    losses = [model.loss(each, each, 0.5, SeriesRecipe()).item() for each in (batch, alone)]
    assert losses[0] == pytest.approx(losses[1])
    monkeypatch.setattr("cnf.series.training.MAX_CELLS", 1)  # each series is a batch
    values = np.where(np.arange(35)[:, None] < 15, [1.0, np.nan], 1.0) * rows.values
    parts = [replace(rows, values=each) for each in (rows.values, values)]
    fits = []
    for each in parts:
        torch.manual_seed(0)
        made = FlowProcess(["a", "b"], hidden=(4,))
        fits.append(made.fit(rows, validation=each, steps=1, recipe=SeriesRecipe(batch_size=7)))
    assert fits[0].validation_nll[-1] == pytest.approx(fits[1].validation_nll[-1])
