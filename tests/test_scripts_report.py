"""`evaluate --report`: the content of the page, and the files that are written."""

import re
import shutil
from base64 import b64decode
from contextlib import contextmanager
from html import unescape
from io import BytesIO
from pathlib import Path
from unittest import mock

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from children import both, run_programs
from matplotlib.figure import Figure
from test_scripts_programs import evaluation, log_probs
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, write_csv

import cnf
import cnf.scripts.report as report
from cnf.datasets import split
from cnf.plotting import png

pytestmark = pytest.mark.usefixtures("undrawn")

ODD = ("<b>&\"'", "$\\frac$", "</table>")
ROWS = rows_of_table(400)
OF_ROWS = ["Marginal distributions", "Correlations", "Log-density", "Classifier two-sample test"]
HEADINGS = ["Detection", *OF_ROWS]
DOT = png(Figure((1, 1)), 1)  # in place of figures, whose drawing takes most of the time
BLANK = ("meta", "img", "br")  # elements that have no end


@contextmanager
def small():
    few = {"MIN_SAMPLES": 200, "MAX_SAMPLES": 500, "MAX_CLASSIFIER_ROWS": 150, "REPORT_DPI": 60}
    trees = mock.patch("cnf.diagnostics.similarity.TREES", 5)
    with mock.patch.multiple(report, **few, png=lambda *_: DOT), trees:
        yield


@pytest.fixture(scope="module", autouse=True)
def _small():
    with small():
        yield


def small_programs(*arguments):
    with small():
        run_programs(*arguments)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("data") / "rows.csv", ROWS)


@pytest.fixture(scope="module")
def folder(table, tmp_path_factory):
    return Path(shutil.copytree(table, tmp_path_factory.mktemp("page") / "out"))


class Page:
    """The parts of a page, which must be well-formed and complete in itself."""

    def __init__(self, path: Path) -> None:
        page = re.sub("<style>.*</style>", "", path.read_text("utf-8"), flags=re.DOTALL)
        opened = []
        for closing, tag in re.findall(r"<(/?)(\w+)", page):
            assert tag not in ("script", "link", "iframe", "b")
            if closing:
                assert opened.pop() == tag
            elif tag not in BLANK:
                opened.append(tag)
        assert opened == []
        self.images = [picture(source) for source in re.findall('src="(.*?)"', page)]
        self.headings = texts("h2", page)
        *self.pairs, self.table = (
            [texts("t[dh]", row) for row in re.findall("<tr.*?</tr>", table, re.DOTALL)]
            for table in page.split("<table")[1:]
        )
        self.text = " ".join(plain(page).split())


def plain(page: str) -> str:
    return unescape(re.sub("<[^>]*>", "", page))


def texts(tag: str, page: str) -> list[str]:
    return [plain(each) for each in re.findall(f"<{tag}>(.*?)</{tag}>", page)]


def picture(source: str) -> np.ndarray:
    kind, _, content = source.partition(",")
    assert kind == "data:image/png;base64"
    return matplotlib.image.imread(BytesIO(b64decode(content, validate=True)), format="png")


def page_of(folder, *arguments, out=None):
    """The page that `evaluate --report FILE` writes, whose path is the last line."""
    path = out or folder.parent / "page.html"
    lines = done("evaluate", folder, *arguments, "--report", path).splitlines()
    assert lines[-1] == f"  {path}"
    return Page(path)


def spies(monkeypatch, *names):
    """Have functions of the report note down what they are called with."""
    found = [mock.Mock(wraps=getattr(report, name)) for name in names]
    for name, function in zip(names, found, strict=True):
        monkeypatch.setattr(report, name, function)
    return found


@pytest.fixture(scope="module")
def whole(folder, data):
    """A page on all rows, its bytes, and what two of its figures were drawn of."""
    path = folder / "whole.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "png", png)
        calls = spies(patch, "marginals_figure", "log_prob_figure")
        page = page_of(folder, "--data", data, out=path)
    return page, path.read_bytes(), *(each.call_args.args for each in calls)


def test_page_says_what_evaluate_says_and_lies_in_the_folder(folder, monkeypatch):
    (calls,) = spies(monkeypatch, "marginals_figure")
    numbers = evaluation(folder, "--report")
    page, rows = Page(folder / "report.html"), rows_of_table()
    assert np.array_equal(calls.call_args.args[0].values, rows[split(len(rows), seed=0).test])
    assert (page.headings, len(page.images)) == (HEADINGS, 4)
    for text in (
        f"Detection score {numbers['detection_score']:.3f}",
        f"{numbers['nearer_to_training']:.3f} of the samples are nearer to a training row",
        f"differ by {numbers['mean_shape_error']:.4f} in the mean",
        *(f"{numbers[name]:.4f}" for name in ("nll", "stderr", "gaussian_nll", "bits_per_dim")),
        "held-out rows of",
        f"Mean log p is {-numbers['nll']:.4f} nats for the rows",
        "too few rows for the two-sample test: 20",
    ):
        assert text in page.text
    alone = evaluation(folder)
    assert alone == {name: numbers[name] for name in alone}


