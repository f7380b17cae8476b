import copy
from typing import Any

import models
import pytest
import torch
from pytorch_quantization import nn as quant_nn
from torch import nn
from transformers import GPT2Config, GPT2Model

from qdqpatch import QDQConfig, calibrate, dequantize, plan, quantize
from qdqpatch.errors import (
    ConfigError,
    NotQuantizedError,
    OverrideError,
    QdqError,
    QuantizedError,
    UnsupportedModelError,
)
from qdqpatch.patching.apply import is_quantized

EVERYTHING = QDQConfig(**models.PARTS_ON)


def names(model: nn.Module) -> set[str]:
    """Return the paths of everything that NVIDIA's own scripts would take for a quantizer."""
    return {path for path, module in model.named_modules() if isinstance(module, quant_nn.TensorQuantizer)}


def test_quantize_returns_the_same_object_of_the_same_class(any_head: str, float_model) -> None:
    model = float_model(any_head)
    assert quantize(model) is model
    assert type(model) is models.model_class(any_head)


def test_quantizers_have_the_names_of_qdqbert(float_model) -> None:
    layer = quantize(float_model()).encoder.layer[0]
    linears = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    linears += ["intermediate.dense", "output.dense"]
    assert names(layer) == {
        *(f"{path}.{kind}" for path in linears for kind in ("_input_quantizer", "_weight_quantizer")),
        *(f"attention.self.matmul_{operand}_input_quantizer" for operand in "qkva"),
        "attention.output.add_local_input_quantizer",
        "attention.output.add_residual_input_quantizer",
        "output.add_local_input_quantizer",
        "output.add_residual_input_quantizer",
    }


def test_cross_attention_has_quantizers_of_its_own(float_model) -> None:
    layer = quantize(float_model(models.CROSS)).bert.encoder.layer[0]
    own = {
        path.removeprefix("crossattention.") for path in names(layer) if path.startswith("crossattention.")
    }
    assert own == names(layer.attention)


def test_outputs_change_by_quantization_and_by_little(any_head: str, float_model, uncalibrated) -> None:
    expected, actual = (models.outputs(model(any_head), any_head) for model in (float_model, uncalibrated))
    assert actual.keys() == expected.keys()
    for name in expected:
        error = (actual[name] - expected[name]).abs().max()
        assert 0 < error < 0.1 * expected[name].abs().max(), name


def test_parameters_are_the_same_objects_there_and_back(any_head: str, float_model) -> None:
    model = float_model(any_head)
    before = [(name, parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()]
    for change in (lambda: quantize(model, EVERYTHING), lambda: dequantize(model)):
        change()
        after = list(model.named_parameters())
        assert [name for name, _ in after] == [name for name, _, _ in before]
        for (_, new), (_, old, address) in zip(after, before, strict=True):
            assert new is old
            assert new.data_ptr() == address


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel"])
def test_tied_weights_stay_tied(head: str, float_model) -> None:
    model = quantize(float_model(head), EVERYTHING)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("undo", [dequantize, lambda model: model.dequantize()], ids=["function", "method"])
def test_dequantize_gives_the_float_model_back(undo: Any, any_head: str, float_model) -> None:
    model = float_model(any_head)
    before, expected = models.snapshot(model), models.outputs(model, any_head)
    quantize(model, EVERYTHING)
    undo(model)
    models.assert_equal(models.outputs(model, any_head), expected)
    after = models.snapshot(model)
    models.assert_equal(after["tensors"], before["tensors"])
    for key in ("class", "modules", "identities", "attention"):
        assert after[key] == before[key], key
    assert after["config"][1] == before["config"][1]
    assert not hasattr(model.config, "quantization_config")
    assert not is_quantized(model)


def test_dequantize_returns_the_same_object(calibrated) -> None:
    model = calibrated()
    assert dequantize(model) is model


def test_dequantize_keeps_what_was_trained(calibrated) -> None:
    model = calibrated("BertForSequenceClassification")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    models.gradients(model, "BertForSequenceClassification")
    optimizer.step()
    trained = {name: parameter.clone() for name, parameter in model.named_parameters()}
    models.assert_equal(dict(dequantize(model).named_parameters()), trained)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_dequantize_returns_to_the_attention_implementation(attn_implementation: str) -> None:
    model = quantize(models.build(attn_implementation=attn_implementation))
    assert model.config._attn_implementation == "qdqpatch"
    assert dequantize(model).config._attn_implementation == attn_implementation


def test_a_dequantized_model_can_be_quantized_again(any_head: str, float_model, uncalibrated) -> None:
    model = dequantize(quantize(float_model(any_head), EVERYTHING))
    quantize(model)
    expected = uncalibrated(any_head)
    assert names(model) == names(expected)
    models.assert_equal(models.outputs(model, any_head), models.outputs(expected, any_head))
    assert model.config.to_dict() == expected.config.to_dict()


def test_a_float_model_cannot_be_dequantized(float_model) -> None:
    model = float_model()
    before = models.snapshot(model)
    with pytest.raises(NotQuantizedError, match="BertModel"):
        dequantize(model)
    models.assert_unchanged(model, before)


def test_quantizing_twice_is_an_error_that_changes_nothing(any_head: str, calibrated) -> None:
    model = calibrated(any_head)
    before = models.snapshot(model)
    for config in (None, QDQConfig.preset("linear-only")):
        with pytest.raises(QuantizedError, match="dequantize"):
            quantize(model, config)
        models.assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (QDQConfig(overrides=["*.layer.0.*=off", "*.layer.7.*=off"]), OverrideError),
        (QDQConfig(overrides=["*=off"]), UnsupportedModelError),
        (QDQConfig(linears=False, matmuls=False, residual_adds=False), UnsupportedModelError),
    ],
)
def test_an_error_leaves_the_model_as_it_was(
    config: QDQConfig, error: type, any_head: str, float_model
) -> None:
    model = float_model(any_head)
    before = models.snapshot(model)
    with pytest.raises(error):
        quantize(model, config)
    models.assert_unchanged(model, before)
    quantize(model)


