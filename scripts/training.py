"""The work of `cnf train`: fit a model, score it on held-out rows and draw its figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
from tqdm import tqdm

from cnf.datasets import CONDITIONAL_TOYS, TOYS, Picture, degeneracies, is_picture
from cnf.datasets.reading import drop_option
from cnf.flow import Flow, FlowMixture
from cnf.layers import CNF
from cnf.scripts.data import ColumnChoices, Data, open_data
from cnf.scripts.distillation import (
    DistillationPlan,
    TuningRows,
    comparison,
    describe_steps,
    is_tuned,
    tune,
)
from cnf.scripts.evaluation import summarize
from cnf.scripts.figures import plot
from cnf.scripts.folder import default_folder, run_folder, write_records
from cnf.scripts.gaussian import GaussianBaseline
from cnf.scripts.options import (
    DEFAULT_NOISE_DRAWS,
    READ_OPTIONS,
    listed,
    option_of,
    read_options,
)
from cnf.scripts.program import say
from cnf.scripts.recipe_choice import (
    AnyRecipe,
    chosen_recipe,
    kind_of,
    read_json,
    recipe_entries,
    wanted_model,
)
from cnf.scripts.train import PICTURE_BUDGET_SECONDS
from cnf.scripts.trained import (
    STATE_FILE,
    TrainedModel,
    continuous_columns,
    dequantizing_flow,
    flows_of,
    state_file,
)
from cnf.storage import CONFIG, load_config, save
from cnf.tables.code_training import OBJECTIVE as OF_CODES
from cnf.tables.masked_training import OBJECTIVE as OF_VALUES
from cnf.tables.masked_training import ValuesRecipe
from cnf.tables.row_model import RowModel
from cnf.tables.row_training import fit_rows
from cnf.training.callbacks import ProgressBar, TensorBoard
from cnf.training.checkpoint import TrainingState
from cnf.training.history import Callback, Event, History
from cnf.training.mixture import fit_flows
from cnf.training.recipes import CODES, Recipe
from cnf.training.run import TrainingError
from cnf.training.schedule import Stage, stages
from cnf.utils.distributed import barrier, process_group, rank
from cnf.utils.threads import number_of_threads

Model = Flow | FlowMixture | RowModel

STORED_ARGUMENTS = ("seed", "missing", "data_dir", "budget", "steps", "discretize")
ADAPTIVE = "adaptive"  # the folder, in that of a run, of the flow that explicit steps are tuned to
TRAINING_SHARE = 0.5  # of the budget, where explicit steps take the rest
UPDATES_SHARE = 0.25  # of the number of training's steps, for those of the tuning
DEFAULT_BUDGET = 60.0  # seconds
MAX_EVALUATED_ROWS = 20_000  # largest number of held-out rows scored after training


def train(arguments: argparse.Namespace) -> None:
    """Train a model as the command line says, or show its recipe."""
    with process_group():
        if arguments.out is None:
            arguments.out = default_folder(arguments.data)
        resumed = _resumed_run(arguments)
        wanted = wanted_model(arguments, resumed)
        choices = replace(_choices(arguments), coded=wanted.coded)
        data = open_data(arguments.data, arguments.seed, choices, arguments.data_dir)
        if arguments.budget is arguments.steps is None:
            if isinstance(data.toy, Picture):
                arguments.budget = PICTURE_BUDGET_SECONDS
            elif arguments.discretize:
                arguments.budget = DEFAULT_BUDGET
        name, recipe = chosen_recipe(arguments, data, wanted, resumed)
        if arguments.show_recipe:
            say(json.dumps(recipe_entries(recipe), indent=2))
            return
        with run_folder(arguments.out, arguments.resume) as out:
            _run(arguments, data, name, recipe, wanted.reason, out)


def _run(
    arguments: argparse.Namespace,
    data: Data,
    name: str,
    recipe: AnyRecipe,
    reason: str,
    out: Path,
) -> None:
    """Train a model, score it and draw its figures, in a folder; a flow may have a reason."""
    torch.manual_seed(arguments.seed)
    model = _new_model(data, recipe).to("cuda" if torch.cuda.is_available() else "cpu")
    plan = _tuning_plan(arguments, model)
    say(*_summary(data, model, name))
    if data.discrete and not data.coded:
        say(f"  a flow over dequantized columns, by {reason}; --recipe {CODES} suits them better")
    if plan is not None:
        say(_division(arguments, plan))
    for found in degeneracies(*data.schema.real(data.train.x)):
        option = f": {drop_option(found.column)}" if found.column else ""
        warn(f"{found}{option}", stacklevel=2)
    for remark in data.schema.remarks(data.train.x, masses=data.coded):
        warn(remark, stacklevel=2)
    folder = out if plan is None else out / ADAPTIVE
    history = _train(arguments, data, model, recipe, out, folder)
    kept = f"kept the averaged weights of step {history.best_step}"
    if isinstance(model, FlowMixture):
        kept = f"flows weigh {', '.join(f'{weight:.2f}' for weight in model.weights.tolist())}"
    say(
        f"{history.steps} steps in {history.duration:.1f} s{by_threads(history.threads.tolist())}, "
        f"ended by {history.reason}; {kept}"
    )
    with number_of_threads(last_threads(history.threads.tolist())):
        trained = TrainedModel.read(str(folder))
        if plan is None:
            _show(trained, data)
        elif history.reason == "interrupted":
            say(f"the trained flow is in {folder}; --resume continues, and then tunes the steps")
        else:
            _draw(_discretized(trained, data, plan, out), data)


def _new_model(data: Data, recipe: AnyRecipe) -> Model:
    """Return a new model of the data, with random weights."""
    if not isinstance(recipe, Recipe):
        context = None if data.given is None else (data.given, data.train.context)
        known = (data.schema, data.train.x)
        return RowModel.build(*known, context=context, values=data.values)
    layers = data.schema.layers(data.train.x)
    return recipe.model(data.schema.width, len(data.context_columns), layers)


def by_threads(threads: Sequence[int]) -> str:
    """Return the numbers of threads that a run's records have, as a text.

    Example:
        >>> by_threads([1, 2, 1]), by_threads([1])
        (' by 1 or 2 threads', ' by 1 thread')
    """
    numbers = sorted({*threads} - {0})
    if not numbers:
        return ""
    return f" by {' or '.join(map(str, numbers))} thread{'s' * (numbers[-1] > 1)}"


def last_threads(threads: Sequence[int]) -> int:
    """Return the number of threads that a run took last, PyTorch's where its records have none."""
    return (threads[-1] if threads else 0) or torch.get_num_threads()


