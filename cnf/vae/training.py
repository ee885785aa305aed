"""The training loop of a VAE."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, nan
from pathlib import Path

import torch
from torch import Tensor

from cnf.ode import SolveError
from cnf.training.checkpoint import Checkpointer, TrainingState, sha256
from cnf.training.optimizer import Optimizer, OptimizerStep, StepLoss
from cnf.training.progress import TrainingBudget, TrainingProgress
from cnf.training.run import Run
from cnf.utils.random import seeded
from cnf.utils.serialization import add_prefix, strip_prefix
from cnf.utils.threads import Threads, check_threads
from cnf.vae.model import VAE
from cnf.vae.plan import Plan

VALIDATION_SAMPLES = 4


@dataclass(frozen=True)
class EpochRecord:
    """A record of one epoch.

    Attributes:
        epoch: Number of the epoch, from 1.
        seconds: Seconds of training so far.
        loss: Mean over the steps of −(log p(x | z) − beta · KL), in nats per image.
        validation_elbo: Evidence lower bound of the validation images, in nats per image.
        kl: E_q [log q(z | x) − log p(z)] of the validation images.
        skipped: Steps that were skipped, since a solve or the gradient failed.
        threads: PyTorch's threads at that time; 0 where an earlier version did not say.
    """

    epoch: int
    seconds: float
    loss: float
    validation_elbo: float
    kl: float
    skipped: int
    threads: int = 0


@dataclass(frozen=True)
class VAEStep:
    """A training step, as passed to callbacks.

    Attributes:
        progress: Completed fraction of the run, 0 to 1.
        loss: Loss of the step, nan if it was skipped.
        record: Record of the epoch that the step completes, if any.
        records: Records of all epochs so far.
        improved: Whether the step completes the best epoch so far whose weights may be selected.
        vae: VAE in training.
    """

    progress: float
    loss: float
    record: EpochRecord | None
    records: Sequence[EpochRecord]
    improved: bool
    vae: VAE


Callback = Callable[[VAEStep], None]


def fit(
    vae: VAE,
    train: Tensor,
    validation: Tensor,
    plan: Plan,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    state: str | Path | None = None,
    threads: Threads = "auto",
) -> list[EpochRecord]:
    """Train a VAE in place by its evidence lower bound; keep the weights that validate best.

    Args:
        vae: VAE to train.
        train: Grey images from 0 to 1, shape (n, pixels), on the VAE's device, observed anew in
            each step.
        validation: Grey images from 0 to 1, shape (m, pixels), observed once.
        plan: Hyperparameters.
        seed: Seed of batches, observations and latents.
        callbacks: Functions that are called after each step.
        state: File that the training state is written to after each epoch; if it exists, the run
            is resumed from it.
        threads: Number of PyTorch's threads, chosen as in `cnf.fit`.

    Returns:
        A record of each epoch.

    Raises:
        ValueError: There are no images, or they are of another size or range; the state belongs to
            another run; or the encoder's outputs are not finite.
        TrainingError: No epoch whose weights may be selected had a finite bound.

    Example:
        >>> from cnf.vae import Architecture
        >>> vae = VAE(Architecture((8, 8), 16, hidden=(16,), latent_dim=2))
        >>> [record.epoch for record in fit(vae, torch.rand(20, 64), torch.rand(5, 64), Plan(2))]
        [1, 2]
    """
    threads = check_threads(threads)
    for images in (train, validation):
        _check(images, vae)
    with seeded(seed, train.device):
        path = None if state is None else Path(state)
        run = _VAERun(vae, train, validation, plan, seed, path, threads)
        run.resume()
        run.loop(callbacks)
    vae.load_state_dict(run.finish())
    if run.progress.reason != "steps":
        warnings.warn(f"Training ended early: {run.progress.reason}", stacklevel=2)
    return run.progress.records


class _VAERun(Run[EpochRecord, VAEStep]):
    """A run of a VAE, which validates after each epoch."""

    record_type = EpochRecord
    checkpoints_records = True

    def __init__(
        self,
        vae: VAE,
        train: Tensor,
        validation: Tensor,
        plan: Plan,
        seed: int,
        state: Path | None,
        threads: Threads,
    ) -> None:
        self.vae, self.train, self.plan = vae, train, plan
        self.validation = vae.likelihood.observe(validation)
        parameters = list(vae.parameters())
        self.optimizer = Optimizer(parameters, plan.weight_decay, plan.max_grad_norm)
        self.batches: list[Tensor] = []  # those that are left of the epoch
        self.epoch_steps = -(-len(train) // plan.batch_size)
        checkpointer = None
        if state is not None:
            images = sha256(
                str(tuple(train.shape)), train, str(tuple(validation.shape)), validation
            )
            run = {"seed": seed, "kind of device": train.device.type, "images": images}
            identity = {**asdict(vae.architecture), **asdict(plan), **run}
            checkpointer = Checkpointer(state, inf, json.loads(json.dumps(identity)))
        length = TrainingBudget.of(None, plan.epochs * self.epoch_steps)
        super().__init__(length, plan.epochs, (1.0,), inf, train, checkpointer, threads)

    def step(self, done: float, steps: float) -> tuple[OptimizerStep, float]:
        if not self.batches:
            order = torch.randperm(len(self.train), device=self.train.device)
            self.batches = [*order.split(self.plan.batch_size)]
        x = self.vae.likelihood.observe(self.train[self.batches.pop(0)])
        beta, rate, settling = (
            self.plan.beta(done),
            self.plan.rate(done),
            self.plan.is_settling(done),
        )

        def loss() -> StepLoss:
            return StepLoss(-self.vae.bound(x, beta, settling=settling).value.mean())

        return self.optimizer.step(loss, rate), rate

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Return the bound of the validation images and its KL term, always with the same noise."""
        settling = self.plan.is_settling(self.done())
        with seeded(0, self.train.device):
            try:
                parts = [
                    self.vae.bound(part, samples=VALIDATION_SAMPLES, settling=settling)
                    for part in self.validation.split(1024)
                ]
            except SolveError:
                return -inf, nan
        elbo = torch.cat([part.value for part in parts]).mean()
        return elbo.item(), torch.cat([part.kl for part in parts]).mean().item()

    def record(self, scores: tuple[float, float], seconds: float) -> tuple[EpochRecord, float]:
        progress, skipped = self.progress, self.epoch_steps - self.progress.taken
        epoch = len(progress.records) + 1
        counted = (epoch, seconds, progress.mean_loss, *scores, skipped)
        record = EpochRecord(*counted, progress.threads)
        return record, -scores[0] if self.plan.is_selectable(self.done()) else inf

    def event(
        self, step: OptimizerStep, done: float, seconds: float, record: EpochRecord | None
    ) -> VAEStep:
        records, improved = self.progress.records, self.improved(record)
        return VAEStep(done, step.loss, record, records, improved, self.vae)

    def weights(self) -> Mapping[str, Tensor]:
        return self.vae.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        return {
            **add_prefix("vae", self.vae.state_dict()),
            **add_prefix("optimizer", self.optimizer.tensors()),
            "validation": self.validation,
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.vae.load_state_dict(strip_prefix("vae", tensors))
        self.optimizer.restore(strip_prefix("optimizer", tensors))
        self.validation = tensors["validation"].to(self.validation)

    def upgrade(self, found: TrainingState) -> TrainingState:
        """Return a state of version 0.1.0, which counted epochs alone, in this version's format."""
        if "best_elbo" not in found.progress:
            return found
        records, epochs = found.progress["records"], len(found.progress["records"])
        progress = TrainingProgress(
            step=epochs * self.epoch_steps,
            stage_steps=epochs * self.epoch_steps,
            seconds=records[-1]["seconds"],
            best_nll=-found.progress["best_elbo"],
            failures=found.progress["failures"],
            next_validation=(epochs + 1) / self.plan.epochs,
            reason="steps" if epochs == self.plan.epochs else "",
        )
        random = add_prefix("random", strip_prefix("generators", found.tensors))
        counters, tensors = {**asdict(progress), "records": records}, {**found.tensors, **random}
        return replace(found, progress=counters, tensors=tensors)


def _check(images: Tensor, vae: VAE) -> None:
    height, width = vae.architecture.size
    expected = f"grey images from 0 to 1 of shape (n, {height * width}), n at least 1"
    if images.ndim != 2 or not len(images) or images.shape[1] != height * width:
        raise ValueError(f"Expected {expected}; got shape {tuple(images.shape)}: reshape")
    low, high = torch.stack([images.min(), images.max()]).tolist()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"Expected {expected}; got {low} to {high}. Divide by the value of white")
