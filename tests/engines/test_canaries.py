import math

import pytest
from commands import invoke

from qdqpatch.engines.canaries import Verified


def test_a_text_that_is_not_a_number_is_the_worst() -> None:
    for measure, good in (("cosine", 1.0), ("apart", 0.0)):
        found = Verified("model.onnx", "engine", measure, (good, math.nan), None, changed=False)
        assert math.isnan(found.worst)
        assert found.drifts


def test_how_far_logits_are_is_said_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Verified("onnx/model.onnx", "onnxruntime 1", "apart", (0.0, 0.0101), None, changed=False)
    monkeypatch.setattr("qdqpatch.engines.canaries.verify", lambda out: [found])
    result = invoke("verify", "out")
    assert result.stdout == "onnx/model.onnx in onnxruntime 1: logits of 2 texts differ by at most 1.01%.\n"
