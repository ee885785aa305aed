"""Training of models of series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnf.ode import SolveError
from cnf.series.batch import SeriesBatch
from cnf.series.checks import check_training
from cnf.series.recipe import SeriesRecipe
from cnf.series.scaling import SeriesScaling
from cnf.series.series import Series
from cnf.series.task import Task
from cnf.training.averaged_run import AveragedRun
from cnf.training.checkpoint import Checkpointer, run_identity, sha256
from cnf.training.history import History, StepEvent
from cnf.training.optimizer import StepLoss
from cnf.training.progress import TrainingBudget
from cnf.utils.distributed import local_slice, mean, world_size
from cnf.utils.random import seeded
from cnf.utils.threads import Threads, check_threads

OBJECTIVE = "series likelihood"
VALIDATION_SEED = 0
VALIDATION_DRAWS = 4
MAX_CELLS = 2**21  # of times and columns of a batch for validation

Callback = Callable[[StepEvent], None]
Places = NDArray[np.int64]


class SeriesModel(Protocol):
    """A model of series, as training needs it; also a `torch.nn.Module`."""

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the weights."""
        ...

    @property
    def scaling(self) -> SeriesScaling:
        """The scales, which know the columns that vary: others have no likelihood."""
        ...

    def prepare(self, series: Series, task: Task) -> None:
        """Fit scales to training series, and keep the task."""
        ...

    def scaled(self, series: Series) -> Series:
        """Return series in the model's units."""
        ...

    def loss(
        self, seen: SeriesBatch, wanted: SeriesBatch, done: float, recipe: SeriesRecipe
    ) -> Tensor:
        """Return the mean loss of an observed entry, in nats, when a fraction is done."""
        ...


def fit_series(
    model: Any,
    series: Series,
    *,
    task: Task | None = None,
    budget: float | None = None,
    steps: int | None = None,
    validation: Series | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    state: str | Path | None = None,
    state_seconds: float = 30.0,
    threads: Threads = "auto",
    recipe: SeriesRecipe | None = None,
) -> History:
    """Train a model of series, and leave it with its best averaged weights on validation.

    The scales of the columns and of time are those of the training series. In each step of the
    task `interp` other entries are hidden; in each step of `filter` each series is cut at another
    place, and what follows is wanted given what comes before.

    Args:
        model: The model, changed in place: a `LatentODE` or a `FlowProcess`.
        series: Series to train on.
        task: What is seen and what is wanted; all observations in both when None.
        budget: Seconds in all, 60 where neither it nor steps is given.
        steps: Number of steps; with a budget too, whichever is reached first ends the run.
        validation: Series for validation; a random tenth is held out when None.
        seed: Seed of the order of the series and of training's random numbers.
        callbacks: Called after every step.
        state: A file for the run's state, from which it resumes, bit for bit.
        state_seconds: Seconds between two states.
        threads: The number of PyTorch's threads, chosen as in `cnf.fit`.
        recipe: The numbers of training.

    Returns:
        The run's history, whose validation NLL is the loss in nats an observed entry.

    Raises:
        ValueError: The series do not fit the model or the task, a number is out of range, or the
            state belongs to another run.
        TrainingError: Too many steps failed in a row, or no validation could be scored.
    """
    length, begin = TrainingBudget.of(budget, steps), perf_counter()
    threads, recipe, task = check_threads(threads), recipe or SeriesRecipe(), task or Task()
    rng = np.random.default_rng(seed)
    _check_observed(series)
    train, held_out = (series, validation) if validation is not None else hold_out(series, rng)
    check_training(train)
    model.prepare(train, task)
    held_out = held_out[: recipe.validation_series]
    parts = (_Part.of(model, train, task), _Part.of(model, held_out, task))
    checkpointer = None
    if state is not None:
        identity = run_identity(
            asdict(recipe),
            length,
            seed,
            model.like.device,
            _fingerprint(train),
            _fingerprint(held_out),
            model=model.config(),
            task=asdict(task),
        )
        checkpointer = Checkpointer(Path(state), state_seconds, identity)
    (spent,) = mean([perf_counter() - begin], model.like)
    length = length.without(spent)
    run = SeriesRun(model, recipe, task, *parts, length, seed, checkpointer, threads)
    run.run(callbacks, seed)
    model.load_state_dict(run.finish())
    return History.of(run.progress)


