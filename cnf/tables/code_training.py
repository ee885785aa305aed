"""Training of a network of codes: by any order, and by the order that it is sampled in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from cnf.tables.code_network import CodeNetwork
from cnf.training.averaged_recipe import AveragedRecipe
from cnf.training.averaged_run import AveragedRun
from cnf.training.checkpoint import Checkpointer, run_identity
from cnf.training.data import BatchSampler, Rows
from cnf.training.history import History, StepEvent
from cnf.training.numbers import document_numbers, number
from cnf.training.optimizer import StepLoss
from cnf.training.progress import TrainingBudget
from cnf.utils.distributed import local_slice, mean, world_size
from cnf.utils.threads import Threads, check_threads, number_of_threads

OBJECTIVE = "code likelihood"
CALIBRATIONS = 2  # rounds, after which shares of Magic are within 0.004
CALIBRATION_SHARE = 0.1  # of the budget


@dataclass(frozen=True)
class CodeRecipe(AveragedRecipe):
    """The numbers of training a network of codes."""

    learning_rate: float = number(2e-3, "peak learning rate")
    final_rate: float = number(0.02, "last learning rate over the peak", low=0)
    warmup: float = number(0.01, "fraction of the run that warms up", high=1)
    weight_decay: float = number(1e-3, "decoupled weight decay", low=0)
    max_grad_norm: float = number(5.0, "norm that gradients are clipped to")
    momentum: float = number(0.9, "AdamW's decay of the mean gradient", low=0, high=1)
    square_decay: float = number(0.99, "AdamW's decay of the mean square", low=0, high=1)
    batch_size: int = number(256, "rows for each step, of each process")
    canonical: float = number(0.5, "share of rows in the order of the coordinates", low=0, high=1)
    next_share: float = number(0.7, "share of the next coordinate in those rows' loss", low=0)
    ema_steps: int = number(5, "steps between two averages", low=1)
    validation_rows: int = number(2000, "rows for validation at most", low=1)


document_numbers(CodeRecipe)

# For questions about parts of rows. On Adult, 900 steps of any order have an NLL of 1.754 nats an
# asked cell over random questions (1.767 with half of the rows in the columns' order), and a
# consistency gap of 0.027 nats a column (0.036), for 0.002 more nats a column of whole rows.
QUESTIONS = CodeRecipe(canonical=0.0)


Callback = Callable[[StepEvent], None]


def dropout_for(rows: int) -> float:
    """Return the dropout of a network that is trained on so many rows.

    Example:
        >>> dropout_for(1000), dropout_for(10_000), dropout_for(30_000)
        (0.4, 0.3, 0.2)
    """
    return 0.2 if rows >= 20_000 else 0.3 if rows >= 5_000 else 0.4


def fit_codes(
    network: CodeNetwork,
    codes: Tensor,
    *,
    validation: Tensor,
    weight: Tensor | None = None,
    validation_weight: Tensor | None = None,
    within_nll: float = 0.0,
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    state: str | Path | None = None,
    state_seconds: float = 30.0,
    threads: Threads = "auto",
    recipe: CodeRecipe | None = None,
    whole: Mapping[str, Any] | None = None,
) -> History:
    """Train a network of codes and leave it with its best averaged weights on validation.

    A network that has not been started begins with the log-marginals of the codes. Validation is
    the exact negative log-likelihood in the order of the coordinates.

    Args:
        network: The network, changed in place.
        codes: Rows of codes (n, K) to train on, −1 for gaps: these are always hidden and have no
            loss, so that the likelihood is that of the other codes.
        validation: Rows of codes (m, K) for validation.
        weight: Weights of the rows, at least 0, shape (n,), of which only the ratios matter; equal
            when None.
        validation_weight: Weights of the rows for validation, shape (m,).
        within_nll: Nats that are added to the validation NLL and to the records' loss: the mean
            −log p(x | d) of what the codes leave.
        budget: Seconds in all, 60 where neither it nor steps is given; a tenth are for calibration.
        steps: Number of steps; with a budget too, whichever is reached first ends the run.
        seed: Seed of the order of the rows and of training's random numbers.
        callbacks: Called after every step.
        state: A file for the run's state, from which it resumes, bit for bit.
        state_seconds: Seconds between two states.
        threads: The number of PyTorch's threads, chosen as in `cnf.fit`.
        recipe: The numbers of training.
        whole: What the state keeps of a run that this one is a part of, ready for JSON.

    Returns:
        The run's history, whose validation NLL is in nats per row.

    Raises:
        ValueError: The codes do not fit the network, a number is out of range, or the state
            belongs to another run.
        TrainingError: Too many steps failed in a row, or no validation could be scored.

    Example:
        >>> network = CodeNetwork([2, 3], [2, 3], [None, None], hidden=8)
        >>> codes = torch.randint(2, (300, 2))
        >>> history = fit_codes(network, codes[:200], validation=codes[200:], steps=5)
        >>> history.steps, history.reason
        (5, 'steps')
    """
    length, begin = TrainingBudget.of(budget, steps), perf_counter()
    threads, recipe = check_threads(threads), recipe or CodeRecipe()
    train, held_out = _rows(network, codes, weight), _rows(network, validation, validation_weight)
    if not network.bias.any():
        network.start(train.x, train.weight)
    checkpointer = None
    if state is not None:
        identity = run_identity(
            asdict(recipe),
            length,
            seed,
            train.x.device,
            train.fingerprint(),
            held_out.fingerprint(),
            network=network.config(),
            **({} if whole is None else {"whole": dict(whole)}),
        )
        checkpointer = Checkpointer(Path(state), state_seconds, identity)
    generator = torch.Generator().manual_seed(seed)
    length = replace(length, budget=(1 - CALIBRATION_SHARE) * length.budget)
    (spent,) = mean([perf_counter() - begin], network.bias)
    run = CodeRun(
        network,
        recipe,
        length.without(spent),
        BatchSampler(train, generator),
        held_out[: recipe.validation_rows],
        within_nll,
        checkpointer,
        threads,
    )
    run.run(callbacks, seed)
    network.load_state_dict(run.finish())
    if run.progress.reason != "interrupted":
        rows = _calibration_rows(network, train, run.progress.step * recipe.batch_size, seed)
        with number_of_threads(run.progress.threads or torch.get_num_threads()):
            _calibrate(network, rows, held_out[: recipe.validation_rows])
    return History.of(run.progress)


def _calibration_rows(network: CodeNetwork, train: Rows, visited: int, seed: int) -> Rows:
    """Return random rows, as many as take the calibration's share of the time of training.

    A coordinate of a row takes the time of one pass, and a row in training that of three.
    """
    passes = CALIBRATIONS * (len(network.sizes) - network.given)
    share = CALIBRATION_SHARE / (1 - CALIBRATION_SHARE)
    count = min(len(train), int(3 * share * visited / passes))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train[order[:count].to(train.x.device)]


def _calibrate(network: CodeNetwork, rows: Rows, held_out: Rows) -> None:
    """Calibrate a network on training rows, unless it loses by it on the rows held out."""
    if not len(rows):
        return
    before, nll = copy.deepcopy(network.state_dict()), _mean_nll(network, held_out)
    for _ in range(CALIBRATIONS):
        network.calibrate(rows.x, rows.weight)
    if not _mean_nll(network, held_out) <= nll:
        network.load_state_dict(before)


def _mean_nll(network: CodeNetwork, rows: Rows) -> float:
    """Return the weighted mean of −log p over rows."""
    nll = -network.log_prob(rows.x).double()
    weight = torch.ones_like(nll) if rows.weight is None else rows.weight
    return float((nll * weight).sum() / weight.sum())


def _rows(network: CodeNetwork, codes: Tensor, weight: Tensor | None) -> Rows:
    """Return rows of codes on the network's device, without those of weight 0."""
    if not len(codes):
        raise ValueError("Expected at least one row of codes; got none: add rows")
    device = network.bias.device
    rows = Rows(codes.to(device), None, None if weight is None else weight.to(device))
    network.check(rows.x, gaps=True)
    if rows.weight is None:
        return rows
    check_weights(rows.weight, len(rows))
    return rows[rows.weight > 0]


