"""Numbers and names that no program accepts: status 2, and one line that names the option."""

import pytest
from test_scripts_running import complaint, tree

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
    **dict.fromkeys(("--rtol", "--atol"), ("0", "-1e-3", "nan", "inf", "x")),
    "--max-grad-norm": ["0", "-1", "x"],
    **dict.fromkeys(("--warmup", "--ema-decay"), ("-0.1", "1", "x")),
    **dict.fromkeys(("--validations", "--patience"), ("0", "x")),
}
SAMPLE = {"-n": ["0", "-3", "2.5", "x", ""], "--seed": ["-1", "x", str(2**32)]}
CASES = [
    *(("train", option, value) for option, values in TRAIN.items() for value in values),
    *(("sample", option, value) for option, values in SAMPLE.items() for value in values),
]
SHOW = ("train", "moons", "--show-recipe")
MESSAGES = [
    ((*SHOW, "--recipe", "nonsense"), ["toy", "table"]),
    ((*SHOW, "--objective", "nonsense"), ["mle"]),
    ((*SHOW, "--activation", "nonsense"), ["tanh", "softplus", "silu", "gelu"]),
    ((*SHOW, "--gradient", "nonsense"), ["backprop", "checkpoint"]),
    ((*SHOW, "--hidden", "wide"), ["64,64"]),  # in the command line's own spelling
    ((*SHOW, "a\nb"), ["a b"]),
    ((*SHOW, "--recipe", "x" * 50_000), ["toy"]),
    *(((*SHOW, f"--{name}=--"), ["one argument"]) for name in ("validations", "steps", "recipe")),
    *(((*SHOW, f"--{name}", 2**63), ["below 2^63"]) for name in ("steps", "validations", "hidden")),
    (("train-vae", "digits", "--out", "unused", "--epochs", 2**63), ["below 2^63"]),
    (("sample", "unused", "--out", "unused.csv", "-n", 2**63), ["below 2^63"]),
    (("benchmark", "tables", "--out", "x" * 300), ["--out"]),
    (("benchmark", "tables", "--out", __file__), ["--out"]),
]


@pytest.mark.parametrize(("program", "option", "value"), CASES)
def test_values_are_refused(program, option, value, table, tmp_path):
    words = {
        "train": (table.parent / "rows.csv", "--out", tmp_path / "refused", "--steps", 1),
        "sample": (table, "--out", tmp_path / "rows.npy", "-n", 3),
    }
    line = complaint(program, *words[program], f"{option}={value}")
    # An option is named with its dashes, or as the recipe's attribute.
    assert option.lstrip("-").replace("-", "_") in line.replace("-", "_")
    assert tree(tmp_path) <= {tmp_path / "refused"}


@pytest.mark.parametrize(("words", "expected"), MESSAGES)
def test_messages_say_what_may_be_typed(words, expected):
    """In few words, however long the argument is."""
    line = complaint(*words)
    assert [word for word in expected if word not in line] == []
    assert len(line) < 2500
