"""What an exported file holds: opset, names, axes, weights beside it, and nothing of this machine."""

import json
import socket
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import constant, export, made, types

from qdqpatch.exporter.targets import onnxruntime, openvino, tensorrt
from qdqpatch.exporter.targets.base import write_onnx
from qdqpatch.lint import check_file
from qdqpatch.nn.linear import QuantLinear

pytestmark = pytest.mark.slow

TOKENS = "BertForTokenClassification"
FILES = [
    ("with VNNI", "onnxruntime"),
    ("without VNNI", "onnxruntime"),
    (TOKENS, "tensorrt"),
    ("fp32 weights", "tensorrt"),
]


def linears() -> dict[str, QuantLinear]:
    model = models.calibrated(TOKENS)
    return {path: module for path, module in model.named_modules() if type(module) is QuantLinear}


@pytest.mark.parametrize(("variant", "target"), FILES)
def test_a_file_is_valid_and_says_nothing_of_the_machine(variant: str, target: str) -> None:
    file = made(variant, target).result.file
    onnx.checker.check_model(file)
    without_weights = onnx.load(file)
    del without_weights.graph.initializer[:]
    content = without_weights.SerializeToString()
    root = str(Path(__file__).parents[2]).encode()
    for secret in (root, b"site-packages", b"stack_trace", b".py", socket.gethostname().encode()):
        assert secret not in content
    model = ir.load(file)
    assert model.producer_name == "qdqpatch"
    assert all(not node.metadata_props for node in model.graph)
    assert "qdqpatch" not in model.opset_imports


def test_opsets() -> None:
    for target, name in ((onnxruntime.TARGET, TOKENS), (tensorrt.target(), TOKENS)):
        assert ir.load(made(name, target.name).result.file).opset_imports[""] == target.opset
    assert ir.load(made(TOKENS).result.file).opset_imports == {"": 20, "com.microsoft": 1}
    assert set(ir.load(made(TOKENS, "tensorrt").result.file).opset_imports) == {""}
    assert openvino.TARGET.opset >= 17


@pytest.mark.parametrize("opset", [17, 19])
def test_the_opset_asked_for_is_written(opset: int, tmp_path: Path) -> None:
    model = models.calibrated(TOKENS)
    result = export(model, tmp_path / "out", "tensorrt", opset=opset, shape=(1, 8), dtype="float32")
    assert ir.load(result.file).opset_imports[""] == opset
    onnx.checker.check_model(result.file)
    assert check_file(result.file, "tensorrt").findings == ()


def test_an_older_opset_keeps_the_names(tmp_path: Path) -> None:
    result = export(models.calibrated(TOKENS), tmp_path / "out", opset=17, shape=(1, 8))
    assert {operation.name for operation in result.operations} >= set(linears())


def test_axes_have_names() -> None:
    graph = made(TOKENS).graph
    for value in graph.inputs:
        assert [str(size) for size in value.shape] == ["batch", "sequence"]
        assert value.dtype == ir.DataType.INT64
    (logits,) = graph.outputs
    assert [str(size) for size in logits.shape] == ["batch", "sequence", "3"]
    axes = {value.name: [str(size) for size in value.shape] for value in made(models.CROSS).graph.inputs}
    assert axes["encoder_hidden_states"] == ["batch", "encoder_sequence", "24"]
    assert axes["encoder_attention_mask"] == ["batch", "encoder_sequence"]
    choices = made("BertForMultipleChoice").graph
    assert [str(size) for size in choices.inputs[0].shape] == ["batch", "choices", "sequence"]
    fixed = made("zero ranges").graph
    assert {tuple(value.shape.numpy()) for value in fixed.inputs} == {(2, 8)}


@pytest.mark.parametrize(("variant", "target"), FILES)
def test_matmuls_are_called_after_their_modules(variant: str, target: str) -> None:
    names = [node.name for node in made(variant, target).graph if "MatMul" in node.op_type]
    attention = [
        f"bert.encoder.layer.{layer}.attention.self.{name}"
        for layer in range(2)
        for name in ("query_x_key", "probabilities_x_value")
    ]
    assert sorted(names) == sorted([*linears(), *attention, "classifier"])


