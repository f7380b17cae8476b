"""The range that a given share of the magnitudes lies in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def search(counts: NDArray[np.int64], percentile: float) -> float:
    """Return the range, in bins: the lower edge of the bin in which the percentile lies.

    The same bin as `_compute_amax_percentile` of pytorch-quantization 2.1.3 (`calib/histogram.py`), of
    counts that are integers; its own are float32 and lose the tail of what saturates.

    Args:
        counts: The histogram, shape `(bins,)`, not empty.
        percentile: Between 0 and 100.
    """
    share = np.cumsum(counts / counts.sum())
    return float(np.searchsorted(share, percentile / 100))
