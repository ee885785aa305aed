"""Lazy imports of a package's names."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__` (PEP 562) for names that it does not import.

    Slow imports (PyTorch, pandas, scikit-learn) then cost only the programs that use them.

    Args:
        package: The package's `__name__`.
        names: For each name `"module:attribute"`, or `"module"` for a module.

    Example:
        >>> get, names = lazy_names("cnf.utils", {"isfinite": "math:isfinite", "math": "math"})
        >>> get("isfinite")(1.0), names()
        (True, ['isfinite', 'math'])
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = names[name].partition(":")
        found = import_module(module)
        return getattr(found, attribute) if attribute else found

    return get, lambda: sorted(names)


def lazy_package(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return what `lazy_names` does, for each module's names, separated by spaces.

    Example:
        >>> get, names = lazy_package("os", {"path": "join split"})
        >>> get("join")("a", "b"), names()
        ('a/b', ['join', 'split'])
    """
    pairs = ((name, module) for module, names in modules.items() for name in names.split())
    return lazy_names(package, {name: f"{package}.{module}:{name}" for name, module in pairs})
