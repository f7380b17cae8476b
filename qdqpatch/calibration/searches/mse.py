"""The range with the smallest mean squared error of the quantized magnitudes."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

START = 128
"""The narrowest range that is tried, in bins."""

NEAR = 1e-9
"""Relative difference up to which errors computed from sums are compared again, term by term."""

MANY_LEVELS = 1024
"""From more levels on, sums over levels take longer than sums over bins."""


RANGES_AT_A_TIME = 256
"""Of how many ranges the levels are looked at together, so that they stay in the processor's cache."""


def search(counts: NDArray[np.int64], levels: int) -> float:
    """Return the range, in bins: the first of the smallest error among all bin centers.

    That of `_compute_amax_mse` of pytorch-quantization 2.1.3 (`calib/histogram.py`), in float64 and on
    any device; its cost is the number of bins times the number of levels, not times the number of bins.

    Args:
        counts: The histogram, shape `(bins,)`, not empty.
        levels: The highest integer of the quantizer.
    """
    candidates = np.arange(START, len(counts))
    if not len(candidates):
        return float(len(counts))
    if levels <= MANY_LEVELS:
        errors = _errors_by_level(torch.from_numpy(counts).double(), levels).numpy()
        candidates = candidates[errors <= errors.min() + NEAR * abs(errors.min())]
    exact = [_error(counts, int(candidate), levels) for candidate in candidates]
    return float(candidates[int(np.argmin(exact))]) + 0.5


def _error(counts: NDArray[np.int64], candidate: int, levels: int) -> float:
    """Return the squared error for one range, from the formula."""
    centers = np.arange(len(counts)) + 0.5
    scale = levels / (candidate + 0.5)
    rounded = np.minimum(np.round(centers * scale), levels) / scale
    return float(((rounded - centers) ** 2 * counts).sum())


def _errors_by_level(counts: Tensor, levels: int) -> Tensor:
    """Return the squared errors for all ranges, up to rounding, shape `(candidates,)`.

    With s the step, the error is the sum of (x - j s)^2 over the magnitudes x of each level j. What of it
    depends on j is a sum over levels of the counts, and of the magnitudes, above each level's lower bound.
    """
    bins = len(counts)
    centers = torch.arange(bins, dtype=torch.float64) + 0.5
    bounds = _bounds(1 << (bins - 1).bit_length(), levels)[: bins - START]
    counts_above = _sums_from(counts, int(bounds[-1, -1]))
    magnitudes_above = _sums_from(counts * centers, int(bounds[-1, -1]))
    odd = 2.0 * torch.arange(1, levels + 1, dtype=torch.float64) - 1
    linear, quadratic = [], []
    for some in bounds.split(RANGES_AT_A_TIME):
        linear.append(magnitudes_above.take(some).sum(1))
        quadratic.append(counts_above.take(some) @ odd)
    step = centers[START:] / levels
    return (counts * centers**2).sum() - 2 * step * torch.cat(linear) + step**2 * torch.cat(quadratic)


@functools.lru_cache(maxsize=4)
def _bounds(bins: int, levels: int) -> Tensor:
    """Return the first bin of each level from 1 on, for each range; shape `(candidates, levels)`."""
    step = (torch.arange(START, bins, dtype=torch.float64) + 0.5) / levels
    level = torch.arange(1, levels + 1, dtype=torch.float64)
    return (torch.outer(step, level - 0.5) - 0.5).ceil_().long()


def _sums_from(values: Tensor, last: int) -> Tensor:
    """Return the sums of the values from each index on, up to the index `last`, beyond which it is 0."""
    sums = values.flip(0).cumsum(0).flip(0)
    return torch.cat([sums, sums.new_zeros(max(0, last + 1 - len(sums)))])