@pytest.mark.parametrize(("variant", "target"), FILES)
def test_weights_are_the_quantizers_integers(variant: str, target: str) -> None:
    graph = made(variant, target).graph
    for path, linear in linears().items():
        weight = linear.weight.detach()
        if variant == "fp32 weights":
            assert f"{path}.weight_quantized" not in graph.initializers
            stored = constant(graph.initializers[f"{path}.weight"])
            assert (stored == weight.numpy()).all()
        else:
            stored = constant(graph.initializers[f"{path}.weight_quantized"])
            integers = linear._weight_quantizer.integers(weight).numpy()
            zero = constant(graph.initializers[f"{path}.weight_zero_point"])
            assert stored.dtype == zero.dtype == (np.uint8 if variant == "without VNNI" else np.int8)
            assert set(zero.tolist()) == {128 if variant == "without VNNI" else 0}
            assert (stored.astype(int) - zero[0] == (integers if target == "tensorrt" else integers.T)).all()
            assert f"{path}.weight" not in graph.initializers
        scale = constant(graph.initializers[f"{path}.weight_scale"])
        amax = linear._weight_quantizer.amax.flatten().numpy()
        assert (scale == amax / np.float32(127)).all()


def test_weights_are_in_the_file() -> None:
    for variant, target in FILES:
        result = made(variant, target).result
        assert {path.relative_to(result.folder).as_posix() for path in result.folder.rglob("*.*")} == {
            "README.md",
            "config.json",
            "export.json",
            "onnx/model.onnx",
            "onnx/model.onnx.data",
            "onnx/model_quantized.onnx",
            "qdqpatch.json",
        }
        assert result.file == result.folder / "onnx/model.onnx"
        assert result.size == result.file.stat().st_size
        assert result.file.with_name("model.onnx.data").stat().st_size == 0  # ExportedModel asks for it
        assert result.file.with_name("model_quantized.onnx").samefile(result.file)
        config = json.loads((result.folder / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "qdqpatch"
    stored = onnx.load(made(TOKENS).result.file, load_external_data=False).graph.initializer
    assert {tensor.data_location for tensor in stored} == {onnx.TensorProto.DEFAULT}


def test_large_tensors_are_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = ir.load(made(TOKENS).result.file)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    for largest, names in ((size, ["model.onnx"]), (size - 1, ["model.onnx", "model.onnx_data"])):
        write_onnx(model, tmp_path / str(largest) / "model.onnx", largest)
        assert sorted(path.name for path in (tmp_path / str(largest)).iterdir()) == names
    stored = onnx.load(tmp_path / str(size - 1) / "model.onnx", load_external_data=False).graph.initializer
    assert onnx.TensorProto.EXTERNAL in {tensor.data_location for tensor in stored}


def test_onnx_runtime_adds_with_sum_before_a_norm() -> None:
    graph = made(TOKENS).graph
    before = [node.inputs[0].producer() for node in graph if node.op_type == "LayerNormalization"]
    assert [node.op_type for node in before] == ["Sum"] * 5
    assert "Sum" not in types(made(TOKENS, "tensorrt").graph)


def test_what_reads_one_tensor_on_one_grid_shares_its_integers() -> None:
    graph = made(TOKENS).graph
    nodes = {node.name: node for node in graph}
    first = [
        nodes[f"bert.encoder.layer.0.attention.self.{name}"].inputs[0] for name in ("query", "key", "value")
    ]
    assert first[0] is first[1] is first[2]
    readers = [use.node.op_type for use in first[0].uses()]
    assert sorted(readers) == ["DequantizeLinear", *["MatMulIntegerToFloat"] * 3]  # the residual add too
    assert types(graph).count("QuantizeLinear") == 2 * 10
    assert types(graph).count("DequantizeLinear") == 2 * 4


@pytest.mark.parametrize(
    ("variant", "target"), [*FILES, ("all parts", "onnxruntime"), (models.CROSS, "onnxruntime")]
)
def test_lint_finds_nothing(variant: str, target: str) -> None:
    report = check_file(made(variant, target).result.file, target)
    assert [(finding.site.path, finding.rule.name) for finding in report.findings] == []
    assert len([site for site in report.sites if "residual" in site.operation]) == (
        6 if "cross" in variant else 4
    )
