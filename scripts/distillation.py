"""The work of `cnf distil` and `cnf train --discretize`: tune explicit steps and score them."""

from __future__ import annotations

import argparse
import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from cnf.datasets import row_groups, split
from cnf.flow import Flow, FlowMixture
from cnf.flow.folds import FoldMass, fold_mass
from cnf.layers import Steps
from cnf.scripts.data import AnyToy, Data
from cnf.scripts.evaluation import summarize
from cnf.scripts.figures import plot
from cnf.scripts.folder import run_folder, write_records
from cnf.scripts.options import read_options
from cnf.scripts.program import say
from cnf.scripts.rows import Array, ContextRows, no_context
from cnf.scripts.trained import TrainedModel, check_unused, flows_of
from cnf.storage import CONFIG, load_config, save
from cnf.training.callbacks import ProgressBar
from cnf.training.history import Callback
from cnf.training.mixture import distil_flows
from cnf.utils.distributed import barrier, process_group, rank
from cnf.utils.threads import Threads

COMPARED_ROWS = 5000  # largest number of rows scored by both flows
WARM_UP_ROWS = 100  # scored before the clock starts
DISTILLED = "distilled"  # the entry of the metadata with the plan


@dataclass(frozen=True)
class DistillationPlan:
    """The explicit steps that a model is to be replaced by, and how long they are tuned.

    Attributes:
        steps: Steps in place of each adaptive solve.
        method: The name of their method.
        budget: Seconds; None for none given.
        updates: Optimizer steps; None for none given.
        seed: Seed of the tuning.
        threads: PyTorch's threads, as in `cnf.fit`.
    """

    steps: int
    method: str = "midpoint"
    budget: float | None = None
    updates: int | None = None
    seed: int = 0
    threads: Threads = "auto"

    def check(self, model: Flow | FlowMixture) -> None:
        """Raise a ValueError unless the model's flows can be replaced by such steps."""
        for flow in flows_of(model):
            flow.discretized(self.steps, self.method)


@dataclass(frozen=True)
class TuningRows:
    """Rows to tune steps on, to select weights by, and to score both flows on."""

    train: ContextRows | None  # None: the flow's own draws serve
    validation: ContextRows | None
    test: ContextRows
    toy: AnyToy | None = None

    @staticmethod
    def of(data: Data) -> TuningRows:
        """Return the parts of the data that the flow was trained on."""
        return TuningRows(data.train, data.validation, data.test, data.toy)


def distil_model(arguments: argparse.Namespace) -> None:
    """Distil the model in a folder to explicit steps, in another folder."""
    with process_group():
        trained = TrainedModel.read(arguments.dir)
        if DISTILLED in load_config(arguments.dir)["metadata"]:
            raise ValueError(
                f"Expected a model that was trained; the one in {arguments.dir} was distilled: "
                "name the folder of the model that it was distilled from"
            )
        names = ("steps", "method", "budget", "updates", "seed", "threads")
        plan = DistillationPlan(**{name: getattr(arguments, name) for name in names})
        plan.check(trained.flow)
        rows, data, line = _tuning_rows(trained, arguments)
        with run_folder(arguments.out, resume=False) as out:
            say(line)
            tune(trained, rows, plan, out)
            model = TrainedModel.read(str(out))
            say(*comparison(trained, model, rows, plan.seed))
            if rank() == 0 and data is not None:
                say(*(f"  {path}" for path in plot(model, data)))


def tune(trained: TrainedModel, rows: TuningRows, plan: DistillationPlan, out: Path) -> None:
    """Tune explicit steps to a model, and save them with the validations to a folder."""
    flow = copy.deepcopy(trained.flow).to("cuda" if torch.cuda.is_available() else "cpu")
    callbacks: list[Callback] = [ProgressBar()] if rank() == 0 else []
    (x, context), validation = (
        (None, None) if part is None else part.tensors(flow.like)
        for part in (rows.train, rows.validation)
    )
    begin = perf_counter()
    steps, history = distil_flows(
        flow,
        x,
        context=context,
        validation=None if validation[0] is None else _paired(*validation),
        callbacks=callbacks,
        **asdict(plan),
    )
    complete = history.reason != "interrupted"
    say(
        f"{plan.steps} {plan.method} steps tuned by {history.steps} updates in "
        f"{perf_counter() - begin:.1f} s" + ("" if complete else ", ended by interrupted")
    )
    if rank() == 0:
        config = load_config(trained.folder)
        entry = {"model": str(trained.folder.resolve()), **asdict(plan)}
        entry |= {"weights": config["sha256"], "complete": complete}
        write_records(out, history.records)
        save(steps.to("cpu"), out, {**config["metadata"], DISTILLED: entry})
    barrier()


