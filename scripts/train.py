"""`train DATA`: fit a flow, score it on held-out rows and draw its figures."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from tqdm import tqdm

from cnf.datasets import (
    BENCHMARKS,
    CONDITIONAL_TOYS,
    DATA_DIR,
    TABLES,
    TOYS,
    Picture,
    degeneracies,
    is_picture,
)
from cnf.fields import ACTIVATIONS, FIELDS, field_arguments
from cnf.fields.divergence import DIVERGENCES
from cnf.flow import Flow
from cnf.layers import CNF, SCALINGS
from cnf.ode import GRADIENTS
from cnf.scripts.data import ColumnChoices, Data, open_data
from cnf.scripts.evaluate import evaluate
from cnf.scripts.folder import default_folder, run_folder
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.plot import plot
from cnf.scripts.program import Parser, positive_integer, positive_number, program, say, seed
from cnf.scripts.settings import text_of, value_of
from cnf.scripts.trained import (
    METRICS_FILE,
    MISSING_OPTION,
    STATE_FILE,
    TrainedModel,
    continuous_columns,
    write_metrics,
)
from cnf.storage import save
from cnf.tables.kinds import KINDS
from cnf.training.callbacks import ProgressBar, TensorBoard
from cnf.training.checkpoint import TrainingState
from cnf.training.couplings import COUPLINGS
from cnf.training.history import Callback, Event, History, Record
from cnf.training.loop import fit
from cnf.training.objectives import OBJECTIVES
from cnf.training.recipes import RECIPES, SCHEDULES, Recipe, choose_recipe, recipe_of, unused
from cnf.training.schedule import Stage, stages
from cnf.utils.distributed import barrier, process_group, rank
from cnf.utils.serialization import read_file

MAX_EVALUATED_ROWS = 20_000  # largest number of held-out rows scored after training
# With figures and film the program then takes less than three minutes on two cores.
PICTURE_BUDGET_SECONDS = 120.0

# Each attribute of a recipe has an option that overrides it; --help-all shows them in these groups.
RECIPE_GROUPS = {
    "the flow": "blocks field hidden activation time_features x_features x_scale scaling "
    "batch_norm",
    "training": "objective matching coupling schedule warmup weight_decay max_grad_norm ema_decay "
    "validations validation_rows patience",
    "maximum likelihood": "batch_size learning_rate horizon divergence kinetic jacobian path_l1 "
    "path_l2 directional steer",
    "flow matching": "matching_batch matching_rate",
    "the solver": "method rtol atol initial_tolerance_factor gradient activation_bytes",
}
RECIPE_HELP = {
    "objective": f"one of {', '.join(OBJECTIVES)}",
    "hidden": "widths of each field's hidden layers, such as 64,64,64",
    "activation": f"one of {', '.join(ACTIVATIONS)}",
    "blocks": "number of CNF layers",
    "batch_norm": "true or false: batch normalisation on the base side of each CNF layer (mle)",
    "scaling": f"layer that brings the columns to a common scale: one of {', '.join(SCALINGS)}",
    "batch_size": "rows for each step of maximum likelihood, of each process",
    "learning_rate": "peak learning rate of maximum likelihood, in a run of up to --horizon steps",
    "horizon": "steps of maximum likelihood beyond which the peak falls as one over their root",
    "matching_batch": "rows for each step of flow matching, of each process",
    "matching_rate": "peak learning rate of flow matching",
    "matching": "fraction of a hybrid run that is flow matching",
    "coupling": f"coupling of base and data in flow matching: one of {', '.join(COUPLINGS)}",
    "schedule": f"one of {', '.join(SCHEDULES)}, after the warm-up",
    "warmup": "fraction of each stage in which the learning rate rises",
    "weight_decay": "AdamW's weight decay",
    "max_grad_norm": "norm above which the gradient is clipped",
    "ema_decay": "decay of the weights' moving average",
    "method": "the solver's method in maximum likelihood, such as bosh3 or dopri5",
    "rtol": "the solver's relative tolerance at the end of training",
    "atol": "the solver's absolute tolerance at the end of training",
    "initial_tolerance_factor": "factor on both tolerances at the start, smaller beyond --horizon",
    "gradient": f"gradient mode of the solver: one of {', '.join(GRADIENTS)}",
    "activation_bytes": "bytes of activations that checkpoint stores instead of recomputing",
    "validations": "number of validations in the run",
    "validation_rows": "largest number of rows that a validation scores",
    "patience": "validations without improvement after which the run, or its flow matching, ends",
    "field": f"vector field of each CNF layer: one of {', '.join(FIELDS)}",
    "time_features": "number of sines and cosines of time that enter the fields",
    "x_features": "number of sines and cosines of x, at random frequencies, that enter the fields",
    "x_scale": "standard deviation of those frequencies",
    "divergence": f"in training: one of auto, exact, {', '.join(DIVERGENCES)}",
    "kinetic": "weight of the paths' kinetic energy in the loss",
    "jacobian": "weight of the field's squared Jacobian along the paths",
    "path_l1": "weight of the paths' length in the L1 norm",
    "path_l2": "weight of the paths' length",
    "directional": "weight of the gradient of the squared speed along the paths",
    "steer": "largest distance from 0 of the random base time in training (STEER)",
}


@program("train")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    everything = "--help-all" in (sys.argv[1:] if argv is None else argv)
    arguments = parser(everything).parse_args(argv)
    with process_group():
        if arguments.out is None:
            arguments.out = default_folder(arguments.data)
        resumed = _resumed_run(arguments)
        choices = _choices(arguments)
        data = open_data(arguments.data, arguments.seed, choices, arguments.data_dir)
        if isinstance(data.toy, Picture) and arguments.budget is arguments.steps is None:
            arguments.budget = PICTURE_BUDGET_SECONDS
        name, recipe = _recipe(arguments, data, resumed)
        if arguments.show_recipe:
            say(json.dumps(asdict(recipe), indent=2))
            return 0
        with run_folder(arguments.out, arguments.resume) as out:
            _run(arguments, data, name, recipe, out)
    return 0


def _run(arguments: argparse.Namespace, data: Data, name: str, recipe: Recipe, out: Path) -> None:
    """Train a flow, score it and draw its figures, in a folder."""
    torch.manual_seed(arguments.seed)
    flow = _flow(recipe, data)
    say(*_summary(data, flow, name))
    _warn_of_degenerate(data)
    history = _train(arguments, data, flow, recipe, out)
    say(
        f"{history.steps} steps in {history.duration:.1f} s, ended by {history.reason}; kept "
        f"the averaged weights of step {history.best_step}"
    )
    trained = TrainedModel.read(str(out))
    every = -(-len(data.test) // MAX_EVALUATED_ROWS)
    say(*evaluate(trained, data.test[::every], data.toy).lines())
    if every > 1:
        say(f"  one in {every} of {len(data.test)} held-out rows; cnf evaluate scores all")
    if rank() == 0:
        film = "gif" if isinstance(data.toy, Picture) else None
        say(*(f"  {path}" for path in plot(trained, data, film=film)))


class _FlowRecorder:
    """A callback that writes metrics.jsonl and saves each flow that improves.

    A full disk does not end the run: the last complete files stay, and the end of the run writes
    them again.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.metadata = metadata

    def __call__(self, event: Event) -> None:
        if event.record is None:
            return
        try:
            write_metrics(self.folder / METRICS_FILE, (asdict(record) for record in event.records))
            if event.improved:
                save(event.flow, self.folder, self.metadata)
        except OSError as error:
            warn(
                f"{self.folder} cannot be written to ({error.strerror}): training continues, the "
                "last complete files stay, and the end of the run tries again",
                stacklevel=2,
            )


