"""How far a model's metric is from another's, and how much of that the choice of the examples explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from qdqpatch.tasks.metrics import Floats, Metric

CONFIDENCE = 0.95
RESAMPLES = 1000

_BATCH = 2_000_000
"""Numbers drawn at once; each takes about 60 bytes."""


@dataclass(frozen=True)
class Difference:
    """A model's metric less another's, on the same examples.

    Attributes:
        value: In the metric's own units.
        interval: The 95% confidence interval of the value; None for a single example.
        drop: How much worse the metric is, in percent of the other's; negative if it is better. Of
            perplexity, the rise. None if the other's is 0.
    """

    value: float
    interval: tuple[float, float] | None
    drop: float | None


def difference(first: Metric, other: Metric, seed: int = 0) -> Difference:
    """Compare a metric of two models by a paired bootstrap over the examples.

    Examples are drawn with replacement, as many as there are and the same for both models, 1000 times; the
    interval lies between the percentiles of the differences (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13).

    Args:
        first: The metric of the model to compare with.
        other: The same metric of the other model, on the same examples in the same order.
        seed: Another one draws other examples.
    """
    value = other.value - first.value
    worse = first.value - other.value if first.higher_is_better else value  # and no -0.0
    drop = 100 * worse / abs(first.value) if first.value else None
    return Difference(value, _interval(first, other, seed), drop)


def interval(metric: Metric, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95% confidence interval of a metric, by a bootstrap over the examples as `difference` has.

    None for a single example, and for a figure of which resampling says nothing, such as the lowest of all.
    """
    if not metric.has_interval:
        return None
    return _bootstrapped(metric.columns, metric.figures, seed)


def _interval(first: Metric, other: Metric, seed: int) -> tuple[float, float] | None:
    own = len(first.columns)

    def statistic(*columns: Floats, axis: int = -1) -> Floats:
        return other.figures(*columns[own:], axis=axis) - first.figures(*columns[:own], axis=axis)

    return _bootstrapped((*first.columns, *other.columns), statistic, seed)


def _bootstrapped(
    columns: tuple[Floats, ...], statistic: Callable[..., Floats], seed: int
) -> tuple[float, float] | None:
    count = len(columns[0])
    if count < 2:
        return None
    found = bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=min(max(_BATCH // count, 1), RESAMPLES),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
