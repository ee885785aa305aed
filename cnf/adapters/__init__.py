"""Flows inside other libraries: an adapter for each, which imports its host when it is used."""

from typing import TYPE_CHECKING

from cnf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from cnf.adapters.hosts import HOSTS
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "HOSTS": "cnf.adapters.hosts:HOSTS",
        },
    )

__all__ = ["HOSTS"]