def hold_out(series: Series, rng: np.random.Generator) -> tuple[Series, Series]:
    """Split series at random into nine tenths and one tenth; raise a ValueError below three."""
    if len(series) < 3:
        raise ValueError(
            "Expected at least 3 series, two to train on and one that is held out for validation; "
            f"got {len(series)}: add series, or pass validation"
        )
    order, count = rng.permutation(len(series)), max(1, len(series) // 10)
    return series[np.sort(order[count:])], series[np.sort(order[:count])]


def _check_observed(series: Series) -> None:
    """Raise a ValueError unless every series has an observation."""
    counts = np.bincount(series.owners, series.observed.any(1), minlength=len(series))
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raise ValueError(
            f"Expected observations in each of the training series; got none in series "
            f"{series.name(int(empty[0]))}, one of {len(empty)} such: leave them out"
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """Series as they are seen and as they are wanted, in the model's units, and their lengths."""

    seen: Series
    wanted: Series
    lengths: NDArray[np.int64]

    @staticmethod
    def of(model: SeriesModel, series: Series, task: Task) -> _Part:
        seen, wanted = replace(task, hide=0.0).split(series, VALIDATION_SEED)
        scaled = model.scaled(seen)
        other = scaled if seen is wanted else model.scaled(wanted)
        return _Part(scaled, other, np.maximum(seen.lengths, wanted.lengths))

    def batch(self, places: Places, task: Task, like: Tensor) -> tuple[SeriesBatch, SeriesBatch]:
        """Return what is seen and wanted of some series, hidden or cut at random by the task."""
        seen = SeriesBatch.of(self.seen, places, like)
        same = self.seen is self.wanted
        wanted = seen if same else SeriesBatch.of(self.wanted, places, like)
        if task.kind == "filter":
            return cut_at_random(wanted)
        return (hidden(seen, task.hide), wanted) if task.hide else (seen, wanted)


def hidden(batch: SeriesBatch, share: float) -> SeriesBatch:
    """Return a batch with a random share of its entries hidden."""
    mask = batch.mask * (torch.rand_like(batch.mask) >= share)
    return replace(batch, values=batch.values * mask, mask=mask)


def cut_at_random(batch: SeriesBatch) -> tuple[SeriesBatch, SeriesBatch]:
    """Return what comes before a random row of each series, and that row with what follows.

    Every series keeps a row that is wanted; what comes before may be none.
    """
    lengths = batch.lengths
    counts = (torch.rand(lengths.shape).to(lengths.device) * lengths).long()
    return before_row(batch, counts), from_row(batch, counts)


def before_row(batch: SeriesBatch, counts: Tensor) -> SeriesBatch:
    """Return the first rows of each series, so many (B,), padded by repeating the last."""
    kept = torch.arange(batch.times.shape[1], device=counts.device) < counts[:, None]
    last = batch.times.gather(1, (counts - 1).clamp(min=0)[:, None])
    mask = batch.mask * kept[..., None]
    times = torch.where(kept, batch.times, last * (counts > 0)[:, None])
    return replace(batch, times=times, values=batch.values * mask, mask=mask, lengths=counts)


def from_row(batch: SeriesBatch, counts: Tensor) -> SeriesBatch:
    """Return a batch whose first rows, so many (B,), have no entries."""
    kept = torch.arange(batch.times.shape[1], device=counts.device) >= counts[:, None]
    mask = batch.mask * kept[..., None]
    return replace(batch, values=batch.values * mask, mask=mask)


class LengthSampler:
    """A sampler of batches of series of similar length, whose state can be saved and restored.

    An epoch is a random order of all series. In pools of several batches they are sorted by length,
    and the batches of a pool come in random order. An epoch's rest that makes no batch is left out.

    Args:
        lengths: The series' lengths, shape (n,).
        size: Series of a batch.
        pool: Batches of a pool.
        seed: Seed of the orders.

    Example:
        >>> sampler = LengthSampler(np.array([9, 1, 8, 2]), size=2, pool=2, seed=0)
        >>> sorted(sorted(sampler.batch().tolist()) for _ in range(2))
        [[0, 2], [1, 3]]
    """

    def __init__(self, lengths: NDArray[np.int64], size: int, pool: int, seed: int) -> None:
        self.lengths = torch.from_numpy(lengths)
        self.size, self.pool = min(size * world_size(), len(lengths)), pool
        self.generator = torch.Generator().manual_seed(seed)
        self._shuffle()

    def batch(self) -> Places:
        """Return the places of this process's part of the next batch."""
        if self.position == len(self.batches):
            self._shuffle()
        chosen = self.batches[self.position]
        self.position += 1
        places: Places = chosen[local_slice(len(chosen))].numpy()
        return places

    def state(self) -> dict[str, Tensor]:
        """Return the generator's state at the start of the epoch, and the position in it."""
        return {"generator": self.epoch_start, "position": torch.tensor(self.position)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.generator.set_state(state["generator"])
        self._shuffle()
        self.position = int(state["position"])

    def _shuffle(self) -> None:
        self.epoch_start = self.generator.get_state()
        order = torch.randperm(len(self.lengths), generator=self.generator)
        order = order[: len(order) // self.size * self.size]
        self.batches: list[Tensor] = []
        for pool in order.split(self.size * self.pool):
            batches = pool[self.lengths[pool].argsort()].split(self.size)
            for i in torch.randperm(len(batches), generator=self.generator).tolist():
                self.batches.append(batches[i])
        self.position = 0


class _Loss(nn.Module):
    """A module whose output is a model's loss, so that processes can average their gradients."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any) -> Tensor:
        loss: Tensor = self.model.loss(*arguments)
        return loss


class SeriesRun(AveragedRun[nn.Module]):
    """A run of `fit_series`: its model, the average of its weights, and its series."""

    objective, model_name = OBJECTIVE, "model"
    sampler: LengthSampler

    def __init__(
        self,
        model: Any,
        recipe: SeriesRecipe,
        task: Task,
        train: _Part,
        held_out: _Part,
        budget: TrainingBudget,
        seed: int,
        checkpointer: Checkpointer | None,
        threads: Threads,
    ) -> None:
        self.recipe, self.task, self.train, self.held_out = recipe, task, train, held_out
        self.hiding = task.kind == "interp" and task.hide > 0
        sampler = LengthSampler(train.lengths, recipe.batch_size, recipe.pool, seed)
        options = (budget, sampler, checkpointer, threads)
        betas = (recipe.momentum, recipe.square_decay)
        super().__init__(
            model, _Loss(model), recipe, *options, betas=betas, ema_steps=recipe.ema_steps
        )

    def loss(self, done: float) -> StepLoss:
        seen, wanted = self.train.batch(self.sampler.batch(), self.task, self.like)
        if self.hiding and self.recipe.shown_weight != 1:
            mask = wanted.mask - (1 - self.recipe.shown_weight) * seen.mask
            wanted = replace(wanted, mask=mask)
        return StepLoss(self.losses(seen, wanted, done, self.recipe))

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean loss of the held-out series' entries, always by the same draws.

        Where entries are wanted that are not seen it is −log p of these given what is seen.
        """
        total = count = 0.0
        model: Any = self.averaged
        recipe = replace(self.recipe, draws=VALIDATION_DRAWS)
        if self.hiding or self.task.kind != "interp":  # a prediction's density has no KL term
            recipe = replace(recipe, kl_start=0.0, kl_weight=0.0)
        with seeded(VALIDATION_SEED, self.like.device):
            try:
                for places in self._batches():
                    seen, wanted = self.held_out.batch(places, self.task, self.like)
                    if self.hiding:
                        wanted = replace(wanted, mask=wanted.mask - seen.mask)
                    entries = (wanted.mask * model.scaling.varying).sum().item()
                    total += entries * model.loss(seen, wanted, 1.0, recipe).item()
                    count += entries
            except SolveError:
                return inf
        (total, count) = mean([total, count], self.like)
        return total / count if count else inf

    def _batches(self) -> Iterator[Places]:
        """Yield this process's held-out series, those of similar length together."""
        order = np.argsort(self.held_out.lengths, kind="stable")
        order = order[local_slice(len(order))]
        cells = max(1, self.held_out.lengths.max(initial=1)) * len(self.held_out.seen.columns)
        size = max(1, min(MAX_CELLS // int(cells), 1000))
        for i in range(0, len(order), size):
            yield order[i : i + size]


def _fingerprint(series: Series) -> str:
    """Return the SHA-256 of the values, which identifies series."""
    arrays = (series.offsets, series.times, series.values, series.static, series.labels)
    parts = (torch.from_numpy(np.ascontiguousarray(each)) for each in arrays if each is not None)
    return sha256(" ".join(series.columns), *parts)
