"""The F1 of entities that tags mark, by seqeval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from qdqpatch.tasks.libraries import metric_library
from qdqpatch.tasks.metrics import Ratio

OUTSIDE = "O"
_BEGINNINGS = ("B-", "I-", "E-", "S-")


def are_entity_tags(names: Iterable[str]) -> bool:
    """Tell whether tags mark entities (IOB, IOBES, ...), and not parts of speech or the like."""
    others = [name for name in names if name != OUTSIDE]
    return bool(others) and all(name.startswith(_BEGINNINGS) for name in others)


def entity_f1(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> Ratio:
    """Return the F1 over all entities (micro average), equal to `seqeval.metrics.f1_score`.

    The F1 is 2 * TP / (predicted + true), whose two sums are over sentences.

    Args:
        predicted: The tags of each sentence's words, as predicted.
        true: The tags that the data has.

    Raises:
        ConfigError: If seqeval is not installed.
    """
    get_entities = metric_library("seqeval.metrics.sequence_labeling").get_entities
    twice_right, counts = [], []
    for own, reference in zip(predicted, true, strict=True):
        found, wanted = set(get_entities(list(own))), set(get_entities(list(reference)))
        twice_right.append(2.0 * len(found & wanted))
        counts.append(float(len(found) + len(wanted)))
    return Ratio("entity F1", np.array(twice_right), np.array(counts))
