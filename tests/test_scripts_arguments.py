"""Numbers and names that no program takes: status 2, one line that names the option."""

import pytest
from test_scripts_running import complaint, done, rows_of_table, tree, write_csv

TRAIN = {
    "--budget": ["0", "-1", "nan", "inf", "soon", ""],
    "--steps": ["0", "-5", "1.5", "many", ""],
    "--seed": ["-1", "1.5", "x", str(2**32)],
    "--recipe": ["fast", "Toy"],
    "--objective": ["mse", "MLE"],
    "--activation": ["relu", ""],
    "--gradient": ["adjoint"],
    "--hidden": ["0", "-8", "8,0", "8,x", "", ",", "8.5"],
    "--blocks": ["0", "-1", "x"],
    "--batch-norm": ["maybe", "1", "", "true"],
    "--batch-size": ["0", "-1", "1.5"],
    "--learning-rate": ["0", "-1", "nan", "inf", "x"],
    "--rtol": ["0", "-1e-3", "nan", "inf", "x"],
    "--atol": ["0", "-1e-3", "nan", "inf", "x"],
    "--max-grad-norm": ["0", "-1", "x"],
    "--warmup": ["-0.1", "1", "x"],
    "--ema-decay": ["-0.1", "1", "x"],
    "--validations": ["0", "x"],
    "--patience": ["0", "x"],
}
SAMPLE = {"-n": ["0", "-3", "2.5", "x", ""], "--seed": ["-1", "x", str(2**32)]}


def pairs(options):
    return [(option, value) for option, values in options.items() for value in values]


def names(line: str, option: str) -> bool:
    """Whether a line names an option, spelt with its dashes or as the recipe's attribute."""
    return option.lstrip("-").replace("-", "_") in line.replace("-", "_")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A table, and a folder trained on it."""
    place = tmp_path_factory.mktemp("place")
    data = write_csv(place / "rows.csv", rows_of_table(40))
    done("train", data, "--out", place / "out", "--steps", 1, "--hidden", 8)
    return place


@pytest.mark.parametrize(("option", "value"), pairs(TRAIN))
def test_train_refuses(option, value, place):
    before = tree(place) | {place / "refused"}
    default = [] if option == "--steps" else ["--steps", "1"]
    line = complaint(
        "train", place / "rows.csv", "--out", place / "refused", *default, f"{option}={value}"
    )
    assert names(line, option)
    assert tree(place) | {place / "refused"} == before


@pytest.mark.parametrize(("option", "value"), pairs(SAMPLE))
def test_sample_refuses(option, value, place):
    before = tree(place)
    n = [] if option == "-n" else ["-n", "3"]
    line = complaint("sample", place / "out", "--out", place / "rows.npy", *n, option, value)
    assert names(line, option)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("--recipe", ["toy", "table"]),
        ("--objective", ["mle"]),
        ("--activation", ["tanh", "softplus", "silu", "gelu"]),
        ("--gradient", ["backprop", "checkpoint"]),
    ],
)
def test_unknown_name_is_answered_with_the_choices(option, choices, place):
    line = complaint("train", "moons", "--out", place / "refused", option, "nonsense")
    assert all(choice in line for choice in choices)


def test_advice_on_widths_is_what_can_be_typed(place):
    """The example in the message is in the command line's own spelling."""
    line = complaint("train", "moons", "--out", place / "refused", "--hidden", "wide")
    assert "64,64,64" in line


# --- what fuzzing found: each once, so that it stays found


def test_argument_of_several_lines_is_told_of_on_one(place):
    assert "a b" in complaint("train", "moons", "--show-recipe", "a\nb")


def test_argument_without_end_is_not_told_in_full(place):
    assert len(complaint("train", "moons", "--recipe", "x" * 50_000)) < 2500


@pytest.mark.parametrize("option", ["--validations", "--steps", "--recipe"])
def test_two_dashes_are_no_value(option):
    assert "expected one argument" in complaint("train", "moons", "--show-recipe", f"{option}=--")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("train", ("moons", "--show-recipe", "--steps")),
        ("train", ("moons", "--show-recipe", "--validations")),
        ("train", ("moons", "--show-recipe", "--hidden")),
        ("train-vae", ("digits", "--out", "unused", "--epochs")),
        ("sample", ("unused", "--out", "unused.csv", "-n")),
    ],
)
def test_whole_numbers_beyond_64_bits_are_refused(program, words):
    assert "below 2^63" in complaint(program, *words, 2**63)


@pytest.mark.parametrize("out", ["x" * 300, "{place}/rows.csv"])
def test_folder_of_a_benchmark_that_cannot_be(out, place):
    line = complaint("benchmark", "tables", "--out", out.format(place=place))
    assert "--out" in line
