"""The training loop of a VAE."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite, nan
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from cnf.ode import SolveError
from cnf.training.checkpoint import TrainingState, generators, restore_generators
from cnf.training.loop import TrainingError
from cnf.utils.random import seeded
from cnf.utils.serialization import add_prefix, strip_prefix
from cnf.vae.model import VAE
from cnf.vae.plan import Plan

MAX_FAILED_STEPS = 20  # steps in a row without a finite gradient, after which training stops
VALIDATION_SAMPLES = 4
RENAMED_PLAN_FIELDS = {"clip": "max_grad_norm"}  # old names, in states of earlier versions


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
    """

    epoch: int
    seconds: float
    loss: float
    validation_elbo: float
    kl: float
    skipped: int


@dataclass(frozen=True)
class VAEStep:
    """A training step, as passed to callbacks.

    Attributes:
        progress: Completed fraction of the run, 0 to 1.
        loss: Loss of the step, nan if it was skipped.
        record: Record of the epoch that the step completes, if any.
        records: Records of all epochs so far.
        improved: Whether the step completes the best epoch so far of those whose weights may be
            selected.
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
) -> list[EpochRecord]:
    """Train a VAE in place by its evidence lower bound; keep the weights that validate best.

    Args:
        vae: VAE to train.
        train: Grey images from 0 to 1, shape (n, pixels), on the VAE's device; they are observed
            anew in each step.
        validation: Grey images from 0 to 1, shape (m, pixels); they are observed once.
        plan: Hyperparameters.
        seed: Seed of batches, observations and latents.
        callbacks: Functions that are called after each step.
        state: File that the training state is written to after each epoch; if it exists, the run
            is resumed from it.

    Returns:
        A record of each epoch.

    Raises:
        ValueError: There are no images, or they are of another size or range; the state belongs to
            another run; or the encoder's outputs are not finite.
        TrainingError: Twenty steps in a row had no finite gradient, or no epoch a finite bound.

    Example:
        >>> from cnf.vae import Architecture
        >>> vae = VAE(Architecture((8, 8), 16, hidden=(16,), latent_dim=2))
        >>> [record.epoch for record in fit(vae, torch.rand(20, 64), torch.rand(5, 64), Plan(2))]
        [1, 2]
    """
    for images in (train, validation):
        _check(images, vae)
    with seeded(seed, train.device):
        run = _VAERun(vae, train, validation, plan, seed, None if state is None else Path(state))
        while run.epoch < plan.epochs:
            run.pass_once(callbacks)
    if run.best_elbo == -inf:
        raise TrainingError(
            "The bound of the validation images was never finite, so no weights can be selected. "
            "Lower the learning rate"
        )
    vae.load_state_dict(run.best)
    return run.records


class _VAERun:
    """A training run between two epochs."""

    def __init__(
        self,
        vae: VAE,
        train: Tensor,
        validation: Tensor,
        plan: Plan,
        seed: int,
        state: Path | None,
    ) -> None:
        self.vae, self.train, self.plan, self.seed, self.state = vae, train, plan, seed, state
        self.digest = _sha256(train, validation)
        self.validation = vae.likelihood.observe(validation)
        self.parameters = list(vae.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=0.0, weight_decay=plan.weight_decay, fused=True
        )
        self.records: list[EpochRecord] = []
        self.best = _copy(vae.state_dict())
        self.best_elbo, self.failures, self.seconds = -inf, 0, 0.0
        if state is not None and state.exists():
            self._restore(TrainingState.read(state), state)

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return len(self.records)

    def pass_once(self, callbacks: Sequence[Callback]) -> None:
        """Train on all images once, validate, and save the state."""
        began = perf_counter() - self.seconds
        order = torch.randperm(len(self.train), device=self.train.device)
        batches = order.split(self.plan.batch_size)
        losses = []
        for i, batch in enumerate(batches):
            progress = (self.epoch + i / len(batches)) / self.plan.epochs
            losses.append(self._step(self.vae.likelihood.observe(self.train[batch]), progress))
            if i + 1 < len(batches):
                done = (self.epoch + (i + 1) / len(batches)) / self.plan.epochs
                self._call(callbacks, done, losses[-1])
        finite = [loss for loss in losses if isfinite(loss)]
        progress = (self.epoch + 1) / self.plan.epochs
        elbo, kl = self._validate(self.plan.is_settling(progress))
        self.seconds = perf_counter() - began
        self.records.append(
            EpochRecord(
                self.epoch + 1,
                self.seconds,
                sum(finite) / len(finite) if finite else nan,
                elbo,
                kl,
                len(losses) - len(finite),
            )
        )
        improved = self.plan.is_selectable(progress) and elbo > self.best_elbo
        if improved:
            self.best_elbo, self.best = elbo, _copy(self.vae.state_dict())
        self._write()
        self._call(callbacks, progress, losses[-1], improved, self.records[-1])

    def _step(self, x: Tensor, progress: float) -> float:
        """Take an optimizer step; return its loss, nan if it was skipped."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(progress)
        self.optimizer.zero_grad()
        try:
            settling = self.plan.is_settling(progress)
            loss = -self.vae.bound(x, self.plan.beta(progress), settling=settling).value.mean()
            loss.backward()
        except SolveError as error:
            return self._fail(str(error))
        norm = nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm)
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if not (isfinite(loss_value) and isfinite(norm_value)):
            return self._fail(f"the loss is {loss_value} and its gradient's norm {norm_value}")
        self.optimizer.step()
        self.failures = 0
        return float(loss_value)

    def _fail(self, reason: str) -> float:
        self.failures += 1
        if self.failures >= MAX_FAILED_STEPS:
            raise TrainingError(
                f"{MAX_FAILED_STEPS} steps in a row failed, the last one because {reason}. Lower "
                "the learning rate"
            )
        return nan

    @torch.no_grad()
    def _validate(self, settling: bool) -> tuple[float, float]:
        """Return the bound of the validation images and its KL term, always with the same noise."""
        with seeded(0, self.train.device):
            try:
                parts = [
                    self.vae.bound(part, samples=VALIDATION_SAMPLES, settling=settling)
                    for part in self.validation.split(1024)
                ]
            except SolveError:
                return -inf, nan
        elbo = torch.cat([part.value for part in parts]).mean()
        kl = torch.cat([part.kl for part in parts]).mean()
        return elbo.item(), kl.item()

    def _call(
        self,
        callbacks: Sequence[Callback],
        progress: float,
        loss: float,
        improved: bool = False,
        record: EpochRecord | None = None,
    ) -> None:
        for callback in callbacks:
            callback(VAEStep(progress, loss, record, self.records, improved, self.vae))

    def _identity(self) -> dict[str, Any]:
        """Return the settings that identify the run, as they are read back from JSON."""
        architecture = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.vae.architecture).items()
        }
        return {
            **architecture,
            **asdict(self.plan),
            "seed": self.seed,
            "kind of device": self.train.device.type,
            "images": self.digest,
        }

    def _write(self) -> None:
        """Write the state; warn where that fails, as on a full disk."""
        if self.state is None:
            return
        slots = {
            f"optimizer.{i}.{name}": tensor
            for i, entries in self.optimizer.state_dict()["state"].items()
            for name, tensor in entries.items()
        }
        tensors = {
            **add_prefix("vae", self.vae.state_dict()),
            **add_prefix("best", self.best),
            **add_prefix("generators", generators(self.train.device)),
            "validation": self.validation,
            **slots,
        }
        progress = {
            "records": [asdict(record) for record in self.records],
            "best_elbo": self.best_elbo,
            "failures": self.failures,
        }
        try:
            TrainingState(self._identity(), progress, tensors).write(self.state)
        except OSError as error:
            warnings.warn(
                f"The training state could not be written to {self.state} ({error.strerror}). "
                "Training continues; the previous state is kept",
                stacklevel=2,
            )

    def _restore(self, found: TrainingState, path: Path) -> None:
        """Restore the run from a state of the same run."""
        run = {RENAMED_PLAN_FIELDS.get(name, name): value for name, value in found.run.items()}
        replace(found, run=run).check(path, self._identity())
        self.records = [EpochRecord(**record) for record in found.progress["records"]]
        self.best_elbo = found.progress["best_elbo"]
        self.failures = found.progress["failures"]
        self.seconds = self.records[-1].seconds
        self.vae.load_state_dict(strip_prefix("vae", found.tensors))
        self.best = strip_prefix("best", found.tensors)
        self.validation = found.tensors["validation"].to(self.validation)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in strip_prefix("optimizer", found.tensors).items():
            index, slot = name.split(".")
            entries.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        restore_generators(strip_prefix("generators", found.tensors), self.train.device)


def _check(images: Tensor, vae: VAE) -> None:
    """Raise a ValueError unless the VAE can be trained on these images."""
    height, width = vae.architecture.size
    expected = f"grey images from 0 to 1 of shape (n, {height * width}), n at least 1"
    if images.ndim != 2 or not len(images) or images.shape[1] != height * width:
        raise ValueError(f"Expected {expected}; got shape {tuple(images.shape)}: reshape")
    low, high = torch.stack([images.min(), images.max()]).tolist()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"Expected {expected}; got {low} to {high}. Divide by the value of white")


def _sha256(*images: Tensor) -> str:
    """Return a digest that identifies images."""
    digest = hashlib.sha256()
    for part in images:
        digest.update(f"{tuple(part.shape)}".encode())
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
