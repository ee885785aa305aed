"""`evaluate --report`: what stands on the page, and what does not go wrong."""

import json
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib.image
import numpy as np
import pytest
import torch
from children import run_program, said, together
from test_scripts_mistakes import full_disk, nothing_written
from test_scripts_programs import evaluation, log_probs
from test_scripts_running import COLUMNS, SMALL, complaint, done, rows_of_table, tree, write_csv

import cnf
import cnf.scripts.report as report
from cnf.datasets import split

ODD = ("<b>&\"'", "$\\frac$", "</table>")
ROWS = rows_of_table(400)
HEADINGS = ["Marginal distributions", "Correlations", "Log-density", "Classifier two-sample test"]
BLANK = ("meta", "img", "br")  # elements that have no end


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Fewer samples, tested rows and pixels, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "MIN_SAMPLES", 200)
        patch.setattr(report, "MAX_SAMPLES", 500)
        patch.setattr(report, "MAX_CLASSIFIER_ROWS", 150)
        patch.setattr(report, "REPORT_DPI", 60)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("data") / "rows.csv", ROWS)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A folder trained on a table with named columns."""
    out = tmp_path_factory.mktemp("plain") / "out"
    done("train", data, "--out", out, *SMALL)
    return out


@pytest.fixture(scope="module")
def given(data, tmp_path_factory):
    """A folder trained on a table with one of its columns as the context."""
    out = tmp_path_factory.mktemp("given") / "out"
    done("train", data, "--context", "width", "--out", out, *SMALL)
    return out


class Page(HTMLParser):
    """A page taken apart: it has to be well-formed, and complete in itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.texts, self.headings, self.table, self.images = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe", "b")
        source = dict(attributes).get("src", "")
        if source:
            kind, _, content = source.partition(",")
            assert kind == "data:image/png;base64"
            content = b64decode(content, validate=True)
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            self.images.append(matplotlib.image.imread(BytesIO(content)))
        if tag not in BLANK:
            self.open.append(tag)
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.table[-1][-1] += data
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += data


def page_of(folder, *arguments, out=None):
    """The page that `evaluate --report FILE` writes, whose path is the last line."""
    path = out or folder / "page.html"
    lines = done("evaluate", folder, *arguments, "--report", path).splitlines()
    assert lines[-1] == f"  {path}"
    return Page(path)


def spy(monkeypatch, name):
    """Have a function of the report note down what it is called with."""
    calls, function = [], getattr(report, name)

    def noting(*arguments):
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(report, name, noting)
    return calls


class Whole(NamedTuple):
    """A page on all rows, and what two of its figures were drawn of."""

    page: Page
    content: bytes
    marginals: tuple
    log_prob: tuple


@pytest.fixture(scope="module")
def whole(folder, data):
    path = folder / "whole.html"
    with pytest.MonkeyPatch.context() as patch:
        calls = [spy(patch, name) for name in ("marginals_figure", "log_prob_figure")]
        page = page_of(folder, "--data", data, out=path)
    return Whole(page, path.read_bytes(), *(call for (call,) in calls))


# --- what stands on it ----------------------------------------------------------------------------


def test_page_says_what_evaluate_says_and_lies_in_the_folder(folder):
    numbers = json.loads(done("evaluate", folder, "--json", "--report"))
    assert numbers == evaluation(folder)
    page = Page(folder / "report.html")
    assert page.headings == HEADINGS
    assert len(page.images) == 3
    assert all(image[..., :3].min() < 0.5 for image in page.images)
    for name in ("nll", "stderr", "gaussian_nll", "bits_per_dim"):
        assert f"{numbers[name]:.4f}" in page.text
    assert "held-out rows of" in page.text
    assert f"Mean log p is {-numbers['nll']:.4f} nats for the rows" in page.text
    assert "too few rows for the two-sample test: 40" in page.text


def test_page_of_a_toy_has_the_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cnf.scripts.data.TOY_ROWS", {"train": 1000, "validation": 100, "test": 300}
    )
    out = tmp_path / "out"
    done("train", "moons", "--out", out, *SMALL)
    numbers = json.loads(done("evaluate", out, "--json", "--report"))
    page = Page(out / "report.html")
    assert f"KL {numbers['kl']:.4f} ± {numbers['kl_stderr']:.4f}" in page.text
    assert f"true entropy {numbers['entropy']:.4f}" in page.text


