"""Questions about rows: conditionals, imputation, planted errors, known laws, and their cost."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch.distributions import Independent, Normal

from cnf.diagnostics.consistency import consistency
from cnf.fields.concat_squash import ConcatSquash
from cnf.flow import Flow
from cnf.layers import CNF
from cnf.scripts.benchmarks.compared import COSTLY_TABLES, QUESTION_TABLES
from cnf.scripts.benchmarks.imputers import IMPUTER_PEERS, IMPUTERS, DrawScores
from cnf.scripts.benchmarks.known_laws import KNOWN_LAWS, KnownSplit
from cnf.scripts.benchmarks.measure import (
    BENCHMARK_CHUNK_ROWS,
    Average,
    TableItem,
    median_seconds,
    threads_used,
)
from cnf.scripts.benchmarks.mixed import MixedSplit, log_widths, run_rival, step_of
from cnf.scripts.benchmarks.options import BenchmarkOptions, Row, key_of
from cnf.scripts.benchmarks.question_models import (
    ROW_RECIPES,
    Answers,
    Conditionals,
    MixtureAnswers,
    RowAnswers,
    timed,
)
from cnf.scripts.benchmarks.question_tables import (
    GAP_MECHANISMS,
    Array,
    Mask,
    QuestionSplit,
    hide_at_random,
    question_masks,
    question_split,
)
from cnf.tables.coding import Coding
from cnf.tables.masked_flow import MaskedFlow
from cnf.tables.questions import explain
from cnf.utils.random import seeded

OWN_ANSWERS, MIXTURE = "ours", "mixture"
MASKS = 50  # of each table
ASKED_ROWS = 500  # at most, of a table's test rows
ERROR_ROWS = 200
ERROR_SIZE = 5.0  # standard deviations by which a number is moved
ERROR_TRAINING_ROWS = 10_000  # of the classifier of likely categories
COVERED_ROWS = 1000
SCORED_DRAWS = 20
LAST_WEIGHT = 0.05  # standard deviation of the last layer's weights where training leaves them 0
INTERVAL_DRAWS, INTERVAL = 199, (9, 189)  # between two of sorted draws is a mass of 0.9


@dataclass(frozen=True)
class QuestionSetting:
    """The setting of one measurement; models of rows without gaps are kept in the folder."""

    budget: float
    seed: int
    repeats: int
    folder: Path | None


Measured = dict[str, Row]
"""Results by the names of methods."""
Measure = Callable[[Any, QuestionSetting], Measured]
"""A function of a split and its setting."""


def conditional_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each table, split and model: its NLL of parts of rows given others."""
    yield from _cells(
        options,
        "conditionals",
        f"NLL of held-out rows in nats a column that is asked, at {MASKS} random masks, and "
        "'joint' of whole rows; ± of differences over rows",
        _conditionals,
        _tables(options),
    )
    for rival in options.rivals:
        method, _, python = rival.partition("=")
        yield ""
        yield from _cells(
            options,
            f"conditionals by {method}",
            f"The same by {method}: masses on a grid over its cells, of those rows and masks that "
            "are not impossible by it",
            partial(_rival, method, Path(python)),
            _tables(options),
        )


def imputation_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each table, split, mechanism of gaps and imputer: the scores of draws."""
    for name, hide in GAP_MECHANISMS.items():
        yield ""
        yield from _cells(
            options,
            f"imputation {name}",
            f"{SCORED_DRAWS} draws in gaps {name} of held-out rows, after training with such gaps: "
            "CRPS of a cell and energy score of a row, in standard deviations; ± of differences "
            "over rows; the accuracy that a classifier of the last column, if of categories, loses "
            "after one draw in all gaps of the training rows",
            partial(_imputation, hide),
            _tables(options),
        )
    missing = [name for name, library in IMPUTER_PEERS.items() if not find_spec(library)]
    yield from (f"{name} is not installed, and left out" for name in missing)


def error_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each table and split: how often the cell with an error is named first."""
    yield from _cells(
        options,
        "errors",
        f"Held-out rows in which a cell with an error has the largest excess: a number moved by "
        f"{ERROR_SIZE:g} standard deviations, or the category that is least likely given the rest "
        "by a gradient-boosted classifier",
        _errors,
        _tables(options),
    )


