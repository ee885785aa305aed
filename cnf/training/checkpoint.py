"""Training states on disk: one safetensors file for each run, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cnf.training.progress import TrainingProgress
from cnf.training.recipes import current_names
from cnf.utils.distributed import gather, rank
from cnf.utils.serialization import strip_prefix, write_atomic

FORMAT = "cnf-flows training state 1"
PROGRESS = "standing"  # the metadata entry that holds the progress


@dataclass(frozen=True)
class TrainingState:
    """The complete state of a run, from which it resumes as if it had never stopped.

    Attributes:
        run: The run's identity: recipe, seed, data and the like, none of which may change.
        progress: The run's counters and records, ready for JSON.
        tensors: Weights, averages, and the states of the optimizer and the random generators.
    """

    run: Mapping[str, Any]
    progress: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Replace the file at `path` atomically.

        Raises:
            OSError: The file cannot be written; a file that was there before stays.
        """
        # Copies: safetensors takes no tensors that share memory or lie in another order.
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.tensors.items()
        }
        texts = {"format": FORMAT, "run": self.run, PROGRESS: self.progress}
        metadata = {name: json.dumps(text) for name, text in texts.items()}
        metadata["sha256"] = json.dumps(_sha256(metadata, tensors))
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
            if texts.get("sha256") != _sha256(metadata, tensors):
                raise ValueError("a damaged file, whose SHA-256 does not match its content")
            return TrainingState(current_names(texts["run"]), texts[PROGRESS], tensors)
        except (safetensors.SafetensorError, OSError, RecursionError, ValueError) as error:
            raise ValueError(
                f"Expected a training state of this version of cnf-flows in {path}; got: {error}. "
                "Start a new run in another folder"
            ) from None

    def check(self, path: Path, run: Mapping[str, Any]) -> None:
        """Check that the state belongs to a run.

        Raises:
            ValueError: It belongs to another run; the message names the first difference.
        """
        for name, wanted in run.items():
            if self.run.get(name) != wanted:
                raise ValueError(
                    f"Expected the run that was begun in {path.parent}; its {name} was "
                    f"{self.run.get(name)!r}, and now is {wanted!r}. Resume with what it was begun "
                    "with, or start a new run in another folder"
                )


def _sha256(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of metadata and tensors, but for the entry that holds it."""
    digest = hashlib.sha256()
    for name in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{name} {metadata[name]}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Checkpointer:
    """A file that a run's state is written to at intervals, and resumed from.

    Attributes:
        path: The file.
        seconds: Seconds between two states.
        run: The run's identity.
        written: When the last state was written, in the run's seconds.
    """

    path: Path
    seconds: float
    run: Mapping[str, Any]
    written: float = -inf

    def read(self) -> TrainingState | None:
        """Return the state to resume from, None where there is no file.

        Raises:
            ValueError: The file is not a state, or belongs to another run.
        """
        if not self.path.exists():
            return None
        found = TrainingState.read(self.path)
        found.check(self.path, self.run)
        self.written = found.progress["seconds"]
        return found

    def is_due(self, seconds: float) -> bool:
        """Return whether the next state is to be written."""
        return seconds - self.written >= self.seconds

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
