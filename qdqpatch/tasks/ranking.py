"""How far scores, such as a reranker's, are from another model's: the order of texts, and the drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from qdqpatch.tasks.metrics import Floats, Metric, mean

TAU, NDCG, DRIFT = "Kendall's tau", "nDCG@10", "drift of scores"

BEST = 10
"""So many texts of a query count for nDCG."""


@dataclass(frozen=True)
class KendallTau(Metric):
    """Kendall's tau-b of two models' scores: the pairs in the same order less those in the other.

    Attributes:
        own: A model's scores.
        reference: The other one's.
    """

    own: Floats
    reference: Floats

    @property
    def columns(self) -> tuple[Floats, ...]:
        """The scores of both."""
        return self.own, self.reference

    def figures(self, *columns: Floats, axis: int = -1) -> Floats:
        """Return tau of each sample; 0 where all scores are equal."""
        own, reference = (np.moveaxis(np.asarray(column), axis, -1) for column in columns)
        shape = own.shape[:-1]
        found = [
            tau(one, other)
            for one, other in zip(
                own.reshape(-1, own.shape[-1]), reference.reshape(-1, own.shape[-1]), strict=True
            )
        ]
        return np.array(found).reshape(shape)


def tau(own: Floats, reference: Floats) -> float:
    """Return Kendall's tau-b of two rows of scores; 0 where either are all equal."""
    if not np.ptp(own) or not np.ptp(reference):
        return 0.0
    return float(kendalltau(own, reference).statistic)


def ndcg(scores: Floats, gains: Floats, best: int = BEST) -> float:
    """Return the normalized discounted cumulative gain of the first texts (Järvelin and Kekäläinen, 2002).

    Args:
        scores: By which the texts are ordered.
        gains: What each is worth, at least 0; not all are 0.
        best: How many count.
    """
    discounts = 1 / np.log2(np.arange(2, 2 + min(best, len(gains))))
    found = gains[np.argsort(-scores, kind="stable")][: len(discounts)] @ discounts
    return float(found / (np.sort(gains)[::-1][: len(discounts)] @ discounts))


def order_metrics(
    own: Floats, reference: Floats, groups: Sequence[object], gains: Floats | None = None
) -> list[Metric]:
    """Return drift, Kendall's tau and, of queries with several texts, nDCG@10.

    Args:
        own: A model's scores, shape `(texts,)`.
        reference: The other model's.
        groups: What the texts of one query share: tau and nDCG are means over queries then. Where no query
            has two texts that the other model tells apart, tau is that of all.
        gains: How relevant the texts are; None for the other model's scores above its lowest of the query.
    """
    places: dict[object, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    drift = mean(DRIFT, np.abs(own - reference).tolist(), in_percent=False, is_error=True)
    several = [np.array(found) for found in places.values() if len(found) > 1]
    ordered = [rows for rows in several if np.ptp(reference[rows])]  # equal scores have no order
    if not ordered:
        return [drift, KendallTau(TAU, own, reference)]
    taus = [tau(own[rows], reference[rows]) for rows in ordered]
    found: list[Metric] = [drift, mean(TAU, taus, in_percent=False)]
    worth = [
        (own[rows], reference[rows] - reference[rows].min() if gains is None else gains[rows])
        for rows in several
    ]
    ranked = [ndcg(scores, gain) for scores, gain in worth if gain.max() > 0]
    return [*found, mean(NDCG, ranked, in_percent=False)] if ranked else found
