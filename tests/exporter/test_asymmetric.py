"""Activations with a zero point, in the files of the engines that have them."""

from pathlib import Path

import pytest
from exports import calibrated

import qdqpatch
from qdqpatch import QDQConfig
from qdqpatch.errors import ExportError

ASYMMETRIC = QDQConfig(activation={"symmetric": False})


@pytest.mark.parametrize(("target", "integer"), [("onnxruntime", 16), ("openvino", 12)])
def test_an_engine_computes_the_same_with_integers(target: str, integer: int, tmp_path: Path) -> None:
    pytest.importorskip(target)
    # The export itself compares with the model. OpenVINO multiplies two computed tensors with zero points
    # in float: the lint rule `shifted-attention`.
    export = qdqpatch.export(calibrated("BertModel", ASYMMETRIC), tmp_path / "out", target=target)
    assert export.comparisons is not None
    assert export.operations is not None
    assert sum(operation.integer for operation in export.operations) >= integer


def test_tensorrt_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="zero point; TensorRT quantizes symmetrically"):
        qdqpatch.export(calibrated("BertModel", ASYMMETRIC), tmp_path / "out", target="tensorrt")
    assert not (tmp_path / "out").exists()
