"""`train DATA --out DIR`: fit a flow, score it on held-out rows, draw its figures."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from cnf.callbacks import ProgressBar
from cnf.datasets import CONDITIONAL_TOYS, TABLES, TOYS
from cnf.divergence import DIVERGENCES
from cnf.fields import ACTIVATIONS, FIELDS
from cnf.flow import Flow, ffjord
from cnf.history import Event, History
from cnf.layers import CNF
from cnf.objectives import OBJECTIVES
from cnf.ode import GRADIENTS
from cnf.recipes import RECIPES, Recipe, choose_recipe
from cnf.scripts.data import Data, open_data
from cnf.scripts.evaluate import evaluate
from cnf.scripts.gaussian import Gaussian
from cnf.scripts.plot import plot
from cnf.scripts.program import Parser, positive_integer, positive_number, program, say, seed
from cnf.scripts.trained import METRICS, Trained
from cnf.storage import save
from cnf.training import fit

# Every attribute of a recipe is an option that overrides it.
HELP = {
    "hidden": "widths of each field's hidden layers, such as 64,64,64",
    "activation": f"one of {', '.join(ACTIVATIONS)}",
    "blocks": "number of CNF layers",
    "batch_size": "rows for each step",
    "learning_rate": "peak learning rate",
    "warmup": "fraction of the run that warms up",
    "weight_decay": "AdamW's weight decay",
    "clip": "largest norm of the gradient",
    "average": "decay of the weights' moving average",
    "rtol": "the solver's relative tolerance in training",
    "atol": "the solver's absolute tolerance in training",
    "gradient": f"one of {', '.join(GRADIENTS)}",
    "keep": "bytes for the activations that checkpoint does not replay",
    "validations": "how often the run is validated",
    "validation_rows": "the most rows that a validation scores",
    "patience": "validations without improvement that end the run",
    "field": f"one of {', '.join(FIELDS)}",
    "time_features": "sines and cosines of time that enter the fields",
    "x_features": "sines and cosines of x, at random frequencies, that enter the fields",
    "x_scale": "standard deviation of those frequencies",
    "divergence": f"in training: one of auto, exact, {', '.join(DIVERGENCES)}",
    "kinetic": "weight of the paths' kinetic energy in the loss",
    "jacobian": "weight of the field's squared Jacobian along the paths",
    "path_l1": "weight of the paths' length in the L1 norm",
    "path_l2": "weight of the paths' length",
    "directional": "weight of the gradient of the squared speed along the paths",
    "steer": "the base's time is drawn up to this far from 0 in training (STEER)",
}


@program("train")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = _parser().parse_args(argv)
    data = open_data(arguments.data, arguments.seed, _context(arguments))
    name, recipe = _recipe(arguments, len(data.columns))
    torch.manual_seed(arguments.seed)
    flow = _flow(recipe, data)
    out = _new_folder(arguments.out)
    say(_summary(data, flow, name))
    recorder = _Recorder(out, _metadata(arguments, data, recipe))
    history = _train(arguments, data, flow, recipe, recorder)
    say(
        f"{history.steps} steps in {history.duration:.1f} s, ended by {history.reason}; kept the "
        f"averaged weights of step {history.best_step}"
    )
    trained = Trained.read(str(out))
    say(*evaluate(trained, data.test, data.toy).lines())
    say(*(f"  {path}" for path in plot(trained, data)))
    return 0


class _Recorder:
    """A callback that appends each validation to metrics.jsonl and saves each best flow."""

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.metadata = metadata

    def __call__(self, event: Event) -> None:
        if event.record is None:
            return
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(_json_line(asdict(event.record)) + "\n")
        if event.improved:
            save(event.flow, self.folder, self.metadata)


def _json_line(numbers: dict[str, float]) -> str:
    """One JSON object, null for what is not finite."""
    return json.dumps({key: x if isfinite(x) else None for key, x in numbers.items()})


def _parser() -> Parser:
    parser = Parser("train", description=__doc__)
    parser.add_argument(
        "data",
        metavar="DATA",
        help=f"a toy ({', '.join(TOYS)}), a conditional toy ({', '.join(CONDITIONAL_TOYS)}), a "
        f"bundled table ({', '.join(TABLES)}), or a file: .csv with a header, .npy, .parquet, .npz "
        "or FILE.npz:ARRAY",
    )
    parser.add_argument(
        "--context",
        metavar="COL,COL",
        help="columns of DATA to condition on: the others' density given these is modelled",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument("--recipe", choices=RECIPES, help="by the number of columns when not given")
    parser.add_argument("--objective", choices=OBJECTIVES, default="mle", help="(default mle)")
    parser.add_argument(
        "--budget", metavar="SECONDS", type=positive_number, help="of training (default 60)"
    )
    parser.add_argument(
        "--steps",
        metavar="N",
        type=positive_integer,
        help="number of steps; with --budget too, whichever is reached first ends the run",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of data and weights (default 0)")
    numbers = parser.add_argument_group("the recipe's numbers (in brackets: each recipe's own)")
    for field in fields(Recipe):
        defaults = (f"{name}: {_text(getattr(made, field.name))}" for name, made in RECIPES.items())
        numbers.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar="X",
            help=f"{HELP[field.name]} ({', '.join(defaults)})",
        )
    return parser


def _context(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The columns to condition on, as they are named; a conditional toy has its own."""
    if arguments.context is None:
        return ()
    if arguments.data in CONDITIONAL_TOYS:
        own = ", ".join(CONDITIONAL_TOYS[arguments.data].context_columns)
        raise ValueError(
            f"Expected no --context with {arguments.data}, whose context is {own}; got "
            f"{arguments.context!r}"
        )
    return tuple(arguments.context.split(","))


