"""A quantile over the examples as a metric: what most of them are above."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdqpatch.tasks.metrics import Floats, Metric


@dataclass(frozen=True)
class Quantile(Metric):
    """The value that a share of the examples stays below, by linear interpolation.

    Attributes:
        values: One for each example.
        share: Between 0, the lowest of all, and 1.
    """

    values: Floats
    share: float

    @property
    def columns(self) -> tuple[Floats, ...]:
        """The values."""
        return (self.values,)

    @property
    def has_interval(self) -> bool:
        """Whether resampling tells anything: not of the lowest of all (Efron and Tibshirani, section 7.4)."""
        return 0 < self.share < 1

    def figures(self, *columns: Floats, axis: int = -1) -> Floats:
        """Return the quantiles."""
        found: Floats = np.quantile(columns[0], self.share, axis=axis)
        return found
