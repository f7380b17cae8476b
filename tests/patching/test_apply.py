import copy

import models
import pytest
import torch
from torch import nn
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertSelfAttention

from qdqpatch import QDQConfig, dequantize, plan, quantize
from qdqpatch.errors import UnsupportedModelError
from qdqpatch.nn.attention import IMPLEMENTATION
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import (
    apply_plan,
    is_quantized,
    named_quantizers,
    own_config,
    revert,
    set_fixed_ranges,
    uses_qdq_attention,
)


def test_apply_gives_each_site_its_quantizers_and_its_class(any_head: str, float_model) -> None:
    model = float_model(any_head)
    found = plan(model, QDQConfig(**models.PARTS_ON))
    apply_plan(model, found)
    paths = {f"{site.path}.{name}" for site in found.sites for name in site.quantizers}
    assert {path for path, _ in named_quantizers(model)} == paths
    for site in found.sites:
        assert type(model.get_submodule(site.path)) is site.becomes


def test_modules_that_are_no_site_keep_their_class(any_head: str, float_model) -> None:
    model = float_model(any_head)
    before = {path: type(module) for path, module in model.named_modules()}
    changed = {site.path for site in plan(model).sites}
    quantize(model)
    for path, module_class in before.items():
        assert (type(model.get_submodule(path)) is module_class) == (path not in changed), path


def test_isinstance_still_holds_everywhere(any_head: str, float_model) -> None:
    model = float_model(any_head)
    before = {path: type(module) for path, module in model.named_modules()}
    quantize(model, QDQConfig(**models.PARTS_ON))
    for path, module_class in before.items():
        assert isinstance(model.get_submodule(path), module_class), path


def test_a_quantizer_that_is_off_is_there_but_disabled(float_model) -> None:
    model = quantize(float_model(), QDQConfig(overrides=["*.layer.0.*.query._input_quantizer=off"]))
    query = model.encoder.layer[0].attention.self.query
    assert not query._input_quantizer.is_enabled
    assert query._weight_quantizer.is_enabled
    assert model.encoder.layer[1].attention.self.query._input_quantizer.is_enabled


@pytest.mark.parametrize("training", [False, True])
def test_quantizers_take_over_the_mode(training: bool, float_model) -> None:
    model = quantize(float_model().train(training))
    assert {module.training for module in model.modules()} == {training}


def test_without_matmuls_attention_is_left_alone(float_model) -> None:
    model = float_model()
    before = model.config._attn_implementation
    quantize(model, QDQConfig(matmuls=False))
    assert model.config._attn_implementation == before
    assert not uses_qdq_attention(model)


def test_with_matmuls_attention_is_ours(any_head: str, float_model) -> None:
    model = quantize(float_model(any_head))
    assert uses_qdq_attention(model)
    for module in model.modules():
        if isinstance(module, BertSelfAttention):
            assert module.config._attn_implementation == IMPLEMENTATION


class Closed(BertModel):
    """A model that does not let its attention implementation be set, as remote code may not."""

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return False


def test_a_model_whose_attention_cannot_be_set_is_left_as_it_was() -> None:
    model = Closed(models.config())
    before = models.snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"Closed .*QDQConfig\(matmuls=False\)"):
        quantize(model)
    models.assert_unchanged(model, before)
    quantize(model, QDQConfig(matmuls=False))
    assert is_quantized(model)


class Failing(BertModel):
    """A model that cannot be set either, and says so by an exception."""

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        raise AttributeError("no source file")


def test_a_failure_inside_transformers_leaves_the_model_as_it_was() -> None:
    model = Failing(models.config())
    before = models.snapshot(model)
    with pytest.raises(AttributeError):
        quantize(model)
    models.assert_unchanged(model, before)


def test_revert_takes_everything_out_again(any_head: str, float_model) -> None:
    model = float_model(any_head)
    before = models.snapshot(model)
    apply_plan(model, plan(model, QDQConfig(**models.PARTS_ON)))
    revert(model, before["attention"])
    models.assert_unchanged(model, before)


def test_named_quantizers_are_ours_only(float_model) -> None:
    model = float_model()
    assert not is_quantized(model)
    assert list(named_quantizers(model)) == []
    quantize(model)
    assert is_quantized(model)
    assert all(isinstance(quantizer, TensorQuantizer) for _, quantizer in named_quantizers(model))


def test_fixed_ranges_are_set_where_there_is_none(float_model) -> None:
    model = float_model()
    config = QDQConfig(activation={"amax": 2.0}, overrides={"*.query._weight_quantizer": {"amax": 0.5}})
    found = plan(model, config)
    apply_plan(model, found)
    assert set(models.ranges(model).values()) == {None}
    model.encoder.layer[0].output.dense._input_quantizer.amax = 7.0
    set_fixed_ranges(model, found)
    ranges = models.ranges(model)
    assert ranges.pop("encoder.layer.0.output.dense._input_quantizer").item() == 7
    for path, amax in ranges.items():
        expected = 2.0 if not path.endswith("_weight_quantizer") else 0.5 if ".query." in path else None
        assert (amax if amax is None else amax.item()) == expected, path


def test_a_fixed_range_survives_calibration_settings_of_the_quantizer(float_model) -> None:
    model = quantize(float_model(), QDQConfig(activation={"amax": 2.0}))
    quantizer = model.encoder.layer[0].attention.self.query._input_quantizer
    values = torch.tensor([-9.0, 0.5, 9.0])
    assert quantizer(values)[2].item() == 2.0


def test_a_config_of_ones_own_is_shared_by_all_parts(any_head: str, float_model) -> None:
    model = float_model(any_head)
    old = model.config
    with own_config(model):
        assert model.config is not old
    assert model.config is not old
    assert model.config.to_dict() == old.to_dict()
    configs = {id(module.config) for module in model.modules() if hasattr(module, "config")}
    assert configs == {id(model.config)}


def test_weights_are_shared_with_quantlinear_not_copied(float_model) -> None:
    model = float_model()
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    weights = {path: (module.weight, module.weight.data_ptr()) for path, module in layers.items()}
    quantize(model, QDQConfig(**models.PARTS_ON))
    for path, (weight, address) in weights.items():
        module = model.get_submodule(path)
        assert module is layers[path]
        assert type(module) is QuantLinear
        assert module.weight is weight
        assert module.weight.data_ptr() == address


def test_an_attention_with_a_config_of_its_own_asks_for_the_implementation_too(float_model) -> None:
    model = float_model()
    own = copy.deepcopy(model.config)
    attention = model.encoder.layer[1].attention.self
    attention.config = own
    expected = models.outputs(model)
    quantize(model)
    assert attention.config._attn_implementation == IMPLEMENTATION
    assert own._attn_implementation != IMPLEMENTATION
    models.outputs(model)
    dequantize(model)
    assert attention.config._attn_implementation == own._attn_implementation
    models.assert_equal(models.outputs(model), expected)
