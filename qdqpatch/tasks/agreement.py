"""How far a model's outputs are from another's, as metrics: what stands in for labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from qdqpatch.data.arrays import Array, Arrays
from qdqpatch.errors import ConfigError
from qdqpatch.spelling import counted
from qdqpatch.tasks.head import MEASURES, Meaning, divergence, predictions
from qdqpatch.tasks.metrics import Correlation, Metric, Ratio

UNCHANGED = "unchanged predictions"
"""The share of predictions that are the other model's, in percent; of a question, start and end are two."""

CORRELATION = "correlation"
"""Pearson's, of scores with the other model's."""


def agreement(
    outputs: Sequence[Arrays],
    reference: Sequence[Arrays],
    names: Sequence[str],
    meaning: Callable[[str, int], Meaning],
) -> list[Metric]:
    """Return how far outputs are from the reference's and, last, how many of the predictions are the same.

    Of scores, which are no predictions that change or do not, the last one is their correlation.

    Args:
        outputs: A model's, for each sequence.
        reference: Those of the model to compare with.
        names: The outputs to compare.
        meaning: Says what an output of that name and so many outcomes means: all of a head's mean the same.

    Raises:
        ConfigError: If the reference gives the same score for everything, so that nothing can be told.
    """
    means = meaning(names[0], outputs[0][names[0]].shape[-1])
    pairs = [
        [(_rows(own[name]), _rows(other[name])) for name in names]
        for own, other in zip(outputs, reference, strict=True)
    ]
    apart = [sum(float(divergence(means, b, a).sum()) for a, b in pair) for pair in pairs]
    counts = [float(sum(len(a) for a, _ in pair)) for pair in pairs]
    measured = Ratio(MEASURES[means], np.array(apart), np.array(counts), in_percent=False, is_error=True)
    if means == "scores":
        return [measured, _correlation([pair[0] for pair in pairs])]
    kept = [[_same(a, b, means) for a, b in pair] for pair in pairs]
    same = [float(sum(int(one.sum()) for one in pair)) for pair in kept]
    seen = [float(sum(one.numel() for one in pair)) for pair in kept]
    return [measured, Ratio(UNCHANGED, np.array(same), np.array(seen))]


def _rows(values: Array) -> Tensor:
    """Return the distributions or vectors of one sequence's output, shape `(rows, outcomes)`, in fp64."""
    return torch.from_numpy(np.atleast_2d(values)).double()


def _same(one: Tensor, other: Tensor, meaning: Meaning) -> Tensor:
    first, second = predictions(meaning, one), predictions(meaning, other)
    assert first is not None  # only scores and vectors predict nothing
    assert second is not None
    return first == second


def _correlation(pairs: Sequence[tuple[Tensor, Tensor]]) -> Metric:
    own = torch.cat([one for one, _ in pairs]).numpy()
    other = torch.cat([reference for _, reference in pairs]).numpy()
    if (other == other[0]).all():
        raise ConfigError(
            f"The model to compare with gives the same score for all of {counted(len(other), 'sequence')}, "
            "so that nothing can be told. Check that model and data belong together."
        )
    return Correlation(CORRELATION, own, other)
