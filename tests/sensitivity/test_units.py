"""The units of a model: which quantizers they have, what they are called, and what turns them off."""

import dataclasses
from collections import Counter

import family_models as families
import models
import pytest
import torch
from transformers import EncoderDecoderConfig, EncoderDecoderModel

import qdqpatch
from qdqpatch import QDQConfig
from qdqpatch.choices import PRESETS
from qdqpatch.errors import ConfigError, NotQuantizedError
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.sensitivity import find_units

CONFIGS = {
    **{name: QDQConfig.preset(name) for name in PRESETS},
    "everything": QDQConfig(**models.PARTS_ON),
    "overrides": QDQConfig(overrides={"*.layer.0.*": False, "*_weight_quantizer": False}),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_quantizer_that_is_on_belongs_to_one_unit(any_head: str, config: QDQConfig) -> None:
    model = qdqpatch.quantize(models.float_model(any_head), config)
    before = models.snapshot(model)
    units = find_units(model)
    models.assert_unchanged(model, before)
    assert Counter(path for unit in units for path in unit.quantizers) == dict.fromkeys(
        enabled_quantizers(model), 1
    )
    assert len({unit.name for unit in units}) == len(units)


@pytest.mark.parametrize(
    ("head", "name"), [("BertForPreTraining", "everything"), *((models.CROSS, name) for name in CONFIGS)]
)
def test_overrides_turn_off_one_unit_and_nothing_else(head: str, name: str) -> None:
    config = CONFIGS[name]
    model = qdqpatch.quantize(models.float_model(head), config)
    everything = set(enabled_quantizers(model))
    for unit in find_units(model):
        without = dataclasses.replace(config, overrides=(*config.overrides, *unit.overrides))
        changed = qdqpatch.quantize(models.float_model(head), without)
        assert set(enabled_quantizers(changed)) == everything - set(unit.quantizers), unit.name


def test_the_units_of_a_model_with_everything_quantized() -> None:
    model = qdqpatch.quantize(models.float_model("BertForPreTraining"), QDQConfig(**models.PARTS_ON))
    layer = {
        "attention": ("attention", 12),
        "attention add": ("residual add", 2),
        "feed-forward": ("feed-forward", 4),
        "feed-forward add": ("residual add", 2),
    }
    expected = {f"layer {number}, {name}": paths for number in (0, 1) for name, paths in layer.items()}
    expected |= {"embeddings": ("embeddings", 3), "pooler": ("pooler", 2), "head": ("head", 6)}
    assert {unit.name: (unit.kind, len(unit.quantizers)) for unit in find_units(model)} == expected


def test_the_quantizers_of_an_attention_and_of_a_feed_forward() -> None:
    units = {unit.name: set(unit.quantizers) for unit in find_units(models.uncalibrated("BertModel"))}
    linears = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    in_attention = {f"{name}._{kind}_quantizer" for name in linears for kind in ("input", "weight")}
    in_attention |= {f"attention.self.matmul_{operand}_input_quantizer" for operand in "qkav"}
    assert units["layer 1, attention"] == {f"encoder.layer.1.{path}" for path in in_attention}
    in_feed_forward = {
        f"encoder.layer.1.{name}.dense._{kind}_quantizer"
        for name in ("intermediate", "output")
        for kind in ("input", "weight")
    }
    assert units["layer 1, feed-forward"] == in_feed_forward


def test_cross_attention_is_a_unit_of_its_own() -> None:
    found = {unit.name: unit for unit in find_units(models.uncalibrated(models.CROSS))}
    for name in ("attention", "crossattention"):
        paths = found[f"layer 0, {name}"].quantizers
        assert len(paths) == 12
        assert all(path.startswith(f"bert.encoder.layer.0.{name}.") for path in paths)
        assert len(found[f"layer 0, {name} add"].quantizers) == 2


@pytest.mark.parametrize(
    ("family", "adds", "attentions"),
    [
        ("modernbert", ["add 1", "add 2"], ["attn"]),
        ("albert", ["attention add", "feed-forward add"], ["attention"]),
        ("t5", ["layer.0 add", "layer.1 add"], ["layer.0"]),
        (
            "mobilebert",
            ["attention add", "feed-forward add", "ffn.0.output add", "output.bottleneck add"],
            ["attention"],
        ),
    ],
)
def test_each_add_of_a_layer_is_a_unit_of_its_own(
    family: str, adds: list[str], attentions: list[str]
) -> None:
    found = {unit.name: unit for unit in find_units(qdqpatch.quantize(families.float_model(family)))}
    layer = next(name.partition(", ")[0] for name in found)
    of_layer = {
        name.removeprefix(f"{layer}, "): unit for name, unit in found.items() if name.startswith(f"{layer}, ")
    }
    assert sorted(name for name, unit in of_layer.items() if unit.kind == "residual add") == adds
    assert all(len(of_layer[name].quantizers) == 2 for name in adds)
    assert [name for name, unit in of_layer.items() if unit.kind == "attention"] == attentions
    assert "feed-forward" in of_layer


def test_layers_of_several_stacks_go_by_their_whole_path() -> None:
    config = EncoderDecoderConfig.from_encoder_decoder_configs(models.config(), models.config())
    torch.manual_seed(7)
    units = find_units(qdqpatch.quantize(EncoderDecoderModel(config).eval()))
    names = [unit.name for unit in units]
    assert len(set(names)) == len(names) == 2 * 4 + 2 * 6
    assert "encoder.encoder.layer.0, attention" in names
    assert "decoder.bert.encoder.layer.1, crossattention add" in names


def test_what_has_no_units() -> None:
    with pytest.raises(NotQuantizedError, match="This BertModel is a float model"):
        find_units(models.float_model())
    model = models.uncalibrated()
    model.encoder.layer[0].added = TensorQuantizer()
    with pytest.raises(ConfigError, match=r"^encoder\.layer\.0\.added was added"):
        find_units(model)
