"""Statistics of several processes made one, over `torch.distributed`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from qdqpatch.calibration.histogram import Histogram
from qdqpatch.errors import CalibrationError

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether several processes work together, as under `torchrun` or `accelerate launch`."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def merge(histograms: Sequence[Histogram]) -> None:
    """Give every process the histograms of all, in place.

    Args:
        histograms: Of the same quantizers in the same order in every process.
    """
    if not histograms:
        return
    exponents = torch.stack([histogram.exponent for histogram in histograms])
    amax = torch.stack([histogram.amax for histogram in histograms])
    dist.all_reduce(exponents, dist.ReduceOp.MAX)
    dist.all_reduce(amax, dist.ReduceOp.MAX)
    counts = torch.stack(
        [histogram.coarsened(exponent) for histogram, exponent in zip(histograms, exponents, strict=True)]
    )
    dist.all_reduce(counts, dist.ReduceOp.SUM)
    for histogram, *merged in zip(histograms, counts, exponents, amax, strict=True):
        histogram.counts, histogram.exponent, histogram.amax = merged


def merge_maxima(maxima: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the largest of all processes' maxima, each None where no process has one."""
    gathered: list[Sequence[Tensor | None]] = [()] * dist.get_world_size()
    dist.all_gather_object(gathered, maxima)
    merged = []
    for found in zip(*gathered, strict=True):
        there = [maximum for maximum in found if maximum is not None]
        merged.append(functools.reduce(torch.maximum, there) if there else None)
    return merged


def sum_over_processes(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the values with those of the other processes added, on the host.

    Args:
        values: Tensors of the same names and shapes in every process.
        device: Where the processes exchange them.
    """
    summed = {}
    for name, value in values.items():
        total = value.to(device)
        if is_distributed():
            dist.all_reduce(total)
        summed[name] = total.cpu()
    return summed


def together(work: Callable[[], T], device: torch.device) -> T:
    """Do the work, and fail in every process if it fails in one, so that none waits for it for ever.

    Raises:
        CalibrationError: If the work failed in another process.
    """
    if not is_distributed():
        return work()
    failed = torch.tensor(dist.get_rank(), device=device)
    try:
        result = work()
        failed.fill_(-1)
    finally:
        dist.all_reduce(failed, dist.ReduceOp.MAX)
    if failed >= 0:
        raise CalibrationError(f"Calibration failed in the process of rank {int(failed)}, which says why.")
    return result
