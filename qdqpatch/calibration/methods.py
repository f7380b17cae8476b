"""The methods by which a range is chosen, and what each makes of a histogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qdqpatch.calibration.searches import entropy, float8, mse, percentile
from qdqpatch.choices import DEFAULT_PERCENTILE, METHODS, WEIGHT_METHODS, Method
from qdqpatch.errors import ConfigError

PERCENTILES = (99.0, 99.9, 99.99, 99.999)
"""The percentiles that `"auto"` compares, beside the other methods."""


def method_for(method: Method, share: float) -> Method:
    """Return the method that is meant: `"auto"` and a share of one's own are `"percentile"` of that share."""
    return "percentile" if method == "auto" and share != DEFAULT_PERCENTILE else method


def check_method(method: str, share: float) -> None:
    """Raise a `ConfigError` if there is no such method, or no such percentile."""
    if method not in METHODS:
        known = ", ".join(f'"{name}"' for name in METHODS)
        raise ConfigError(f"There is no calibration method {method!r}; there are {known}.")
    if not 1 < share <= 100:
        hint = f": in percent that is {100 * share:.10g}" if 0 < share <= 1 else ""
        raise ConfigError(f"percentile must be above 1 and at most 100, not {share!r}{hint}.")


def check_weight_method(method: str) -> None:
    """Raise a `ConfigError` if there is no such method for weights."""
    if method not in WEIGHT_METHODS:
        known = ", ".join(f'"{name}"' for name in WEIGHT_METHODS)
        raise ConfigError(f"There is no method {method!r} for weights; there are {known}.")


def bins_in_range(
    counts: NDArray[np.int64], levels: int, method: Method, share: float, is_float8: bool = False
) -> float:
    """Return how many bins of a histogram the range reaches over.

    Args:
        counts: The histogram, shape `(bins,)`, its last count not 0.
        levels: How many levels of an integer there are on the longer side of the range.
        method: `"mse"` or `"entropy"`; any other counts as `"percentile"`.
        share: The percentile.
        is_float8: Whether the levels are those of FP8, whatever `levels` says.
    """
    if is_float8 and method in ("mse", "entropy"):
        search = float8.least_squared_error if method == "mse" else float8.least_divergence
        return search(counts)
    if method == "mse":
        return mse.search(counts, levels)
    if method == "entropy":
        return entropy.search(counts, levels)
    return percentile.search(counts, share)
