"""Latent ODEs: closed forms, invariances, training, storage, and users' mistakes."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import cnf
from cnf.series import (
    FlowProcess,
    LatentODE,
    Series,
    SeriesRecipe,
    Task,
    column_means,
    column_scales,
    entry_error,
    predict_training_mean,
)
from cnf.series.batch import SeriesBatch
from cnf.series.summaries import SUMMARIES, PiecewiseSummaries
from cnf.series.training import LengthSampler, cut_at_random

SMALL = {"latent_dim": 3, "hidden": 8, "field": (8,), "solver": {"steps": 6}}


def waves(n=24, rows=9, seed=0, columns=("x", "y"), **options):
    """Waves at random times, a third of whose entries are missing."""
    rng = np.random.default_rng(seed)
    ids = np.arange(n).repeat(rng.integers(2, rows + 1, n))
    frame = pd.DataFrame({"id": ids, "time": rng.uniform(0, 6, len(ids))})
    frame = frame.sort_values(["id", "time"])
    for name in columns:
        value = 10 + 3 * np.sin(frame.time + frame.id) + rng.normal(0, 0.1, len(ids))
        frame[name] = value.where(rng.uniform(size=len(ids)) > 0.3)
    series = Series.from_frame(frame, id="id", time="time", columns=columns)
    return replace(series, **{name: make(series) for name, make in options.items()})


def fitted(series=None, task=None, steps=2, rate=5e-3, **options):
    series = waves() if series is None else series
    model = LatentODE(series.columns, **{**SMALL, **options})
    recipe = SeriesRecipe(batch_size=8, validations=2, learning_rate=rate)
    model.fit(series, task=task, steps=steps, recipe=recipe)
    return model.double()


@pytest.fixture(scope="module")
def model():
    return fitted(baseline="last", likelihood="student", state_noise=True)


@pytest.fixture(scope="module")
def density():
    return fitted(baseline="none", posterior="flow")


def linear_gaussian(series, noise=0.7, **options):
    """A model dz = A z, x = C z + noise, whose encoder returns the prior; and A, C."""
    options = {"hidden": 4, "field": (4,), "baseline": "none", **options}
    model = LatentODE(series.columns, 2, **options).double()
    model.prepare(series, Task())
    rate, read = torch.tensor([[-0.3, 2.0], [-2.0, -0.3]]), torch.tensor([[1.0, 0.0], [0.5, -1.0]])
    with torch.no_grad():
        for parameter in (*model.head[-1].parameters(), *model.field.parameters()):
            parameter.zero_()
        model.head[-1].bias[2:] = 2.0  # of log scale, less 2
        model.field.linear.weight.copy_(rate)
        model.decoder.out.weight[:, -2:] = read
        model.decoder.log_scale.fill_(np.log(noise))
    return model, rate.double(), read.double()


def test_the_likelihood_of_what_was_observed_is_the_marginal_of_a_gaussian():
    """By draws from the prior, and by Gauss–Newton steps, which find the posterior."""
    series = waves(6, 4)
    noise = 0.7
    model, rate, read = linear_gaussian(series, noise)
    scaled = model.scaled(series)
    exact = np.zeros(len(series))
    for i in range(len(series)):
        rows = slice(*series.offsets[i : i + 2])
        paths = torch.stack([torch.linalg.matrix_exp(rate * t) for t in scaled.times[rows]])
        seen = torch.from_numpy(series.observed[rows]).flatten()
        design = (read @ paths).flatten(0, 1)[seen]
        cov = design @ design.T + noise**2 * torch.eye(len(design))
        x = torch.from_numpy(scaled.values[rows]).flatten()[seen]
        jacobian = model.scaling.scale.log().repeat(len(paths))[seen].sum()
        law = torch.distributions.MultivariateNormal(0 * x, cov.double())
        exact[i] = law.log_prob(x) - jacobian
    for options, most in (({"refine": 0, "draws": 2000}, 0.1), ({}, 0.03)):
        found = model.log_prob(series, **options)
        assert (found.stderr < most).all()
        assert (abs(found.log_prob - exact) < 4 * found.stderr + 1e-3).all()


@torch.no_grad()
def test_the_weighted_error_is_that_of_relative_values():
    series = waves()
    model = LatentODE(series.columns, **SMALL, baseline="none").double()
    model.prepare(series, Task())
    model.decoder.out.weight.zero_()  # predicts the training means
    batch = SeriesBatch.of(model.scaled(series), np.arange(len(series)), model.like)
    losses = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        recipe = SeriesRecipe(error_weight=weight)
        losses.append(model.loss(batch, batch, 1.0, recipe).item())
    means = predict_training_mean(series, series, column_means(series))
    error = entry_error(means, series, column_scales(series))
    assert losses[1] - losses[0] == pytest.approx(3 * error)


def test_a_posteriors_flow_joins_later(density):
    series = waves()
    batch = SeriesBatch.of(density.scaled(series), np.arange(len(series)), density.like)
    weights = [*density.posterior.parameters()]
    for done, joined in ((0.0, False), (0.29, False), (0.3, True), (1.0, True)):
        density.zero_grad()
        density.loss(batch, batch, done, SeriesRecipe()).backward()
        moved = [each.grad is not None and each.grad.abs().max() > 0 for each in weights]
        assert any(moved) is joined
    density.zero_grad()


def test_events_of_constant_rates_have_their_poisson_likelihood():
    """From the start to the last time of a series, by the data's own clock."""
    series = waves(6, 4)
    without, *_ = linear_gaussian(series)
    model, *_ = linear_gaussian(series, events="poisson")
    rate = model.events.linear.bias.detach().exp().numpy() / model.scaling.span.item()
    counts = np.add.reduceat(series.observed, series.offsets[:-1])
    last = series.times[series.offsets[1:] - 1] - model.scaling.start.item()
    exact = (counts * np.log(rate) - rate * last[:, None]).sum(1)
    found = model.log_prob(series).log_prob - without.log_prob(series).log_prob
    np.testing.assert_allclose(found, exact, atol=1e-9)
    batch = SeriesBatch.of(model.scaled(series), np.arange(6), model.like)
    shown = replace(batch, mask=batch.mask * (batch.times < 0.5)[..., None])
    left = replace(batch, mask=batch.mask - shown.mask)
    weighted = replace(batch, mask=batch.mask - 0.3 * shown.mask)
    z, (one, other) = torch.zeros(6, 1, 2).double(), (model, without)
    events = [
        (one._likelihood(z, shown, each)[0] - other._likelihood(z, shown, each)[0]).sum((1, 2))
        for each in (batch, weighted, left)
    ]
    units = counts.sum(1) * model.scaling.span.log().item()
    for each in events[:2]:  # all of the times are known, whatever they weigh
        np.testing.assert_allclose(each.detach(), exact + units, atol=1e-9)
    assert not events[2].any()  # of times that were hidden
    given, wanted = series.hide(0.5, 0)
    scores = [each.log_prob(wanted, given=given).log_prob for each in (one, other)]
    np.testing.assert_allclose(*scores, atol=1e-9)


