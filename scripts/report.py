"""The page of `evaluate --report`: the calibration of a model, in one self-contained HTML file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnf.datasets import check_writable
from cnf.diagnostics.similarity import MAX_LISTED_PAIRS, Similarity, similarity
from cnf.diagnostics.two_sample import two_sample_test
from cnf.plotting import png
from cnf.plotting.comparison import (
    MAX_MARGINAL_PANELS,
    correlations,
    correlations_figure,
    log_prob_figure,
    marginals_figure,
)
from cnf.plotting.shares import pair_shares_figure
from cnf.scripts.data import known_toy
from cnf.scripts.figures import joined_table
from cnf.scripts.rows import Array, ContextRows
from cnf.scripts.trained import TrainedModel
from cnf.tables.kinds import CategoricalColumn
from cnf.tables.questions import explain
from cnf.tables.row_model import RowModel
from cnf.tables.schema import Column, Schema
from cnf.utils.distributed import gather, rank
from cnf.utils.serialization import write_atomic

REPORT_SEED = 0  # of the samples, and of the choice of rows to compare
MIN_SAMPLES = 2_000  # for precise shares of samples, even with few rows
MAX_SAMPLES = 10_000
MIN_CLASSIFIER_ROWS = 50  # of data and of samples: each leaf of the classifier holds 20 rows
MAX_CLASSIFIER_ROWS = 5_000
MAX_DETECTION_ROWS = 30_000  # of training, and of draws
DRAWN_PAIRS = 4  # of those that differ most
LOWEST_ROWS_SHOWN = 10
ODDEST_NAMES = ("oddest cell", "expected")
ODDEST_TEXT = (
    "The oddest cell is the one whose -log p given the others of its row exceeds that of draws the "
    "most, and the median of these draws, or the most frequent one, was expected there."
)
GAPS_TEXT = (
    "Log p of a row with gaps is that of the cells that are there: it is of fewer cells, and does "
    "not compare with that of rows without gaps."
)
UNKNOWN_TEXT = "(unknown)"
REPORT_DPI = 144
PIXELS_PER_INCH = 96  # of a browser

PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
h1, dd, th { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1em; }
dd { margin: 0; } dt { color: #666; }
pre { background: #f4f4f4; padding: 0.7em; overflow-x: auto; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2em 0.7em; text-align: right; border-bottom: 1px solid #ddd; }
th { vertical-align: bottom; min-width: 4em; max-width: 12em; }
"""


@dataclass(frozen=True, eq=False)
class SampleComparison:
    """Rows and samples of a model, with log p of both."""

    schema: Schema
    given: tuple[Column, ...]  # of the context
    rows: ContextRows
    log_prob: Array
    samples: ContextRows
    sample_log_prob: Array
    order: NDArray[np.intp]  # sample i has the context, and the gaps, of row order[i mod rows]
    lowest: NDArray[np.intp]  # the rows with the lowest log p
    oddest: list[tuple[str, str]]  # the cell of each that `explain` names first; empty for a flow

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns, in the order of `ContextRows.joined`."""
        return (*self.given, *self.schema.columns)

    @property
    def gappy(self) -> bool:
        """Whether rows have gaps that are no value, of which log p is marginal."""
        values = np.array([column.gaps == "value" for column in self.schema.columns])
        return bool((np.isnan(self.rows.x) & ~values).any())


def check_page(path: Path) -> None:
    """Raise a ValueError in every process unless a page can be written at this path."""
    wrong = ""
    try:
        if rank() == 0:
            check_writable(path, (".html",))
    except ValueError as error:
        wrong = str(error)
    wrong, *_ = gather(wrong)
    if wrong:
        raise ValueError(wrong)


def write_report(
    path: Path,
    trained: TrainedModel,
    rows: ContextRows,
    log_prob: Array,  # of the rows
    data: str,  # the name of the rows; empty for the held-out ones
    numbers: Sequence[str],  # lines that state the scores of the model on the rows
    draws: int,  # of noise for each row in its score
) -> Similarity | None:
    """Write the page on a model and rows that it has scored, and return what it says of draws.

    With several processes all call this together: the first draws the samples, all score them, and
    the first writes the page.

    Returns:
        The similarity of draws to training rows; None for a toy, for training rows that are too few
        or cannot be read, and in all processes but the first.

    Raises:
        RuntimeError: A flow cannot be integrated at some of its samples.
        OSError: The page cannot be written.
    """
    known = ~np.isnan(log_prob)  # not of contexts of unknown categories, which have no draws
    if not known.any():
        raise ValueError(f"Expected rows with a log p for the report; got none of {len(rows)}")
    rows, log_prob = rows.at(np.flatnonzero(known)), log_prob[known]
    order = np.random.default_rng(REPORT_SEED).permutation(len(rows))
    # As many samples as rows, or a multiple where they are few.
    count = min(len(rows) * max(1, -(-MIN_SAMPLES // len(rows))), MAX_SAMPLES)
    partners = rows.at(np.resize(order, count))
    drawn, *_ = gather(trained.sample(partners.context, REPORT_SEED) if rank() == 0 else None)
    samples = trained.with_gaps(drawn, partners)
    sample_log_prob, _ = trained.score(samples, draws)
    if rank() > 0:
        return None
    lowest = np.argsort(log_prob, kind="stable")[:LOWEST_ROWS_SHOWN]
    oddest = _oddest_cells(trained, rows.at(lowest))
    schema, varying = trained.schema.without(trained.schema.constant)
    rows, samples = (ContextRows(each.x[:, varying], each.context) for each in (rows, samples))
    given = trained.given.columns if trained.given else map(Column, trained.context_columns)
    compared = SampleComparison(
        schema,
        tuple(given),
        rows,
        log_prob,
        samples,
        sample_log_prob,
        order,
        lowest,
        oddest,
    )
    data = data or f"held-out rows of {trained.source}"
    title = escape(f"How calibrated is {trained.folder}?")
    found, detection = (None, []) if known_toy(trained.source) else _detection(trained)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f"<title>{title}</title>\n<style>{PAGE_STYLE}</style>\n</head>\n<body>",
        f"<h1>{title}</h1>",
        _header(compared, trained.folder, data, numbers),
        *detection,
        *(part(compared) for part in (_marginals, _correlations, _log_prob, _two_sample)),
        "</body>\n</html>\n",
    ]
    write_atomic({path: "\n".join(parts).encode("utf-8", "replace")})
    return found


def _header(compared: SampleComparison, model: Path, data: str, numbers: Sequence[str]) -> str:
    facts = {
        "model": str(model),
        "data": data,
        "rows": str(len(compared.rows)),
        "columns": str(len(compared.schema.names)),
        "given": ", ".join(column.name for column in compared.given),
        "samples": f"{len(compared.samples)} of the model"
        + (", at the contexts of the rows" if compared.given else "")
        + (", with the gaps of the rows" if compared.gappy else ""),
    }
    listed = (f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items() if fact)
    return f"<dl>{''.join(listed)}</dl>\n<pre>{escape(chr(10).join(numbers))}</pre>"


def _detection(trained: TrainedModel) -> tuple[Similarity | None, list[str]]:
    """Return the similarity of draws to training rows, and the section on it."""
    title = "Detection"
    try:
        data = trained.data()
    except (OSError, ValueError) as error:
        return None, [_section(title, f"The training rows cannot be read. {escape(str(error))}")]
    order = np.random.default_rng(REPORT_SEED).permutation(len(data.train))
    # Draws at the contexts of the rows would give away a row's label by that of its partner.
    halves = 2 if trained.context_columns else 1
    count = min(len(order) // halves, MAX_DETECTION_ROWS)
    if count < MIN_CLASSIFIER_ROWS:
        return None, [_section(title, f"There are too few training rows: {len(order)}.")]
    context = data.train.context[order[len(order) - count :]]
    chosen = order[:count]
    training = ContextRows(data.train.x[chosen], data.train.context[chosen])
    draws = trained.with_gaps(trained.sample(context, REPORT_SEED), training)
    real, held_out, drawn = (joined_table(trained, each) for each in (training, data.test, draws))
    found = similarity(real, held_out, drawn, REPORT_SEED)
    parts = _detection_parts(found, count, len(data.train))
    if pairs := found.pairs[:DRAWN_PAIRS]:
        figure = pair_shares_figure(real, drawn, pairs)
        parts.append(_image(figure, "pairs of columns, data against samples"))
    return found, [_section(title, *parts)]


def _detection_parts(found: Similarity, rows: int, training: int) -> list[str]:
    detection = found.detection
    worst = ", ".join(f"{escape(name)} {error:.4f}" for name, error in found.worst_shapes)
    pairs = [
        [f"{pair.a} & {pair.b}", *(f"{each:.4f}" for each in (pair.error, pair.chance, pair.alone))]
        for pair in found.pairs[:MAX_LISTED_PAIRS]
    ]
    table = pd.DataFrame(pairs, columns=["pair", "difference", "by chance", "a column alone"])
    return [
        f"<strong>Detection score {detection.score:.3f}</strong> (AUC {detection.auc:.3f}) of "
        f"{detection.detector}'s boosted trees, which tell samples from training rows: "
        f"{rows} of the {training} training rows and as many samples. 1 means that they cannot be "
        "told apart, 0 that every sample is recognised. The score falls as the number of rows "
        "grows, and a copy of the training rows scores best: it selects no model.",
        f"{found.nearer_to_training:.3f} of the samples are nearer to a training row than to a "
        "held-out one. 0.5 is right, and more suggests that training rows are copied.",
        f"The columns' distributions differ by {found.mean_shape:.4f} in the mean "
        "(Kolmogorov-Smirnov distance of numbers of more than 20 values, else total variation), "
        f"the most in: {worst}.",
        *(
            [
                "The pairs of columns whose joint shares differ most, by total variation, beyond "
                "chance and beyond the difference of a column alone, with numbers cut at their "
                "deciles:",
                f'<div class="wide">{table.to_html(index=False, border=0)}</div>',
            ]
            if pairs
            else []
        ),
    ]


def _marginals(compared: SampleComparison) -> str:
    schema = compared.schema
    rows, samples = (schema.table(each.x) for each in (compared.rows, compared.samples))
    figure = marginals_figure(rows, samples, MAX_MARGINAL_PANELS)
    left_out = len(compared.schema.names) - MAX_MARGINAL_PANELS
    return _section(
        "Marginal distributions",
        "The share of the rows, and of the samples, in each bin. Columns of few values have a bar "
        "for each, or for each of the most frequent categories; samples of whole numbers are "
        "rounded. Values that occur with a mass have bars beside the others' histogram.",
        f"The first {MAX_MARGINAL_PANELS} columns are shown; {left_out} are left out."
        if left_out > 0
        else "",
        _image(figure, "histograms of each column, data against samples"),
    )


def _correlations(compared: SampleComparison) -> str:
    title, columns = "Correlations", compared.columns
    ordered = [i for i, column in enumerate(columns) if not column.of_kind.coded]
    names = [columns[i].name for i in ordered]
    if len(names) < 2:
        return _section(
            title,
            f"There is {'only one column' if names else 'no column'} of numbers, so there are no "
            "correlations.",
        )
    both = [rows.joined()[:, ordered] for rows in (compared.rows, compared.samples)]
    data, samples = map(correlations, both)
    difference = np.triu(np.nan_to_num(np.abs(samples - data)))
    pair = divmod(int(difference.argmax()), len(names))
    count = int((~np.isnan(both[0][:, pair])).all(axis=1).sum())
    figure = correlations_figure(data, samples, names)
    return _section(
        title,
        _largest_difference(data, samples, names, *pair),
        f"By chance alone a correlation of {count} rows varies by up to "
        f"{1 / np.sqrt(max(1, count)):.3f} (one standard error).",
        _image(figure, "correlations of data, of samples, and their difference"),
    )


def _largest_difference(data: Array, samples: Array, names: Sequence[str], i: int, j: int) -> str:
    difference = abs(samples[i, j] - data[i, j])
    if not difference > 0:
        return "No correlation differs, or none is defined: columns do not vary among the rows."
    return (
        f"The largest absolute difference is {difference:.3f}, between {escape(names[i])} "
        f"and {escape(names[j])}: {data[i, j]:.3f} in the data, {samples[i, j]:.3f} among the "
        "samples."
    )


def _log_prob(compared: SampleComparison) -> str:
    figure = log_prob_figure(compared.log_prob, compared.sample_log_prob)
    rare = float((_share_below(compared.log_prob, compared.sample_log_prob) < 0.01).mean())
    return _section(
        "Log-density",
        f"Mean log p is {compared.log_prob.mean():.4f} nats for the rows and "
        f"{compared.sample_log_prob.mean():.4f} for the samples. {100 * rare:.3g} % of the rows "
        "have a lower log p than 99 % of the samples. For a calibrated model the two means agree, "
        "and this share is 1 %, both up to chance.",
        _image(figure, "histograms of log p, data against samples"),
        "The rows with the lowest log p, by their number among the rows scored, counted from 0, "
        "and the share of the samples with a lower log p: near 0 for an outlier.",
        GAPS_TEXT if compared.gappy else "",
        ODDEST_TEXT if compared.oddest else "",
        _lowest(compared),
    )


def _oddest_cells(trained: TrainedModel, rows: ContextRows) -> list[tuple[str, str]]:
    """Return the column of each row's oddest cell, and what would have been expected there."""
    if not isinstance(trained.model, RowModel):
        return []
    found = explain(trained.model, *rows.tensors(trained.model.like), seed=REPORT_SEED)
    excess = found.excess.nan_to_num(nan=-inf)
    return [
        (trained.schema.names[place], trained.schema.columns[place].text(float(row[place])))
        for place, row in zip(excess.argmax(1).tolist(), found.expected, strict=True)
    ]


