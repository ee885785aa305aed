"""Training states on disk: one safetensors file for each run, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cnf.storage import independent_copies
from cnf.training.progress import TrainingBudget, TrainingProgress
from cnf.training.recipes import current_names
from cnf.utils.distributed import gather, rank, world_size
from cnf.utils.serialization import strip_prefix, write_atomic

FORMAT = "cnf-flows training state 1"
PROGRESS = "standing"  # the metadata entry that holds the progress


@dataclass(frozen=True)
class TrainingState:
    """The complete state of a run, from which it resumes as if it had never stopped."""

    run: Mapping[str, Any]  # its identity: recipe, seed, data and the like, which may not change
    progress: Mapping[str, Any]  # its counters and records, ready for JSON
    tensors: Mapping[str, Tensor]  # weights, averages, states of optimizer and random generators

    def write(self, path: Path) -> None:
        """Replace the file at `path` atomically.

        Raises:
            OSError: The file cannot be written; a file that was there before stays.
        """
        tensors = independent_copies(self.tensors)
        texts = {"format": FORMAT, "run": self.run, PROGRESS: self.progress}
        metadata = {name: json.dumps(text) for name, text in texts.items()}
        metadata["sha256"] = json.dumps(_content_sha256(metadata, tensors))
        write_atomic({path: safetensors.torch.save(tensors, metadata)})

    @staticmethod
    def read(path: Path) -> TrainingState:
        """Read a file that `write` wrote.

        Raises:
            ValueError: The file is not one that `write` wrote.
        """
        try:
            if not path.is_file():
                raise ValueError("no regular file")
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = {name: json.loads(text) for name, text in metadata.items()}
            if texts.get("format") != FORMAT:
                raise ValueError(f"the format {texts.get('format')!r}")
            if texts.get("sha256") != _content_sha256(metadata, tensors):
                raise ValueError("a damaged file, whose SHA-256 does not match its content")
            return TrainingState(current_names(texts["run"]), texts[PROGRESS], tensors)
        except (safetensors.SafetensorError, OSError, RecursionError, ValueError) as error:
            raise ValueError(
                f"Expected a training state of this version of cnf-flows in {path}; got: {error}. "
                "Start a new run in another folder"
            ) from None


def sha256(*parts: str | Tensor) -> str:
    """Return the SHA-256 of texts and of tensors' values, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(part.numpy().tobytes())
        else:
            digest.update(part.encode())
    return digest.hexdigest()


def _content_sha256(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    texts = [f"{name} {metadata[name]}\n" for name in sorted(metadata.keys() - {"sha256"})]
    parts: list[str | Tensor] = [*texts]
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {list(tensor.shape)}\n", tensor]
    return sha256(*parts)


# Entries that others follow from, so that a message names them first.
CAUSES = ("seed", "training rows", "validation rows")


def _difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Return the name and values of the first entry that differs, within dicts too."""
    while isinstance(old, Mapping) and isinstance(new, Mapping):
        key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        name, old, new = f"{name} {key}", old.get(key), new.get(key)
    return name, old, new


@dataclass
class Checkpointer:
    """A file that a run's state is written to at intervals, and resumed from."""

    path: Path
    seconds: float  # between two states
    run: Mapping[str, Any]  # the run's identity
    defaults: Mapping[str, Any] = field(default_factory=dict)  # entries that older states lack
    written: float = -inf  # when the last state was written, in the run's seconds

    def read(self) -> TrainingState | None:
        """Return the state to resume from, None where there is no file.

        Raises:
            ValueError: The file is not a state, or belongs to another run; the message names the
                first difference.
        """
        if not self.path.exists():
            return None
        found = TrainingState.read(self.path)
        entries = {**self.defaults, **found.run}
        for name, wanted in sorted(self.run.items(), key=lambda entry: entry[0] not in CAUSES):
            if entries.get(name) != wanted:
                name, old, new = _difference(name, entries.get(name), wanted)
                raise ValueError(
                    f"Expected the run that was begun in {self.path.parent}; its {name} was "
                    f"{old!r}, and now is {new!r}. Resume with what it was begun "
                    "with, or start a new run in another folder"
                )
        self.written = found.progress.get("seconds", 0.0)
        return found

    def write(self, progress: TrainingProgress, tensors: Mapping[str, Tensor]) -> None:
        """Write the state, in the first process alone; warn where it cannot be written."""
        self.written = progress.seconds
        if rank() > 0:
            return
        try:
            TrainingState(self.run, asdict(progress), tensors).write(self.path)
        except OSError as error:
            warnings.warn(
                f"The training state could not be written to {self.path} ({error.strerror}). "
                "Training continues; the state written before stays",
                stacklevel=2,
            )


def run_identity(
    numbers: Mapping[str, Any],
    length: TrainingBudget,
    seed: int,
    device: torch.device,
    training: str,
    validation: str,
    **others: Any,
) -> dict[str, Any]:
    """Return what a run may not change when it resumes, ready for JSON.

    Args:
        numbers: The recipe's numbers by name.
        length: The length of the run.
        seed: The seed of the run.
        device: The device of the training data.
        training: The SHA-256 of the training data.
        validation: The SHA-256 of the data for validation.
        others: What else identifies the run, such as the model's configuration.
    """
    found = {
        **numbers,
        **{name: None if value == inf else value for name, value in vars(length).items()},
        **others,
        "seed": seed,
        "number of processes": world_size(),
        "kind of device": device.type,
        "training rows": training,
        "validation rows": validation,
    }
    identity: dict[str, Any] = json.loads(json.dumps(found))
    return identity


def generators(device: torch.device) -> dict[str, Tensor]:
    """Return the states of PyTorch's generators in every process, as "process.device type"."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    processes = enumerate(gather(own))
    return {f"{i}.{name}": state for i, states in processes for name, state in states.items()}


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore this process's generators."""
    own = strip_prefix(str(rank()), states)
    torch.set_rng_state(own["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], device)
