"""SQuAD's scores of one answer, by torchmetrics' implementation of the official script."""

from __future__ import annotations

from collections.abc import Sequence

from qdqpatch.tasks.libraries import metric_library


def scores(answer: str, references: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1, 0 to 1, each against the reference that suits it best.

    Raises:
        ConfigError: If torchmetrics is not installed.
    """
    squad = metric_library("torchmetrics.functional.text", "torchmetrics").squad
    found = squad(
        {"id": "0", "prediction_text": answer},
        {"id": "0", "answers": {"text": list(references), "answer_start": [0] * len(references)}},
    )
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100
