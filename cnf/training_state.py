"""Where a training run stands, on disk: one safetensors file, replaced whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cnf.files import write_whole

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
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = {name: json.loads(text) for name, text in metadata.items()}
            if texts.get("format") != FORMAT:
                raise ValueError(f"the format {texts.get('format')!r}")
            if texts.get("sha256") != _sha256(metadata, tensors):
                raise ValueError("one that is damaged, for its SHA-256 is another")
            return TrainingState(texts["run"], texts["standing"], tensors)
        except (safetensors.SafetensorError, ValueError) as error:
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


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under names that begin with a prefix.

    Example:
        >>> import torch
        >>> prefixed("flow", {"weight": torch.zeros(1)})
        {'flow.weight': tensor([0.])}
    """
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors whose names begin with a prefix, without it."""
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
