import dataclasses
import math

import pytest
from commands import invoke

from qdqpatch.engines.canaries import Verified
from qdqpatch.engines.sessions import REDUCED


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


def test_sums_that_saturate_are_drift_however_near_a_few_texts_are() -> None:
    near = Verified("model.onnx", "onnxruntime 1", "cosine", (0.997,), None, changed=False)
    assert not near.drifts
    assert dataclasses.replace(near, saturates=True).drifts


def test_bfloat16_of_the_engine_is_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said instead: the machine that wrote the file computes so itself."""
    near = Verified("a.xml", "openvino 1", "cosine", (0.989,), None, changed=False)
    assert near.drifts
    near = dataclasses.replace(near, precision="bfloat16", note=REDUCED)
    assert not near.drifts
    assert dataclasses.replace(near, values=(0.96,)).drifts
    monkeypatch.setattr("qdqpatch.engines.canaries.verify", lambda out: [near])
    result = invoke("verify", "out")
    assert result.exit_code == 0
    assert result.stdout.endswith(f"of 1 text.\n  openvino {REDUCED}\n")