def check_weights(weight: Tensor, rows: int) -> None:
    """Raise a ValueError unless weights are those of so many rows, of which some count."""
    valid = (weight >= 0) & weight.isfinite()
    if weight.shape != (rows,) or not valid.all() or not (weight > 0).any():
        raise ValueError(
            f"Expected weights of shape ({rows},), finite, at least 0 and not all 0; "
            f"got others of shape {tuple(weight.shape)}"
        )


def draw_visible(rows: int, network: CodeNetwork, recipe: CodeRecipe) -> tuple[Tensor, Tensor]:
    """Draw which coordinates each row of a batch sees, and the weights of its other ones.

    Rows see k of the A coordinates that are not given, k spread evenly from 0 to A − 1: the first
    ones in the first rows, of the recipe's share, and a random subset in the others. A hidden
    coordinate weighs A / (A − k), so that the expected sum is −log p(d) over random orders. In the
    first rows these weights have the rest of the share of the next coordinate, which weighs A: its
    expected sum is −log p(d) in the order of the coordinates. Coordinates that are inputs alone
    weigh nothing, and are hidden in the first rows.

    Shapes: booleans (rows, K) and weights (rows, A), on the CPU.
    """
    asked = len(network.sizes) - network.given
    prefixes = round(recipe.canonical * rows)
    order = torch.rand(rows, asked).argsort(1)
    inputs = ~network.is_asked()[network.given :].cpu()
    order[:prefixes] = (torch.arange(asked) + asked * inputs).argsort().argsort()
    most = asked - int(inputs.sum())
    counts = torch.cat([_spread(prefixes, most), _spread(rows - prefixes, asked)])[:, None]
    weights = (order >= counts) * (asked / (asked - counts))
    share = recipe.next_share
    weights[:prefixes] *= most / asked * (asked - counts[:prefixes]) / (most - counts[:prefixes])
    following = (order[:prefixes] == counts[:prefixes]) * float(most)
    weights[:prefixes] = share * following + (1 - share) * weights[:prefixes]
    weights[:, inputs] = 0.0
    given = torch.ones(rows, network.given, dtype=torch.bool)
    visible = torch.cat([given, order < counts], 1)
    for coordinate, owner in network.inputs:
        visible[:, coordinate] &= visible[:, owner]
        if coordinate != owner:  # finer codes of values, of which whole rows are asked for, too
            visible[::2, coordinate] = False
    return visible, weights