class _StageAnnouncer:
    """A callback that prints the objective and the learning rate of each stage of training."""

    def __init__(self, stages: int) -> None:
        self.stage: Stage | None = None
        self.stages = stages

    def __call__(self, event: Event) -> None:
        if event.stage == self.stage or self.stages == 1:
            return
        where = f"step {event.step}, {event.seconds:.1f} s"
        nll = f", validation NLL {event.records[-1].validation_nll:.4f}" if event.records else ""
        with tqdm.external_write_mode():
            say(
                f"{event.stage.objective.name} from {where}{nll}: learning rate up to "
                f"{event.stage.learning_rate:g}, {event.stage.batch_size} rows a step"
            )
        self.stage = event.stage


def parser(everything: bool = True) -> Parser:
    """Return the parser of the command line, with the recipe's options shown or hidden."""
    parser = Parser("train", __doc__, usage="cnf train DATA [option ...]")
    _add_data(parser.add_argument_group("data"))
    _add_run(parser.add_argument_group("the run"))
    parser.add_argument("--help-all", action="help", help="show the recipe's options as well")
    for title, names in RECIPE_GROUPS.items():
        group = parser.add_argument_group(
            f"{title} (in brackets: the default, then other recipes' values)"
        )
        for name in names.split():
            text = f"{RECIPE_HELP[name]} ({_defaults(name)})" if everything else argparse.SUPPRESS
            group.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=text)
    return parser