def known_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each known law, seed and model: the error of answers, and coverage."""
    yield from _cells(
        options,
        "known",
        f"Laws in closed form: log p of cells given others below the truth's, in nats a cell, at "
        f"{MASKS} random masks, and the share of missing numbers in 90 % intervals of "
        f"{INTERVAL_DRAWS} draws",
        _known,
        {name: make().split for name, make in KNOWN_LAWS.items()},
    )


def cost_lines(options: BenchmarkOptions) -> Iterator[TableItem]:
    """Yield a row for each table: the seconds of scoring rows by one mask, by many, and a flow."""
    yield from _cells(
        options,
        "cost",
        f"Seconds of scoring {BENCHMARK_CHUNK_ROWS} rows, median of {options.repeats}; 'flow': one "
        "of the same velocity that answers no questions, of whole rows. Where training keeps the "
        "mixture alone the field has random weights",
        _cost,
        _tables(options, COSTLY_TABLES),
    )


def _tables(
    options: BenchmarkOptions, usual: Sequence[str] = QUESTION_TABLES
) -> dict[str, Callable[[int], QuestionSplit]]:
    """Return functions of a seed that split the tables which are named, or the usual ones."""
    names = options.tables or usual
    return {name: partial(question_split, options.data_dir, name) for name in names}


def _cells(
    options: BenchmarkOptions,
    section: str,
    title: str,
    measure: Measure,
    splits: Mapping[str, Callable[[int], QuestionSplit]],
) -> Iterator[TableItem]:
    """Yield a title, then the rows of each table and split, measured unless cached."""
    tables = {name: [make(seed) for seed in range(options.splits)] for name, make in splits.items()}
    yield f"{title}; {options.budget:g} s each, splits: {options.splits}, {threads_used()}"
    for name, parts in tables.items():
        for seed, part in enumerate(parts):
            names = {"table": name, "split": seed, "budget": options.budget}
            settings = (ROW_RECIPES, part.train, part.test)
            folder = options.results.model_folder(key_of(names, *settings))
            setting = QuestionSetting(options.budget, seed, options.repeats, folder)
            key = key_of({"section": section, **names}, *settings)
            found = options.results.recall(key, partial(_result, measure, part, setting))
            for method, row in found["methods"].items():
                yield {"table": name, "split": seed, "method": method, **row, "note": found["note"]}


def _result(measure: Measure, parts: QuestionSplit, setting: QuestionSetting) -> Row:
    return {"methods": measure(parts, setting), "note": ""}


def _fitted(
    parts: QuestionSplit, setting: QuestionSetting, kept: bool = True
) -> tuple[RowAnswers, dict[str, tuple[Answers, float]]]:
    """Return our model, and by their names it and the mixture with the seconds of their fits."""
    own, seconds = timed(partial(_own, parts, setting, kept))
    shared = own.model.coding if own.model.values is not None else None
    coding = shared or Coding.fit(parts.schema, parts.train, bins=1)
    mixture = timed(lambda: MixtureAnswers.fit(parts, coding, setting.budget, setting.seed))
    return own, {OWN_ANSWERS: (own, seconds), MIXTURE: mixture}


def _own(parts: QuestionSplit, setting: QuestionSetting, kept: bool = True) -> RowAnswers:
    folder = setting.folder if kept else None
    return RowAnswers.of(parts, setting.budget, setting.seed, folder)


def _conditionals(parts: QuestionSplit, setting: QuestionSetting) -> Measured:
    """Measure our model's and a mixture's log p of parts of rows."""
    own, models = _fitted(parts, setting)
    x = parts.test[:ASKED_ROWS]
    everything = np.ones(x.shape[1], np.bool_)
    asked = {
        "NLL": [*question_masks(x.shape[1], MASKS, setting.seed)],
        "joint": [(~everything, everything)],
    }
    nll = {
        name: {what: _nll(model, x, masks) for what, masks in asked.items()}
        for name, (model, _) in models.items()
    }
    gap = consistency(own.model, torch.from_numpy(x), seed=setting.seed)
    gaps = {OWN_ANSWERS: (gap.mean, gap.quantile95), MIXTURE: (0.0, 0.0)}
    return {
        name: {
            "seconds": seconds,
            **_against("NLL", nll[name]["NLL"], nll[MIXTURE]["NLL"]),
            **_against("joint", nll[name]["joint"], nll[MIXTURE]["joint"]),
            "gap": gaps[name][0],
            "gap 95 %": gaps[name][1],
        }
        for name, (_, seconds) in models.items()
    }


def _rival(method: str, python: Path, parts: QuestionSplit, setting: QuestionSetting) -> Measured:
    """Measure a rival's log p of parts of rows, by its own program."""
    x = parts.test[:ASKED_ROWS]
    everything = np.ones(x.shape[1], np.bool_)
    masks = [
        *question_masks(x.shape[1], MASKS, setting.seed),
        (~everything, everything),
    ]
    log_prob, seconds = rival_answers(parts, x, masks, setting, method, python)
    nll = -log_prob / [asked.sum() for _, asked in masks]
    possible = np.isfinite(nll)
    return {
        method: {
            "seconds": seconds,
            "NLL": float(nll[:, :-1][possible[:, :-1]].mean()),
            "joint": float(nll[possible[:, -1], -1].mean()),
            "impossible": float((~possible).mean()),
        }
    }