@pytest.mark.parametrize("events", [None, "poisson"])
def test_after_a_filter_earlier_times_have_their_own_states(events):
    """The likelihood of what comes first does not depend on the task."""
    series = waves(6, 4)
    model, *_ = linear_gaussian(series, events=events)
    late, early = series.rows(series.times >= 3), series.rows(series.times < 3)
    one = model.log_prob(early, given=late)
    model.task = Task("filter")
    other = model.log_prob(early, given=late)
    filled = late.lengths > 0
    np.testing.assert_allclose(one.log_prob[filled], other.log_prob[filled], atol=1e-9)
    assert np.isnan(model.log_prob(early, given=late, draws=1).stderr).all()


def test_rows_do_not_depend_on_each_other(model, density):
    """On neighbours, their order, and padding: some have more and later times."""
    series = waves()
    chosen = np.array([7, 2, 11])
    times = np.sort(np.random.default_rng(1).uniform(0, 6, (24, 5)), 1)
    whole = model.predict(series, times, draws=20, paths=True)
    part = model.predict(series[chosen], times[chosen], draws=20, paths=True)
    for one, other in (
        (whole.mean[chosen], part.mean),
        (whole.quantiles[:, chosen], part.quantiles),
        (whole.draws[:, chosen], part.draws),
        (density.log_prob(series).log_prob[chosen], density.log_prob(series[chosen]).log_prob),
    ):
        np.testing.assert_allclose(one, other, atol=1e-9, rtol=0)
    order = np.array([3, 0, 4, 1, 2])
    shuffled = model.predict(series, times[:, order], draws=20)
    np.testing.assert_allclose(shuffled.mean, whole.mean[:, order], atol=1e-9, rtol=0)


