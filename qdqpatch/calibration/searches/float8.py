"""The ranges of least squared error and of least divergence for FP8, whose levels are not evenly spaced.

What is compared is what `mse.py` and `entropy.py` compare. Most levels of FP8 are as close to each other
relative to where they are, whatever the range, so neighbouring ranges hardly differ, and some hundred are
enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy

from qdqpatch.nn.float8 import LARGEST, magnitudes

START = 128
"""The narrowest range that is tried, in bins."""

RANGES = 256
"""How many are tried."""


def least_squared_error(counts: NDArray[np.int64]) -> float:
    """Return the range, in bins, with the smallest mean squared error of the quantized magnitudes.

    Args:
        counts: The histogram, shape `(bins,)`, not empty.
    """
    centers = np.arange(len(counts)) + 0.5

    def error(amax: float) -> float:
        rounded = _LEVELS[_nearest(centers * (LARGEST / amax))] * (amax / LARGEST)
        return float(((rounded - centers) ** 2 * counts).sum())

    return _best(error, len(counts))


def least_divergence(counts: NDArray[np.int64]) -> float:
    """Return the range, in bins, whose quantized distribution diverges least (Kullback-Leibler).

    A level's share is spread evenly over the filled bins that become it.

    Args:
        counts: The histogram, shape `(bins,)`, not empty.
    """
    bins = counts.copy()
    bins[0] = bins[min(1, len(bins) - 1)]  # zeros are exact at any scale, so their number must not decide
    centers = np.arange(len(bins)) + 0.5

    def divergence(amax: float) -> float:
        end = int(amax)
        reference = bins[:end].astype(np.float64)
        if not reference.any():
            return float("inf")
        level = _nearest(centers[:end] * (LARGEST / amax))
        filled = reference > 0
        members = np.maximum(np.bincount(level, weights=filled), 1)
        quantized = np.where(filled, (np.bincount(level, weights=reference) / members)[level], 0)
        reference[-1] += bins[end:].sum()
        return float(entropy(reference, quantized))

    return _best(divergence, len(bins))


def _nearest(magnitudes_in_steps: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the places of the nearest levels."""
    return np.searchsorted(_BOUNDS, magnitudes_in_steps)


def _best(cost: Callable[[float], float], bins: int) -> float:
    """Return the range of the smallest cost, the last of several."""
    if bins <= START:
        return float(bins)
    ranges = np.unique(np.geomspace(START, bins, RANGES).round())
    costs = np.array([cost(float(amax)) for amax in ranges])
    return float(ranges[len(costs) - 1 - int(np.argmin(costs[::-1]))])


_LEVELS = magnitudes().numpy().astype(np.float64)
_BOUNDS = (_LEVELS[1:] + _LEVELS[:-1]) / 2
"""Where one level ends and the next begins."""
