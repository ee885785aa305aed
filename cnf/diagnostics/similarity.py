"""The similarity of drawn tables to real ones: a classifier's score, shapes, pairs, and copying."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import combinations
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnf.datasets import ColumnType, Table
from cnf.utils.serialization import json_value

if TYPE_CHECKING:  # functions import it, since it takes long
    import pandas as pd

Array = NDArray[np.float64]
Codes = NDArray[np.intp]

DETECTION_FOLDS = 3
TREES = 200
TREE_DEPTH = 6
MAX_TREE_CATEGORIES = 255  # that scikit-learn's trees support
FEW_VALUES = 20  # a number with more distinct values is compared by its distribution function
DECILES = np.arange(0.1, 0.95, 0.1)
MAX_NEAREST_DRAWS = 1500  # with each group of training rows
MAX_NEAREST_GROUPS = 8  # of one group of 600 rows alone the share has a standard error of .012
NEAREST_CHUNK = 250  # draws whose distances to all rows are held at once
MAX_LISTED_COLUMNS = 5  # with the largest errors, in lines
MAX_LISTED_PAIRS = 10


@dataclass(frozen=True)
class Detection:
    """A classifier's failure to tell draws from rows.

    Attributes:
        score: 1 − 2 max(AUC − ½, 0): 1 where it can only guess, 0 where it is always right.
        auc: The area under its ROC curve, the mean over the folds.
        detector: The library of its boosted trees, `"XGBoost"` or `"scikit-learn"`.
        rows: Number of rows, and of draws: the score falls as it grows.
    """

    score: float
    auc: float
    detector: str
    rows: int


class PairTrend(NamedTuple):
    """The difference between rows and draws in the joint shares of two columns.

    Attributes:
        error: The total variation distance of the joint shares.
        chance: Its approximate mean for draws of the rows' distribution.
        a: The name of the first column.
        b: The name of the second column.
        alone: The larger error of the two columns alone, beyond chance.
    """

    error: float
    chance: float
    a: str
    b: str
    alone: float

    @property
    def association(self) -> float:
        """The part of the error that neither chance nor a column alone accounts for."""
        return self.error - self.chance - self.alone


@dataclass(frozen=True)
class Similarity:
    """The similarity of draws to the rows that a model was trained on.

    A model must not be selected by it: copies of the training rows have the best scores.

    Attributes:
        detection: A classifier's failure to tell draws from training rows.
        shapes: The error of each column's distribution, by its name.
        pairs: The errors of all pairs of columns, those first whose association differs most.
        nearer_to_training: The share of draws nearer to a training row than to a held-out one.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = [Table("t", rng.normal(size=(90, 2)), ("x", "y")) for _ in range(3)]
        >>> found = similarity(*rows)
        >>> found.detection.rows, [*found.shapes], found.pairs[0].b
        (90, ['x', 'y'], 'y')
    """

    detection: Detection
    shapes: Mapping[str, float]
    pairs: tuple[PairTrend, ...]
    nearer_to_training: float

    @property
    def mean_shape(self) -> float:
        """The mean error of the columns' distributions."""
        return float(np.mean([*self.shapes.values()]))

    @property
    def mean_pair(self) -> float:
        """The mean error of the pairs of columns; NaN without any."""
        return float(np.mean([pair.error for pair in self.pairs])) if self.pairs else nan

    @property
    def chance_pair(self) -> float:
        """The expected mean error of draws of the rows' distribution; NaN without pairs."""
        return float(np.mean([pair.chance for pair in self.pairs])) if self.pairs else nan

    @property
    def worst_shapes(self) -> list[tuple[str, float]]:
        """The columns with the largest errors, these first."""
        return sorted(self.shapes.items(), key=lambda each: -each[1])[:MAX_LISTED_COLUMNS]

    def lines(self) -> list[str]:
        """Return the similarity as lines for display."""
        found = self.detection
        worst = ", ".join(f"{name} {error:.4f}" for name, error in self.worst_shapes)
        pairs = ", ".join(
            f"{pair.a} & {pair.b} {pair.error:.4f}" for pair in self.pairs[:MAX_LISTED_PAIRS]
        )
        return [
            f"detection score {found.score:.3f} (AUC {found.auc:.3f}) by {found.detector} on "
            f"{found.rows} rows and as many draws; 1: indistinguishable",
            f"column shapes: mean error {self.mean_shape:.4f}; largest: {worst}",
            *([f"pairs: mean error {self.mean_pair:.4f}; differ most: {pairs}"] if pairs else []),
            f"nearer to training than to held-out rows: {self.nearer_to_training:.3f} of the "
            "draws; 0.5 is right, more suggests copies",
        ]

    def json(self) -> str:
        """Return one JSON object."""
        pairs = [pair._asdict() for pair in self.pairs]
        return json.dumps(json_value({**asdict(self), "pairs": pairs}))