def rival_answers(
    parts: QuestionSplit,
    x: Array,
    masks: Sequence[tuple[Mask, Mask]],
    setting: QuestionSetting,
    method: str,
    python: Path,
) -> tuple[Array, float]:
    """Return a rival's log p(asked | given), (rows, masks), and the seconds of its training."""
    names, columns = parts.schema.names, parts.schema.columns
    pairs = zip(names, columns, parts.train.T, strict=True)
    steps = {name: step_of(column, values) for name, column, values in pairs}
    rows = MixedSplit(parts.schema, parts.train, parts.validation, x, steps)
    table = pd.DataFrame([given + 2 * asked for given, asked in masks], columns=[*names])
    with TemporaryDirectory() as name:
        folder = Path(name)
        table.to_csv(folder / "masks.csv", index=False)
        run_rival(folder, rows, setting.budget, setting.seed, method, python)
        if not (folder / "answers.csv").exists():
            raise ValueError(f"Expected rivals that answer questions, such as arf; got {method}")
        log_mass = pd.read_csv(folder / "answers.csv").to_numpy()
        seconds = json.loads((folder / "seconds.json").read_text())["training"]
    widths = log_widths(Coding.fit(parts.schema, parts.train, bins=1), rows)
    return log_mass - widths @ np.array([asked for _, asked in masks]).T, seconds


def _nll(model: Conditionals, x: Array, masks: Sequence[tuple[Mask, Mask]]) -> Array:
    """Return the NLL of rows in nats a column that is asked, averaged over masks, (rows,)."""
    found = [-model.log_prob(x, given, asked) / asked.sum() for given, asked in masks]
    return np.asarray(np.mean(found, axis=0))


def _against(name: str, mine: Array, other: Array) -> Row:
    """Return a mean over rows, and that of differences to the mixture with its standard error."""
    difference = Average.of(mine - other)
    return {
        name: Average.of(mine).mean,
        f"{name} - mixture": difference.mean,
        f"± {name}": difference.stderr,
    }