def test_lowest_rows_are_named(whole, folder, data, tmp_path):
    scores = log_probs(folder, data, tmp_path / "scores.npy")
    head, *lines = whole.page.table
    assert head == ["row", "log p", "samples below", *COLUMNS]
    assert len(lines) == 10
    lowest = np.argsort(scores)[:10]
    assert [int(line[0]) for line in lines] == lowest.tolist()
    shown = np.array([[float(cell) for cell in line[1:]] for line in lines])
    np.testing.assert_allclose(shown[:, 0], scores[lowest], atol=2e-4)
    np.testing.assert_allclose(shown[:, 2:], ROWS[lowest], rtol=1e-5)


def test_share_of_samples_below_is_that_of_the_flows_own(whole, folder):
    """As many samples as there are rows, drawn and scored as a user would."""
    torch.manual_seed(0)
    flow = cnf.load(folder)
    samples = flow.log_prob(flow.sample(len(ROWS))).detach().double().numpy()
    np.testing.assert_allclose(whole.log_prob[1], samples, atol=1e-4)
    for line in whole.page.table[1:]:
        expected = np.mean(samples < float(line[1]))
        assert float(line[2]) == pytest.approx(expected, abs=2 / len(samples))


def test_largest_difference_of_correlations_is_named(whole):
    rows, samples, names, _ = whole.marginals
    assert np.array_equal(rows, ROWS)
    own, drawn = np.corrcoef(rows.T), np.corrcoef(samples.T)
    i, j = np.unravel_index(np.triu(np.abs(drawn - own)).argmax(), own.shape)
    text = whole.page.text
    assert f"{abs(drawn[i, j] - own[i, j]):.3f}, between {names[i]} and {names[j]}" in text
    assert f"{own[i, j]:.3f} in the data, {drawn[i, j]:.3f} among the samples" in text


def test_classifier_tells_a_flow_that_has_learnt_nothing(folder, tmp_path):
    """Rows of another shape than the flow's, and rows that are its own samples."""
    rows = rows_of_table(300, seed=2) * [1.0, -1.0, 1.0] + [0.0, 80.0, 0.0]
    page = page_of(folder, "--data", write_csv(tmp_path / "other.csv", rows))
    assert "the classifier tells them apart" in page.text
    done("sample", folder, "-n", 300, "--seed", 7, "--out", tmp_path / "own.csv")
    page = page_of(folder, "--data", tmp_path / "own.csv")
    assert "the classifier cannot tell them apart" in page.text
    assert "0.5 is perfect" in page.text


# --- with a context -------------------------------------------------------------------------------


def test_samples_have_the_rows_contexts_and_are_tested_with_them(given, data, monkeypatch):
    names = ("marginals_figure", "correlations_figure", "two_sample_test")
    marginals, maps, tests = (spy(monkeypatch, name) for name in names)
    draws = []
    sample = report.TrainedModel.sample
    monkeypatch.setattr(
        report.TrainedModel, "sample", lambda *given: draws.append(given[1]) or sample(*given)
    )
    page = page_of(given, "--data", data)
    assert np.array_equal(np.sort(draws[0].ravel()), np.sort(ROWS[:, 1]))
    assert marginals[0][0].shape[1] == marginals[0][1].shape[1] == 2
    assert marginals[0][2] == ("height", "depth")
    assert maps[0][2] == ("width", "height", "depth")
    assert page.table[0][3:] == ["width", "height", "depth"]
    own, drawn = tests[0]
    assert own.shape == drawn.shape == (150, 3)
    rows = {tuple(row) for row in ROWS[:, [1, 0, 2]]}
    assert {tuple(row) for row in own} <= rows
    # No context is seen on both sides: it would give away the label of its partner.
    assert len(set(own[:, 0]) | set(drawn[:, 0])) == 300
    assert set(drawn[:, 0]) <= set(ROWS[:, 1])


def test_few_rows_are_sampled_at_again_and_again(given, tmp_path, monkeypatch):
    draws = spy(monkeypatch, "marginals_figure")
    page = page_of(given, "--data", write_csv(tmp_path / "few.csv", ROWS[:7]))
    assert len(draws[0][1]) == 203
    assert "203 of the flow, at the contexts of the rows" in page.text


# --- few rows, few and many columns, odd names ----------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5])
def test_few_rows_have_a_page_without_the_test(rows, folder, tmp_path):
    page = page_of(folder, "--data", write_csv(tmp_path / "few.csv", ROWS[:rows]))
    assert page.headings == HEADINGS
    assert len(page.table) == 1 + rows
    assert f"too few rows for the two-sample test: {rows}" in page.text


