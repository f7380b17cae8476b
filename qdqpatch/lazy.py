"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_LOCK = threading.RLock()
"""One thread at a time: Python lets two that import a package and a module of it wait for each other."""


def load(module: str, name: str | None = None) -> Any:
    """Import a module, and return it or what it calls `name`."""
    with _LOCK:
        import_module(module.rpartition(".")[0])  # first, so that this thread holds nothing while it waits
        loaded = import_module(module)
    return loaded if name is None else getattr(loaded, name)


def attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package; it finds the package's modules, too.

    Args:
        package: The package's name.
        homes: The module of each public name, below the package.
    """

    def get(name: str) -> Any:
        if name in homes:
            value = load(f"{package}.{homes[name]}", name)
            setattr(sys.modules[package], name, value)  # found without this function from now on
            return value
        if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            return load(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