def _spread(rows: int, count: int) -> Tensor:
    """Draw whole numbers below `count`, one for each row, whose mean distribution is uniform."""
    positions = (torch.arange(rows) + torch.rand(())) * (count / max(1, rows))
    return positions.long() % count


class CodeRun(AveragedRun[CodeNetwork]):
    """A run of `fit_codes`: its network, the average of its weights, and its rows."""

    objective, model_name = OBJECTIVE, "network"
    sampler: BatchSampler

    def __init__(
        self,
        network: CodeNetwork,
        recipe: CodeRecipe,
        budget: TrainingBudget,
        sampler: BatchSampler,
        held_out: Rows,
        within_nll: float,
        checkpointer: Checkpointer | None,
        threads: Threads,
    ) -> None:
        self.recipe, self.held_out, self.within_nll = recipe, held_out, within_nll
        self.unseen = network.unseen(sampler.rows.x, sampler.rows.weight)
        options = (recipe, budget, sampler, checkpointer, threads)
        betas = (recipe.momentum, recipe.square_decay)
        super().__init__(network, network, *options, betas=betas, ema_steps=recipe.ema_steps)

    def loss(self, done: float) -> StepLoss:
        codes = self.sampler.batch(self.recipe.batch_size).x
        visible, weights = draw_visible(len(codes), self.model, self.recipe)
        costs = self.losses(codes, visible.to(codes.device), self.model.dropout, self.unseen)
        # A gap costs nothing, and so the expected sum is −log p of the others.
        return StepLoss((weights.to(costs) * costs).sum(1).mean())

    @torch.no_grad()
    def validate(self) -> float:
        """Return the weighted mean of −log p over the held-out rows."""
        part = self.held_out[local_slice(len(self.held_out))]
        total = 0.0
        if len(part):
            log_prob = self.averaged.log_prob(part.x).double()
            total -= (log_prob if part.weight is None else part.weight * log_prob).sum().item()
        (total,) = mean([total], self.like)
        weight = self.held_out.weight
        counted = len(self.held_out) if weight is None else weight.double().sum().item()
        return self.within_nll + total * world_size() / counted

    def shown_loss(self, mean_loss: float) -> float:
        return mean_loss + self.within_nll  # of whole rows, as the validation's is