def test_page_of_a_toy_has_the_truth(moons, tmp_path, monkeypatch):
    rows = {"train": 1000, "validation": 100, "test": 300}
    monkeypatch.setattr("cnf.scripts.data.TOY_ROWS", rows)
    folder = shutil.copytree(moons, tmp_path / "out")
    numbers = evaluation(folder, "--data", "moons", "--report")
    page = Page(folder / "report.html")
    assert f"KL {numbers['kl']:.4f} ± {numbers['kl_stderr']:.4f}" in page.text
    assert f"true entropy {numbers['entropy']:.4f}" in page.text
    assert page.headings == OF_ROWS


def test_lowest_rows_are_named(whole, folder, data, tmp_path):
    page, _, _, log_prob = whole
    scores = log_probs(folder, data, tmp_path / "scores.npy")
    head, *lines = page.table
    assert head == ["row", "log p", "samples below", *COLUMNS]
    lowest = np.argsort(scores)[:10]
    assert [int(line[0]) for line in lines] == lowest.tolist()
    shown = np.array([[float(cell) for cell in line[1:]] for line in lines])
    np.testing.assert_allclose(shown[:, 0], scores[lowest], atol=2e-4)
    np.testing.assert_allclose(shown[:, 2:], ROWS[lowest], rtol=1e-5)
    torch.manual_seed(0)
    flow = cnf.load(folder)
    samples = flow.log_prob(flow.sample(len(ROWS))).detach().double().numpy()
    np.testing.assert_allclose(log_prob[1], samples, atol=1e-4)
    below = (samples < shown[:, :1]).mean(1)
    np.testing.assert_allclose(shown[:, 1], below, atol=2 / len(samples))


def test_largest_difference_of_correlations_is_named(whole):
    page, _, (*tables, _), _ = whole
    assert all(image[..., :3].min() < 0.5 for image in page.images)  # they are drawn
    (rows, samples), names = (table.values for table in tables), tables[0].columns
    assert np.array_equal(rows, ROWS)
    own, drawn = np.corrcoef(rows.T), np.corrcoef(samples.T)
    i, j = np.unravel_index(np.triu(np.abs(drawn - own)).argmax(), own.shape)
    assert f"{abs(drawn[i, j] - own[i, j]):.3f}, between {names[i]} and {names[j]}" in page.text
    assert f"{own[i, j]:.3f} in the data, {drawn[i, j]:.3f} among the samples" in page.text


def test_classifier_tells_a_flow_that_has_learnt_nothing(folder, tmp_path):
    """Rows of another shape than the flow's, and rows that are its own samples."""
    rows = rows_of_table(300, seed=2) * [1.0, -1.0, 1.0] + [0.0, 80.0, 0.0]
    page = page_of(folder, "--data", write_csv(tmp_path / "other.csv", rows))
    assert "the classifier tells them apart" in page.text
    done("sample", folder, "-n", 300, "--seed", 7, "--out", tmp_path / "own.csv")
    page = page_of(folder, "--data", tmp_path / "own.csv")
    assert "the classifier cannot tell them apart" in page.text
    assert "0.5 is perfect" in page.text


def test_samples_have_the_rows_contexts_and_are_tested_with_them(given, data, monkeypatch):
    calls = spies(monkeypatch, "marginals_figure", "correlations_figure", "two_sample_test")
    draws, sample = [], report.TrainedModel.sample
    monkeypatch.setattr(
        report.TrainedModel, "sample", lambda *given: draws.append(given[1]) or sample(*given)
    )
    page = page_of(given, "--data", data)
    marginals, maps, (own, drawn) = (each.call_args.args for each in calls)
    assert np.array_equal(np.sort(draws[0].ravel()), np.sort(ROWS[:, 1]))
    assert [table.columns for table in marginals[:2]] == [("height", "depth")] * 2
    assert maps[2] == ["width", "height", "depth"] == page.table[0][3:]
    assert own.shape == drawn.shape == (150, 3)
    assert {tuple(row) for row in own} <= {tuple(row) for row in ROWS[:, [1, 0, 2]]}
    # No context is seen on both sides: it would give away the label of its partner.
    assert len(set(own[:, 0]) | set(drawn[:, 0])) == 300
    assert set(drawn[:, 0]) <= set(ROWS[:, 1])


