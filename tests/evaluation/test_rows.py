"""Rows of batches as a task: what is kept of a head's outputs."""

import models
import numpy as np
import pytest

from qdqpatch.evaluation import rows
from qdqpatch.evaluation.outcome import Before


def test_of_words_only_as_many_logits_are_kept_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.float_model("BertForMaskedLM")
    batch = models.inputs("BertForMaskedLM")
    everything = Before.of(model, [batch])
    whole = everything.outputs[0]["logits"]
    assert len(whole) == len(everything.rows[0]["input_ids"]) > 3
    monkeypatch.setattr(rows, "KEPT", 3 * whole.shape[1])
    before = Before.of(model, [batch])
    kept = before.outputs[0]["logits"]
    places = [0, round((len(whole) - 1) / 2), len(whole) - 1]
    np.testing.assert_array_equal(kept, whole[places])
    assert kept.base is None  # nothing holds the rest
    *_, unchanged = before.closeness(model)
    assert unchanged.value == 100
