"""The libraries that adapters plug into, and the versions that they are written for."""

from importlib.metadata import PackageNotFoundError, version

HOSTS = {
    "nessai": ("nessai", "0.15"),
    "pocomc": ("pocomc", "1"),
    "pyod": ("pyod", "3"),
    "pyro": ("pyro-ppl", "1"),
    "sbi": ("sbi", "0.27"),
}
"""For each adapter, which is an extra of that name, its host's distribution and major version."""


def check_host(name: str) -> None:
    """Refuse to go on where an adapter's host is not installed, or is of another major version.

    Args:
        name: A name in `HOSTS`.

    Raises:
        ImportError: The host is not installed, or is of another version than the adapter is for.

    Example:
        >>> check_host("pyro")
    """
    distribution, major = HOSTS[name]
    try:
        found = version(distribution)
    except PackageNotFoundError:
        found = "no installation"
    if not f"{found}.".startswith(f"{major}."):
        raise ImportError(
            f"Expected {distribution} {major} for cnf.adapters.{name}; got {found}: "
            f"pip install 'cnf-flows[{name}]'",
            name=distribution,
        )
