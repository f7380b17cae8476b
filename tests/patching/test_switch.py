"""Quantizers turned off and on at run time: as by `quant_trainer.py`, and the same after loading."""

import re
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from adjusted import check_saving, model_of, settings
from torch import nn
from transformers import AutoModel, EncoderDecoderConfig, EncoderDecoderModel, PreTrainedModel

from qdqpatch import QDQConfig, calibrate, dequantize, plan, quantize
from qdqpatch.calibration import expand_amax
from qdqpatch.errors import ConfigError, NotQuantizedError, OverrideError
from qdqpatch.nn.attention import IMPLEMENTATION
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.patching.switch import switch_quantizers


def on(model: nn.Module) -> set[str]:
    return {path for path, quantizer in named_quantizers(model) if quantizer.is_enabled}


def matched_by_quant_trainer(model: nn.Module, regex: str) -> set[str]:
    """Return the quantizers that its `set_quantizer_by_name` reaches: by layer, and the others by name."""
    found = set()
    for path, _ in named_quantizers(model):
        owner, _, name = path.rpartition(".")
        is_layers = name in ("_input_quantizer", "_weight_quantizer")
        if re.search(regex, path) or (is_layers and re.search(regex, owner)):
            found.add(path)
    return found


LAYER = r"layer.\d+."
EQUIVALENTS: dict[str, tuple[str, list[str], int]] = {
    "--quant-disable-keyword query": ("query", ["*query*"], 4),
    "--quant-disable-keyword attention.self": (r"attention.self", ["*attention.self*"], 20),
    "--quant-disable-keyword add_": ("add_", ["*add_*"], 8),
    "--quant-disable-keyword layer.0": ("layer.0", ["*layer.0*"], 20),
    "--quant-disable-keyword _weight_quantizer": ("_weight_quantizer", ["*_weight_quantizer*"], 12),
    "--quant-disable-layer-module output": (LAYER + "output", ["*layer.0.output*", "*layer.1.output*"], 8),
    "--quant-disable-layer-module attention.output.dense": (
        LAYER + "attention.output.dense",
        [f"*layer.{index}.attention.output.dense*" for index in range(2)],
        4,
    ),
}


@pytest.mark.parametrize(("regex", "patterns", "count"), EQUIVALENTS.values(), ids=EQUIVALENTS)
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_patterns_reach_what_quant_trainer_reaches(
    regex: str, patterns: list[str], count: int, name: str
) -> None:
    """The counts are those of the original classes and `quant_trainer.py` with this model."""
    model = models.calibrated(name)
    everything, expected = on(model), matched_by_quant_trainer(model, regex)
    assert len(expected) == count
    made = quantize(models.float_model(name), QDQConfig(overrides=dict.fromkeys(patterns, False)))
    assert on(made) == everything - expected
    ranges = models.ranges(model)
    assert switch_quantizers(model, dict.fromkeys(patterns, False)) is model
    assert on(model) == everything - expected
    models.assert_equal(models.ranges(model), ranges)
    assert model.config.quantization_config == made.config.quantization_config
    switch_quantizers(model, {"*": False} | dict.fromkeys(patterns, True))
    assert on(model) == expected


def test_embeddings_are_off_as_quant_disable_embeddings_has_them(calibrated) -> None:
    assert not any("embeddings" in path for path in on(calibrated()))


SWITCHES: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    "an operand": ({}, {"*.layer.0.output.add_local_input_quantizer": False}),
    "an operation": ({}, {"*.layer.0.output.dense.*": False}),
    "a layer": ({}, {"*.layer.1.*": False}),
    "all but": ({}, {"*": False, "*.attention.*": True, "*.key.*": False}),
    "prefix": ({}, {"bert.encoder.layer.0.*": False}),
    "parts": (models.PARTS_ON, {"*": False, "*embeddings*": True, "*pooler*": True}),
    "all there are": ({}, {"*": True}),
    "one that is off": ({"overrides": {"*.query._weight_quantizer": False}}, {"*.query.*": True}),
    "settings": (
        {"overrides": {"*.query.*": {"num_bits": 4, "axis": None}, "*.query._input*": False}},
        {"*.query.*": True, "*.layer.0.*.query._weight*": False},
    ),
    "fixed": ({"activation": {"amax": 3.0}, "overrides": {"*.query._i*": False}}, {"*.query.*": True}),
}