def _lowest(compared: SampleComparison) -> str:
    lowest = compared.lowest
    shares = _share_below(compared.log_prob[lowest], compared.sample_log_prob)
    rows, columns = compared.rows.joined(), compared.columns
    lines = [
        [
            *(str(row), f"{compared.log_prob[row]:.4f}", f"{share:.4f}"),
            *(compared.oddest[i] if compared.oddest else ()),
            *(_text(column, value) for column, value in zip(columns, rows[row], strict=True)),
        ]
        for i, (row, share) in enumerate(zip(lowest.tolist(), shares, strict=True))
    ]
    names = [*(ODDEST_NAMES if compared.oddest else ()), *(each.name for each in columns)]
    table = pd.DataFrame(lines, columns=["row", "log p", "samples below", *names])
    with pd.option_context("display.max_colwidth", None):
        return f'<div class="wide">{table.to_html(index=False, border=0)}</div>'


def _text(column: Column, value: float) -> str:
    """Return a value for display, of rows that may have unknown categories."""
    unknown = isinstance(column.of_kind, CategoricalColumn) and value < 0
    return UNKNOWN_TEXT if unknown else column.text(value)


def _share_below(log_prob: Array, samples: Array) -> Array:
    """Return, for each log p, the share of the samples with a lower one."""
    return np.searchsorted(np.sort(samples), log_prob, side="left") / len(samples)