def test_one_column_has_nothing_to_correlate(tmp_path):
    data = write_csv(tmp_path / "rows.csv", ROWS[:, :1], ("height",))
    done("train", data, "--out", tmp_path / "out", *SMALL)
    page = page_of(tmp_path / "out", "--data", data)
    assert page.headings == HEADINGS
    assert len(page.images) == 2
    assert "There is only one column" in page.text
    assert "Accuracy" in page.text


def test_many_columns_are_left_out_and_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_MARGINAL_PANELS", 3)
    rows = np.random.default_rng(0).normal(size=(100, 60))
    data = write_csv(tmp_path / "rows.csv", rows, tuple(f"c{i}" for i in range(60)))
    done("train", data, "--out", tmp_path / "out", *SMALL)
    page = page_of(tmp_path / "out")
    assert "The first 3 columns are shown; 57 are left out." in page.text
    assert page.table[0][3:] == [f"c{i}" for i in range(60)]


def test_odd_names_are_shown_as_they_are(tmp_path):
    folder = tmp_path / "<i>&out"
    data = write_csv(tmp_path / "rows.csv", ROWS, ODD)
    done("train", data, "--context", ODD[1], "--out", folder, *SMALL)
    page = page_of(folder, "--data", data)
    assert page.table[0][3:] == [ODD[1], ODD[0], ODD[2]]
    assert "<i>&out" in page.text
    assert sum(name in page.text.partition("between")[2] for name in ODD) >= 2


# --- where it goes --------------------------------------------------------------------------------


def test_json_is_alone_on_standard_output(folder, tmp_path):
    path = tmp_path / "page.html"
    out = done("evaluate", folder, "--json", "--report", path)
    assert out == done("evaluate", folder, "--json")
    assert Page(path).headings == HEADINGS


def test_numbers_for_people_come_before_the_path_and_the_page_is_the_same_again(
    whole, folder, data, tmp_path
):
    words = ("evaluate", folder, "--data", data)
    lines = done(*words, "--report", tmp_path / "page.html").splitlines()
    assert lines == [*done(*words).splitlines(), f"  {tmp_path / 'page.html'}"]
    assert (tmp_path / "page.html").read_bytes() == whole.content


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("missing/page.html", "create"),
        ("file.html/page.html", "file.html"),
        ("folder.html", "folder"),
        ("model.safetensors", ".html"),
    ],
)
def test_file_that_cannot_be_written_is_refused_before_rows_are_scored(
    name, word, folder, tmp_path, monkeypatch
):
    def score(*_):
        raise AssertionError("rows are scored")

    monkeypatch.setattr("cnf.scripts.trained.TrainedModel.score", score)
    (tmp_path / "file.html").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    with nothing_written(tmp_path):
        assert word in complaint("evaluate", folder, "--report", tmp_path / name)


def test_full_disk_leaves_no_half_a_page(folder, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("mine")
    with full_disk(4000):
        complaint("evaluate", folder, "--report", path, status=1)
    assert tree(tmp_path) == {path}
    assert path.read_text() == "mine"


# --- several processes ----------------------------------------------------------------------------


def test_first_of_two_processes_writes_the_page(folder, tmp_path):
    path = tmp_path / "page.html"
    words = ["evaluate", folder, "--report", path]
    statuses = together(run_program, tmp_path / "two", [str(word) for word in words])
    (text, errors), silent = (said(tmp_path / "two" / str(process)) for process in range(2))
    assert (statuses, errors, silent) == ([0, 0], "", ("", ""))
    assert text.splitlines()[-1] == f"  {path}"
    assert Page(path).headings == HEADINGS
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [path.name]


def test_file_that_cannot_be_written_ends_both_processes(folder, tmp_path):
    words = ["evaluate", folder, "--report", tmp_path / "missing" / "page.html"]
    statuses = together(run_program, tmp_path / "two", [str(word) for word in words])
    (text, errors), silent = (said(tmp_path / "two" / str(process)) for process in range(2))
    assert (statuses, text, silent) == ([2, 2], "", ("", ""))
    assert errors.count("\n") == 1


def test_held_out_rows_are_those_that_evaluate_scores(folder, monkeypatch):
    calls = spy(monkeypatch, "marginals_figure")
    page_of(folder)
    assert np.array_equal(calls[0][0], ROWS[split(len(ROWS), seed=0).test])