@pytest.mark.filterwarnings("ignore:The checkpoint has ranges for only some")  # of those turned on
@pytest.mark.parametrize(("config", "overrides"), SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("state", ["calibrated", "uncalibrated"])
def test_a_switched_model_saves_and_loads(
    config: dict[str, Any], overrides: dict[str, bool], state: str, tmp_path: Path
) -> None:
    model = quantize(models.build(), QDQConfig(**config))
    if state == "calibrated":
        calibrate(model, [models.inputs()])
    switch_quantizers(model, overrides)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {kind: set(keys) for kind, keys in info.items() if keys} == {}
    assert on(loaded) == on(model)
    models.assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))
    if not any("matmul" in path for path in on(model)):
        assert loaded.config._attn_implementation == "sdpa"  # equal up to rounding; to the bit with the same
        loaded.set_attn_implementation(IMPLEMENTATION)
    models.assert_equal(models.outputs(loaded), models.outputs(model))
    assert loaded.config.quantization_config == model.config.quantization_config
    enabled = [str(row) for row in settings(model) if row[0] in on(model)]
    assert [str(row) for row in settings(loaded) if row[0] in on(loaded)] == enabled
    assert str(plan(loaded)) == str(plan(model))
    assert model.hf_quantizer.quantization_config == model.config.quantization_config


def test_outputs_are_those_of_a_model_made_without_the_quantizers(calibrated) -> None:
    model = switch_quantizers(calibrated(), {"*.layer.0.*": False})
    made = quantize(models.float_model(), QDQConfig(overrides=["*.layer.0.*=off"]))
    for path, quantizer in named_quantizers(made):
        quantizer.load_range(model.get_submodule(path).amax)
    models.assert_equal(models.outputs(model), models.outputs(made))
    different = models.outputs(calibrated())
    assert not torch.equal(different["last_hidden_state"], models.outputs(model)["last_hidden_state"])


def test_turning_off_and_on_again_gives_the_same_model(calibrated, tmp_path: Path) -> None:
    model = calibrated()
    before = models.snapshot(model)
    config = model.config.quantization_config
    for pattern in ("*.layer.0.*", "*_weight_quantizer"):
        switch_quantizers(model, {pattern: False})
        assert model.config.quantization_config != config
        switch_quantizers(model, {pattern: True})
        assert model.config.quantization_config == config
    models.assert_unchanged(model, before)
    check_saving(model, tmp_path)


def test_turning_off_and_on_again_keeps_settings_under_the_same_pattern() -> None:
    path = "encoder.layer.0.attention.self.query._weight_quantizer"
    model = model_of(config={"overrides": {path: {"num_bits": 4}}})
    config, before = model.config.quantization_config, models.snapshot(model)
    switch_quantizers(switch_quantizers(model, {path: False}), {path: True})
    assert model.config.quantization_config == config
    assert model.get_submodule(path).num_bits == 4
    models.assert_unchanged(model, before)


def test_a_recipe_does_not_grow_with_each_turn(calibrated) -> None:
    model = calibrated()
    for _ in range(3):
        for overrides in ({"*.query.*": False, "*.key.*": False}, {"*.layer.0.*": True}, {"*.key.*": True}):
            switch_quantizers(model, overrides)
            switch_quantizers(model, {"*.value.*": False})
    assert len(model.config.quantization_config.overrides) <= 6


