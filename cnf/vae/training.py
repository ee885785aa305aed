"""The training loop of a VAE."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, nan
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from cnf.ode import SolveError
from cnf.training.checkpoint import TrainingState, generators, restore_generators
from cnf.training.loop import TrainingError, drawing
from cnf.utils.serialization import prefixed, under
from cnf.vae.model import VAE
from cnf.vae.plan import Plan

MOST_FAILURES = 20  # steps in a row without a finite gradient, after which it will not come right
VALIDATION_SAMPLES = 4


@dataclass(frozen=True)
class Record:
    """An epoch.

    Attributes:
        epoch: From 1.
        seconds: Of training so far.
        loss: Mean over its steps of −(log p(x | z) − beta · KL), in nats per image.
        validation_elbo: The evidence lower bound of the validation images, in nats per image.
        kl: Of them, E_q [log q(z | x) − log p(z)].
        skipped: Its steps that were left out, since a solve or the gradient failed.
    """

    epoch: int
    seconds: float
    loss: float
    validation_elbo: float
    kl: float
    skipped: int


@dataclass(frozen=True)
class Step:
    """A step of training, as callbacks see it.

    Attributes:
        progress: Fraction of the run that is done, 0 to 1.
        loss: The step's loss, nan for one that was left out.
        record: Of the epoch that it ends, if it does.
        records: Of all epochs so far.
        improved: Whether it ends the best epoch so far of those that count, where the KL term has
            its full weight and the posterior is no more settling.
        vae: What is trained.
    """

    progress: float
    loss: float
    record: Record | None
    records: Sequence[Record]
    improved: bool
    vae: VAE


Callback = Callable[[Step], None]


def fit(
    vae: VAE,
    train: Tensor,
    validation: Tensor,
    plan: Plan,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    state: str | Path | None = None,
) -> list[Record]:
    """Train a VAE in place by its evidence lower bound; keep the epoch that validates best.

    Args:
        vae: What to train.
        train: Grey images from 0 to 1, shape (n, pixels), on the VAE's device; they are observed
            anew in each step.
        validation: Alike; they are observed once.
        plan: How.
        seed: Of the order, of what is observed and of the latents.
        callbacks: Called after each step.
        state: A file that the run goes on from where it is there, and that is written after each
            epoch.

    Returns:
        The epochs.

    Raises:
        ValueError: There are no images, or they are of another size or range; the state is another
            run's; or what the encoder makes of the images is not finite.
        TrainingError: Twenty steps in a row had no finite gradient, or no epoch a finite bound.

    Example:
        >>> from cnf.vae import Architecture
        >>> vae = VAE(Architecture((8, 8), 16, hidden=(16,), latent_dim=2))
        >>> [record.epoch for record in fit(vae, torch.rand(20, 64), torch.rand(5, 64), Plan(2))]
        [1, 2]
    """
    for images in (train, validation):
        _check(images, vae)
    with drawing(seed, train.device):
        run = _Run(vae, train, validation, plan, seed, None if state is None else Path(state))
        while run.epoch < plan.epochs:
            run.pass_once(callbacks)
    if run.best_elbo == -inf:
        raise TrainingError(
            "The bound of the validation images was never finite, so that no weights can be kept. "
            "Lower the learning rate"
        )
    vae.load_state_dict(run.best)
    return run.records


class _Run:
    """A run, as it stands between two epochs."""

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
        self.records: list[Record] = []
        self.best = _copy(vae.state_dict())
        self.best_elbo, self.failures, self.seconds = -inf, 0, 0.0
        if state is not None and state.exists():
            self._restore(TrainingState.read(state), state)

    @property
    def epoch(self) -> int:
        """How many are done."""
        return len(self.records)

    def pass_once(self, callbacks: Sequence[Callback]) -> None:
        """Train on all images once, and validate."""
        began = perf_counter() - self.seconds
        order = torch.randperm(len(self.train), device=self.train.device)
        batches = order.split(self.plan.batch_size)
        losses = []
        for i, batch in enumerate(batches):
            progress = (self.epoch + i / len(batches)) / self.plan.epochs
            losses.append(self._step(self.vae.likelihood.observe(self.train[batch]), progress))
            if i + 1 < len(batches):
                done = (self.epoch + (i + 1) / len(batches)) / self.plan.epochs
                self._tell(callbacks, done, losses[-1])
        taken = [loss for loss in losses if isfinite(loss)]
        progress = (self.epoch + 1) / self.plan.epochs
        elbo, kl = self._validate(self.plan.is_settling(progress))
        self.seconds = perf_counter() - began
        self.records.append(
            Record(
                self.epoch + 1,
                self.seconds,
                sum(taken) / len(taken) if taken else nan,
                elbo,
                kl,
                len(losses) - len(taken),
            )
        )
        improved = self.plan.counts(progress) and elbo > self.best_elbo
        if improved:
            self.best_elbo, self.best = elbo, _copy(self.vae.state_dict())
        self._write()
        self._tell(callbacks, progress, losses[-1], improved, self.records[-1])

    def _step(self, x: Tensor, progress: float) -> float:
        """One optimizer step: its loss, nan where it was left out."""
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
        value, length = torch.stack([loss.detach(), norm]).tolist()
        if not (isfinite(value) and isfinite(length)):
            return self._fail(f"the loss is {value} and the norm of its gradient {length}")
        self.optimizer.step()
        self.failures = 0
        return float(value)

    def _fail(self, why: str) -> float:
        self.failures += 1
        if self.failures >= MOST_FAILURES:
            raise TrainingError(
                f"{MOST_FAILURES} steps in a row failed, the last one since {why}. Lower the "
                "learning rate"
            )
        return nan

    @torch.no_grad()
    def _validate(self, settling: bool) -> tuple[float, float]:
        """The bound of the validation images and its KL term, always with the same noise."""
        with drawing(0, self.train.device):
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

    def _tell(
        self,
        callbacks: Sequence[Callback],
        progress: float,
        loss: float,
        improved: bool = False,
        record: Record | None = None,
    ) -> None:
        for callback in callbacks:
            callback(Step(progress, loss, record, self.records, improved, self.vae))

    def _identity(self) -> dict[str, Any]:
        """What makes it the run that it is, as JSON gives it back."""
        own = asdict(self.vae.architecture)
        lists = {
            name: list(each) if isinstance(each, tuple) else each for name, each in own.items()
        }
        return {
            **lists,
            **asdict(self.plan),
            "seed": self.seed,
            "kind of device": self.train.device.type,
            "images": self.digest,
        }

    def _write(self) -> None:
        """Write the state; a disk that is full ends no run."""
        if self.state is None:
            return
        slots = {
            f"optimizer.{i}.{name}": tensor
            for i, entries in self.optimizer.state_dict()["state"].items()
            for name, tensor in entries.items()
        }
        tensors = {
            **prefixed("vae", self.vae.state_dict()),
            **prefixed("best", self.best),
            **prefixed("generators", generators(self.train.device)),
            "validation": self.validation,
            **slots,
        }
        standing = {
            "records": [asdict(record) for record in self.records],
            "best_elbo": self.best_elbo,
            "failures": self.failures,
        }
        try:
            TrainingState(self._identity(), standing, tensors).write(self.state)
        except OSError as error:
            warnings.warn(
                f"The training state could not be written to {self.state} ({error.strerror}). "
                "Training goes on; the state written before stays",
                stacklevel=2,
            )

    def _restore(self, found: TrainingState, path: Path) -> None:
        """Be what a state tells of."""
        found.check(path, self._identity())
        self.records = [Record(**record) for record in found.standing["records"]]
        self.best_elbo = found.standing["best_elbo"]
        self.failures = found.standing["failures"]
        self.seconds = self.records[-1].seconds
        self.vae.load_state_dict(under("vae", found.tensors))
        self.best = under("best", found.tensors)
        self.validation = found.tensors["validation"].to(self.validation)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimizer", found.tensors).items():
            index, slot = name.split(".")
            entries.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        restore_generators(under("generators", found.tensors), self.train.device)


def _check(images: Tensor, vae: VAE) -> None:
    """Hold that images are what a VAE can be trained on."""
    height, width = vae.architecture.size
    wanted = f"grey images from 0 to 1 of shape (n, {height * width}), n at least 1"
    if images.ndim != 2 or not len(images) or images.shape[1] != height * width:
        raise ValueError(f"Expected {wanted}; got shape {tuple(images.shape)}")
    low, high = torch.stack([images.min(), images.max()]).tolist()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"Expected {wanted}; got {low} to {high}. Divide by the value of white")


def _sha256(*images: Tensor) -> str:
    """By which images are known again."""
    digest = hashlib.sha256()
    for each in images:
        digest.update(f"{tuple(each.shape)}".encode())
        digest.update(each.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
