"""The range whose quantized distribution diverges least from the one that was seen (Kullback-Leibler)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import entropy
from torch import Tensor

START = 128
"""The narrowest range that is tried, in bins."""

NEAR = 1e-9
"""Difference up to which divergences computed from sums are compared again, term by term."""


MANY_LEVELS = 1024
"""From more levels on, sums over levels take longer than sums over bins."""

RANGES_AT_A_TIME = 256
"""Of how many ranges the levels are looked at together, so that they stay in the processor's cache."""


def search(counts: NDArray[np.int64], levels: int) -> float:
    """Return the range, in bins: the last of the smallest divergence among all bin edges.

    The same bin as `_compute_amax_entropy` of pytorch-quantization 2.1.3 (`calib/histogram.py`), which
    follows Migacz, "8-bit Inference with TensorRT" (GTC 2017). It takes sums over the levels from running
    sums over the bins instead of walking over all bins for each range, leaves the caller's histogram as it
    is, and never takes a range that holds no data, which the toolkit does where its divergence is NaN.

    Args:
        counts: The histogram, shape `(bins,)`, not empty.
        levels: The highest integer of the quantizer.
    """
    bins = counts.copy()
    bins[0] = bins[1]  # zeros are exact at any scale, so their number must not decide
    groups = levels + 1
    candidates = np.arange(START, len(bins) + 1)
    if not len(candidates):
        return float(len(bins))
    if groups <= MANY_LEVELS:
        divergences = _divergences_by_level(torch.from_numpy(bins).double(), groups).numpy()
        candidates = candidates[divergences <= divergences.min() + NEAR]
    exact = np.array([_divergence(bins, int(candidate), groups) for candidate in candidates])
    return float(candidates[len(exact) - 1 - int(np.argmin(exact[::-1]))])


def _divergence(bins: NDArray[np.int64], candidate: int, groups: int) -> float:
    """Return the divergence for one range, from the definition; infinity if the range holds no data."""
    if not bins[:candidate].any():
        return float("inf")
    reference = bins[:candidate].copy()
    group = np.arange(candidate) * groups // candidate
    filled = reference > 0
    sums = np.bincount(group, weights=reference, minlength=groups)
    members = np.bincount(group, weights=filled, minlength=groups)
    quantized = np.where(filled, sums[group] / np.maximum(members[group], 1), 0)
    reference[-1] += bins[candidate:].sum()
    return float(entropy(reference, quantized))


def _divergences_by_level(bins: Tensor, groups: int) -> Tensor:
    """Return the divergences for all ranges, up to rounding, shape `(candidates,)`; infinity for NaN.

    A range's quantized distribution is constant over the filled bins of a level, so the sum over bins of
    p log(p / q) is one over bins of p log p, less one over levels.
    """
    bounds = _bounds(1 << (len(bins) - 1).bit_length(), groups)[: len(bins) + 1 - START]
    below, filled_below = _prefix_sums(bins), _prefix_sums((bins > 0).double())
    by_level, last_level = [], []
    for some in bounds.split(RANGES_AT_A_TIME):
        below_bound, filled_below_bound = below.take(some), filled_below.take(some)
        sums = below_bound[:, 1:] - below_bound[:, :-1]
        quantized = sums / (filled_below_bound[:, 1:] - filled_below_bound[:, :-1]).clamp_(min=1)
        last_level.append(quantized[:, -1])
        by_level.append(torch.xlogy(sums, quantized).sum(1))
    ends = torch.arange(START, len(bins) + 1)
    total, kept, last = bins.sum(), below[ends], bins[ends - 1]
    clipped = total - kept
    terms = (
        _prefix_sums(torch.xlogy(bins, bins))[ends - 1]
        + torch.xlogy(last + clipped, last + clipped)
        - torch.cat(by_level)
        - torch.xlogy(clipped, torch.cat(last_level))
    )
    divergences = terms / total + torch.log(kept / total)
    undefined = (kept == 0) | ((clipped > 0) & (last == 0))
    return divergences.masked_fill(undefined, torch.inf)


@functools.lru_cache(maxsize=4)
def _bounds(bins: int, groups: int) -> Tensor:
    """Return the first bin of each level, and the end of the last; shape `(candidates, groups + 1)`."""
    ends = torch.arange(START, bins + 1)
    return (torch.outer(ends, torch.arange(groups + 1)) + groups - 1).div_(groups, rounding_mode="floor")


def _prefix_sums(values: Tensor) -> Tensor:
    """Return 0, and the sums up to and including each index."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])