def _imputation(
    hide: Callable[[Array, np.random.Generator], Mask],
    complete: QuestionSplit,
    setting: QuestionSetting,
) -> Measured:
    """Measure draws in the gaps of test rows, of models that were trained on rows with gaps."""
    parts = complete.with_gaps(hide, setting.seed)
    x, truth = parts.test[:ASKED_ROWS], complete.test[:ASKED_ROWS]
    _, models = _fitted(parts, setting, kept=False)
    draws = {
        name: timed(partial(_draws, model, x, setting.seed)) for name, (model, _) in models.items()
    }
    for name, impute in IMPUTERS.items():
        if find_spec(IMPUTER_PEERS.get(name, "sklearn")):
            draws[name] = timed(partial(impute, parts, x, SCORED_DRAWS, setting.seed))
    scores = {
        name: DrawScores.of(complete, truth, each, np.isnan(x)) for name, (each, _) in draws.items()
    }
    lost = dict.fromkeys(draws, nan) | {
        name: _accuracy_lost(complete, model.impute(parts.train, setting.seed))
        for name, (model, _) in models.items()
        if complete.categorical[-1]
    }
    return {
        name: {
            "seconds": seconds + (models[name][1] if name in models else 0.0),
            **_against("CRPS", scores[name].crps, scores[MIXTURE].crps),
            **_against("energy", scores[name].energy, scores[MIXTURE].energy),
            "accuracy lost": lost[name],
        }
        for name, (_, seconds) in draws.items()
    }


def _accuracy_lost(complete: QuestionSplit, imputed: Array) -> float:
    """Return how much less accurate a classifier of the last column is after imputed rows."""
    scores = [
        HistGradientBoostingClassifier(
            categorical_features=complete.categorical[:-1], random_state=0
        )
        .fit(train[:, :-1], train[:, -1])
        .score(complete.test[:, :-1], complete.test[:, -1])
        for train in (complete.train, imputed)
    ]
    return float(scores[0] - scores[1])


def _draws(model: Answers, x: Array, seed: int, draws: int = SCORED_DRAWS) -> Array:
    """Return imputed rows, (draws, rows, columns)."""
    return model.impute(np.tile(x, (draws, 1)), seed).reshape(draws, *x.shape)


def _errors(parts: QuestionSplit, setting: QuestionSetting) -> Measured:
    """Measure how often the cell with an error is the first one that `explain` names."""
    own = _own(parts, setting)
    x, places = _with_errors(parts, own.model.coding, setting.seed)
    found, seconds = timed(lambda: explain(own.model, torch.from_numpy(x), seed=setting.seed))
    first = found.excess.nan_to_num(-np.inf, np.inf).argmax(1).numpy() == places
    categories = parts.categorical[places]
    return {
        OWN_ANSWERS: {
            "first": float(first.mean()),
            "± first": Average.of(first).stderr,
            "numbers": Average.of(first[~categories]).mean,
            "categories": Average.of(first[categories]).mean,
            "rows": len(x),
            "seconds": seconds,
        }
    }


def _with_errors(parts: QuestionSplit, coding: Coding, seed: int) -> tuple[Array, Array]:
    """Return test rows with an error in one cell of each, and the errors' columns (rows,)."""
    rng = np.random.default_rng(seed)
    x = parts.test[:ERROR_ROWS].copy()
    places = rng.choice(coding.places, len(x))
    for place in np.unique(places):
        rows = np.flatnonzero(places == place)
        if parts.categorical[place]:
            x[rows, place] = _least_likely(parts, x[rows], place, seed)
        else:
            x[rows] = _moved(x[rows], place, parts.deviations[place], coding, rng)
    return x, places


def _moved(
    x: Array, place: int, deviation: float, coding: Coding, rng: np.random.Generator
) -> Array:
    """Return rows with a number moved up or down, where it can be farther away."""
    moved = []
    for way in rng.permutation([-1.0, 1.0]):
        other = x.copy()
        other[:, place] += way * ERROR_SIZE * deviation
        moved.append(coding.nearest(other))
    nearer = np.abs(moved[0] - x)[:, place] < 0.99 * np.abs(moved[1] - x)[:, place]
    return np.where(nearer[:, None], moved[1], moved[0])


def _least_likely(parts: QuestionSplit, x: Array, place: int, seed: int) -> Array:
    """Return the other category of rows that a classifier finds least likely given the rest."""
    rest = np.delete(np.arange(x.shape[1]), place)
    classifier = HistGradientBoostingClassifier(
        max_iter=50, categorical_features=parts.categorical[rest], random_state=seed
    )
    train = parts.train[:ERROR_TRAINING_ROWS]
    classifier.fit(train[:, rest], train[:, place])
    shares = classifier.predict_proba(x[:, rest])
    shares[x[:, [place]] == classifier.classes_] = np.inf
    return np.asarray(classifier.classes_[shares.argmin(1)])