def _recipe(arguments: argparse.Namespace, dim: int) -> tuple[str, Recipe]:
    """The recipe, with what the command line changes of it."""
    name, recipe = choose_recipe(arguments.recipe, dim)
    changes = {
        field.name: _convert(field.name, text, getattr(recipe, field.name))
        for field in fields(Recipe)
        if (text := getattr(arguments, field.name)) is not None
    }
    return name, replace(recipe, **changes)


def _convert(name: str, text: str, default: Any) -> Any:
    """`text` as a value of the default's type."""
    kind = type(default)
    try:
        return tuple(int(part) for part in text.split(",")) if kind is tuple else kind(text)
    except ValueError:
        raise ValueError(
            f"Expected --{name.replace('_', '-')} to be like {_text(default)}; got {text!r}"
        ) from None


def _text(value: object) -> str:
    """A recipe's value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flow(recipe: Recipe, data: Data) -> Flow:
    flow = ffjord(
        len(data.columns),
        recipe.hidden,
        context_dim=len(data.context_columns),
        activation=recipe.activation,
        blocks=recipe.blocks,
        field=recipe.field,
        field_options=recipe.field_options,
    )
    return flow.to("cuda" if torch.cuda.is_available() else "cpu")


def _new_folder(name: str) -> Path:
    """The output folder, made and checked: new or empty, and writable."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"Expected --out to be a new or empty folder; {name} is not empty")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise ValueError(f"Expected --out to be a folder to write to; {name}: {why}") from None
    return folder


def _summary(data: Data, flow: Flow, recipe: str) -> str:
    """What is about to be trained."""
    given = f" given {', '.join(data.context_columns)}" if data.context_columns else ""
    layer = next(layer for layer in flow.layers if isinstance(layer, CNF))
    return (
        f"{data.name}: {len(data.train)} training rows of {len(data.columns)} columns{given}; "
        f"recipe {recipe}, {sum(p.numel() for p in flow.parameters())} weights, "
        f"divergence {layer.trace()}"
    )


def _metadata(arguments: argparse.Namespace, data: Data, recipe: Recipe) -> dict[str, Any]:
    """What the other programs, and whoever repeats the run, need to know."""
    return {
        "data": data.name,
        "data_sha256": data.sha256,
        "seed": arguments.seed,
        "columns": list(data.columns),
        "context": list(data.context_columns),
        "gaussian": Gaussian.fit(data.train).json(),
        "objective": arguments.objective,
        "budget": arguments.budget,
        "steps": arguments.steps,
        "recipe": asdict(recipe),
    }


def _train(
    arguments: argparse.Namespace, data: Data, flow: Flow, recipe: Recipe, recorder: _Recorder
) -> History:
    x, context = data.train.tensors(flow.like)
    held_out, held_out_context = data.validation.tensors(flow.like)
    history = fit(
        flow,
        x,
        context=context,
        objective=arguments.objective,
        recipe=recipe,
        budget=arguments.budget,
        steps=arguments.steps,
        validation=held_out if held_out_context is None else (held_out, held_out_context),
        seed=arguments.seed,
        callbacks=[ProgressBar(), recorder],
    )
    save(flow, recorder.folder, recorder.metadata)
    return history


if __name__ == "__main__":
    raise SystemExit(main())