def similarity(training: Table, held_out: Table, draws: Table, seed: int = 0) -> Similarity:
    """Return all measures of the similarity of draws to training rows.

    Raises:
        ValueError: The tables' columns differ, or they have too few rows.
    """
    return Similarity(
        detection_score(training, draws, seed),
        column_shapes(training, draws),
        pair_trends(training, draws),
        nearer_to_training(training, held_out, draws, seed),
    )


def detection_score(rows: Table, draws: Table, seed: int = 0) -> Detection:
    """Train boosted trees to tell draws from rows, and return 1 − 2 max(AUC − ½, 0).

    Equally many random rows of each are taken. The AUC is the mean over three stratified, shuffled
    folds, each of which is classified by 200 trees of depth 6 that were trained on the other two.
    The trees are XGBoost's where it is installed, else scikit-learn's.

    Args:
        rows: Real rows.
        draws: Draws, with the same columns, and in the same units and rounding.
        seed: Seed of the rows that are taken, of the folds and of the classifier.

    Raises:
        ValueError: The columns differ, or there are fewer rows than folds.

    Source: Zein and Urvoy (2022), Tabular data generation: can we fool XGBoost?

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows, draws = (Table("t", rng.normal(size=(300, 1)), ("x",)) for _ in range(2))
        >>> found = detection_score(rows, draws)
        >>> found.score > 0.7, found.rows
        (True, 300)
    """
    import pandas as pd
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    frames, count = _frames(rows, draws), min(len(rows.values), len(draws.values))
    if count < DETECTION_FOLDS:
        raise ValueError(
            f"Expected at least {DETECTION_FOLDS} rows and draws, one for each fold; got {count}: "
            "draw more"
        )
    rng = np.random.default_rng(seed)
    taken = [frame.iloc[rng.permutation(len(frame))[:count]] for frame in frames]
    features, labels = pd.concat(taken, ignore_index=True), np.repeat([0, 1], count)
    features.columns = pd.Index([f"x{i}" for i in range(features.shape[1])])  # no odd letters
    detector, classifier = _classifier(seed)
    if detector != "XGBoost":
        features = features.apply(_with_few_categories)
    folds = StratifiedKFold(DETECTION_FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_score(classifier, features, labels, scoring="roc_auc", cv=folds)
    auc = float(scores.mean())
    return Detection(1 - 2 * max(auc - 0.5, 0.0), auc, detector, count)


def column_shapes(rows: Table, draws: Table) -> dict[str, float]:
    """Return the error of each column's distribution among draws, by the column's name.

    It is the Kolmogorov–Smirnov distance sup |F(x) − G(x)| for numbers of more than twenty distinct
    values, else the total variation distance ½ Σ |p − q| of the values' shares. Gaps are a value
    below all others.

    Raises:
        ValueError: The columns differ.

    Example:
        >>> rows, draws = (Table("t", np.array(x)[:, None], ("x",)) for x in ([0.0, 1], [1.0, 1]))
        >>> column_shapes(rows, draws)
        {'x': 0.5}
    """
    from scipy.stats import ks_2samp

    found = {}
    ours, theirs = _frames(rows, draws)
    for name in rows.columns:
        a, b = ours[name], theirs[name]
        if _has_few_values(a):
            found[name] = _total_variation(*_few_codes(a, b))[0]
        else:
            x, y = (each.fillna(-np.inf).to_numpy(np.float64) for each in (a, b))
            found[name] = float(ks_2samp(x, y, method="asymp").statistic)
    return found


def pair_trends(rows: Table, draws: Table) -> tuple[PairTrend, ...]:
    """Return the errors of each pair of columns, those first whose association differs most.

    An error is the total variation distance ½ Σ |p − q| of joint shares. Numbers of more than
    twenty distinct values are cut at the rows' deciles. Even draws of the rows' distribution
    differ, the more so in more cells, and a pair differs at least as much as either column. So the
    order is that of errors beyond chance, less those of the columns alone.

    Raises:
        ValueError: The columns differ.

    Example:
        >>> rows = Table("t", np.array([[0.0, 0], [1, 1]]), ("x", "y"))
        >>> draws = Table("t", np.array([[0.0, 1], [1, 0]]), ("x", "y"))
        >>> pair_trends(rows, draws)[0].error
        1.0
    """
    cells = [*shared_cells(rows, draws).items()]
    errors = {name: _total_variation(*codes) for name, codes in cells}
    alone = {name: max(0.0, error - chance) for name, (error, chance) in errors.items()}
    found = []
    for (a, (ours_a, theirs_a)), (b, (ours_b, theirs_b)) in combinations(cells, 2):
        size = max(ours_b.max(), theirs_b.max()) + 1
        joint = (ours_a * size + ours_b, theirs_a * size + theirs_b)
        found.append(PairTrend(*_total_variation(*joint), a, b, max(alone[a], alone[b])))
    return tuple(sorted(found, key=lambda pair: -pair.association))


def shared_cells(rows: Table, draws: Table) -> dict[str, tuple[Codes, Codes]]:
    """Return the codes of rows and of draws by column: of values, or of the rows' deciles.

    Raises:
        ValueError: The columns differ.

    Example:
        >>> table = Table("t", np.arange(100.0)[:, None], ("x",))
        >>> np.bincount(shared_cells(table, table)["x"][0])[1:].tolist()
        [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    ours, theirs = _frames(rows, draws)
    return {
        name: _few_codes(ours[name], theirs[name])
        if _has_few_values(ours[name])
        else _decile_codes(ours[name], theirs[name])
        for name in rows.columns
    }


def decile_edges(values: Array) -> Array:
    """Return the different deciles of numbers (rows,), gaps apart, of which the cells are `(a, b]`.

    Example:
        >>> decile_edges(np.array([0.0] * 8 + [1, 2])).round(1).tolist()
        [0.0, 0.2, 1.1]
    """
    return np.unique(np.nanquantile(values, DECILES))


def nearer_to_training(training: Table, held_out: Table, draws: Table, seed: int = 0) -> float:
    """Return the share of draws that are nearer to a training row than to a held-out one.

    Equally many random rows of both are taken; ties count half. Where there are several times as
    many training rows, each group of them is compared in its turn, and the mean is returned. The
    distance sums the columns': that of numbers' ranks among the training rows, in [0, 1], and 1 for
    different categories. The share is 0.5 for draws of the rows' distribution, and 1 for copies of
    the rows that are taken.

    Args:
        training: The rows that a model was trained on.
        held_out: Other rows of the same distribution.
        draws: The model's draws, of which at most 1500 random ones are taken with each group.
        seed: Seed of the rows that are taken.

    Raises:
        ValueError: The columns differ, or a table has no rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> training, held_out = (Table("t", rng.normal(size=(90, 2)), ("x", "y")) for _ in "ab")
        >>> nearer_to_training(training, held_out, training)
        1.0
    """
    frames = _frames(training, held_out, draws)
    if not all(map(len, frames)):
        raise ValueError("Expected training rows, held-out rows and draws; got an empty table")
    rng, count = np.random.default_rng(seed), min(map(len, frames[:2]))
    order = rng.permutation(len(frames[0]))
    shares = []
    for group in range(min(len(order) // count, MAX_NEAREST_GROUPS)):
        taken = (
            order[group * count :][:count],
            rng.permutation(len(frames[1]))[:count],
            rng.permutation(len(frames[2]))[:MAX_NEAREST_DRAWS],
        )
        ours, others, drawn = (
            _metric_parts(frame.iloc[rows], frames[0])
            for frame, rows in zip(frames, taken, strict=True)
        )
        to_ours, to_others = (np.concatenate([*_nearest(drawn, each)]) for each in (ours, others))
        shares.append((to_ours < to_others).mean() + 0.5 * (to_ours == to_others).mean())
    return float(np.mean(shares))


def _frames(*tables: Table) -> list[pd.DataFrame]:
    """Return tables as frames of numbers and of categories, which have one coding in all.

    Raises:
        ValueError: The columns differ.
    """
    first = tables[0]
    for table in tables[1:]:
        if table.columns != first.columns or {*table.categories} != {*first.categories}:
            raise ValueError(
                f"Expected tables of the same columns, of the same types; got {table.columns}, "
                f"categories {[*table.categories]}, and {first.columns}, categories "
                f"{[*first.categories]}: use one schema"
            )
    import pandas as pd

    columns = zip(*(_series(name, *tables) for name in first.columns), strict=True)
    return [pd.DataFrame(dict(zip(first.columns, each, strict=True))) for each in columns]


def _series(name: str, *tables: Table) -> list[pd.Series[Any]]:
    """Return one column of each table: categorical, or of finite numbers and NaN."""
    import pandas as pd

    place = tables[0].columns.index(name)
    values = [table.values[:, place] for table in tables]
    texts = [table.categories.get(name, ()) for table in tables]
    if name in tables[0].categories:
        shared = [*dict.fromkeys(text for each in texts for text in each)]
        found = [
            pd.Series(
                pd.Categorical.from_codes(
                    np.nan_to_num(codes, nan=-1).astype(np.intp), pd.Index(own)
                )
            )
            for codes, own in zip(values, texts, strict=True)
        ]
        return [each.cat.set_categories(shared) for each in found]
    if all(table.types.get(name, ColumnType()).family == "boolean" for table in tables):
        return [
            pd.Series(pd.Categorical(each, [0.0, 1.0]).rename_categories({0.0: "0", 1.0: "1"}))
            for each in values
        ]
    most = float(np.finfo(np.float32).max)  # trees know no infinity
    return [pd.Series(np.clip(each, -most, most)) for each in values]


def _classifier(seed: int) -> tuple[str, Any]:
    """Return a library's name, and its classifier by boosted trees."""
    try:
        boosted = import_module("xgboost")
    except ImportError:
        from sklearn.ensemble import HistGradientBoostingClassifier

        return "scikit-learn", HistGradientBoostingClassifier(
            max_iter=TREES, max_depth=TREE_DEPTH, early_stopping=False, random_state=seed
        )
    import torch

    return "XGBoost", boosted.XGBClassifier(
        n_estimators=TREES,
        max_depth=TREE_DEPTH,
        tree_method="hist",
        enable_categorical=True,
        n_jobs=torch.get_num_threads(),
        random_state=seed,
    )


def _with_few_categories(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column whose rarest categories are one, where there are too many for the trees."""
    if column.dtype != "category" or len(column.cat.categories) <= MAX_TREE_CATEGORIES:
        return column
    kept = column.value_counts().index[: MAX_TREE_CATEGORIES - 1]
    codes = column.cat.codes.where(column.isin(kept) | column.isna(), -2)
    return codes.where(codes != -1).astype("category")


def _has_few_values(column: pd.Series[Any]) -> bool:
    return column.dtype == "category" or column.nunique() <= FEW_VALUES


def _few_codes(a: pd.Series[Any], b: pd.Series[Any]) -> tuple[Codes, Codes]:
    """Return codes of two columns' values, from 0; gaps are a value."""
    import pandas as pd

    codes, _ = pd.factorize(pd.concat([a, b], ignore_index=True), use_na_sentinel=False)
    return codes[: len(a)], codes[len(a) :]


def _decile_codes(a: pd.Series[Any], b: pd.Series[Any]) -> tuple[Codes, Codes]:
    """Return the numbers of the cells between the first column's deciles; 0 for gaps."""
    edges = decile_edges(a.to_numpy(np.float64))
    codes = (np.searchsorted(edges, each) + 1 for each in (a, b))
    first, second = (
        np.where(each.isna(), 0, code) for each, code in zip((a, b), codes, strict=True)
    )
    return first, second


def _total_variation(a: Codes, b: Codes) -> tuple[float, float]:
    """Return ½ Σ |p − q| of the shares of codes, and its approximate mean by chance alone.

    For equal shares p, a difference has the variance p (1 − p) (1 / n + 1 / m), and where it is
    normal, the mean absolute value √(2 / π) standard deviations. It is at most that of rare codes,
    which hardly ever occur on both sides.
    """
    import pandas as pd

    codes, _ = pd.factorize(np.concatenate([a, b]))
    counts = [np.bincount(each, minlength=codes.max() + 1) for each in np.split(codes, [len(a)])]
    error = np.abs(counts[0] / len(a) - counts[1] / len(b)).sum() / 2
    share, scale = sum(counts) / len(codes), 1 / len(a) + 1 / len(b)
    chance = np.minimum(np.sqrt(2 / np.pi * share * (1 - share) * scale), 2 * share).sum() / 2
    return float(error), float(chance)


def _metric_parts(frame: pd.DataFrame, training: pd.DataFrame) -> tuple[Array, Codes]:
    """Return the mid-ranks of numbers among training rows, in [0, 1], and categories' codes."""
    coded = [name for name in frame if frame[name].dtype == "category"]
    ranks = np.empty((len(frame), frame.shape[1] - len(coded)))
    for i, name in enumerate(frame.columns.drop(coded)):
        known = np.sort(training[name].fillna(-np.inf))
        given = frame[name].fillna(-np.inf)
        ranks[:, i] = sum(np.searchsorted(known, given, side) for side in ("left", "right"))
    codes = [frame[name].cat.codes.to_numpy(np.intp) for name in coded]
    return ranks / (2 * len(training)), np.array(codes, np.intp).reshape(len(coded), len(frame)).T


def _nearest(draws: tuple[Array, Codes], rows: tuple[Array, Codes]) -> Iterator[Array]:
    """Yield the distances of draws to the nearest rows, of chunks of draws."""
    from scipy.spatial.distance import cdist

    for start in range(0, len(draws[0]), NEAREST_CHUNK):
        ranks, codes = (each[start : start + NEAREST_CHUNK] for each in draws)
        distances = np.zeros((len(ranks), len(rows[0])))
        if ranks.shape[1]:
            distances += cdist(ranks, rows[0], "cityblock")
        if codes.shape[1]:
            distances += cdist(codes, rows[1], "hamming") * codes.shape[1]
        yield distances.min(axis=1)
