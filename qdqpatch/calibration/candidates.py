"""The ranges that are compared for each quantizer, and in what order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from qdqpatch.calibration.methods import PERCENTILES
from qdqpatch.calibration.statistics import Statistics

STEP = 2**0.5
"""The largest ratio of one range to the next smaller one."""


def candidates(statistics: Statistics) -> dict[str, list[float]]:
    """Return the ranges to compare for each histogram, in rising order.

    They are those that the methods choose, each once, and magnitudes in between: where a few outliers are a
    hundred times as large as the rest, the methods leave a gap that the best range may lie in.
    """
    found = [statistics.magnitudes(method) for method in ("max", "mse", "entropy")]
    found += [statistics.magnitudes("percentile", share) for share in PERCENTILES]
    with_histogram = [path for path, tensor in statistics.items() if tensor.channel_amax is None]
    return {path: _filled({float(ranges[path]) for ranges in found}) for path in with_histogram}


def _filled(ranges: set[float]) -> list[float]:
    """Return the ranges in rising order, with steps of at most `STEP` between them."""
    rising = sorted(ranges)
    filled = rising[:1]
    for low, high in itertools.pairwise(rising):
        steps = math.ceil(math.log(high / low, STEP)) if low else 1
        filled += [low * (high / low) ** (step / steps) for step in range(1, steps)]
        filled.append(high)
    return filled


def stages(paths: Iterable[str]) -> list[list[str]]:
    """Return the quantizers to compare in turn: the first of every module, then the second, and so on."""
    by_module: dict[str, list[str]] = {}
    for path in paths:
        by_module.setdefault(path.rpartition(".")[0], []).append(path)
    return [
        [path for path in row if path] for row in itertools.zip_longest(*by_module.values(), fillvalue="")
    ]
