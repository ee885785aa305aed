"""The environment in which `torchrun` starts each process."""

import os


def is_alone() -> bool:
    """Return whether this is the only process, in a group or not."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_first() -> bool:
    """Return whether this is the first process, in a group or not."""
    return is_alone() or os.environ.get("RANK", "0") == "0"