def test_predictions_at_the_times_of_series(model):
    series = waves(rows=5)
    found = model.predict(series, series, draws=8)
    assert found.lengths.tolist() == series.lengths.tolist()
    frame = found.to_frame()
    assert len(frame) == len(series.times)
    np.testing.assert_array_equal(frame.time, series.times)
    assert (frame["x q0.05"] < frame["x q0.95"]).all()


def test_dates_are_asked_for_as_dates():
    rng, day = np.random.default_rng(0), pd.Timedelta("1D")
    dates = pd.Timestamp("2024-03-01") + day * np.tile(np.arange(6), 5)
    frame = pd.DataFrame({"stay": np.arange(5).repeat(6), "day": dates, "x": rng.normal(size=30)})
    series = Series.from_frame(frame, id="stay", time="day")
    model = fitted(series)
    expected = model.predict(series, [1.0, 2.5], draws=2)
    written = ["2024-03-02", "2024-03-03 12:00"]
    index = pd.DatetimeIndex(pd.to_datetime(written, format="ISO8601"))
    for times in (written, index, index.to_numpy(), np.tile(index.to_numpy(), (5, 1))):
        found = model.predict(series, times, draws=2)
        np.testing.assert_allclose(found.mean, expected.mean)
    table = found.to_frame()
    assert table.columns[:2].tolist() == ["stay", "day"]
    assert (table.day == np.tile(index, 5)).all()
    drawn = model.sample(written).to_frame()
    assert (drawn.time == index).all()
    for wrong in (["soon"], [pd.Timedelta("1D")]):
        with pytest.raises(ValueError, match=r"times.*dates.*got"):
            model.predict(series, wrong)


def test_quantiles_are_those_of_the_noise_where_the_path_is_certain():
    series = waves()
    model, *_ = linear_gaussian(series)
    with torch.no_grad():
        model.decoder.out.weight.zero_()
    found = model.predict(series[:1], [1.0], draws=400, quantiles=(0.05, 0.5))
    center, scale = model.scaling.center.numpy(), model.scaling.scale.numpy()
    for band, level in zip(found.quantiles, (-1.6449, 0.0), strict=True):
        np.testing.assert_allclose(band[0, 0], center + 0.7 * scale * level, atol=0.02)


def test_adaptive_steps_agree_with_many_fixed_ones(model):
    series, times = waves()[:3], [0.5, 2.0, 5.5]
    fine, adaptive = model.with_solver(steps=60), model.with_solver(steps=None, method="dopri5")
    means = [each.predict(series, times, draws=4).mean for each in (model, fine, adaptive)]
    np.testing.assert_allclose(means[1], means[2], atol=1e-4)
    assert np.abs(means[0] - means[1]).max() > 0


def test_times_a_rounding_error_beyond_a_step_are_predicted(model):
    start, span = model.scaling.start.item(), model.scaling.span.item()
    times = start + span * np.add([[1.0], [8 / 6]], [0.0, 2e-6])
    means = model.predict(waves()[:2], times, draws=4).mean
    np.testing.assert_allclose(means[:, 1], means[:, 0], rtol=1e-4)


