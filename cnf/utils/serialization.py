"""Files that are there whole or not at all, and what goes into them: JSON values, named tensors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for people who only read and write files
    from torch import Tensor

_TEMPORARY = ".tmp"


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files under temporary names, down to the disk, and then rename them.

    Each is there whole, as it was or as it is to be, whatever fails or is killed on the way.

    Raises:
        OSError: One cannot be written; none is changed then, unless it is renaming that fails.
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


def read_whole(path: str | Path) -> bytes:
    """What a file holds.

    Raises:
        OSError: It cannot be read, or is a pipe or a device, of which nobody knows whether it ends.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "It is a pipe or a device, not a file", str(path))
    return Path(path).read_bytes()


def is_left_over(path: Path) -> bool:
    """Whether a file is what `write_whole` leaves behind where its process is killed.

    Example:
        >>> is_left_over(Path(".config.json.tmp")), is_left_over(Path("config.json"))
        (True, False)
    """
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def json_value(value: Any) -> Any:
    """A value with None for numbers that are not finite, which JSON has none of.

    Args:
        value: Numbers, texts, and lists, tuples and dictionaries of them.

    Example:
        >>> json_value({"nll": float("nan"), "rows": (1, 2)})
        {'nll': None, 'rows': [1, 2]}
    """
    if isinstance(value, dict):
        return {name: json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


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
