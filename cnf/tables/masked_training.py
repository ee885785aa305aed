"""Training of a `MaskedFlow`: its mixture by EM, then its field by likelihood and consistency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, nan
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cnf.layers.training_solver import TRAINING_SOLVER
from cnf.mixtures.normal import NormalMixture
from cnf.ode import SolveError
from cnf.tables.code_training import check_weights
from cnf.tables.masked_flow import MaskedFlow
from cnf.training.averaged_recipe import AveragedRecipe
from cnf.training.averaged_run import AveragedRun
from cnf.training.checkpoint import Checkpointer, run_identity
from cnf.training.data import BatchSampler, Rows
from cnf.training.history import History, Record, StepEvent
from cnf.training.numbers import document_numbers, number
from cnf.training.optimizer import StepLoss
from cnf.training.progress import TrainingBudget
from cnf.utils.distributed import gather, local_slice, mean, total
from cnf.utils.random import seeded
from cnf.utils.serialization import add_prefix
from cnf.utils.threads import Threads, check_threads

OBJECTIVE = "likelihood of questions"
MIXTURE_SHARE = 0.5  # of the budget, at most
SURE = 2.0  # standard errors by which held-out rows must prefer the field to the mixture alone
POOL_ROWS = 2048  # rows among which those of a group are found where there are gaps
Callback = Callable[[StepEvent], None]


@dataclass(frozen=True)
class ValuesRecipe(AveragedRecipe):
    """The numbers of training a `MaskedFlow`."""

    groups: int = number(16, "groups of rows of one question, of each process", low=1)
    group_rows: int = number(16, "rows of a group", low=1)
    joint: float = number(
        0.2, "share of groups that are asked for everything, and again in two parts", low=0, high=1
    )
    consistency: float = number(1.3, "weight of the consistency gap at the end", low=0)
    free_gap: float = number(0.012, "consistency gap that costs nothing, in nats a cell", low=0)
    tolerance: float = number(1e-3, "the solver's tolerance at the end")
    initial_tolerance_factor: float = number(10.0, "its factor at first", low=1)
    validation_groups: int = number(32, "groups of rows for validation", low=1)
    validation_rows: int = number(1000, "rows for validation of the joint at most", low=1)

    def tolerances(self, done: float) -> dict[str, float]:
        """Return the solver's tolerances, which fall geometrically."""
        value = self.tolerance * self.initial_tolerance_factor ** (1 - min(1.0, done))
        return {"rtol": value, "atol": value}

    @property
    def splits(self) -> int:
        """The number of groups that are asked for everything, and again in two parts."""
        return min(round(self.joint * self.groups), self.groups // 3)


document_numbers(ValuesRecipe)


class Questions(NamedTuple):
    """Numbers of rows (groups · rows,), one group after the other, and masks (groups, columns)."""

    rows: Tensor
    given: Tensor
    asked: Tensor
    hides: Tensor  # whether a code is unknown, (groups · rows, coordinates)

    def of(self, pool: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return z of the rows of a pool, the masks, and the codes, −1 where unknown."""
        codes = None if pool.context is None else pool.context[self.rows].long()
        given = None if codes is None else codes.masked_fill(self.hides, -1)
        return pool.x[self.rows], self.given, self.asked, given

    def part(self, groups: slice) -> Questions:
        """Return some of the groups."""
        rows, hides = (
            each.unflatten(0, (len(self.given), -1))[groups].flatten(0, 1)
            for each in (self.rows, self.hides)
        )
        return Questions(rows, self.given[groups], self.asked[groups], hides)


def fit_values(
    flow: MaskedFlow,
    z: Tensor,
    *,
    validation: Tensor,
    codes: Tensor | None = None,
    validation_codes: Tensor | None = None,
    weight: Tensor | None = None,
    validation_weight: Tensor | None = None,
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    state: str | Path | None = None,
    state_seconds: float = 30.0,
    threads: Threads = "auto",
    recipe: ValuesRecipe | None = None,
) -> History:
    """Train a flow of values and leave it with its best averaged weights on validation.

    The base becomes a mixture chosen by held-out likelihood, then the field, zero at first, is
    trained by the likelihood of random questions: groups of rows that share masks. Some rows are
    asked for whole and again in two parts, and how far both are apart is penalised. The mixture
    alone is step 0, which stays where nothing validates better.

    Args:
        flow: The flow, changed in place.
        z: Rows (n, dim) to train on; NaN in gaps.
        validation: Rows (m, dim) for validation.
        codes: Codes (n, J) of other columns, −1 where unknown, of a flow that is given codes.
        validation_codes: Codes of the rows for validation, (m, J).
        weight: Weights of the rows, at least 0, shape (n,), of which only the ratios matter; equal
            when None.
        validation_weight: Weights of the rows for validation, shape (m,).
        budget: Seconds in all, 60 where neither it nor steps is given; at most a half are for the
            mixture.
        steps: Number of steps; with a budget too, whichever is reached first ends the run.
        seed: Seed of the order of the rows and of training's random numbers.
        callbacks: Called after every step.
        state: A file for the run's state, from which it resumes, bit for bit.
        state_seconds: Seconds between two states.
        threads: The number of PyTorch's threads, chosen as in `cnf.fit`.
        recipe: The numbers of training.

    Returns:
        The run's history, whose validation NLL is in nats per row: the mean of the joint one and of
        random questions' NLL per asked cell, times the mean number of cells of a row.

    Raises:
        ValueError: The rows do not fit the flow, a number is out of range, or the state belongs to
            another run.
        TrainingError: Too many steps failed in a row, or no validation could be scored.

    Example:
        >>> flow = MaskedFlow(NormalMixture(1, 2), hidden=(8, 8))
        >>> z = torch.randn(300, 2)
        >>> history = fit_values(flow, z[:200], validation=z[200:], steps=5)
        >>> history.steps, history.reason
        (5, 'steps')
    """
    length, begin = TrainingBudget.of(budget, steps), perf_counter()
    threads, recipe = check_threads(threads), recipe or ValuesRecipe()
    train = _rows(flow, z, codes, weight)
    held_out = _rows(flow, validation, validation_codes, validation_weight)
    checkpointer, found = None, None
    if state is not None:
        identity = run_identity(
            asdict(recipe),
            length,
            seed,
            train.x.device,
            train.fingerprint(),
            held_out.fingerprint(),
            flow={name: value for name, value in flow.config().items() if name != "base"},
        )
        checkpointer = Checkpointer(Path(state), state_seconds, identity)
        found = checkpointer.read()
    if found is None:
        flow.base = _chosen_base(flow.base.sizes, train, held_out, length, seed).to(flow.device)
        (spent,) = mean([perf_counter() - begin], train.x)
    else:
        components, dim = found.tensors["flow.base.means"].shape
        flow.base = NormalMixture(components, dim, flow.base.sizes).to(flow.device)
        spent = found.tensors["spent"].item()
    flow.begin()
    run = ValuesRun(
        flow,
        recipe,
        length.without(spent),
        BatchSampler(train, torch.Generator().manual_seed(seed)),
        held_out,
        seed,
        spent,
        checkpointer,
        threads,
    )
    run.run(callbacks, seed)
    flow.load_state_dict(run.finish())
    return History.of(run.progress)


def _chosen_base(
    sizes: Sequence[int], train: Rows, held_out: Rows, length: TrainingBudget, seed: int
) -> NormalMixture:
    """Return the mixture of the first process."""
    codes, validation_codes = (
        None if rows.context is None else rows.context.long().cpu() for rows in (train, held_out)
    )
    base = NormalMixture.choose(
        train.x.double().cpu(),
        held_out.x.double().cpu(),
        codes,
        validation_codes,
        sizes,
        weight=None if train.weight is None else train.weight.double().cpu(),
        seconds=MIXTURE_SHARE * length.budget,
        seed=seed,
    )
    first: NormalMixture = gather(base)[0]
    return first


def _rows(flow: MaskedFlow, z: Tensor, codes: Tensor | None, weight: Tensor | None) -> Rows:
    """Return rows on the flow's device, without those of gaps only or of weight 0.

    The codes are their context.
    """
    wanted = None if not flow.base.sizes else (len(z), len(flow.base.sizes))
    if (None if codes is None else tuple(codes.shape)) != wanted:
        got = "none" if codes is None else str(tuple(codes.shape))
        raise ValueError(f"Expected codes of shape {wanted or 'none'}; got {got}")
    if z.ndim != 2 or z.shape[1] != flow.dim or not len(z):
        raise ValueError(
            f"Expected rows of shape (rows, {flow.dim}), at least one; got {tuple(z.shape)}"
        )
    if weight is not None:
        check_weights(weight, len(z))
    counted = ~z.isnan().all(1)
    if weight is not None:
        counted = counted & (weight > 0)
    if not counted.any():
        raise ValueError("Expected a row with a value; got gaps alone: add rows")
    given, kept = (None if each is None else each.double() for each in (codes, weight))
    rows = Rows(z.double(), given, kept)[counted]
    others = (
        None if each is None else each.to(flow.device) for each in (rows.context, rows.weight)
    )
    return Rows(rows.x.to(flow.device), *others)


def draw_questions(
    z: Tensor, groups: int, rows: int, splits: int, coordinates: int = 0
) -> Questions:
    """Draw questions to rows of a pool z (pool, columns), with NaN in gaps.

    Each group has a random row's seen columns: half of the time all, else without a random number
    of them. A random number of these are given, and the others asked. The first groups, `splits`,
    are asked for all seen columns; the next ones are the same rows, asked for a part of them, and
    those after these for the rest given that part. The rows of a group see all of its columns. Half
    of the other groups see all codes, and the rest a random part of them.

    Shapes: rows (groups · rows,), masks (groups, columns), hides (groups · rows, coordinates).
    """
    seen = ~z.isnan()
    anchors = torch.randint(len(z), (groups,)).to(z.device)
    own = seen[anchors]
    # Random ranks of the seen columns, those of gaps come last.
    order = torch.rand(own.shape).to(z.device).masked_fill(~own, inf)
    rank = order.argsort(1).argsort(1)
    uniform = torch.rand(3, groups).to(z.device)
    counts = own.sum(1)
    used = counts - ((uniform[0] < 0.5) * (uniform[1] * counts).floor()).long()
    given = rank < (uniform[2] * used).floor()[:, None]
    asked = (rank < used[:, None]) & ~given
    whole = own[:splits]
    cut = 1 + (uniform[2] * (counts - 1)).floor()[:splits, None]
    part = whole & (rank[:splits] < cut)
    nothing = torch.zeros_like(part)
    given[: 3 * splits] = torch.cat([nothing, nothing, part])
    asked[: 3 * splits] = torch.cat([whole, part, whole & ~part])
    if bool(seen.all()):
        chosen = torch.randperm(len(z)).to(z.device)
        chosen = chosen.repeat(-(-groups * rows // len(z)))[: groups * rows]
    else:
        needed = (given | asked).to(z)
        sees_all = seen.to(z) @ needed.T > needed.sum(1) - 0.5
        chosen = torch.multinomial(sees_all.T.to(z), rows, replacement=True).flatten()
    size = splits * rows
    chosen[size : 3 * size] = chosen[:size].repeat(2)
    hidden = torch.rand(groups, 1) * (torch.rand(groups, 1) < 0.5)
    hidden[: 3 * splits] = 0.0
    hides = torch.rand(groups, coordinates) < hidden
    return Questions(chosen, given, asked, hides.to(z.device).repeat_interleave(rows, 0))


class _Losses(nn.Module):
    """A module whose output is the loss, so that processes can average their gradients."""

    def __init__(self, flow: MaskedFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(
        self,
        z: Tensor,
        given: Tensor,
        asked: Tensor,
        codes: Tensor | None,
        tolerances: Mapping[str, float],
        splits: int,
        consistency: float,
        free_gap: float,
    ) -> tuple[Tensor, float, str]:
        """Return the loss, evaluations per solve, and a failure's message.

        It is the mean of −log p(a | g) / |a|, and with the weight `consistency` what the mean of
        |log p(x) − log p(x_a) − log p(x_b | x_a)| / |x| over rows of the first groups, `splits`, is
        above `free_gap`.
        """
        flow = self.flow.with_solver(**{**TRAINING_SOLVER, **tolerances})
        try:
            log_prob, pulled = flow.log_prob_of_groups(z, given, asked, codes)
        except SolveError as error:  # NaN with a gradient: no process waits for another's
            connected = torch.stack([p.sum() for p in self.parameters()]).sum()
            return nan * connected, nan, str(error)
        cells = asked.sum(1).repeat_interleave(len(z) // len(asked))
        loss = -(log_prob / cells.clamp(min=1)).mean()  # a row of one cell has no second part
        if splits and consistency:
            size = splits * (len(z) // len(asked))
            whole, part, rest = log_prob[: 3 * size].split(size)
            gap = ((whole - part - rest) / cells[:size]).abs().mean()
            loss = loss + consistency * (gap - free_gap).relu()
        return loss, float(np.mean(pulled.stats.evaluations)), ""


class ValuesRun(AveragedRun[MaskedFlow]):
    """A run of `fit_values`: its flow, the average of its weights, and its rows."""

    objective, model_name = OBJECTIVE, "flow"
    sampler: BatchSampler

    def __init__(
        self,
        flow: MaskedFlow,
        recipe: ValuesRecipe,
        budget: TrainingBudget,
        sampler: BatchSampler,
        held_out: Rows,
        seed: int,
        spent: float,
        checkpointer: Checkpointer | None,
        threads: Threads,
    ) -> None:
        self.recipe, self.spent = recipe, spent
        self.pool = recipe.groups * recipe.group_rows
        if bool(sampler.rows.x.isnan().any()):
            self.pool = max(self.pool, POOL_ROWS)
        options = (recipe, budget, sampler, checkpointer, threads)
        super().__init__(flow, _Losses(flow), *options)
        with seeded(seed, held_out.x.device):
            self._hold_out(held_out)
        begin = perf_counter()
        self.first = self.best_scores = self.validate()
        (seconds,) = mean([perf_counter() - begin], held_out.x)
        value = self._mean(self.first)
        record = Record(0, 0.0, OBJECTIVE, nan, value, 0.0, 0.0)
        self.progress.add_record(record, value, seconds)

    def _hold_out(self, rows: Rows) -> None:
        """Draw the questions of validation, the same in each process."""
        recipe = self.recipe
        self.held_out = rows[: recipe.validation_rows]
        count = max(recipe.validation_groups, -(-len(self.held_out) // recipe.group_rows))
        coordinates = len(self.model.base.sizes)
        self.questions = draw_questions(self.held_out.x, count, recipe.group_rows, 0, coordinates)
        self.cells = (~self.held_out.x.isnan()).double().sum(1)

    def loss(self, done: float) -> StepLoss:
        recipe, pool = self.recipe, self.sampler.batch(self.pool)
        numbers = (recipe.groups, recipe.group_rows, recipe.splits)
        questions = draw_questions(pool.x, *numbers, len(self.model.base.sizes))
        # The weight grows, since a field of zero is consistent: all weight at first keeps it there.
        agreement = (recipe.splits, recipe.consistency * min(1.0, done), recipe.free_gap)
        return StepLoss(*self.losses(*questions.of(pool), recipe.tolerances(done), *agreement))

    @torch.no_grad()
    def validate(self) -> Tensor:
        """Return the NLL of each held-out row, the joint's and that of questions, in nats.

        Of a row of n cells it is n / 2 times the sum of both NLLs per asked cell. All are NaN where
        a solve failed.
        """
        flow = self.averaged.with_solver(**{**TRAINING_SOLVER, **self.recipe.tolerances(1.0)})
        try:
            scores = self._joint_nll(flow) + self._questions_nll(flow)
        except SolveError:
            scores = torch.full_like(self.cells, nan)
        return 0.5 * self.cells * total(scores)

    def _joint_nll(self, flow: MaskedFlow) -> Tensor:
        """Return −log p per cell of this process's part of the held-out rows, 0 for others."""
        part = local_slice(len(self.cells))
        rows = self.held_out[part]
        seen = ~rows.x.isnan()
        asked = seen[0] if bool(seen.all()) and len(seen) else seen
        codes = None if rows.context is None else rows.context.long()
        log_prob = flow.log_prob(rows.x, torch.zeros_like(asked), asked, codes)
        scores = torch.zeros_like(self.cells)
        scores[part] = -log_prob / self.cells[part]
        return scores

    def _questions_nll(self, flow: MaskedFlow) -> Tensor:
        """Return the NLL per asked cell of this process's part of the questions, by row.

        Its mean over rows is that over questions.
        """
        part = local_slice(len(self.questions.given))
        questions = self.questions.part(part)
        scores = torch.zeros_like(self.cells)
        if len(questions.rows):
            log_prob, _ = flow.log_prob_of_groups(*questions.of(self.held_out))
            cells = questions.asked.sum(1).repeat_interleave(self.recipe.group_rows)
            scores.index_add_(0, questions.rows, -log_prob / cells)
        return scores * (len(self.cells) / len(self.questions.rows))

    def _mean(self, scores: Tensor) -> float:
        """Return the weighted mean over the held-out rows; infinite where it is not finite."""
        weight = self.held_out.weight
        found = (scores.mean() if weight is None else scores @ (weight / weight.sum())).item()
        return found if isfinite(found) else inf

    def score(self, scores: Tensor) -> float:
        return self._mean(scores)

    def shown_loss(self, mean_loss: float) -> float:
        # Of rows, as the validation's is, but with the penalty.
        return mean_loss * self._mean(self.cells)

    def record(self, scores: Tensor, seconds: float) -> tuple[Record, float]:
        record, value = super().record(scores, seconds)
        if value < self.progress.best_nll:
            self.best_scores = scores
        return record, value

    def finish(self) -> Mapping[str, Tensor]:
        """Return the best weights, where they beat the mixture alone beyond chance; else zeros."""
        best = super().finish()
        gain = self.first - self.best_scores
        mean_gain = self._mean(gain)
        error = (self._mean((gain - mean_gain).square()) / len(gain)) ** 0.5
        if mean_gain > SURE * error:
            return best
        self.progress.best_step = 0
        last = add_prefix("field.last", self.model.field.last.state_dict())
        return {name: 0 * tensor if name in last else tensor for name, tensor in best.items()}

    def tensors(self) -> dict[str, Tensor]:
        return {
            **super().tensors(),
            "first scores": self.first,
            "best scores": self.best_scores,
            "spent": torch.tensor(self.spent, dtype=torch.float64),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore(tensors)
        self.first = tensors["first scores"].to(self.first)
        self.best_scores = tensors["best scores"].to(self.first)
