"""What Linears compute, quantized before the bias: where, in the model, in the file and in TensorRT."""

import importlib.util
from functools import cache
from pathlib import Path

import models
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig, export
from qdqpatch.engines.shapes import Shape
from qdqpatch.engines.tensorrt.build import build
from qdqpatch.engines.tensorrt.table import read_table
from qdqpatch.errors import ConfigError, ExportError
from qdqpatch.exporter.result import Export
from qdqpatch.lint import check_file
from qdqpatch.lint.graph import read_sites
from qdqpatch.nn.names import OUTPUT

TOKENS = "BertForTokenClassification"
OUTPUTS = QDQConfig.preset("outputs")
IS_INSTALLED = importlib.util.find_spec("tensorrt_rtx_bindings") is not None
pytestmark = pytest.mark.usefixtures("traced_once")

LINEAR = "bert.encoder.layer.0.output.dense"


@cache
def calibrated() -> PreTrainedModel:
    return qdqpatch.ptq(models.float_model(TOKENS), [models.inputs(TOKENS)], OUTPUTS, method="max")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(calibrated(), tmp_path_factory.mktemp("outputs") / "out", "tensorrt", dtype="float32")


def test_every_linear_of_a_layer_rounds_its_product_before_the_bias() -> None:
    model = calibrated()
    assert sum(name == OUTPUT for path, _ in model.named_modules() for name in path.split(".")[-1:]) == 12
    linear = model.get_submodule(LINEAR)
    inputs = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(1))
    product = torch.nn.functional.linear(
        linear._input_quantizer(inputs), linear._weight_quantizer(linear.weight)
    )
    assert torch.equal(linear(inputs), linear._output_quantizer(product) + linear.bias)
    linear._output_quantizer.disable()
    try:
        assert torch.allclose(linear(inputs), product + linear.bias, rtol=1e-5, atol=1e-6)
    finally:
        linear._output_quantizer.enable()


def test_the_configuration_turns_them_on_and_off() -> None:
    model = models.float_model()
    off = qdqpatch.plan(model, QDQConfig(outputs=True, overrides={f"*.0.*{OUTPUT}": False}))
    on = {site.path for site in off.sites if site.quantizers.get(OUTPUT) is not None}
    assert on == {path for path, module in model.named_modules() if type(module) is torch.nn.Linear
                  and ".layer.1." in path}  # fmt: skip
    head = qdqpatch.plan(models.float_model(TOKENS), QDQConfig(outputs=True, head=True))
    assert OUTPUT not in next(site for site in head.sites if site.path == "classifier").quantizers
    with pytest.raises(ConfigError, match="outputs must be true or false"):
        QDQConfig(outputs=1)


def test_it_survives_a_checkpoint_and_goes(tmp_path: Path) -> None:
    model, batch = calibrated(), models.inputs(TOKENS)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    qdqpatch.dequantize(loaded)
    assert torch.equal(loaded(**batch).logits, models.float_model(TOKENS)(**batch).logits)


def test_the_file_computes_what_the_model_does(exported: Export) -> None:
    # In steps: a level that sums in another order move to the next one, now and then.
    assert [comparison.mean < 0.01 for comparison in exported.comparisons] == [True]
    graph = onnx.load(exported.file).graph
    (product,) = (node for node in graph.node if node.name == LINEAR)
    behind = [next(node for node in graph.node if product.output[0] in node.input)]
    while behind[-1].op_type != "Add":
        behind.append(next(node for node in graph.node if behind[-1].output[0] in node.input))
    assert [node.op_type for node in behind] == ["Mul", "QuantizeLinear", "DequantizeLinear", "Add"]
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    linear = calibrated().get_submodule(LINEAR)
    step = linear._weight_quantizer.amax.flatten().numpy() / 127
    common = scales[f"{LINEAR}.weight_scale"]
    # The common scale is a power of two, so that the two are the range of each output to the bit.
    assert (scales[f"{LINEAR}.weight_ratio"] * common == step).all()
    assert common.shape == ()


def test_outputs_that_were_pruned_do_not_count_in_fp16(tmp_path: Path) -> None:
    """Most of a weight's rows are zeros, or nearly: the others' ratios neither overflow nor vanish."""
    model = models.float_model(TOKENS)
    weight = model.get_parameter(f"{LINEAR}.weight").data
    zeros, kept = int(0.55 * len(weight)), int(0.15 * len(weight))
    weight[:zeros] = 0
    weight[zeros:-kept] *= 1e-5
    qdqpatch.ptq(model, [models.inputs(TOKENS)], OUTPUTS, method="max")
    result = export(model, tmp_path / "out", "tensorrt", dtype="float16")
    # In steps: fp16 around it costs 0.2 of any such model, and the median of all rows cost 9.8, or 2.2.
    assert [comparison.mean < 0.5 for comparison in result.comparisons] == [True]
    tensors = {tensor.name: tensor for tensor in onnx.load(result.file).graph.initializer}
    ratios, common = (
        onnx.numpy_helper.to_array(tensors[f"{LINEAR}.weight_{name}"]).astype("float32")
        for name in ("ratio", "scale")
    )
    step = model.get_submodule(LINEAR)._weight_quantizer.amax.flatten().numpy() / 127
    assert ratios[-kept:] * common == pytest.approx(step[-kept:], rel=2**-11)


def test_lint_finds_nothing_to_say(exported: Export) -> None:
    report = check_file(exported.file, "tensorrt")
    assert report.findings == ()
    assert sum(site.operation == "linear" for site in report.sites) == 12


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_other_engines_do_without(tmp_path: Path, target: str) -> None:
    with pytest.raises(ExportError, match=rf"_output_quantizer rounds what .* slows {target} down"):
        export(calibrated(), tmp_path / "out", target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not IS_INSTALLED, reason="TensorRT for RTX is not installed")
@pytest.mark.parametrize(("heads", "shape"), [(2, Shape(2, 128)), (4, Shape(2, 384))])
def test_every_kernel_of_tensorrt_writes_int8(tmp_path: Path, heads: int, shape: Shape) -> None:
    config = BertConfig(
        vocab_size=48, hidden_size=128, num_hidden_layers=1, num_attention_heads=heads, intermediate_size=256
    )
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).eval()
    qdqpatch.ptq(model, [models.inputs()], OUTPUTS, method="max")
    file = export(model, tmp_path / "out", "tensorrt", check=False).file
    table = read_table(build(file, "SM89", shape), read_sites(file), None)
    kinds = {row.operation: row.text for row in table.rows if "residual" not in row.operation}
    assert kinds["linear"] == "gemm: int8 -> int8"
    assert {row.text for row in table.rows if row.operation == "linear"} == {"gemm: int8 -> int8"}
    assert table.fused_attentions == 1
    assert ir.load(file).graph.outputs[0].dtype == ir.DataType.FLOAT16
