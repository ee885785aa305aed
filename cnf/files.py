"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

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