def test_turning_on_everything_turns_on_only_what_was_quantized(calibrated, tmp_path: Path) -> None:
    """The pooler and the embeddings, which the configuration leaves float, stay so after loading."""
    model = switch_quantizers(calibrated(), {"*.query._input_quantizer": False})
    switch_quantizers(model, {"*": True})
    assert on(model) == on(calibrated())
    check_saving(model, tmp_path)


def test_what_was_switched_by_hand_is_recorded_too(calibrated, tmp_path: Path) -> None:
    model = calibrated()
    model.encoder.layer[0].attention.self.key._input_quantizer.disable()
    switch_quantizers(model, {"*.query._input_quantizer": False})
    model.save_pretrained(tmp_path)
    assert on(AutoModel.from_pretrained(tmp_path)) == on(model)


def test_ranges_of_what_is_off_are_kept_but_not_saved(calibrated) -> None:
    model = calibrated()
    before = models.ranges(model)
    switch_quantizers(model, {"*.query._input_quantizer": False})
    models.assert_equal(models.ranges(model), before)
    path = "encoder.layer.0.attention.self.query._input_quantizer._amax"
    assert path not in model.state_dict()
    assert path in switch_quantizers(model, {"*": True}).state_dict()


def test_a_range_survives_a_change_of_settings_while_it_is_off(tmp_path: Path) -> None:
    """`expand_amax` leaves alone what is off, but the recipe is for ranges per channel from there on."""
    model = model_of(config={"weight": {"axis": None}})
    query = "encoder.layer.0.attention.self.query._weight_quantizer"
    before = models.ranges(model)[query]
    switch_quantizers(model, {query: False})
    expand_amax(model)
    switch_quantizers(model, {query: True})
    assert torch.equal(model.get_submodule(query).amax, before)
    assert model.get_submodule(query).axis == 0
    check_saving(model, tmp_path)


def test_parts_of_a_composite_model(tmp_path: Path) -> None:
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        models.config(), models.config(models.CROSS, is_decoder=True)
    )
    model = quantize(EncoderDecoderModel(config).eval())
    everything = on(model)
    switch_quantizers(model, {"decoder.*": False, "*.layer.0.*": False})
    assert on(model) == {path for path in everything if path.startswith("encoder.") and ".layer.1." in path}
    model.save_pretrained(tmp_path)
    assert on(EncoderDecoderModel.from_pretrained(tmp_path)) == on(model)


# Errors.


def hooked(model: PreTrainedModel) -> None:
    for module in model.modules():
        vars(module)["forward"] = module.forward


FAILURES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no match": ({"*.query.*": False, "*.qurey.*": False}, OverrideError, r"'\*\.qurey\.\*' matches no"),
    "left float": ({"*pooler*": True}, OverrideError, "matches no quantizer.*quantized anew"),
    "nothing left": ({"*": False}, ConfigError, r"No quantizer would be left on.*dequantize"),
    "settings": ({"*": {"num_bits": 4}}, ConfigError, "True or False"),
    "a number": ({"*": 1}, ConfigError, "True or False"),
    "a text": ("*=off", ConfigError, "True or False"),  # type: ignore[dict-item]
    "empty": ({"": False}, ConfigError, "non-empty"),
}


@pytest.mark.parametrize(("overrides", "error", "said"), FAILURES.values(), ids=FAILURES)
def test_an_error_leaves_the_model_as_it_was(
    overrides: Any, error: type[Exception], said: str, calibrated
) -> None:
    models.assert_refused(lambda model: switch_quantizers(model, overrides), calibrated(), error, said)


def test_a_model_whose_configuration_cannot_say_it_is_refused(calibrated) -> None:
    model = calibrated()
    hooked(model)
    before = models.snapshot(model)
    with pytest.raises(ConfigError, match="cannot say what is on"):
        switch_quantizers(model, {"*.query.*": False})
    models.assert_unchanged(model, before)


def test_a_float_model_is_refused(float_model, calibrated) -> None:
    for model in (float_model(), dequantize(calibrated())):
        with pytest.raises(NotQuantizedError):
            switch_quantizers(model, {"*": False})