def _show(trained: TrainedModel, data: Data) -> None:
    """Score the trained model on held-out rows and draw its figures."""
    every = -(-len(data.test) // MAX_EVALUATED_ROWS)
    rows, draws = data.test[::every], DEFAULT_NOISE_DRAWS
    say(*summarize(trained, rows, data.toy, *trained.score(rows, draws), draws).lines())
    if every > 1:
        say(f"  one in {every} of {len(data.test)} held-out rows; cnf evaluate scores all")
    _draw(trained, data)


def _discretized(
    adaptive: TrainedModel, data: Data, plan: DistillationPlan, out: Path
) -> TrainedModel:
    """Tune explicit steps to a model, unless a run that is resumed has, and compare the scores."""
    rows = TuningRows.of(data)
    if not is_tuned(adaptive, out):
        try:
            tune(adaptive, rows, plan, out)
        except TrainingError as error:
            raise TrainingError(
                f"{error}. The trained flow is in {adaptive.folder}: cnf distil {adaptive.folder} "
                f"--steps {2 * plan.steps} --out DIR"
            ) from None
    trained = TrainedModel.read(str(out))
    say(*comparison(adaptive, trained, rows, plan.seed))
    return trained


def _draw(trained: TrainedModel, data: Data) -> None:
    """Draw the figures, and a picture's film, in the first process."""
    if rank() == 0:
        filmed = isinstance(data.toy, Picture) and isinstance(trained.model, Flow)
        film = "gif" if filmed else None
        say(*(f"  {path}" for path in plot(trained, data, film=film)))


def _tuning_plan(arguments: argparse.Namespace, model: Model) -> DistillationPlan | None:
    """Return the explicit steps that a flow is replaced by after its training, if any.

    Raises:
        ValueError: The flow cannot be replaced by such steps.
    """
    if arguments.discretize is None or isinstance(model, RowModel):
        return None
    budget, steps = arguments.budget, arguments.steps
    plan = DistillationPlan(
        arguments.discretize,
        budget=None if budget is None else (1 - TRAINING_SHARE) * budget,
        updates=None if steps is None else max(1, round(UPDATES_SHARE * steps)),
        seed=arguments.seed,
        threads=arguments.threads,
    )
    try:
        plan.check(model)
    except ValueError as error:
        raise ValueError(f"{error}, without --discretize") from None
    return plan


def _division(arguments: argparse.Namespace, plan: DistillationPlan) -> str:
    """Return a line on how the length of a run is divided between training and tuning."""
    training, tuning = [], []
    if plan.budget is not None:
        training.append(f"{arguments.budget - plan.budget:g} s")
        tuning.append(f"{plan.budget:g} s")
    if plan.updates is not None:
        training.append(f"{arguments.steps} steps")
        tuning.append(f"{plan.updates} updates")
    parts = f"{' or '.join(training)} of training, then {' or '.join(tuning)}"
    return f"  {parts} of tuning {plan.steps} explicit steps; the trained flow is in {ADAPTIVE}/"


class RunRecorder:
    """A callback that writes metrics.jsonl and saves each model that improves, by a function.

    A full disk does not end the run, whose end writes the files again.
    """

    def __init__(self, folder: Path, save: Callable[[Any], None]) -> None:
        self.folder, self.save = folder, save

    def __call__(self, event: Any) -> None:
        """Write the records and the model after a validation."""
        if event.record is None:
            return
        try:
            write_records(self.folder, event.records)
            if event.improved:
                self.save(event)
        except OSError as error:
            warn(
                f"{self.folder} cannot be written to ({error.strerror}): training continues, the "
                "last complete files stay, and the end of the run tries again",
                stacklevel=2,
            )


def _stage_announcer(stages: int) -> Callback:
    """Return a callback that prints the objective and the learning rate of each stage."""
    announced: list[Stage] = []

    def announce(event: Event) -> None:
        stage = event.stage
        if stage in announced or stages == 1:
            return
        announced.append(stage)
        nll = f", validation NLL {event.records[-1].validation_nll:.4f}" if event.records else ""
        with tqdm.external_write_mode():
            say(
                f"{stage.objective.name} from step {event.step}, {event.seconds:.1f} s{nll}: "
                f"learning rate up to {stage.learning_rate:g}, {stage.batch_size} rows a step"
            )

    return announce


def _choices(arguments: argparse.Namespace) -> ColumnChoices:
    is_toy = arguments.data in (*TOYS, *CONDITIONAL_TOYS) or is_picture(arguments.data)
    text = (option[2:].replace("-", "_") for option in READ_OPTIONS)
    for option in ("drop", "schema", *text):
        if is_toy and getattr(arguments, option) is not None:
            raise ValueError(
                f"Expected no {option_of(option)} with the toy {arguments.data}, whose columns are "
                f"fixed; got {getattr(arguments, option)!r}"
            )
    if arguments.context is not None and arguments.data in CONDITIONAL_TOYS:
        known = ", ".join(CONDITIONAL_TOYS[arguments.data].context_columns)
        raise ValueError(
            f"Expected no --context with {arguments.data}, whose context is {known}; got "
            f"{arguments.context!r}"
        )
    context = () if arguments.context is None else listed(arguments.context)
    kinds = {} if arguments.schema is None else read_json(Path(arguments.schema), "a schema")
    if not isinstance(kinds, dict):
        raise ValueError(
            f"Expected {arguments.schema} to hold an object of columns, such as "
            f'{{"age": {{"kind": "integer"}}}}; got {str(kinds)[:40]}'
        )
    drop = () if arguments.drop is None else listed(arguments.drop)
    return ColumnChoices(context, arguments.missing, read_options(arguments, drop), kinds)


def _resumed_run(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    """Return the configuration of the run to resume, if any; its options set the arguments."""
    resumed = None
    if arguments.resume and (path := state_file(Path(arguments.out))):
        resumed = TrainingState.read(path).run
        resumed = {**resumed, **resumed.get("whole", {})}
        flows = resumed.get("flows", 1)  # each of which has a part of the run's length
        for name in ("budget", "steps"):
            if resumed.get(name) is not None and flows > 1:
                resumed = {**resumed, name: flows * resumed[name]}
        if arguments.missing == "refuse" and kind_of(resumed) is ValuesRecipe:
            arguments.missing = "model"
    if resumed is not None:
        _resume_discretized(arguments, resumed)
    for name, default in (("seed", 0), ("steps", None), ("budget", None)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, resumed[name] if resumed else default)
    return resumed


def _resume_discretized(arguments: argparse.Namespace, resumed: Mapping[str, Any]) -> None:
    """Set --discretize, and the whole --budget, as the run in --out was begun with them.

    Raises:
        ValueError: It was begun with another number of steps, or without.
    """
    folder = Path(arguments.out)
    if (folder / ADAPTIVE / CONFIG).exists():
        begun = load_config(folder / ADAPTIVE)["metadata"]
    elif (folder / CONFIG).exists():
        begun = {"discretize": None}
    elif arguments.discretize and arguments.budget is None and resumed["budget"] is not None:
        begun = {"discretize": arguments.discretize, "budget": resumed["budget"] / TRAINING_SHARE}
    else:
        return
    wanted, known = arguments.discretize, begun.get("discretize")
    if wanted not in (None, known):
        how = f"with --discretize {known}" if known else "without --discretize"
        raise ValueError(
            f"Expected the run that was begun in {folder}, {how}; got --discretize {wanted}: "
            "resume it as it was begun, and distil its model with cnf distil"
        )
    arguments.discretize = known
    if known and arguments.budget is None:
        arguments.budget = begun.get("budget")


def _summary(data: Data, model: Model, recipe: str) -> list[str]:
    """Return lines that describe the data and the model to be trained."""
    given = f" given {', '.join(data.context_columns)}" if data.context_columns else ""
    if isinstance(model, RowModel):
        codings = [each for each in (model.given, model.coding) if each]
        counts = [size for each in codings for size in each.sizes]
        values = int(model.valued.sum())
        if values:
            counts = [
                *(model.given.sizes if model.given else ()),
                *np.array(model.coding.sizes)[~model.valued].tolist(),
            ]
        parts = [f"{sum(counts)} codes of {len(counts)} columns"] if counts else []
        parts += [f"a flow of any of {values} columns given any others"] if values else []
        kind = ", ".join(parts)
    else:
        flows = flows_of(model)
        kind = describe_steps(flows[0])
        if not kind:
            layer = next(layer for layer in flows[0].layers if isinstance(layer, CNF))
            kind = f"divergence {layer.trace()}"
        kind = f"{len(flows)} flows, {kind}" if len(flows) > 1 else kind
    left_out = f" ({data.dropped} rows with missing values left out)" if data.dropped else ""
    if gaps := np.isnan(data.train.x).mean():
        left_out += f" ({gaps:.1%} of their cells are gaps)"
    if data.repeated:
        left_out += f" ({data.repeated} rows of the table repeat others, and stay with them)"
    columns = data.schema.columns
    context = data.given.summary() if data.given else []
    plain = all(column.kind == "real" for column in columns)
    return [
        f"{data.name}: {len(data.train)} training rows{left_out} of {len(columns)} columns{given}; "
        f"recipe {recipe}, {sum(p.numel() for p in model.parameters())} weights, {kind}",
        *(f"  {note}" for note in data.notes),
        *([] if plain else (f"  {line}" for line in data.schema.summary())),
        *(f"  given {line}" for line in context),
    ]


def _metadata(arguments: argparse.Namespace, data: Data, recipe: AnyRecipe) -> dict[str, Any]:
    """Return the metadata that the other programs and a repetition of the run need."""
    layer = data.schema.layers(data.train.x)[-1:]  # the one next to the table
    known = (dequantizing_flow(data.schema.width, layer), data.schema, data.train, arguments.seed)
    numbers, _ = continuous_columns(*known, to_fit=True, given=data.given)
    gaussian = GaussianBaseline.fit(numbers)
    objective = OF_VALUES if data.values else OF_CODES
    if isinstance(recipe, Recipe):
        objective = recipe.objective
    of_codes: dict[str, Any] = {}
    if data.coded:
        of_codes["dequantizing"] = [{"name": each.name, **each.config()} for each in layer]
        of_codes["context_schema"] = data.given.json() if data.given else {}
    return {
        "data": data.name,
        "data_sha256": data.sha256,
        "columns": list(data.schema.names),
        "schema": data.schema.json(),
        "context": list(data.context_columns),
        "context_types": {name: asdict(each) for name, each in data.context_types.items()},
        "reading": asdict(data.reading),
        "gaussian": {name: moment.tolist() for name, moment in vars(gaussian).items()},
        "objective": objective,
        "recipe": recipe_entries(recipe),
        **of_codes,
        **{name: getattr(arguments, name) for name in STORED_ARGUMENTS},
    }


def _train(
    arguments: argparse.Namespace,
    data: Data,
    model: Model,
    recipe: AnyRecipe,
    out: Path,
    folder: Path,
) -> History:
    """Train a model, with the run's state in one folder and the model in another or the same."""
    metadata = _metadata(arguments, data, recipe)
    callbacks: list[Callback] = []
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        callbacks = [
            ProgressBar(),
            *([_stage_announcer(len(stages(recipe)))] if isinstance(recipe, Recipe) else []),
            RunRecorder(folder, lambda event: save(event.model, folder, metadata)),
        ]
        callbacks += [TensorBoard(out / "tensorboard")] if arguments.tensorboard else []
    names = ("budget", "steps", "seed", "state_seconds", "threads")
    given = {name: getattr(arguments, name) for name in names}
    if arguments.discretize and arguments.budget is not None:
        given["budget"] *= TRAINING_SHARE
    history = _fit(data, model, recipe, out, {**given, "callbacks": callbacks})
    if rank() == 0:
        save(model, folder, metadata)
        if history.records:  # which a full disk or a killed process may have left unwritten
            write_records(folder, history.records)
    barrier()
    return history


def _fit(
    data: Data,
    model: Model,
    recipe: AnyRecipe,
    out: Path,
    options: dict[str, Any],
) -> History:
    """Train a model by the function of its kind."""
    train, held_out = data.train, data.validation
    if not isinstance(recipe, Recipe) and isinstance(model, RowModel):
        pair = (held_out.x, held_out.context)
        return fit_rows(
            model,
            train.x,
            context=train.context if data.given else None,
            validation=pair if data.given else held_out.x,
            state=out,
            recipe=recipe,
            **options,
        ).whole
    assert isinstance(recipe, Recipe)
    assert not isinstance(model, RowModel)
    (x, given), (rows, contexts) = (part.tensors(model.like) for part in (train, held_out))
    return fit_flows(
        model,
        x,
        context=given,
        recipe=recipe,
        validation=rows if contexts is None else (rows, contexts),
        state=out / STATE_FILE,
        **options,
    )
