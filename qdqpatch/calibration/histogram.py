"""Streaming histograms of magnitudes: integer counts, on the tensor's device, without waiting for it.

Bin widths are powers of two, so that two histograms are merged exactly, by adding neighbouring bins of the
finer one. A histogram therefore depends on what was counted alone, not on the order of the batches or on
the process that saw them. Of the 4,096 bins, those that hold data are more than half, so the resolution is
at least that of the 2,048 bins of pytorch-quantization's `HistogramCalibrator`; the counts are 64-bit, where
its float32 ones stop growing at 2^24.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 4096
"""Bins of a histogram; its first edge is 0."""

SMALLEST_EXPONENT = -40
"""Of the bin width: magnitudes below 2^-28 fill fewer than the upper half of the bins."""

UNSEEN = -1.0
"""The largest magnitude of nothing."""

CHUNK = 2**15
"""Values counted at a time by a thread of a CPU: what is derived from them stays in its cache, and PyTorch
does not share so few out to threads of its own."""

LARGEST_CALL = 2**24
"""Values counted at a time elsewhere, where the counts of one call are float32."""


@dataclass(eq=False)
class Histogram:
    """How often which magnitudes occurred.

    Bin i counts the magnitudes from `i * 2**exponent` up to the next edge.

    Attributes:
        counts: int64, shape `(BINS,)`.
        exponent: int32, 0-dim: log2 of the bin width.
        amax: fp32, 0-dim: the largest magnitude, exactly; infinity if one was NaN or infinite, -1 if
            nothing was counted.
    """

    counts: Tensor
    exponent: Tensor
    amax: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> Histogram:
        """Return a histogram of nothing."""
        return cls(
            torch.zeros(BINS, dtype=torch.int64, device=device),
            torch.full((), SMALLEST_EXPONENT, dtype=torch.int32, device=device),
            torch.full((), UNSEEN, device=device),
        )

    @classmethod
    def of(cls, values: Tensor, hidden_zeros: Tensor | int = 0) -> Histogram:
        """Count the magnitudes of a tensor.

        Args:
            values: Floating-point values of any shape.
            hidden_zeros: How many of them are zeros that are no data, and are left out.
        """
        if not values.numel():
            return cls.empty(values.device)
        low, high = torch.aminmax(values)
        amax = torch.maximum(low.abs(), high.abs()).float().nan_to_num(nan=torch.inf, posinf=torch.inf)
        exponent = _exponent_for(amax)
        flat = values.reshape(-1)
        bins_per_unit = _bins_per_unit(exponent)
        if flat.device.type == "cpu":
            counts = _count_on_cpu(flat, bins_per_unit, amax)
        else:
            counts = _count(flat, bins_per_unit)
        counts[0] -= hidden_zeros
        return cls(counts, exponent, amax)

    @classmethod
    def of_rows(cls, values: Tensor, hidden_zeros: Sequence[Tensor | int]) -> list[Histogram]:
        """Count the magnitudes of several tensors of one size, in operations for all of them together.

        Args:
            values: Floating-point values, shape `(tensors, values)`, some values at least and no more than
                `LARGEST_CALL`.
            hidden_zeros: For each tensor, how many of them are zeros that are no data.
        """
        low, high = torch.aminmax(values, dim=1)
        amax = torch.maximum(low.abs(), high.abs()).float().nan_to_num(nan=torch.inf, posinf=torch.inf)
        exponent = _exponent_for(amax)
        counts = _count_rows(values, _bins_per_unit(exponent))
        if any(isinstance(count, Tensor) or count for count in hidden_zeros):
            counts[:, 0] -= torch.stack(
                [torch.as_tensor(count, device=counts.device) for count in hidden_zeros]
            )
        rows = zip(counts, exponent, amax, strict=True)
        return [cls(*row) for row in rows]

    def add(self, other: Histogram) -> None:
        """Take another histogram's counts into this one."""
        exponent = torch.maximum(self.exponent, other.exponent)
        # Into the memory that is there: new memory that outlives what the model computes meanwhile would be
        # scattered over the heap, and keep it from shrinking.
        self.counts.copy_(self.coarsened(exponent).add_(other.coarsened(exponent)))
        self.exponent.copy_(exponent)
        torch.maximum(self.amax, other.amax, out=self.amax)

    def coarsened(self, exponent: Tensor) -> Tensor:
        """Return the counts in bins of another width, not smaller than the present one."""
        return _coarsened(self.counts, exponent - self.exponent)


