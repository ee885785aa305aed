"""Flows inside other libraries: an adapter for each, which imports its host when it is used."""

from typing import TYPE_CHECKING

from cnf.adapters.hosts import HOSTS
from cnf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from cnf.adapters import nessai, pyod, pyro, sbi
else:
    __getattr__, __dir__ = lazy_names(__name__, {name: f"cnf.adapters.{name}" for name in HOSTS})

__all__ = ["HOSTS", "nessai", "pyod", "pyro", "sbi"]
