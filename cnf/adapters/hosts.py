"""The libraries that adapters plug into, and the versions that they are written for."""

import re
from importlib.metadata import PackageNotFoundError, version

HOSTS = {
    "nessai": ("nessai", "0.15", "0.16"),
    "pyod": ("pyod", "3", "4"),
    "pyro": ("pyro-ppl", "1.9", "2"),
    "sbi": ("sbi", "0.27", "0.28"),
}
"""For each adapter, which is an extra of that name, its host's distribution, the first version that
it is for, and the first that it is not for any more."""


def check_host(name: str) -> None:
    """Refuse to go on where an adapter's host is not installed, or is of another version.

    Args:
        name: A name in `HOSTS`.

    Raises:
        ImportError: The host is not installed, or is of another version than the adapter is for.

    Example:
        >>> check_host("pyro")
    """
    distribution, first, end = HOSTS[name]
    try:
        found = version(distribution)
        right = _numbers(first) <= _numbers(found) < _numbers(end)
    except PackageNotFoundError:
        found, right = "no installation", False
    if not right:
        raise ImportError(
            f"Expected {distribution} {first} for cnf.adapters.{name}; got {found}: "
            f"pip install 'cnf-flows[{name}]'",
            name=distribution,
        )


def _numbers(version: str) -> list[int]:
    """Return the numbers that a version begins with, by which 1.10 comes after 1.9."""
    release = re.match(r"\d+(\.\d+)*", version)
    return [] if release is None else [*map(int, release[0].split("."))]
