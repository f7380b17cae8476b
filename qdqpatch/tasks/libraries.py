"""The libraries that compute metrics, which are installed with the `train` extra."""

from __future__ import annotations

import importlib
from typing import Any

from qdqpatch.errors import ConfigError


def metric_library(module: str, package: str) -> Any:
    """Import a module.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f'The metric needs {package}: pip install "qdqpatch[train]"') from error