def test_few_rows_have_a_page_without_the_test(folder, given, tmp_path, monkeypatch):
    (draws,) = spies(monkeypatch, "marginals_figure")
    for model, rows in ((folder, 1), (given, 7)):
        page = page_of(model, "--data", write_csv(tmp_path / "few.csv", ROWS[:rows]))
        assert page.headings == HEADINGS
        assert len(page.table) == 1 + rows
        assert f"too few rows for the two-sample test: {rows}" in page.text
    assert len(draws.call_args.args[1].values) == 203
    assert "203 of the model, at the contexts of the rows" in page.text


def test_one_column_has_nothing_to_correlate(tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS[:, :1], ("height",))
    done("train", data, "--out", tmp_path / "out", *SMALL)
    page = page_of(tmp_path / "out", "--data", data)
    assert (page.headings, len(page.images)) == (HEADINGS, 2)
    assert all(text in page.text for text in ("There is only one column", "Accuracy"))


@pytest.mark.filterwarnings("ignore:.* unknown categories")
def test_models_of_codes_are_drawn_by_name_and_compared_without_correlations(tmp_path, monkeypatch):
    calls = spies(monkeypatch, "marginals_figure", "similarity")
    colours = np.array(["red", "green", "blue"])[np.arange(200) % 3]
    frame = pd.DataFrame({"colour": colours, "height": ROWS[:200, 0]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    done("train", tmp_path / "rows.csv", "--out", tmp_path / "out", "--steps", 5)
    done("plot", tmp_path / "out", "--figures", "pairs")
    assert "a model of codes of colour, height" in complaint(
        "plot", tmp_path / "out", "--film", "gif"
    )
    assert "two real columns" in complaint("plot", tmp_path / "out", "--figures", "density")
    page = page_of(tmp_path / "out", "--data", tmp_path / "rows.csv")
    marginals, measured = (each.call_args for each in calls)
    assert marginals.args[0].categories == {"colour": ("blue", "green", "red")}
    training, held_out, draws = (table.values for table in measured.args[:3])
    assert (len(training), len(held_out), len(draws)) == (160, 20, 160)
    assert {*training[:, 1]} <= {*ROWS[:200, 0]}
    assert "160 of the 160 training rows and as many samples" in page.text
    assert "only one column of numbers" in page.text
    (tmp_path / "rows.csv").unlink()
    frame.assign(colour=["violet", *colours[1:]]).to_csv(tmp_path / "other.csv", index=False)
    page = page_of(tmp_path / "out", "--data", tmp_path / "other.csv")
    assert "The training rows cannot be read." in page.text
    assert page.table[1][:4] == ["0", "-inf", "0.0000", "colour"]
    assert page.table[1][5] == "(unknown)"


def test_odd_names_are_shown_as_they_are_and_many_columns_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_MARGINAL_PANELS", 1)
    folder = tmp_path / "<i>&out"
    data = write_csv(tmp_path / "rows.csv", ROWS, ODD)
    done("train", data, "--context", ODD[1], "--out", folder, *SMALL)
    page = page_of(folder, "--data", data)
    assert page.table[0][3:] == [ODD[1], ODD[0], ODD[2]]
    assert all(name in " ".join(line[0] for line in page.pairs[0]) for name in (ODD[0], ODD[2]))
    assert "<i>&out" in page.text
    assert "The first 1 columns are shown; 1 are left out." in page.text
    assert sum(name in page.text.partition("between")[2] for name in ODD) >= 2


def test_numbers_come_before_the_path_and_the_page_is_the_same_again(
    whole, folder, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "png", png)
    words = ("evaluate", folder, "--data", data)
    lines = done(*words, "--report", tmp_path / "page.html").splitlines()
    measured = ("  detection", "  shape error", "  pair error", "  nearer")
    found = [line for line in lines if not line.startswith(measured)]
    assert found == [*done(*words).splitlines(), f"  {tmp_path / 'page.html'}"]
    assert len(found) == len(lines) - len(measured)
    assert (tmp_path / "page.html").read_bytes() == whole[1]


def test_first_of_two_processes_writes_the_page_or_says_why_not(folder, tmp_path):
    path, missing = tmp_path / "page.html", tmp_path / "missing" / "page.html"
    commands = [("evaluate", folder, "--report", out) for out in (path, missing)]
    well, ill = both(tmp_path / "two", *commands, target=small_programs)
    (status, text, errors), other = well
    assert (status, text.splitlines()[-1], errors, other) == (0, f"  {path}", "", [0, "", ""])
    assert Page(path).headings == HEADINGS
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [path.name]
    (status, text, errors), other = ill
    assert (status, text, errors.count("\n"), other) == (2, "", 1, [2, "", ""])