def test_an_unknown_architecture_is_left_as_it_was() -> None:
    model = GPT2Model(GPT2Config(vocab_size=48, n_embd=24, n_head=2, n_layer=1, n_positions=16))
    before = models.snapshot(model)
    with pytest.raises(UnsupportedModelError):
        quantize(model)
    models.assert_unchanged(model, before)


def test_a_model_with_adapters_is_left_as_it_was(float_model) -> None:
    """One whose layers come from peft, which is not needed for that."""
    model = float_model()
    model.encoder.layer[0].attention.self.query.__class__ = type(
        "Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"}
    )
    before = models.snapshot(model)
    for verb in (quantize, plan):
        with pytest.raises(
            ConfigError, match=r"self\.query of BertModel is an adapter of .*merge_and_unload"
        ):
            verb(model)
    models.assert_unchanged(model, before)


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), "bert-base-uncased", None])
def test_what_is_no_model_is_refused(thing: Any) -> None:
    for verb in (quantize, plan):
        with pytest.raises(UnsupportedModelError):
            verb(thing)
    with pytest.raises(NotQuantizedError):
        dequantize(thing)


@pytest.mark.parametrize("config", ["linear-only", {"linears": False}, 8])
def test_what_is_no_config_is_refused(config: Any, float_model) -> None:
    model = float_model()
    before = models.snapshot(model)
    for verb in (quantize, plan):
        with pytest.raises(ConfigError):
            verb(model, config)
    models.assert_unchanged(model, before)


def test_every_error_is_a_qdqerror_and_a_builtin() -> None:
    for error in (ConfigError, OverrideError, QuantizedError, NotQuantizedError, UnsupportedModelError):
        assert issubclass(error, QdqError)
        assert issubclass(error, (ValueError, TypeError, RuntimeError))


def test_another_model_of_the_same_config_stays_float(any_head: str) -> None:
    config = models.config(any_head)
    first, second = (models.model_class(any_head)(config).eval() for _ in range(2))
    assert first.config is second.config
    expected, before = models.outputs(second, any_head), config.to_dict()
    quantize(first)
    models.assert_equal(models.outputs(second, any_head), expected)
    assert second.config is config
    assert config.to_dict() == before
    assert not hasattr(config, "quantization_config")
    assert config._attn_implementation != "qdqpatch"
    later = models.model_class(any_head)(config)
    assert later.config._attn_implementation != "qdqpatch"
    assert not is_quantized(later)


def test_dequantizing_one_copy_leaves_the_other_quantized(calibrated) -> None:
    model = calibrated()
    twin = copy.deepcopy(model)
    expected = models.outputs(model)
    dequantize(twin)
    models.assert_equal(models.outputs(model), expected)
    assert model.config._attn_implementation == "qdqpatch"
    assert hasattr(model.config, "quantization_config")


def test_the_recipe_is_in_the_config(float_model) -> None:
    config = QDQConfig(head=True, overrides=["*.layer.0.*=off"])
    model = quantize(float_model("BertForMaskedLM"), config)
    recorded = model.config.quantization_config
    assert recorded == plan(float_model("BertForMaskedLM"), config).config
    assert recorded.overrides == config.overrides
    assert (recorded.activation, recorded.weight) != (None, None)
    assert QDQConfig.from_dict(model.config.to_dict()["quantization_config"]) == recorded


def test_only_what_an_override_leaves_on_computes_differently(float_model) -> None:
    """One quantizer alone: the outputs are those of the float model, that one Linear quantized by hand."""
    path = "encoder.layer.1.output.dense"
    model = quantize(float_model(), QDQConfig(overrides=["*=off", f"{path}._weight_quantizer=on"]))
    by_hand = float_model()
    weight = by_hand.get_submodule(path).weight
    with torch.no_grad():
        weight.copy_(quant_nn.TensorQuantizer(quant_nn.QuantLinear.default_quant_desc_weight)(weight))
    models.assert_equal(models.outputs(model), models.outputs(by_hand))


def test_each_quantized_part_of_the_model_matters(float_model) -> None:
    """Turning on embeddings, pooler or head moves the outputs of a model that is otherwise the default."""
    name = "BertForSequenceClassification"
    default = models.outputs(quantize(float_model(name)), name)["logits"]
    for part in models.PARTS_ON:
        model = quantize(float_model(name), QDQConfig(**{part: True}))
        assert not torch.equal(models.outputs(model, name)["logits"], default), part


def test_quantized_embeddings_can_be_calibrated(float_model) -> None:
    model = calibrate(quantize(float_model(), QDQConfig(embeddings=True)), [models.inputs()])
    quantizer = model.embeddings.word_embeddings._weight_quantizer
    assert quantizer.amax.shape == (models.CONFIG["vocab_size"], 1)