def is_tuned(trained: TrainedModel, out: Path) -> bool:
    """Return whether a folder holds explicit steps that were tuned to a model, to the end."""
    if not (out / CONFIG).exists():
        return False
    entry = load_config(out)["metadata"].get(DISTILLED, {})
    known = entry.get("weights") == load_config(trained.folder)["sha256"]
    return known and bool(entry.get("complete"))


def comparison(
    adaptive: TrainedModel, distilled: TrainedModel, rows: TuningRows, seed: int
) -> list[str]:
    """Return lines on the scores of explicit steps, on their folds, and on the adaptive flow's."""
    every = -(-len(rows.test) // COMPARED_ROWS)
    test = rows.test[::every]
    by_steps, nfe, fast = _timed(distilled, test)
    by_solver, _, slow = _timed(adaptive, test)
    drop = by_solver - by_steps
    before = "adaptive" if adaptive.model.solves else "trained"
    given = None if not distilled.context_columns else test.tensors(distilled.flow.like)[1]
    change = f"{float(drop.mean()):+.4f}"
    if np.isfinite(drop).all() and len(drop) > 1:
        change += f" ± {float(drop.std() / np.sqrt(len(drop))):.4f}"
    return [
        *summarize(distilled, test, rows.toy, by_steps, nfe, 1).lines(),
        f"  {before:8s} NLL  {-float(by_solver.mean()):10.4f} (the steps': {change})",
        fold_line(fold_mass(distilled.flow, context=given, seed=seed, near=adaptive.flow)),
        f"  rows a second {fast:10.0f} by steps, {slow:.0f} by the {before} flow",
    ]


def fold_line(found: FoldMass) -> str:
    """Return a line on the mass of a distilled's folds."""
    if not found.known:
        return (
            f"  fold mass     unknown: {found.draws} draws are worth {found.effective:.0f} of the "
            "density: take more --steps"
        )
    return (
        f"  fold mass     {found.mass:10.1e} ± {found.stderr:.0e}; the density integrates to "
        f"{found.integral:.4f} ± {found.integral_stderr:.4f}"
    )


def describe_steps(flow: Flow) -> str:
    """Return the explicit steps of a flow in words; empty without any.

    Example:
        >>> from cnf.flow import ffjord
        >>> describe_steps(ffjord(2).discretized(3, "rk4"))
        'exact determinant of 3 rk4 steps'
    """
    layers = [layer for layer in flow.layers if isinstance(layer, Steps)]
    found = dict.fromkeys(f"{layer.count} {layer.method} steps" for layer in layers)
    return f"exact determinant of {', '.join(found)}" if found else ""


def _timed(model: TrainedModel, rows: ContextRows) -> tuple[Array, float, float]:
    """Return log p of rows, the evaluations of a solve, and the rows scored in a second."""
    model.score(rows[:WARM_UP_ROWS])
    begin = perf_counter()
    log_prob, nfe = model.score(rows)
    return log_prob, nfe, len(rows) / (perf_counter() - begin)


def _paired(
    x: torch.Tensor, context: torch.Tensor | None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    return x if context is None else (x, context)


def _tuning_rows(
    trained: TrainedModel, arguments: argparse.Namespace
) -> tuple[TuningRows, Data | None, str]:
    """Return the rows to tune on, the training's data where it is readable, and a line on them."""
    if arguments.data is not None or arguments.context_data is not None:
        files = (arguments.data, arguments.context_data, arguments.missing)
        rows, toy = trained.rows(*files, doing="tune on", reading=read_options(arguments))
        trained.schema.check(rows.x)
        index = split(len(rows), arguments.seed, row_groups(rows.joined()))
        train, validation, test = (
            ContextRows(rows.x[chosen], rows.context[chosen])
            for chosen in (index.train, index.validation, index.test)
        )
        line = f"{arguments.data}: {len(train)} rows to tune on"
        return TuningRows(train, validation, test, toy), None, line
    check_unused(read_options(arguments), "--data")
    try:
        data = trained.data()
    except ValueError as error:
        if trained.context_columns:
            raise ValueError(
                f"Expected rows to tune a conditional model on; {trained.source} cannot be read: "
                f"name them with --data. {error}"
            ) from None
        drawn = trained.sample(no_context(COMPARED_ROWS), arguments.seed)
        line = f"{trained.source} cannot be read: the steps are tuned on the flow's own draws"
        return TuningRows(None, None, ContextRows(drawn, no_context(len(drawn)))), None, line
    return TuningRows.of(data), data, f"{data.name}: {len(data.train)} training rows to tune on"
