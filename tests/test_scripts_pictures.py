"""A density from a picture, by one command; figures and films of what is trained."""

import numpy as np
import pytest
from PIL import Image
from test_scripts_programs import evaluation
from test_scripts_running import SMALL, complaint, done, rows_of_table, run, write_csv

from cnf.datasets import word_picture
from cnf.scripts.data import open_data, open_rows
from cnf.scripts.plot import FIGURES
from cnf.training.recipes import RECIPES


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Few rows and coarse shades."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnf.scripts.data.TOY_ROWS", {"train": 2000, "validation": 200, "test": 200})
        patch.setattr("cnf.plotting.density.DENSITY_PIXELS", 12)
        patch.setattr("cnf.plotting.density.STRIP_PIXELS", 8)
        patch.setattr("cnf.plotting.flow_films.density_film.__defaults__", (None, False, 3, 500, 0))
        patch.setattr("cnf.plotting.flow_films.samples_film.__defaults__", (False, None, 3, 0))
        yield


def write_word(path, word="I"):
    grey = 255 - word_picture(word).darkness
    Image.fromarray(grey.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A folder trained on a picture."""
    place = tmp_path_factory.mktemp("picture")
    done("train", write_word(place / "word.png"), "--out", place / "out", *SMALL)
    return place / "out"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder trained on three columns."""
    place = tmp_path_factory.mktemp("table")
    done("train", write_csv(place / "rows.csv", rows_of_table()), "--out", place / "out", *SMALL)
    return place / "out"


def test_training_on_a_picture_ends_with_figures_and_a_film(picture):
    names = {path.name for path in (picture / "figures").iterdir()}
    assert names == {"density.png", "strip.png", "learning_curve.png", "film.gif"}
    with Image.open(picture / "figures" / "film.gif") as film:
        assert film.n_frames > 1


def test_pictures_density_is_known(picture):
    numbers = evaluation(picture)
    word = word_picture("I")
    entropy = -word.log_prob(word.sample(20_000, seed=3)).mean()
    assert numbers["entropy"] == pytest.approx(entropy, abs=0.1)
    assert numbers["kl"] > 0


def test_word_is_the_picture_of_it(picture):
    """Whether it is drawn or read from a file."""
    own, drawn = open_data(str(picture.parent / "word.png"), 0), open_data("word:I", 0)
    np.testing.assert_array_equal(own.train.x, drawn.train.x)
    assert own.sha256 == drawn.sha256 != ""
    assert drawn.name == "word:I"
    fresh, toy = open_rows("word:I", drawn.schema, (), 0)
    assert np.isfinite(toy.log_prob(fresh.x)).all()
    assert not np.isin(fresh.x[:, 0], own.train.x[:, 0]).any()
    assert evaluation(picture, "--data", "word:I")["n"] == 200


def test_picture_has_its_recipe_and_budget(picture, tmp_path, monkeypatch):
    shown = done("train", "word:I", "--show-recipe")
    assert f'"x_features": {RECIPES["picture"].x_features}' in shown
    given = {}

    def fit(flow, *_, budget, steps, **__):
        given.update(budget=budget, steps=steps)
        raise RuntimeError("enough")

    monkeypatch.setattr("cnf.scripts.train.fit", fit)
    complaint("train", "word:I", "--out", tmp_path / "one", status=1)
    assert given == {"budget": 120, "steps": None}
    complaint("train", "word:I", "--steps", 3, "--out", tmp_path / "two", status=1)
    assert given == {"budget": None, "steps": 3}


def test_picture_that_has_changed_is_told_of(tmp_path):
    path = write_word(tmp_path / "word.png")
    done("train", path, "--out", tmp_path / "out", *SMALL)
    write_word(path, "l")
    assert "has changed since" in complaint("evaluate", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "readable picture"), (None, "no such file"), ("white", "white")]
)
def test_what_is_no_picture_is_refused_in_one_line(content, told, tmp_path):
    path = tmp_path / "a.png"
    if content == "white":
        Image.new("L", (5, 5), 255).save(path)
    elif content is not None:
        path.write_bytes(content)
    assert told in complaint("train", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("default:.*averaged:UserWarning")
def test_large_picture_is_averaged_and_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr("cnf.datasets.pictures.MAX_PIXELS", 500)
    path = write_word(tmp_path / "word.png")
    result = run("train", path, "--show-recipe")
    assert result.status == 0
    assert "averaged" in result.err
    assert result.err.count("\n") == 1


def test_pictures_columns_are_known(tmp_path):
    line = complaint("train", "word:I", "--drop", "x", "--out", tmp_path / "out")
    assert "Expected no --drop" in line


@pytest.mark.parametrize("dark", [[], ["--dark"]])
def test_figures_that_are_asked_for_are_drawn(dark, picture):
    names = ["trajectories", "field", "grid", "pairs"]
    out = done("plot", picture, "--figures", ",".join(names), *dark)
    end = "_dark" if dark else ""
    paths = [picture / "figures" / f"{name}{end}.png" for name in names]
    assert out.split() == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as image:
            corner = image.convert("RGB").getpixel((1, 1))
        assert corner == ((13, 17, 23) if dark else (255, 255, 255))


def test_film_of_a_table_is_of_its_samples(table):
    done("plot", table, "--figures", "projection", "--film", "gif", "--dark")
    names = {path.name for path in (table / "figures").iterdir()}
    assert {"projection_dark.png", "film_dark.gif"} <= names


def test_wrong_figures_are_refused(table, picture, monkeypatch):
    line = complaint("plot", picture, "--figures", "density,no")
    assert all(name in line for name in FIGURES)
    assert "two real columns" in complaint("plot", table, "--figures", "strip")
    assert "three columns" in complaint("plot", picture, "--figures", "projection")
    monkeypatch.setenv("PATH", "")
    assert "ffmpeg" in complaint("plot", picture, "--film", "mp4")


def test_film_of_a_conditional_flow_is_refused(tmp_path):
    done("train", "fan", "--out", tmp_path / "out", *SMALL)
    assert "for a film" in complaint("plot", tmp_path / "out", "--film", "gif")
