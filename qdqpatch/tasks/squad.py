"""SQuAD's scores of one answer, by torchmetrics' implementation of the official script."""

from __future__ import annotations

from collections.abc import Sequence

from qdqpatch.tasks.libraries import metric_library


def scores(answer: str, references: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1, 0 to 1, each against the reference that suits it best.

    Without references both are 1 if the answer is empty, once normalized, and 0 if not, as in the official
    script of SQuAD v2.

    Raises:
        ConfigError: If torchmetrics is not installed.
    """
    squad = metric_library("torchmetrics.functional.text").squad
    wanted = list(references) or [""]
    found = squad(
        {"id": "0", "prediction_text": answer},
        {"id": "0", "answers": {"text": wanted, "answer_start": [0] * len(wanted)}},
    )
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100
