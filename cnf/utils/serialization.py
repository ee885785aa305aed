"""Atomic writes of files, and their contents: JSON values and named tensors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # programs that only read and write files need no PyTorch
    from torch import Tensor

_TEMPORARY = ".tmp"


def write_atomic(contents: Mapping[Path, bytes]) -> None:
    """Write files under temporary names, down to the disk, and then rename them.

    Each file is complete at any time, in its old or its new version, even if the process is killed.

    Args:
        contents: The content of each file.

    Raises:
        OSError: A file cannot be written; no file has changed then, unless renaming failed.
    """
    temporary = {path: path.with_name(f".{path.name}{_TEMPORARY}") for path in contents}
    try:
        for path, content in contents.items():
            with open(temporary[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def read_file(path: str | Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: It cannot be read, or is a pipe or a device, which may never end.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "It is a pipe or a device, not a file", str(path))
    return Path(path).read_bytes()


def is_temporary(path: Path) -> bool:
    """Return whether a file is a leftover of `write_atomic` in a process that was killed.

    Example:
        >>> is_temporary(Path(".config.json.tmp")), is_temporary(Path("config.json"))
        (True, False)
    """
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def json_value(value: Any) -> Any:
    """Return a value with None in place of numbers that are not finite, which JSON lacks.

    Args:
        value: A number, a string, or lists, tuples and dictionaries of them.

    Example:
        >>> json_value({"nll": float("nan"), "rows": (1, 2)})
        {'nll': None, 'rows': [1, 2]}
    """
    if isinstance(value, dict):
        return {name: json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with a prefix and a dot before their names.

    Example:
        >>> import torch
        >>> add_prefix("flow", {"weight": torch.zeros(1)})
        {'flow.weight': tensor([0.])}
    """
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it.

    Example:
        >>> import torch
        >>> strip_prefix("flow", {"flow.weight": torch.zeros(1), "step": torch.ones(1)})
        {'weight': tensor([0.])}
    """
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
