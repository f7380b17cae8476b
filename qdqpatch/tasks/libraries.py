"""The libraries that compute metrics, which are installed with the `train` extra."""

from __future__ import annotations

import importlib
from typing import Any

from qdqpatch.errors import ConfigError
from qdqpatch.packages import pip_install


def metric_library(module: str, package: str) -> Any:
    """Import a module.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"The metric needs {package}: {pip_install(package)}") from error