def add_all(totals: Sequence[Histogram], found: Sequence[Histogram]) -> None:
    """Take histograms into others, in operations for all of them together.

    Args:
        totals: The histograms that grow, none of them twice.
        found: What each of them takes in.
    """
    exponents, others = (torch.stack([one.exponent for one in some]) for some in (totals, found))
    exponent = torch.maximum(exponents, others)
    counts = _coarsened(torch.stack([one.counts for one in totals]), exponent - exponents)
    counts += _coarsened(torch.stack([one.counts for one in found]), exponent - others)
    amax = torch.maximum(*(torch.stack([one.amax for one in some]) for some in (totals, found)))
    for histogram, *row in zip(totals, counts, exponent, amax, strict=True):
        histogram.counts, histogram.exponent, histogram.amax = row


def _coarsened(counts: Tensor, halvings: Tensor) -> Tensor:
    """Return counts, shape `(..., BINS)`, in bins that are twice as wide so many times, shape `(...)`."""
    halvings = halvings.clamp(max=BINS.bit_length()).unsqueeze(-1)
    index = torch.arange(BINS, device=counts.device) >> halvings
    return torch.zeros_like(counts).scatter_add_(-1, index, counts)


def _bins_per_unit(exponent: Tensor) -> Tensor:
    """Return 2**-exponent, written into the exponent's bits: pow may be off in the last one."""
    return ((127 - exponent) << 23).view(torch.float32)


def _exponent_for(amax: Tensor) -> Tensor:
    """Return log2 of the bin width that puts `amax` into the upper half of the bins."""
    exponent = torch.frexp(amax).exponent - (BINS.bit_length() - 1)
    usable = amax.isfinite() & (amax > 0)
    return torch.where(usable, exponent, SMALLEST_EXPONENT).clamp(min=SMALLEST_EXPONENT).int()


def _count_on_cpu(flat: Tensor, bins_per_unit: Tensor, amax: Tensor) -> Tensor:
    """Count in as many threads as PyTorch has: `bincount`, which takes the most of the time, uses one."""
    if not amax.isfinite():  # NaN has no bin, and the caller refuses such a histogram by its amax
        return torch.zeros(BINS, dtype=torch.int64)
    threads = torch.get_num_threads()
    chunks = flat.split(CHUNK)
    shares = [chunks[first::threads] for first in range(min(threads, len(chunks)))]
    count = functools.partial(_count_chunks, bins_per_unit)
    if len(shares) == 1:
        return count(chunks)
    return torch.stack(list(_threads(threads).map(count, shares))).sum(0)


def _count_chunks(bins_per_unit: Tensor, chunks: Sequence[Tensor]) -> Tensor:
    counts = torch.zeros(BINS, dtype=torch.int64)
    for chunk in chunks:
        index = (chunk.float() * bins_per_unit).to(torch.int16).abs_()
        counts += torch.bincount(index, minlength=BINS)
    return counts


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="qdqpatch-histogram")


def _count(flat: Tensor, bins_per_unit: Tensor) -> Tensor:
    """Count on a device where `bincount` would wait for the size of its result."""
    counts = torch.zeros(BINS, dtype=torch.int64, device=flat.device)
    for chunk in flat.split(LARGEST_CALL):
        counts += _count_rows(chunk.unsqueeze(0), bins_per_unit.reshape(1))[0]
    return counts


def _count_rows(values: Tensor, bins_per_unit: Tensor) -> Tensor:
    """Count each row, shape `(rows, values)`, in bins of its own width; return int64, `(rows, BINS)`."""
    position = (
        (values.float() * bins_per_unit.unsqueeze(-1)).abs_().floor_().nan_to_num_().clamp_(max=BINS - 1)
    )
    index = position.add_(torch.arange(len(values), device=values.device).unsqueeze(-1) * BINS)
    # A power of two, so that `histc`, which scales by it and divides again, finds every bin exactly.
    bins = BINS << (len(values) - 1).bit_length()
    counts = torch.histc(index, bins=bins, min=0, max=bins)
    return counts[: len(values) * BINS].view(len(values), BINS).long()