def _add_data(data: argparse._ArgumentGroup) -> None:
    """Add the arguments that name the data."""
    data.add_argument(
        "data",
        metavar="DATA",
        help=f"a toy ({', '.join(TOYS)}), a conditional toy ({', '.join(CONDITIONAL_TOYS)}), a "
        f"bundled table ({', '.join(TABLES)}), a benchmark ({', '.join(BENCHMARKS)}), or a file: "
        ".csv with a header, .npy, .parquet, .npz or FILE.npz:ARRAY; or a picture (.png, .jpg, …), "
        "or word:TEXT for a picture of a word, as a density: dark is dense, and a film is written",
    )
    data.add_argument(
        "--context",
        metavar="COL,COL",
        help="columns of DATA to condition on: the model is the density of the others given these",
    )
    data.add_argument("--drop", metavar="COL,COL", help="columns of DATA to leave out")
    data.add_argument(
        "--schema",
        metavar="FILE",
        help="a JSON file with the kinds of columns that are not inferred, such as "
        '{"age": {"kind": "integer", "low": 0}}; kinds: ' + ", ".join(KINDS),
    )
    data.add_argument("--missing", **MISSING_OPTION)
    data.add_argument(
        "--data-dir",
        metavar="DIR",
        type=os.path.abspath,
        help=f"folder with the benchmarks' files (default: the value of {DATA_DIR})",
    )


def _add_run(run: argparse._ArgumentGroup) -> None:
    """Add the arguments of the run: its length, folder and recipe."""
    run.add_argument(
        "--out", metavar="DIR", help="a new or empty folder (default: runs/ and DATA's name)"
    )
    run.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"one of {', '.join(_named(RECIPES))}, or a file that --show-recipe or train wrote "
        "(config.json) (default: by the size of the data)",
    )
    run.add_argument("--show-recipe", action="store_true", help="print the recipe as JSON and exit")
    run.add_argument(
        "--budget",
        metavar="SECONDS",
        type=positive_number,
        help=f"training time (default 60, for a picture {PICTURE_BUDGET_SECONDS:g})",
    )
    run.add_argument(
        "--steps",
        metavar="N",
        type=positive_integer,
        help="number of steps; with --budget as well, the limit reached first ends the run",
    )
    run.add_argument("--seed", type=seed, help="seed of data and weights (default 0)")
    run.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in --out, if there is one, with its recipe and options",
    )
    run.add_argument(
        "--state-seconds",
        metavar="SECONDS",
        type=positive_number,
        default=30.0,
        help="time between two checkpoints, from which --resume continues (default 30)",
    )
    run.add_argument(
        "--tensorboard", action="store_true", help="also write the curves for TensorBoard, into DIR"
    )


def _choices(arguments: argparse.Namespace) -> ColumnChoices:
    """Return the choices about DATA's columns."""
    is_toy = arguments.data in (*TOYS, *CONDITIONAL_TOYS) or is_picture(arguments.data)
    for option in ("drop", "schema"):
        if is_toy and getattr(arguments, option) is not None:
            raise ValueError(
                f"Expected no --{option} with the toy {arguments.data}, whose columns are fixed; "
                f"got {getattr(arguments, option)!r}"
            )
    return ColumnChoices(
        _context(arguments),
        () if arguments.drop is None else tuple(arguments.drop.split(",")),
        arguments.missing,
        {} if arguments.schema is None else _read_schema(Path(arguments.schema)),
    )


