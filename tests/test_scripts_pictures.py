"""Densities from pictures, by one command; figures and films of trained flows."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import matplotlib.image
import numpy as np
import pytest
from PIL import Image
from test_scripts_programs import evaluation
from test_scripts_running import SMALL, complaint, done, rows_of_table, run, write_csv

from cnf.datasets import word_picture
from cnf.scripts.data import open_data, open_rows
from cnf.scripts.plot import FIGURES
from cnf.training.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("coarse")

ROWS = rows_of_table()
ODD_NAMES = ("$\\frac$", "a_{b}^", "100%", "x" * 300)


def write_word(path, word="I"):
    Image.fromarray((255 - word_picture(word).darkness).astype(np.uint8)).save(path)
    return path


def trained(data, out):
    done("train", data, "--out", out, *SMALL)
    return out


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    place = tmp_path_factory.mktemp("picture")
    return trained(write_word(place / "word.png"), place / "out")


@pytest.fixture(scope="module")
def fan(tmp_path_factory):
    return trained("fan", tmp_path_factory.mktemp("fan") / "out")


def figures(folder: Path) -> set[str]:
    return {path.name for path in (folder / "figures").iterdir()}


def test_training_on_a_picture_ends_with_figures_and_a_film(picture):
    assert figures(picture) == {"density.png", "strip.png", "learning_curve.png", "film.gif"}
    with Image.open(picture / "figures" / "film.gif") as film:
        assert film.n_frames > 1
    numbers, word = evaluation(picture), word_picture("I")
    entropy = -word.log_prob(word.sample(20_000, seed=3)).mean()
    assert numbers["entropy"] == pytest.approx(entropy, abs=0.1)
    assert numbers["kl"] > 0


def test_word_is_the_picture_of_it(picture):
    own, drawn = open_data(str(picture.parent / "word.png"), 0), open_data("word:I", 0)
    np.testing.assert_array_equal(own.train.x, drawn.train.x)
    assert own.sha256 == drawn.sha256 != ""
    assert drawn.name == "word:I"
    fresh, toy = open_rows("word:I", drawn.schema, (), 0)
    assert np.isfinite(toy.log_prob(fresh.x)).all()
    assert not np.isin(fresh.x[:, 0], own.train.x[:, 0]).any()
    assert evaluation(picture, "--data", "word:I")["n"] == 200


def test_picture_has_its_recipe_and_budget(tmp_path, monkeypatch):
    shown = done("train", "word:I", "--show-recipe")
    assert f'"x_features": {RECIPES["picture"].x_features}' in shown
    fit = Mock(side_effect=RuntimeError("enough"))
    monkeypatch.setattr("cnf.scripts.training.fit_flows", fit)
    complaint("train", "word:I", "--out", tmp_path / "one", status=1)
    complaint("train", "word:I", "--steps", 3, "--out", tmp_path / "two", status=1)
    given = [(call.kwargs["budget"], call.kwargs["steps"]) for call in fit.call_args_list]
    assert given == [(120, None), (None, 3)]


def test_changed_unreadable_and_white_pictures_are_refused_in_one_line(picture, tmp_path):
    path = picture.parent / "word.png"
    kept = path.read_bytes()
    write_word(path, "l")
    assert "has changed since" in complaint("evaluate", picture)
    path.write_bytes(kept)
    (tmp_path / "empty.png").touch()
    Image.new("L", (5, 5), 255).save(tmp_path / "white.png")
    for name, told in (("empty", "readable picture"), ("no", "no such file"), ("white", "white")):
        assert told in complaint("train", tmp_path / f"{name}.png", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("default:.*averaged:UserWarning")
def test_large_picture_is_averaged_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("cnf.datasets.pictures.MAX_PIXELS", 500)
    status, _, told = run("train", write_word(tmp_path / "word.png"), "--show-recipe")
    assert (status, told.count("\n"), "averaged" in told) == (0, 1, True)


@pytest.mark.parametrize(
    ("model", "names"), [("moons", "density strip"), ("table", "pairs"), ("fan", "density")]
)
def test_default_figures_show_something(model, names, request, tmp_path):
    folder, left_out = tmp_path / "copy", shutil.ignore_patterns("figures")
    shutil.copytree(request.getfixturevalue(model), folder, ignore=left_out)
    drawn = done("plot", folder).split()
    assert {Path(path).stem for path in drawn} == {*names.split(), "learning_curve"}
    assert {str(path) for path in (folder / "figures").iterdir()} == set(drawn)
    for path in drawn:
        image = matplotlib.image.imread(path)[..., :3]
        assert 300 < min(image.shape[:2]) <= max(image.shape[:2]) < 3000
        assert (image.min(-1) < 0.9).mean() > 0.005, "the figure is almost blank"


@pytest.mark.parametrize(
    ("context", "figure"),
    [((), "pairs"), (ODD_NAMES[:3], "density"), (("d",), "pairs")],
)
def test_figures_take_columns_of_any_number_and_name(context, figure, tmp_path):
    rows = np.column_stack([ROWS, ROWS[::-1, 0]])
    names = (*ODD_NAMES[:3], "d") if "d" in context else ODD_NAMES
    data = write_csv(tmp_path / "rows.csv", rows, names)
    given = ("--context", ",".join(context)) if context else ()
    done("train", data, *given, "--out", tmp_path / "out", *SMALL)
    assert figures(tmp_path / "out") == {f"{figure}.png", "learning_curve.png"}


@pytest.mark.parametrize("dark", [[], ["--dark"]])
def test_figures_that_are_named_are_drawn(dark, picture):
    names = ["trajectories", "field"] if dark else ["trajectories", "field", "grid", "pairs"]
    out = done("plot", picture, "--figures", ",".join(names), *dark)
    end = "_dark" if dark else ""
    paths = [picture / "figures" / f"{name}{end}.png" for name in names]
    assert out.split() == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as image:
            corner = image.convert("RGB").getpixel((1, 1))
        assert corner == ((13, 17, 23) if dark else (255, 255, 255))


def test_film_of_a_table_is_of_its_samples(table, tmp_path):
    shutil.copytree(table, tmp_path / "copy")
    done("plot", tmp_path / "copy", "--figures", "projection", "--film", "gif", "--dark")
    assert {"projection_dark.png", "film_dark.gif"} <= figures(tmp_path / "copy")


def test_wrong_figures_are_refused(table, picture, fan, monkeypatch):
    line = complaint("plot", picture, "--figures", "density,no")
    assert all(name in line for name in FIGURES)
    assert "two real columns" in complaint("plot", table, "--figures", "strip")
    assert "three columns" in complaint("plot", picture, "--figures", "projection")
    assert "for a film" in complaint("plot", fan, "--film", "gif")
    monkeypatch.setenv("PATH", "")
    assert "ffmpeg" in complaint("plot", picture, "--film", "mp4")


def test_codes_of_a_picture_have_figures_but_no_film(tmp_path):
    done("train", "word:A", "--recipe", "codes", "--steps", 2, "--out", tmp_path / "run")
    assert [each.name for each in (tmp_path / "run/figures").glob("film*")] == []
    assert (tmp_path / "run/figures/pairs.png").exists()
