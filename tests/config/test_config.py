import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pytorch_quantization.nn import QuantLinear
from pytorch_quantization.tensor_quant import QuantDescriptor

from qdqpatch import Override, QDQConfig, QuantizerConfig, plan, quantize
from qdqpatch.choices import PRESETS
from qdqpatch.config.config import PARTS
from qdqpatch.errors import ConfigError, OverrideError
from qdqpatch.patching.apply import named_quantizers

RECIPE = {
    "activation": {"num_bits": 6, "amax": 3.0},
    "weight": {"num_bits": 4, "axis": [0]},
    "residual_adds": False,
    "embeddings": True,
    "overrides": {"*.layer.0.*": False, "*_weight_quantizer": {"num_bits": 2, "enabled": True}},
}


def test_default_placement_is_that_of_qdqbert() -> None:
    on = {part for part in PARTS if getattr(QDQConfig(), part)}
    assert on == {"linears", "matmuls", "residual_adds"}


@pytest.mark.parametrize(
    ("preset", "on"),
    [
        ("qdqbert", {"linears", "matmuls", "residual_adds"}),
        ("no-residual", {"linears", "matmuls"}),
        ("linear-only", {"linears"}),
        ("fp8", {"linears", "matmuls", "residual_adds"}),
    ],
)
def test_presets(preset: str, on: set[str]) -> None:
    config = QDQConfig.preset(preset)
    assert {part for part in PARTS if getattr(config, part)} == on


def test_fp8_survives_json_and_knows_itself() -> None:
    config = QDQConfig.preset("fp8")
    read = QDQConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert read == config
    assert (read.activation.num_bits, read.weight.num_bits, read.weight.axis) == ((4, 3), (4, 3), 0)
    assert config.has_float8
    assert QDQConfig(overrides=["*_weight_quantizer=num_bits:e4m3"]).has_float8
    assert not QDQConfig().has_float8


def test_a_preset_can_be_changed() -> None:
    config = QDQConfig.preset("linear-only", weight={"num_bits": 4}, matmuls=True)
    assert config == QDQConfig(residual_adds=False, matmuls=True, weight=QuantizerConfig(num_bits=4))


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'linear_only'.*" + ", ".join(PRESETS)):
        QDQConfig.preset("linear_only")


def test_an_unknown_key_of_a_preset_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'residual_add'.*'residual_adds'"):
        QDQConfig.preset("qdqbert", residual_add=False)


@pytest.mark.parametrize("values", [{}, RECIPE])
def test_json_both_ways(values: dict[str, Any], tmp_path: Path) -> None:
    config = QDQConfig(**values)
    assert QDQConfig.from_dict(config.to_dict()) == config
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(config.to_dict()))
    assert QDQConfig.from_json_file(path) == config
    config.to_json_file(tmp_path / "theirs.json")
    assert QDQConfig.from_json_file(tmp_path / "theirs.json") == config


@pytest.mark.parametrize("values", [{}, RECIPE])
def test_a_config_can_be_copied_and_pickled(values: dict[str, Any]) -> None:
    config = QDQConfig(**values)
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_json_holds_only_json() -> None:
    data = QDQConfig(**RECIPE).to_dict()
    assert data == json.loads(json.dumps(data))
    assert data["quant_method"] == "qdqpatch"


def test_a_config_is_frozen() -> None:
    config = QDQConfig()
    for name in ("linears", "overrides", "quant_method", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            setattr(config, name, True)


def test_settings_come_as_dict_descriptor_or_config() -> None:
    expected = QuantizerConfig(num_bits=4, axis=(0,))
    for given in (expected, {"num_bits": 4, "axis": [0]}, QuantDescriptor(num_bits=4, axis=(0,))):
        assert QDQConfig(weight=given).weight == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("overrides", [["*.query.*=off"], [{"pattern": "*.query.*", "enabled": False}], None])
def test_overrides_come_as_texts_dicts_or_objects(overrides: Any) -> None:
    expected = Override("*.query.*", enabled=False)
    assert QDQConfig(overrides=overrides or (expected,)).overrides == (expected,)


def test_overrides_come_as_a_mapping_in_its_order() -> None:
    config = QDQConfig(overrides={"a": False, "b": True, "c": {"num_bits": 4}})  # type: ignore[arg-type]
    assert config.overrides == (
        Override("a", enabled=False),
        Override("b", enabled=True),
        Override("c", settings={"num_bits": 4}),
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"linears": 1}, "linears"),
        ({"head": "yes"}, "head"),
        ({"activation": 8}, "activation"),
        ({"weight": {"num_bits": 1}}, "num_bits"),
        ({"weight": {"bits": 8}}, "'bits'.*'weight'"),
        ({"overrides": "*=off"}, "overrides"),
        ({"overrides": {"*": "off"}}, "'off'"),
        ({"overrides": [{"enabled": False}]}, "pattern"),
        ({"overrides": [3]}, "3"),
        ({"overrides": {"*": {"num_bits": 0}}}, "num_bits"),
        ({"overrides": {"*.query.*": {"enable": False}}}, r"'enable'.*'\*\.query\.\*'"),
    ],
)
def test_a_bad_value_fails_when_the_config_is_made(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        QDQConfig(**values)


def test_an_unknown_key_is_named_with_its_likely_spelling() -> None:
    with pytest.raises(ConfigError, match=r"Unknown key 'linear' .*Did you mean 'linears'\?"):
        QDQConfig.from_dict({"linear": True})


def test_another_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="'gptq'"):
        QDQConfig.from_dict({"quant_method": "gptq"})