def _defaults(name: str) -> str:
    """Return an option's default, and each other value with the recipes that have it."""
    default = text_of(getattr(Recipe(), name))
    others: dict[str, list[str]] = {}
    for recipe, made in RECIPES.items():
        if (value := text_of(getattr(made, name))) != default:
            others.setdefault(value, []).append(recipe)
    texts = (f"{value}: {', '.join(_named(names))}" for value, names in others.items())
    return "; ".join([default, *texts])


def _named(recipes: Collection[str]) -> list[str]:
    """Return names of recipes, with one name for all recipes of the paper's benchmarks."""
    paper = [name for name in RECIPES if name.startswith("ffjord-paper-")]
    if not set(paper) <= set(recipes):
        return list(recipes)
    return [*(name for name in recipes if name not in paper), "ffjord-paper-BENCHMARK"]


def _context(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the names of the columns to condition on; refuse any for a conditional toy."""
    if arguments.context is None:
        return ()
    if arguments.data in CONDITIONAL_TOYS:
        known = ", ".join(CONDITIONAL_TOYS[arguments.data].context_columns)
        raise ValueError(
            f"Expected no --context with {arguments.data}, whose context is {known}; got "
            f"{arguments.context!r}"
        )
    return tuple(arguments.context.split(","))


def _read_schema(path: Path) -> dict[str, Any]:
    """Read the kinds of columns from a file."""
    found = _read_json(path, "a schema")
    if not isinstance(found, dict):
        raise ValueError(
            f"Expected {path} to hold an object of columns, such as "
            f'{{"age": {{"kind": "integer"}}}}; got {str(found)[:40]}'
        )
    return found


def _resumed_run(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    """Return the configuration of the run to resume, if any; its options set the arguments."""
    resumed = None
    if arguments.resume:
        path = Path(arguments.out) / STATE_FILE
        resumed = TrainingState.read(path).run if path.exists() else None
    for name, default in (("seed", 0), ("steps", None), ("budget", None)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, resumed[name] if resumed else default)
    return resumed


def _recipe(
    arguments: argparse.Namespace, data: Data, resumed: Mapping[str, Any] | None
) -> tuple[str, Recipe]:
    """Return the name of the recipe, and the recipe with the changes of the command line."""
    given = arguments.recipe
    if given is not None and given not in RECIPES and os.path.exists(given):
        name, recipe = given, _read_recipe(Path(given))
    elif given is None and resumed is not None:
        name, recipe = "of the run in --out", _resumed_recipe(resumed)
    else:
        conditional = bool(data.context_columns)
        known = (len(data.train), data.schema.width, conditional, arguments.objective)
        default = "picture" if isinstance(data.toy, Picture) else None
        values = data.schema.real(data.train.x)[0] if data.toy is None else None
        name, recipe = choose_recipe(given or default, *known, values)
        if recipe.scaling != RECIPES[name].scaling:
            name = f"{name} (scaling {recipe.scaling}, as columns are far from normal)"
    changes = {
        field.name: value_of(field.name, text, getattr(recipe, field.name))
        for field in fields(Recipe)
        if (text := getattr(arguments, field.name)) is not None
    }
    recipe = replace(recipe, **{**_lost_features(changes), **changes})
    for useless, why in unused(recipe).items():
        if useless in changes:
            raise ValueError(
                f"Expected no --{useless.replace('_', '-')} with {why}, which does not use it"
            )
    return name, recipe


def _resumed_recipe(resumed: Mapping[str, Any]) -> Recipe:
    """Return the recipe of the run to resume."""
    try:
        return recipe_of(resumed)
    except KeyError as error:
        raise ValueError(
            f"Expected the run in --out to have the recipe's {error}; it was started by another "
            "version: train again, into another folder"
        ) from None


def _lost_features(changes: Mapping[str, Any]) -> dict[str, int]:
    """Return zeros for the features that the chosen field does not take."""
    if changes.get("field") not in FIELDS:
        return {}
    known = field_arguments(changes["field"])
    return {name: 0 for name in ("time_features", "x_features") if name not in known}


def _read_recipe(path: Path) -> Recipe:
    """Read the recipe from a file that --show-recipe or train wrote."""
    found = _read_json(path, "a recipe")
    try:
        return recipe_of(found["metadata"]["recipe"] if "metadata" in found else found)
    except (KeyError, TypeError):
        raise ValueError(
            f"Expected {path} to hold a recipe, as --show-recipe prints or train's config.json "
            "has it; got something else"
        ) from None


def _read_json(path: Path, what: str) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(read_file(path).decode())
    except OSError as error:
        raise ValueError(f"Expected {what} in {path}; got: {error.strerror}") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"Expected {path} to hold {what} in JSON; got: {error}") from None


def _flow(recipe: Recipe, data: Data) -> Flow:
    layers = data.schema.layers(data.train.x)
    flow = recipe.flow(data.schema.width, len(data.context_columns), layers)
    return flow.to("cuda" if torch.cuda.is_available() else "cpu")


def _summary(data: Data, flow: Flow, recipe: str) -> list[str]:
    """Return lines that describe the data and the flow to be trained."""
    given = f" given {', '.join(data.context_columns)}" if data.context_columns else ""
    layer = next(layer for layer in flow.layers if isinstance(layer, CNF))
    left_out = f" ({data.dropped} rows with missing values left out)" if data.dropped else ""
    columns = data.schema.columns
    plain = all(column.kind == "real" for column in columns)
    return [
        f"{data.name}: {len(data.train)} training rows{left_out} of {len(columns)} columns{given}; "
        f"recipe {recipe}, {sum(p.numel() for p in flow.parameters())} weights, "
        f"divergence {layer.trace()}",
        *([] if plain else (f"  {line}" for line in data.schema.summary())),
    ]


def _warn_of_degenerate(data: Data) -> None:
    """Warn of reasons why rows have no density, such as columns that others determine."""
    for found in degeneracies(*data.schema.real(data.train.x)):
        option = f": --drop {found.column}" if found.column else ""
        warn(f"{found}{option}", stacklevel=2)


def _metadata(
    arguments: argparse.Namespace, data: Data, flow: Flow, recipe: Recipe
) -> dict[str, Any]:
    """Return the metadata that the other programs and a repetition of the run need."""
    numbers, _ = continuous_columns(flow, data.schema, data.train, arguments.seed)
    return {
        "data": data.name,
        "data_sha256": data.sha256,
        "seed": arguments.seed,
        "columns": list(data.schema.names),
        "schema": data.schema.json(),
        "context": list(data.context_columns),
        "missing": arguments.missing,
        "data_dir": arguments.data_dir,
        "gaussian": GaussianBaseline.fit(numbers).json(),
        "objective": recipe.objective,
        "budget": arguments.budget,
        "steps": arguments.steps,
        "recipe": asdict(recipe),
    }


def _train(
    arguments: argparse.Namespace, data: Data, flow: Flow, recipe: Recipe, out: Path
) -> History:
    x, context = data.train.tensors(flow.like)
    held_out, held_out_context = data.validation.tensors(flow.like)
    metadata = _metadata(arguments, data, flow, recipe)
    callbacks: list[Callback] = []
    if rank() == 0:
        callbacks = [
            ProgressBar(),
            _StageAnnouncer(len(stages(recipe))),
            _FlowRecorder(out, metadata),
        ]
        callbacks += [TensorBoard(out / "tensorboard")] if arguments.tensorboard else []
    history = fit(
        flow,
        x,
        context=context,
        recipe=recipe,
        budget=arguments.budget,
        steps=arguments.steps,
        validation=held_out if held_out_context is None else (held_out, held_out_context),
        seed=arguments.seed,
        callbacks=callbacks,
        state=out / STATE_FILE,
        state_seconds=arguments.state_seconds,
    )
    if rank() == 0:
        save(flow, out, metadata)
        names = [field.name for field in fields(Record)]
        columns = (getattr(history, name).tolist() for name in names)
        records = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        if records:  # which a full disk or a killed process may have left unwritten
            write_metrics(out / METRICS_FILE, records)
    barrier()
    return history


if __name__ == "__main__":
    raise SystemExit(main())
