"""How well a range suits what a quantizer sees: the share that it clips, and the noise that it adds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdqpatch.calibration.statistics import TensorStatistics
from qdqpatch.nn.fake_quantize import SMALLEST_AMAX
from qdqpatch.nn.float8 import magnitudes as float8_magnitudes
from qdqpatch.nn.quantizer import TensorQuantizer


@dataclass(frozen=True)
class Quality:
    """Two figures about a quantizer.

    Attributes:
        clipped_share: The share of the magnitudes that lie beyond the range, 0 to 1.
        sqnr_db: The signal to quantization noise ratio in dB, 10 log10(sum x^2 / sum (Q(x) - x)^2); 6 dB
            are one bit. None if there is no signal (all values were 0) or no noise.
    """

    clipped_share: float
    sqnr_db: float | None


def of_statistics(seen: TensorStatistics, amax: float) -> Quality:
    """Compute the figures of a range for the whole tensor from the histogram of what the quantizer saw.

    The magnitudes of a bin count as spread evenly over it, and the squared error to the nearest level is
    integrated over each bin exactly: where bins are much wider than a step s this is Bennett's s^2/12, and
    where they are finer, or a level's bound or the range's end falls into one, still right. PyTorch's
    `HistogramObserver._get_norm` integrates bins in the same way; for s^2/12 and SQNR see Gray and
    Neuhoff, "Quantization", IEEE Transactions on Information Theory 44(6), 1998. What is lost is how
    values lie inside a bin, so the even spread is a poor guess only where most values share a few bins.

    A histogram of magnitudes knows no signs: negative values are taken to be clipped at -amax, though an
    integer with a lower level below that (-128) reaches a step further.

    Args:
        seen: What the quantizer saw; its histogram must not be empty.
        amax: The range.
    """
    filled = int(np.flatnonzero(seen.counts)[-1]) + 1
    counts = seen.counts[:filled].astype(np.float64)
    edges: NDArray[np.float64] = np.arange(filled + 1, dtype=np.float64) * seen.width
    beyond = 0.0 if amax >= seen.amax else float((counts * _parts_above(edges, amax)).sum() / counts.sum())
    if seen.amax == 0:
        return Quality(0.0, None)
    signal = float((counts * np.diff(edges**3)).sum()) / (3 * seen.width)
    if amax <= SMALLEST_AMAX:  # then all values become 0
        return Quality(beyond, 0.0)
    step = amax / seen.levels
    levels = seen.levels
    up_to = _float8_noise_up_to(edges / step) if seen.is_float8 else _noise_up_to(edges / step, levels)
    noise = float((counts * np.diff(up_to)).sum()) * step**3 / seen.width
    return Quality(beyond, _decibels(signal, noise))


def of_tensor(values: Tensor, amax: Tensor, quantizer: TensorQuantizer) -> Quality:
    """Compute the figures of a weight, whose values are all there, with the quantizer's own arithmetic.

    Args:
        values: The weight.
        amax: Its range, 0-dim or one per channel.
        quantizer: A quantizer of the weight's settings; its own range is not looked at.
    """
    values = values.float()
    clipped = int((values.abs() > amax).sum()) / values.numel()
    noise = quantizer.quantized(values, amax).sub_(values)
    return Quality(clipped, _decibels(_energy(values), _energy(noise)))


def _energy(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _parts_above(edges: NDArray[np.float64], amax: float) -> NDArray[np.float64]:
    """Return which part of each bin lies above the range, 0 to 1; shape `(bins,)`."""
    part: NDArray[np.float64] = np.clip((edges[1:] - amax) / np.diff(edges), 0, 1)
    return part


def _noise_up_to(magnitudes: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """Return the integral from 0 of the squared distance to the nearest level, all in steps.

    Around each level r goes from -1/2 to 1/2, and the integral of r^2 is 1/12; beyond the last level the
    distance goes on growing.
    """
    nearest = np.minimum(np.floor(magnitudes + 0.5), levels)
    integral: NDArray[np.float64] = nearest / 12 + (magnitudes - nearest) ** 3 / 3
    return integral


def _float8_noise_up_to(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the same for the levels of FP8."""
    levels = float8_magnitudes().numpy().astype(np.float64)
    bounds = (levels[1:] + levels[:-1]) / 2  # where one level ends and the next begins
    starts = np.concatenate([[0.0], bounds])
    whole = ((bounds - levels[:-1]) ** 3 - (starts[:-1] - levels[:-1]) ** 3) / 3
    before = np.concatenate([[0.0], np.cumsum(whole)])
    nearest = np.searchsorted(bounds, magnitudes)
    level, start = levels[nearest], starts[nearest]
    integral: NDArray[np.float64] = before[nearest] + ((magnitudes - level) ** 3 - (start - level) ** 3) / 3
    return integral


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