@pytest.mark.parametrize("content", ["[]", "{", '"qdqbert"'])
def test_a_bad_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"recipe\.json"):
        QDQConfig.from_json_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        QDQConfig.from_json_file(tmp_path / "nowhere.json")


def test_repr_shows_what_differs_from_the_default() -> None:
    assert repr(QDQConfig()) == "QDQConfig()"
    assert repr(QDQConfig(head=True, overrides={"*": False})) == "QDQConfig(head=True, overrides=1)"


def test_descriptors_set_on_quantlinear_are_honoured_and_recorded(float_model) -> None:
    QuantLinear.set_default_quant_desc_input(QuantDescriptor(num_bits=6, calib_method="histogram"))
    QuantLinear.set_default_quant_desc_weight(QuantDescriptor(num_bits=4))
    model = quantize(float_model())
    config = model.config.quantization_config
    assert config.activation == QuantizerConfig(num_bits=6, calib_method="histogram")
    assert config.weight == QuantizerConfig(num_bits=4)
    for path, quantizer in named_quantizers(model):
        assert quantizer.num_bits == (4 if path.endswith("_weight_quantizer") else 6)
        assert quantizer.axis is None


def test_default_weights_are_per_output_channel(float_model) -> None:
    assert plan(float_model()).config.weight == QuantizerConfig(axis=0)
    assert plan(float_model()).config.activation == QuantizerConfig()


def test_explicit_settings_win_over_descriptors_set_on_quantlinear(float_model) -> None:
    QuantLinear.set_default_quant_desc_weight(QuantDescriptor(num_bits=4))
    model = quantize(float_model(), QDQConfig(weight={"num_bits": 5}))
    bits = {
        quantizer.num_bits
        for path, quantizer in named_quantizers(model)
        if path.endswith("_weight_quantizer")
    }
    assert bits == {5}


QUERY = "encoder.layer.0.attention.self.query._weight_quantizer"


def bits(model: Any, path: str = QUERY) -> int | None:
    """Return a quantizer's bits, or None if it is off."""
    quantizer = model.get_submodule(path)
    return quantizer.num_bits if quantizer.is_enabled else None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 8),
        (["*.query.*=num_bits:4"], 4),
        (["*.query.*=num_bits:4", "*_weight_quantizer=num_bits:5"], 5),
        (["*_weight_quantizer=num_bits:5", "*.query.*=num_bits:4"], 4),
        (["*_weight_quantizer=off"], None),
        (["*_weight_quantizer=off", "*.query.*=on"], 8),
        (["*.query.*=on", "*_weight_quantizer=off"], None),
        (["*_weight_quantizer=off", "*.query.*=num_bits:4"], None),
        (["*_weight_quantizer=num_bits:4", "*.query.*=off", "*.layer.0.*=on"], 4),
    ],
)
def test_overrides_apply_in_order_and_the_last_wins(
    float_model, overrides: list[str], expected: int | None
) -> None:
    assert bits(quantize(float_model(), QDQConfig(overrides=overrides))) == expected


def test_an_override_turns_on_what_its_part_leaves_off(float_model) -> None:
    model = quantize(float_model(), QDQConfig.preset("linear-only", overrides=["*.layer.1.*add*=on"]))
    adds = {path for path, _ in named_quantizers(model) if "add_" in path}
    assert len(adds) == 4
    assert all(".layer.1." in path for path in adds)


def test_an_override_that_matches_nothing_is_named(float_model) -> None:
    config = QDQConfig(overrides=["*.query.*=off", "*.qurey.*=off"])
    with pytest.raises(OverrideError, match=r"'\*\.qurey\.\*' matches no quantizer"):
        quantize(float_model(), config)


@pytest.mark.parametrize("pattern", [QUERY, "bert." + QUERY])
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_a_pattern_may_have_the_heads_prefix_or_not(float_model, name: str, pattern: str) -> None:
    model = quantize(float_model(name), QDQConfig(overrides={pattern: {"num_bits": 4}}))
    off_by_name = [path for path, quantizer in named_quantizers(model) if quantizer.num_bits == 4]
    assert [path.removeprefix("bert.") for path in off_by_name] == [QUERY]
