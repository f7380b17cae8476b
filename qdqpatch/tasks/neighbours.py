"""How far embeddings are from another model's: the vectors themselves, and what they find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from qdqpatch.tasks.metrics import Floats, Metric, mean
from qdqpatch.tasks.quantile import Quantile

COSINE, LOWEST, FIFTH = "cosine", "lowest", "5th percentile"
KEPT, CROSSED, SPEARMAN = "top-10 kept", "on the float index", "Spearman"

NEAREST = 10
"""So many nearest neighbours are looked at."""

LEAST = 2 * NEAREST + 1
"""Among fewer vectors than this, half of which would be a neighbour, nothing is said of neighbours."""

ROWS = 512
"""So many vectors are compared with all others at once."""


@dataclass(frozen=True)
class Vectors:
    """What is searched with, and what is searched in.

    Attributes:
        queries: Shape `(queries, size)`, fp64.
        index: Shape `(entries, size)`, fp64; None where each of the queries is looked for among the others.
    """

    queries: Floats
    index: Floats | None = None


def cosines(own: Floats, reference: Floats) -> Floats:
    """Return the cosine of each vector with the other model's, shape `(vectors,)`."""
    found: Floats = (_unit(own) * _unit(reference)).sum(axis=1)
    return found


def comparison(own: Vectors, reference: Vectors) -> list[Metric]:
    """Return how far vectors are from the reference's; the last one is the mean cosine.

    Before it come the 5th percentile and the lowest of the cosines; and, where there is enough to search in:
    how many of the ten nearest neighbours of a query stay the same, if all vectors are the model's own, and
    if only the query is while the index is the reference's (which need not be built anew then); and the
    rank correlation of a query's similarities to everything else. The last three are means over the queries.
    """
    of_vectors = cosines(_all(own), _all(reference))
    found: list[Metric] = [
        Quantile(LOWEST, of_vectors, 0.0),
        Quantile(FIFTH, of_vectors, 0.05),
    ]
    searched = reference.queries if reference.index is None else reference.index
    if len(searched) >= LEAST:
        kept, crossed, ranked = _searches(own, reference)
        found += [mean(KEPT, kept), mean(CROSSED, crossed), mean(SPEARMAN, ranked, in_percent=False)]
    return [*found, mean(COSINE, of_vectors.tolist(), in_percent=False)]


def _searches(own: Vectors, reference: Vectors) -> tuple[list[float], list[float], list[float]]:
    kept, crossed, ranked = [], [], []
    mixed = Vectors(own.queries, reference.queries if reference.index is None else reference.index)
    alone = reference.index is None
    rows = zip(
        _similarities(reference, alone), _similarities(own, alone), _similarities(mixed, alone), strict=True
    )
    for true, found, across in rows:
        nearest = _nearest(true)
        kept.append(len(nearest & _nearest(found)) / NEAREST)
        crossed.append(len(nearest & _nearest(across)) / NEAREST)
        varied = bool(np.ptp(true)), bool(np.ptp(found))
        ranked.append(
            float(np.corrcoef(rankdata(true), rankdata(found))[0, 1])
            if all(varied)
            else float(varied[0] == varied[1])
        )
    return kept, crossed, ranked


def _similarities(vectors: Vectors, alone: bool) -> Iterator[Floats]:
    """Yield the cosines of each query with everything that it is searched in, itself left out if `alone`."""
    queries = _unit(vectors.queries)
    index = queries if vectors.index is None else _unit(vectors.index)
    for start in range(0, len(queries), ROWS):
        for number, row in enumerate(queries[start : start + ROWS] @ index.T, start=start):
            yield np.delete(row, number) if alone else row


def _nearest(similarities: Floats) -> set[int]:
    return set(np.argpartition(-similarities, NEAREST - 1)[:NEAREST].tolist())


def _all(vectors: Vectors) -> Floats:
    return vectors.queries if vectors.index is None else np.concatenate([vectors.queries, vectors.index])


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit


def retrieval(queries: Floats, index: Floats, right: list[int]) -> list[Metric]:
    """Return how well queries find the one entry that each is for: recall at 1 and 10, and MRR.

    What is no nearer than another entry comes after it, so that vectors that are all alike find nothing.

    Args:
        queries: Shape `(queries, size)`.
        index: Shape `(entries, size)`, each entry once.
        right: The number of each query's entry.
    """
    ranks = np.array(
        [
            int((~(row < row[place])).sum())  # those as near count, and NaN, and the entry itself
            for row, place in zip(_similarities(Vectors(queries, index), alone=False), right, strict=True)
        ]
    )
    return [
        mean("recall@1", (ranks <= 1).astype(np.float64).tolist()),
        mean(f"recall@{NEAREST}", (ranks <= NEAREST).astype(np.float64).tolist()),
        mean("MRR", (1 / ranks).tolist(), in_percent=False),
    ]