def test_a_filter_scores_each_time_given_those_before():
    model = fitted(task=Task("filter"), baseline="last")
    series = waves(3, 4)
    found = model.log_prob(series, draws=16)
    total = np.zeros(3)
    for k in range(4):
        place = np.arange(len(series.times)) - series.offsets[series.owners]
        seen, wanted = series.rows(place < k), series.rows(place == k)
        total += model.log_prob(wanted, given=seen, draws=16).log_prob
    np.testing.assert_allclose(found.log_prob, total, atol=1e-9)


def test_extrapolation_sees_nothing_after_the_cut():
    series = waves()
    early = np.array([t[0] < 3 for t in np.split(series.times, series.offsets[1:-1])])
    observed = series.cut(3.0)[0]
    early &= np.bincount(observed.owners, observed.observed.any(1), minlength=len(series)) > 0
    series = series[early]
    model = fitted(series, Task("extrap", cut=3.0), baseline="last")
    one, other = model.predict(series, [4.0]), model.predict(series.cut(3.0)[0], [4.0])
    np.testing.assert_array_equal(one.mean, other.mean)
    scores = model.log_prob(series)
    assert np.isfinite(scores.log_prob).all()
    np.testing.assert_array_equal(
        scores.log_prob, model.log_prob(series.cut(3.0)[1], given=series).log_prob
    )


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "gru", "baseline": "mean", "timed": True},
        {"encoder": "mtand", "posterior": "flow", "likelihood": "student", "baseline": "none"},
        {"baseline": "last", "state_noise": True, "static": ("age",), "labels": (0.0, 1.0)},
        {"baseline": "local", "events": "poisson"},
    ],
)
def test_the_gradient_reaches_every_parameter(options):
    series = waves(
        static_columns=lambda s: ("age",) if "static" in options else (),
        static=lambda s: np.arange(len(s.ids))[:, None] * 1.0 if "static" in options else None,
        labels=lambda s: s.ids % 2.0,
    )
    model = LatentODE(series.columns, **{**SMALL, **options})
    model.prepare(series, Task("filter"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # some are zero at first
    scaled = model.scaled(series)
    wanted = SeriesBatch.of(scaled, np.arange(12), model.like)
    for until in (0.5, 0.0):  # nothing is seen of some, and of all
        seen = SeriesBatch.of(scaled.rows(scaled.times < until), np.arange(12), model.like)
        model.loss(seen, wanted, 0.5, SeriesRecipe(draws=2)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_storage_and_resumption(tmp_path, density):
    cnf.save(density, tmp_path / "model")
    loaded = cnf.load(tmp_path / "model").double()
    series = waves()
    np.testing.assert_array_equal(
        loaded.log_prob(series).log_prob, density.log_prob(series).log_prob
    )
    recipe = SeriesRecipe(batch_size=8, validations=3)

    class StopError(Exception):
        pass

    def stop(event):
        if event.step == 4:
            raise StopError

    weights = []
    for name, callbacks in (("whole", ()), ("broken", (stop,)), ("broken", ())):
        torch.manual_seed(0)
        model = LatentODE(series.columns, **SMALL)
        options = {"state": tmp_path / name, "state_seconds": 0.0, "recipe": recipe, "steps": 6}
        try:
            model.fit(series, task=Task(hide=0.3), callbacks=callbacks, threads=1, **options)
        except StopError:
            continue
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    with pytest.raises(ValueError, match="its seed was 0"):
        model.fit(series, task=Task(hide=0.3), seed=1, **options)


def test_classes_are_learned_and_averaged_over_draws():
    series = waves(40, labels=lambda s: s.ids % 2.0)
    values = series.values + 9.0 * (series.owners % 2)[:, None]
    series = replace(series, values=values)
    model = fitted(series, steps=25, rate=3e-2, labels=(1.0, 0.0))
    found = model.classify(series)
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-6)
    assert ((found[:, 0] > 0.5) == (series.labels == 1)).mean() > 0.9


def test_summaries_are_places_between_quantiles_of_training_series():
    encoded = PiecewiseSummaries(2)
    numbers = 2 * (SUMMARIES - 1)
    training = torch.cat([torch.arange(13.0).repeat(numbers, 1).T, torch.ones(13, 2)], 1)
    training[:, 1] = 5.0  # the second column's mean is the same in all series
    training[:3, -2] = 0.0  # the first column is not seen in three of them, whose numbers count not
    encoded.fit(training)
    torch.testing.assert_close(encoded.quantiles[:, 0], torch.linspace(3.0, 12.0, 7))
    rows = training[[7, 7, 7]].clone()
    rows[1, -2], rows[2, 1] = 0.0, 5.1
    found = encoded(rows)
    assert found.shape == (3, encoded.size)
    places = found[:, :-2].view(3, 6, numbers)
    torch.testing.assert_close(places[0, :, 0], torch.tensor([1.0, 1.0, 2 / 3, 0.0, 0.0, 0.0]))
    assert not places[1, :, 0].any()
    assert places[:, :, 1].sum(1).tolist() == [0.0, 0.0, 6.0]
    torch.testing.assert_close(found[:, -2:], rows[:, -2:])


def test_a_baseline_starts_at_the_variance_components_and_is_not_scored_by_itself():
    rng = np.random.default_rng(0)
    levels = rng.normal(size=(400, 2)) * [0.5, 0.0]
    series = waves(400)
    series = replace(series, values=levels[series.owners] + rng.normal(size=series.values.shape))
    model = LatentODE(series.columns, **SMALL, baseline="mean")
    model.prepare(series, Task(hide=0.3))
    between, none = model.decoder.baseline.prior()
    assert between.item() == pytest.approx(4, rel=0.4)
    assert none > 20
    batch = SeriesBatch.of(model.scaled(series), np.arange(400), model.like)
    shown = replace(batch, mask=batch.mask * (torch.rand_like(batch.mask) > 0.3))
    weighted = replace(batch, mask=batch.mask - 0.9 * shown.mask)
    losses = []
    for task, wanted in ((Task(hide=0.3), batch), (Task(), weighted)):
        model.task = task
        torch.manual_seed(0)
        losses.append(model.loss(shown, wanted, 1.0, SeriesRecipe()).item())
    assert losses[0] == pytest.approx(losses[1])


def test_samples_of_the_least_level_are_finite(model, monkeypatch):
    monkeypatch.setattr(torch, "rand", torch.zeros)
    assert np.isfinite(model.sample([0.0, 1.0]).values).all()


def test_samples_come_from_the_prior():
    series = waves()
    model, *_ = linear_gaussian(series)
    drawn = model.sample([0.0, 1.0], n=2000)
    assert drawn.values.shape == (4000, 2)
    scaled = model.scaled(drawn).values[::2]
    np.testing.assert_allclose(scaled.var(0), [1 + 0.49, 1.25 + 0.49], rtol=0.15)


def test_a_column_of_one_value_is_predicted_and_does_not_count():
    series = waves(columns=("x", "y", "z"))
    series.values[:, 1] = np.where(np.isnan(series.values[:, 1]), np.nan, 4.0)
    series = replace(series)
    with pytest.warns(UserWarning, match="one value.*y"):
        model = fitted(series, baseline="none")
    found = model.predict(series, [1.0, 2.0])
    np.testing.assert_allclose(found.quantiles[..., 1], 4.0, atol=1e-6)
    without = replace(series, values=series.values * [1.0, np.nan, 1.0])
    assert np.isfinite(model.log_prob(without).log_prob).all()


def test_batches_are_of_similar_length_and_reach_all_series():
    lengths = np.random.default_rng(0).integers(1, 100, 64)
    sampler = LengthSampler(lengths, size=8, pool=4, seed=0)
    batches = [sampler.batch() for _ in range(8)]
    assert sorted(np.concatenate(batches)) == [*range(64)]
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 50
    batch = SeriesBatch.of(waves(), np.arange(24), torch.zeros(()))
    seen, wanted = cut_at_random(batch)
    assert torch.equal(seen.mask + wanted.mask, batch.mask)
    assert (seen.lengths < batch.lengths).all()


def late(series):
    return replace(series, times=series.times + 1e4 * (series.owners == 5))


def before_the_cut(model):
    model = linear_gaussian(waves())[0]
    model.task = Task("extrap", cut=3.0)
    model.log_prob(waves(), given=waves())


def before_the_start(model):
    late = waves()
    model.fit(replace(late, times=late.times + 100), steps=1)
    model.predict(late, [105.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m: LatentODE(("x",), encoder="rnn"), "Expected encoder to be one of .*'rnn'"),
        (lambda m: LatentODE(("x", "x")), "each with a name of its own"),
        (lambda m: LatentODE(("x",), latent_dim=0), "at least 1"),
        (lambda m: LatentODE(("x",), labels=(1,)), "at least two classes"),
        (lambda m: m.with_solver(tolerance=1), "settings among .*tolerance"),
        (lambda m: m.predict(waves(columns=("x", "w")), [1.0]), "'w'"),
        (lambda m: m.predict(waves(), [-5.0]), "from the start, 0.*got -5"),
        (lambda m: m.predict(waves(), [np.nan]), "finite times"),
        (lambda m: m.predict(waves(), []), "times of shape"),
        (lambda m: m.predict(waves(), ["e"]), "times that are numbers.*got e"),
        (lambda m: m.predict(waves(), pd.to_datetime(["2024"])), "that are numbers.*got 2024"),
        (lambda m: m.predict(waves(3), [[1.0], [1e5], [1.0]]), "up to 5.*got 100000 in series 1"),
        (lambda m: m.predict(late(waves()), [1.0]), "up to 5.* in series 5"),
        (lambda m: m.predict(waves(), waves()[:3]), "the ids"),
        (lambda m: m.predict(waves(), [1.0], quantiles=(0,)), "between 0 and 1"),
        (lambda m: m.predict(waves(), [1.0], draws=0), "draws of at least 1"),
        (lambda m: m.log_prob(waves()), "Expected given"),
        (lambda m: m.log_prob(waves(), given=waves()), "one of . of series 0 in both"),
        (before_the_cut, "from the task's cut, 3, on; got one at .* in series 0"),
        (lambda m: m.sample([1.0, 0.5]), "times that increase"),
        (lambda m: m.classify(waves()), "a model with labels"),
        (lambda m: before_the_start(LatentODE(("x", "y"), **SMALL)), "start, 100.*in series 0"),
        (lambda m: fitted(waves()[:2]), "at least 3 series"),
        (lambda m: fitted(waves(labels=lambda s: 0 * s.ids), labels=(0, 1)), "two classes"),
        (lambda m: fitted(waves().rows(waves().owners != 4)), "none in series 4"),
        (lambda m: fitted(static=("age",)), "static columns age; got none"),
        (lambda m: fitted(baseline="local"), "a share of entries to hide"),
    ],
)
def test_mistakes_are_reported_in_one_line(model, wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [partial(LatentODE, baseline="none", labels=(0, 1)), FlowProcess])
def test_a_model_answers_once_it_is_fitted_or_has_the_weights_of_one_that_is(kind):
    series, new = waves(), kind(("x", "y"))
    questions = [lambda m: m.predict(series, [1.0], draws=2), lambda m: m.log_prob(series)]
    questions.append(lambda m: m.sample([1.0]))
    if isinstance(new, LatentODE):
        questions += [lambda m: m.classify(series), lambda m: m.latents(series)]
    for question in questions:
        with pytest.raises(ValueError, match="a model that has been fitted; got a new one: call"):
            question(new)
    fitted = kind(("x", "y"))
    fitted.scaling.fit(series)
    new.load_state_dict(fitted.state_dict())
    for question in questions:
        question(new)


def test_times_far_beyond_training_are_warned_of(model):
    with pytest.warns(UserWarning, match="far beyond the training series"):
        model.predict(waves()[:1], [50.0])