def _two_sample(compared: SampleComparison) -> str:
    title, conditional = "Classifier two-sample test", bool(compared.given)
    # A context that occurs in both classes would reveal a row's label by that of its partner. So
    # with a context, half of the rows are compared with samples at the contexts of the other half.
    halves = 2 if conditional else 1
    count = min(len(compared.rows) // halves, MAX_CLASSIFIER_ROWS)
    if count < MIN_CLASSIFIER_ROWS:
        return _section(
            title,
            f"There are too few rows for the two-sample test: {len(compared.rows)}, where it "
            f"needs {MIN_CLASSIFIER_ROWS * halves}.",
        )
    chosen = compared.order[len(compared.order) - count :]
    data = ContextRows(compared.rows.x[chosen], compared.rows.context[chosen])
    test = two_sample_test(data.joined(), compared.samples[:count].joined())
    distinguished = test.accuracy - 0.5 > 2 * test.stderr
    seen = "context and x together" if conditional else "x"
    return _section(
        title,
        f"<strong>Accuracy {test.accuracy:.3f} ± {test.stderr:.3f}</strong> of a classifier of "
        f"boosted trees that tells data from samples, on held-out rows ({test.rows}, half of them "
        f"data; it sees {seen}). 0.5 is perfect: the classifier can only guess. 1 means that it "
        "recognises every sample.",
        "Here the classifier tells them apart, by more than two standard errors."
        if distinguished
        else "Here the classifier cannot tell them apart, within two standard errors.",
    )


def _section(title: str, *parts: str) -> str:
    blocks = (
        part if part.startswith(("<img", "<div")) else f"<p>{part}</p>" for part in parts if part
    )
    return "\n".join([f"<h2>{title}</h2>", *blocks])


def _image(figure: Figure, text: str) -> str:
    """Return a figure as an image that is embedded in the page."""
    content = b64encode(png(figure, REPORT_DPI)).decode()
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return f'<img width="{width}" alt="{text}" src="data:image/png;base64,{content}">'