def _known(parts: KnownSplit, setting: QuestionSetting) -> Measured:
    """Measure answers against the law's, and how many numbers are in intervals of draws."""
    x, rng = parts.test[:ASKED_ROWS], np.random.default_rng(setting.seed)
    masks = [*question_masks(x.shape[1], MASKS, setting.seed)]
    truth = _nll(parts.law, x, masks)
    some = x[:COVERED_ROWS]
    gaps = hide_at_random(some, rng)
    measured: Measured = {}
    _, models = _fitted(parts, setting)
    for name, (model, seconds) in models.items():
        draws = _draws(model, np.where(gaps, np.nan, some), setting.seed, INTERVAL_DRAWS)
        low, high = np.sort(draws, axis=0)[[*INTERVAL]]
        inside = ((low <= some) & (some <= high))[gaps & ~parts.categorical]
        error, covered = Average.of(_nll(model, x, masks) - truth), Average.of(inside)
        measured[name] = {
            "error": error.mean,
            "± error": error.stderr,
            "coverage": covered.mean,
            "± coverage": covered.stderr,
            "seconds": seconds,
        }
    return measured


def _cost(parts: QuestionSplit, setting: QuestionSetting) -> Measured:
    """Measure the seconds of scoring: one mask, masks of rows, and a flow of the same network."""
    model = _own(parts, setting).model
    if model.values is None or model.coded:
        raise ValueError("Expected tables of numbers alone to measure solves; got a mixed one")
    values = _moving(model.values, setting.seed)
    flow = plain_flow(values)
    test = torch.from_numpy(model.coding.encode(parts.test).z).float()
    z = test.repeat(-(-BENCHMARK_CHUNK_ROWS // len(test)), 1)[:BENCHMARK_CHUNK_ROWS]
    order = torch.rand(z.shape, generator=torch.Generator().manual_seed(setting.seed)).argsort(1)
    given = order < z.shape[1] // 2
    everything = torch.ones(z.shape[1], dtype=torch.bool)
    runs: dict[str, Callable[[], object]] = {
        "whole rows": partial(values.log_prob, z, ~everything, everything),
        "one mask": partial(values.log_prob, z, given[0], ~given[0]),
        "own masks": partial(values.log_prob, z, given, ~given),
        "flow": partial(flow.log_prob, z),
    }
    with torch.no_grad():
        seconds = median_seconds(runs, setting.repeats)
    ratios = {f"{name} / flow": seconds[name] / seconds["flow"] for name in [*runs][:3]}
    return {OWN_ANSWERS: seconds | ratios | {"moves": model.values.moves}}


def _moving(values: MaskedFlow, seed: int) -> MaskedFlow:
    """Return a copy whose field moves, and whose shifts depend on no mask, as a flow's do not."""
    values = copy.deepcopy(values)
    last = values.field.last
    with torch.no_grad(), seeded(seed):
        if not values.moves:
            last.linear.weight.normal_(std=LAST_WEIGHT)
        for name, each in values.field.named_parameters():
            if name.endswith("shift.weight"):
                each[:, -2 * values.dim :] = 0.0
    return values


def plain_flow(values: MaskedFlow) -> Flow:
    """Return a flow with the velocity of whole rows, without masks, of a field without shifts."""
    config = values.field.config()
    field = ConcatSquash(**{name: each for name, each in config.items()}, zero_last=True)
    whole = torch.cat([torch.zeros(values.dim), torch.ones(values.dim)])
    others = dict(values.field.named_parameters())
    with torch.no_grad():
        for name, each in field.named_parameters():
            each.copy_(others[name][:, : each.shape[1]] if each.ndim > 1 else others[name])
            if name.endswith("gate.bias"):
                each.add_(others[name.replace("bias", "weight")][:, -2 * values.dim :] @ whole)
    base = Independent(Normal(torch.zeros(values.dim), torch.ones(values.dim)), 1)
    return Flow(base, [CNF(field, **vars(values.settings))])
