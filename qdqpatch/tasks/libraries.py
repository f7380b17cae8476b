"""The libraries that compute metrics, which are installed with the `train` extra."""

from __future__ import annotations

import importlib
from typing import Any

from qdqpatch.errors import ConfigError
from qdqpatch.packages import require


def require_metric(package: str) -> None:
    """Find out before the work whether a package that a metric needs is installed.

    Raises:
        ConfigError: If it is not.
    """
    require("The metric", package, error=ConfigError)


def metric_library(module: str) -> Any:
    """Import a module.

    Raises:
        ConfigError: If its package is not installed.
    """
    require_metric(module.partition(".")[0])
    return importlib.import_module(module)
