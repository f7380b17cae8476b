"""`export` of every placement and setting: numbers as the model's, and which matmuls stay float, and why."""

import models
import numpy as np
import pytest
import torch
from exports import MEAN, VARIANTS, assert_close, calibrated, export, in_file, made, needs_vnni
from pytorch_quantization.nn import TensorQuantizer
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig
from qdqpatch.engines.sessions import ONNX_RUNTIME
from qdqpatch.errors import EngineError
from qdqpatch.exporter.targets.onnxruntime import kernels

pytestmark = pytest.mark.slow

ON_ONNX_RUNTIME = [
    pytest.param(variant, marks=[needs_vnni] if variant == "with VNNI" else [])
    for variant in VARIANTS
    if variant != "fp32 weights"
]
LAYERS = [f"bert.encoder.layer.{index}" for index in range(2)]


def tables_in_int8(model: PreTrainedModel) -> PreTrainedModel:
    """Round a model's embeddings, one range a row, as `int8_embeddings` does."""
    with torch.no_grad():
        for module in model.modules():
            if type(module) is torch.nn.Embedding:
                scale = module.weight.abs().amax(1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
    return model


@pytest.mark.parametrize("variant", ON_ONNX_RUNTIME)
def test_the_file_computes_what_the_model_does(variant: str) -> None:
    exported = made(variant)
    model = exported.model
    models.assert_unchanged(model, exported.before)
    if variant == "int8 embeddings":
        model = tables_in_int8(models.calibrated(exported.name))
    inputs = models.inputs(exported.name, seed=5)
    with torch.no_grad():
        expected = in_file(model, models.flatten(model(**inputs)))
    assert_close(expected, exported.session.run_tensors(inputs))


@pytest.mark.parametrize("variant", ["BertModel", "no residual adds", "per tensor"])
def test_all_matmuls_of_the_layers_are_integer_kernels(variant: str) -> None:
    operations = made(variant).result.operations
    assert all(operation.integer and not operation.reason for operation in operations)
    names = ["query", "key", "value", "query_x_key", "probabilities_x_value"]
    assert sorted(operation.name for operation in operations if operation.integer) == sorted(
        f"encoder.layer.{layer}.{name}"
        for layer in range(2)
        for name in [
            *(f"attention.self.{operation}" for operation in names),
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ]
    )


def test_with_all_parts_on_nothing_is_float() -> None:
    operations = made("all parts").result.operations
    assert len(operations) == 18
    assert all(operation.integer and not operation.reason for operation in operations)
    assert {"bert.pooler.dense", "classifier"} <= {operation.name for operation in operations}


def test_attention_that_is_off_is_named() -> None:
    left = {
        operation.name: operation.reason
        for operation in made("Linears alone").result.operations
        if not operation.integer
    }
    assert left == {
        f"encoder.layer.{layer}.attention.self.{name}": f"not quantized: matmul_{first}_input_quantizer and "
        f"matmul_{second}_input_quantizer off"
        for layer in range(2)
        for name, first, second in (("query_x_key", "q", "k"), ("probabilities_x_value", "a", "v"))
    }


def test_quantizers_that_are_off_are_named() -> None:
    left = {
        operation.name: operation.reason
        for operation in made("some off").result.operations
        if not operation.integer
    }
    assert left == {
        f"{LAYERS[0]}.attention.self.query": "not quantized: _input_quantizer off",
        f"{LAYERS[0]}.attention.self.probabilities_x_value": "not quantized: matmul_a_input_quantizer off",
        f"{LAYERS[0]}.intermediate.dense": "not quantized: _weight_quantizer off",
        f"{LAYERS[1]}.attention.self.query_x_key": "not quantized: matmul_q_input_quantizer off",
        f"{LAYERS[1]}.attention.output.dense": "not quantized: its part of the model is off in the QDQConfig",
        "classifier": "not quantized: its part of the model is off in the QDQConfig",
    }


def test_embeddings_are_looked_up_as_integers() -> None:
    for variant, scales in (("int8 embeddings", True), ("per tensor", False)):
        exported = made(variant)
        prefix = "bert." if exported.name != "BertModel" else ""
        for name in ("word", "position", "token_type"):
            table = f"{prefix}embeddings.{name}_embeddings.weight"
            assert table not in exported.graph.initializers
            assert exported.graph.initializers[f"{table}_quantized"].dtype.name == "INT8"
            assert (f"{table}_scale" in exported.graph.initializers) == scales


def test_an_input_that_is_off_is_not_quantized_by_the_engine(tmp_path) -> None:
    optimized = kernels(made("some off").result.file)
    assert f"{LAYERS[0]}.attention.self.query" in {name for kernel in optimized for name in kernel.names}


def test_a_fixed_shape_is_the_only_one() -> None:
    session = made("zero ranges").session
    assert {value.shape for value in session.inputs} == {(2, 8)}
    for length in (7, 9):
        with pytest.raises(EngineError, match="Got invalid dimensions"):
            session.run_tensors(models.inputs(length=length))


def test_the_other_arithmetic(tmp_path) -> None:
    TensorQuantizer.use_fb_fake_quant = True
    config = QDQConfig(overrides=("*_input_quantizer=narrow_range:true",))  # native: always the full range
    name = "BertForTokenClassification"
    model = calibrated(name, config)
    result = export(model, tmp_path / "out", shape=(2, 8))
    inputs = models.inputs(name, seed=5)
    found = ONNX_RUNTIME.load(result.file, threads=1).run_tensors(inputs)
    with torch.no_grad():
        assert_close(models.flatten(model(**inputs)), found)
    assert not any("use_fb_fake_quant" in vars(quantizer) for _, quantizer in models.named_quantizers(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_train_mode_in_any_precision(dtype: torch.dtype, tmp_path) -> None:
    name = "BertForTokenClassification"
    model = models.calibrated(name).to(dtype).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    before = models.snapshot(model)
    result = qdqpatch.export(model, tmp_path / "out", shape=(2, 8))
    models.assert_unchanged(model, before)
    assert result.comparisons[0].mean <= MEAN  # dropout would be in the reference
    inputs = models.inputs(name, seed=5)
    found = ONNX_RUNTIME.load(result.file, threads=1).run_tensors(inputs)
    with torch.no_grad():
        expected = models.flatten(model.float().eval()(**inputs))
    assert found["logits"].dtype == np.float32
    assert_close(expected, found)
