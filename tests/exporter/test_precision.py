"""Exports for TensorRT in 16 bits: types, ranges, ends, and how far the outputs are from the model's."""

from pathlib import Path

import models
import onnx
import onnx_ir as ir
import pytest
import torch
from exports import export

from qdqpatch.errors import ExportError

TOKENS = "BertForTokenClassification"


def types(file: Path) -> set[str]:
    """Return the float types of all that a file holds and computes."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    found = {tensor.data_type for tensor in graph.initializer}
    found |= {value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return {onnx.TensorProto.DataType.Name(dtype) for dtype in found if dtype in floats}


def test_all_that_stays_float_is_fp16_by_default(tmp_path: Path) -> None:
    model = models.calibrated(TOKENS)
    result = export(model, tmp_path / "out", "tensorrt")
    assert types(result.file) == {"FLOAT16"}
    onnx.checker.check_model(result.file)
    assert ir.load(result.file).opset_imports[""] == 20
    assert all(comparison.mean < 1 for comparison in result.comparisons)
    assert next(model.parameters()).dtype == torch.float32
    single = export(model, tmp_path / "single", "tensorrt", dtype="float32")
    assert types(single.file) == {"FLOAT"}
    assert single.size > result.size


def test_bf16_is_compared_in_fp32(tmp_path: Path) -> None:
    result = export(models.calibrated(TOKENS), tmp_path / "out", "tensorrt", dtype="bfloat16")
    assert types(result.file) == {"BFLOAT16"}
    assert result.comparisons is not None
    assert sorted(path.name for path in result.folder.iterdir() if path.is_dir()) == ["onnx"]


def test_inputs_of_int32_and_outputs_of_fp32(tmp_path: Path) -> None:
    model = models.calibrated(TOKENS)
    result = export(model, tmp_path / "out", "tensorrt", int32_inputs=True, float32_outputs=True)
    graph = ir.load(result.file).graph
    assert {value.dtype for value in graph.inputs} == {ir.DataType.INT32}
    assert [(value.name, value.dtype) for value in graph.outputs] == [("logits", ir.DataType.FLOAT)]
    assert types(result.file) == {"FLOAT16", "FLOAT"}
    assert result.comparisons is not None


def test_what_does_not_fit_into_fp16_is_named(tmp_path: Path) -> None:
    model = models.calibrated(TOKENS)
    norm = model.bert.embeddings.LayerNorm
    with torch.no_grad():
        norm.weight.mul_(1e5)
    message = r"bert.embeddings.LayerNorm\S* reaches \d+, and float16 ends at 65504.*bfloat16"
    with pytest.raises(ExportError, match=message):
        export(model, tmp_path / "out", "tensorrt")
    assert list(tmp_path.iterdir()) == []
    assert not norm._forward_hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "tensorrt", "dtype": "int8"}, "no dtype 'int8'; there are float32, float16, bfloat16"),
        ({"target": "onnxruntime", "dtype": "float16"}, "dtype is for TensorRT; onnxruntime gets"),
        ({"target": "tensorrt", "opset": 18}, "float16 needs opset 20 or newer, not 18"),
        ({"target": "openvino", "build": ("SM89",)}, "nothing to compile for openvino"),
        ({"target": "openvino", "int32_inputs": True}, "int32_inputs and float32_outputs are for TensorRT"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(models.calibrated(TOKENS), tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []
