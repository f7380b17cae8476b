"""Exports in FP8: the graph is int8's with another type, TensorRT alone gets it, and it computes the same."""

import importlib.util
from functools import cache
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig, export
from qdqpatch.errors import ConfigError, ExportError
from qdqpatch.exporter.result import Export
from qdqpatch.lint import check_file

pytestmark = pytest.mark.usefixtures("traced_once")

TOKENS = "BertForTokenClassification"
FP8 = QDQConfig.preset("fp8")
IS_INSTALLED = importlib.util.find_spec("tensorrt_rtx_bindings") is not None


@cache
def calibrated() -> PreTrainedModel:
    return qdqpatch.ptq(models.float_model(TOKENS), [models.inputs(TOKENS)], FP8, method="max")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A file with fp32 around FP8, which rounds where the model does, compiled where that can be."""
    build = ("SM89", "SM120") if IS_INSTALLED else ()
    folder = tmp_path_factory.mktemp("fp8") / "out"
    return export(calibrated(), folder, "tensorrt", dtype="float32", build=build)


def test_it_computes_what_the_model_does(exported: Export) -> None:
    # In steps: sums in another order alone.
    assert [comparison.mean < 0.01 for comparison in exported.comparisons] == [True]


def test_the_graph_is_that_of_int8_with_another_type(exported: Export, tmp_path: Path) -> None:
    settings = {"dtype": "float32", "opset": 20, "check": False}
    int8 = export(models.calibrated(TOKENS), tmp_path / "int8", "tensorrt", **settings)
    graph, expected = onnx.load(exported.file), onnx.load(int8.file)
    assert [node.op_type for node in graph.graph.node] == [node.op_type for node in expected.graph.node]
    assert [opset.version for opset in graph.opset_import] == [20]
    swapped = {TensorProto.INT8: TensorProto.FLOAT8E4M3FN}
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    for tensor in expected.graph.initializer:
        if tensor.name.endswith("_quantized"):
            assert types[tensor.name] == swapped[tensor.data_type]
    assert TensorProto.INT8 not in types.values()


def test_weights_are_stored_as_their_levels(exported: Export) -> None:
    name = "bert.encoder.layer.0.output.dense"
    graph = onnx.load(exported.file).graph
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == f"{name}.weight_quantized")
    stored = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    linear = calibrated().get_submodule(name)
    assert (stored == linear._weight_quantizer.integers(linear.weight.detach()).numpy()).all()


def test_lint_knows_it(exported: Export) -> None:
    report = check_file(exported.file, "tensorrt")
    assert report.findings == ()
    assert report.has_float8
    assert {site.operation for site in report.sites} >= {"linear", "query x key", "residual add"}
    for engine in ("onnxruntime", "openvino"):
        broken = check_file(exported.file, engine).broken
        assert broken["operand-type"][0].rule.effect == "stays float"


@pytest.mark.skipif(not IS_INSTALLED, reason="TensorRT for RTX is not installed")
def test_it_is_compiled_for_ada_and_blackwell(exported: Export) -> None:
    assert [built.capability for built in exported.builds] == ["SM89", "SM120"]
    for built in exported.builds:
        assert any(tensor.dtype == "fp8" for kernel in built.kernels for tensor in kernel.inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "onnxruntime"}, r"query\._input_quantizer is FP8, which onnxruntime does not multiply"),
        ({"target": "openvino"}, r"query\._input_quantizer is FP8, which openvino does not multiply"),
        ({"target": "tensorrt", "dtype": "float32", "opset": 18}, "FP8 needs opset 20 or newer, not 18"),
    ],
)
def test_others_refuse_it(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(calibrated(), tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_capabilities_before_ada_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SM86 has no FP8, which came with SM89 \(Ada\)"):
        export(calibrated(), tmp_path / "out", "tensorrt", build=("SM89", "SM86"))
    assert list(tmp_path.iterdir()) == []


def test_it_survives_a_checkpoint(tmp_path: Path) -> None:
    model, batch = calibrated(), models.inputs(TOKENS)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.quantization_config == model.config.quantization_config
    assert (loaded(**batch).logits == model(**batch).logits).all()


def test_a_table_of_float8_is_refused(tmp_path: Path) -> None:
    config = QDQConfig.preset("fp8", embeddings=True)
    model = qdqpatch.ptq(models.float_model(), [models.inputs()], config, method="max")
    with pytest.raises(ExportError, match=r"embeddings\S+_weight_quantizer is FP8, and .* num_bits=8"):
        export(model, tmp_path / "out", "tensorrt", check=False)
    assert list(tmp_path.iterdir()) == []
