"""Where a training run stands, on disk: one safetensors file, replaced whole."""

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
from cnf.utils.distributed import gather, rank
from cnf.utils.serialization import under, write_whole

FORMAT = "cnf-flows training state 1"


@dataclass(frozen=True)
class TrainingState:
    """What a run needs to go on as if it had never stopped.

    Attributes:
        run: What run it is: to go on with another one is a mistake.
        standing: Its counters and records, ready for JSON.
        tensors: Weights, averages, the optimizer's and the generators'.
    """

    run: Mapping[str, Any]
    standing: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Replace the file at `path`, whole or not at all.

        Raises:
            OSError: It cannot be written; what was there before stays.
        """
        # Copies: safetensors takes no tensors that share memory or lie in another order.
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.tensors.items()
        }
        texts = {"format": FORMAT, "run": self.run, "standing": self.standing}
        metadata = {name: json.dumps(text) for name, text in texts.items()}
        metadata["sha256"] = json.dumps(_sha256(metadata, tensors))
        write_whole({path: safetensors.torch.save(tensors, metadata)})

    @staticmethod
    def read(path: Path) -> TrainingState:
        """What `write` wrote.

        Raises:
            ValueError: The file is not one that `write` wrote.
        """
        try:
            if not path.is_file():
                raise ValueError("something that is no file")
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = {name: json.loads(text) for name, text in metadata.items()}
            if texts.get("format") != FORMAT:
                raise ValueError(f"the format {texts.get('format')!r}")
            if texts.get("sha256") != _sha256(metadata, tensors):
                raise ValueError("one that is damaged, for its SHA-256 is another")
            return TrainingState(texts["run"], texts["standing"], tensors)
        except (safetensors.SafetensorError, OSError, RecursionError, ValueError) as error:
            raise ValueError(
                f"Expected a training state of this version of cnf-flows in {path}; got: {error}. "
                "Train anew in another folder"
            ) from None

    def check(self, path: Path, run: Mapping[str, Any]) -> None:
        """Make sure that it is of this very run.

        Raises:
            ValueError: It is of another; the message names the first difference.
        """
        for name, wanted in run.items():
            if self.run.get(name) != wanted:
                raise ValueError(
                    f"Expected the run that was begun in {path.parent}; its {name} was "
                    f"{self.run.get(name)!r}, and now is {wanted!r}. Go on with what it was begun "
                    "with, or train anew in another folder"
                )


def _sha256(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of all that a file holds but this itself."""
    digest = hashlib.sha256()
    for name in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{name} {metadata[name]}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Checkpointer:
    """Writes a run's state to a file every now and then, and reads it.

    Attributes:
        path: The file.
        seconds: Between two states.
        run: What makes the run the run that it is.
        written: When the last one was written, in the run's seconds.
    """

    path: Path
    seconds: float
    run: Mapping[str, Any]
    written: float = -inf

    def read(self) -> TrainingState | None:
        """The state to go on from, if there is one.

        Raises:
            ValueError: The file is not a state, or of another run.
        """
        if not self.path.exists():
            return None
        found = TrainingState.read(self.path)
        found.check(self.path, self.run)
        self.written = found.standing["seconds"]
        return found

    def is_due(self, seconds: float) -> bool:
        """Whether the next state's time has come."""
        return seconds - self.written >= self.seconds

    def write(self, standing: TrainingProgress, tensors: Mapping[str, Tensor]) -> None:
        """Write the state, the first process alone; a disk that is full ends no run."""
        self.written = standing.seconds
        if rank() > 0:
            return
        try:
            TrainingState(self.run, asdict(standing), tensors).write(self.path)
        except OSError as error:
            warnings.warn(
                f"The training state could not be written to {self.path} ({error.strerror}). "
                "Training goes on; the state written before stays",
                stacklevel=2,
            )


def generators(device: torch.device) -> dict[str, Tensor]:
    """Where PyTorch's generators stand in every process, by the process and the device's type."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    processes = enumerate(gather(own))
    return {f"{i}.{name}": state for i, states in processes for name, state in states.items()}


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Have this process's generators stand there again."""
    own = under(str(rank()), states)
    torch.set_rng_state(own["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], device)
