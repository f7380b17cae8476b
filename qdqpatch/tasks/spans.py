"""The best span of tokens under the logits of its first and its last token."""

from __future__ import annotations

import numpy as np

from qdqpatch.data.arrays import Array


def best_span(start: Array, end: Array, longest: int) -> tuple[float, int, int]:
    """Return the span with the highest sum of logits.

    Args:
        start: Logits of each token being the first, shape `(tokens,)`.
        end: Logits of each token being the last, shape `(tokens,)`.
        longest: How many tokens it may have.

    Returns:
        The sum, the first and the last token.
    """
    sums = start[:, None].astype(np.float32) + end[None, :].astype(np.float32)
    allowed = np.triu(np.ones(sums.shape, dtype=bool)) & ~np.triu(np.ones(sums.shape, dtype=bool), k=longest)
    sums = np.where(allowed, sums, -np.inf)
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), int(first), int(last)
