import dataclasses
from typing import Any

import models
import pytest
from pytorch_quantization.tensor_quant import QuantDescriptor

from qdqpatch import Override, QDQConfig, QuantizerConfig, plan, quantize
from qdqpatch.errors import ConfigError
from qdqpatch.spelling import on_command_line

NON_DEFAULT = {
    "num_bits": 4,
    "axis": (0, 1),
    "unsigned": True,
    "narrow_range": True,
    "amax": 2.5,
    "scale_amax": 0.5,
    "calib_method": "histogram",
}


def test_defaults_are_those_of_the_toolkit() -> None:
    assert QuantizerConfig().descriptor() == QuantDescriptor()


def test_a_config_is_frozen_and_hashable() -> None:
    config = QuantizerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_bits = 4  # type: ignore[misc]
    assert hash(config) == hash(QuantizerConfig())


@pytest.mark.parametrize("name", NON_DEFAULT)
def test_every_setting_survives_the_way_through_a_descriptor(name: str) -> None:
    config = QuantizerConfig(**{name: NON_DEFAULT[name]})
    assert config != QuantizerConfig()
    assert getattr(config.descriptor(), name) == NON_DEFAULT[name]
    assert QuantizerConfig.from_descriptor(config.descriptor()) == config


def test_fp8_survives_the_way_through_a_descriptor() -> None:
    for spelled in ((4, 3), [4, 3], "e4m3"):
        config = QuantizerConfig(num_bits=spelled)
        assert (config.num_bits, str(config)) == ((4, 3), "fp8")
        assert config.descriptor().num_bits == (4, 3)
        assert QuantizerConfig.from_descriptor(config.descriptor()) == config


@pytest.mark.parametrize("name", ["unsigned", "narrow_range"])
def test_fp8_has_no_settings_of_integers(name: str) -> None:
    with pytest.raises(ConfigError, match=f"FP8 has a sign and one range: {name} is for integers"):
        QuantizerConfig(num_bits=(4, 3), **{name: True})


def test_there_is_a_value_above_for_every_setting() -> None:
    # A descriptor cannot say `symmetric`: tests/calibration/test_asymmetric.py.
    assert NON_DEFAULT.keys() | {"symmetric"} == {field.name for field in dataclasses.fields(QuantizerConfig)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_bits", 1),
        ("num_bits", 17),
        ("num_bits", 8.0),
        ("num_bits", True),
        ("num_bits", "8"),
        ("num_bits", None),
        ("num_bits", (5, 2)),
        ("num_bits", [4]),
        ("axis", 0.0),
        ("axis", "0"),
        ("axis", True),
        ("axis", (0, None)),
        ("unsigned", 1),
        ("narrow_range", "yes"),
        ("amax", -1.0),
        ("amax", float("nan")),
        ("amax", float("inf")),
        ("amax", "1"),
        ("amax", True),
        ("scale_amax", -0.5),
        ("scale_amax", float("nan")),
        ("calib_method", "entropy"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_setting_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        QuantizerConfig(**{name: value})
    assert name in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("num_bits", [2, 16])
def test_both_ends_of_the_bits_are_allowed(num_bits: int) -> None:
    assert QuantizerConfig(num_bits=num_bits).num_bits == num_bits


def test_a_list_of_axes_becomes_a_tuple() -> None:
    assert QuantizerConfig(axis=[0, 1]).axis == (0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fake_quant": False}, "fake_quant"),
        ({"learn_amax": True, "amax": 1.0}, "learn_amax"),
        ({"axis": (0, 1), "amax": [1.0, 2.0]}, "per channel"),
    ],
)
def test_a_descriptor_that_asks_for_the_impossible_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        QuantizerConfig.from_descriptor(QuantDescriptor(**settings))


def test_without_amax() -> None:
    assert QuantizerConfig(num_bits=4, amax=1.0).without_amax() == QuantizerConfig(num_bits=4)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (QuantizerConfig(), "int8"),
        (QuantizerConfig(num_bits=4, unsigned=True), "uint4"),
        (QuantizerConfig(axis=(0,)), "int8 per channel (axis 0)"),
        (QuantizerConfig(axis=1), "int8 per channel (axis 1)"),
    ],
)
def test_a_config_prints_as_a_dtype(config: QuantizerConfig, text: str) -> None:
    assert str(config) == text


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("*.layer.0.*=off", Override("*.layer.0.*", enabled=False)),
        ("*=on", Override("*", enabled=True)),
        ("*_weight_quantizer=num_bits:4", Override("*_weight_quantizer", settings={"num_bits": 4})),
        ("*=num_bits:4,unsigned:true", Override("*", settings={"num_bits": 4, "unsigned": True})),
        ("*=axis:none", Override("*", settings={"axis": None})),
        ("*=axis:NULL", Override("*", settings={"axis": None})),
        (
            "*=amax:1.5,calib_method:histogram",
            Override("*", settings={"amax": 1.5, "calib_method": "histogram"}),
        ),
        ("odd=name=off", Override("odd=name", enabled=False)),
    ],
)
def test_an_override_is_read_from_text(text: str, override: Override) -> None:
    assert Override.parse(text) == override


@pytest.mark.parametrize("text", ["", "*", "*=", "off", "*=maybe", "*=num_bits:4,off", "=off"])
def test_text_of_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError):
        Override.parse(text)


def test_an_error_in_the_text_shows_the_text_and_the_form() -> None:
    with pytest.raises(ConfigError, match=r"'\*=maybe'.*PATTERN=off"):
        Override.parse("*=maybe")


def test_an_unknown_setting_names_the_pattern_and_the_likely_spelling() -> None:
    with pytest.raises(ConfigError, match=r"'num_bit'.*'\*\.query\.\*'.*Did you mean 'num_bits'\?"):
        Override("*.query.*", settings={"num_bit": 4})


def test_an_unknown_setting_like_none_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"The keys are num_bits, axis, "):
        Override("*", settings={"zzz": 4})


@pytest.mark.parametrize(
    "arguments",
    [("",), (3,), ("*", 1), ("*", "off"), ("*", None, {"num_bits": 99}), ("*", None, {"axis": "x"})],
)
def test_a_bad_override_fails_when_it_is_made(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        Override(*arguments)


def test_an_override_holds_checked_values() -> None:
    assert Override("*", settings={"axis": [0]}).settings == {"axis": 0}


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("*.layer.0.*", True),
        ("*_input_quantizer", True),
        ("bert.encoder.layer.?.attention.self.query._input_quantizer", True),
        ("bert.encoder.layer.[1-9].*", False),
        ("*.LAYER.0.*", False),
        ("layer.0", False),
    ],
)
def test_a_pattern_is_a_glob_over_the_whole_path(pattern: str, matches: bool) -> None:
    assert (
        Override(pattern).matches(["bert.encoder.layer.0.attention.self.query._input_quantizer"]) is matches
    )


def test_a_pattern_may_match_any_of_the_names() -> None:
    assert Override("b.*").matches(["a.x", "b.x"])
    assert not Override("c.*").matches(["a.x", "b.x"])


def test_one_axis_is_the_same_however_it_is_written() -> None:
    assert QuantizerConfig(axis=(0,)) == QuantizerConfig(axis=[0]) == QuantizerConfig(axis=0)


@pytest.mark.parametrize("axis", [2, 5, -3, (0, 2), [0, -2]])
def test_a_weight_has_two_dimensions(axis: Any) -> None:
    with pytest.raises(ConfigError, match="axis"):
        QDQConfig(weight={"axis": axis})
    with pytest.raises(ConfigError, match=r"axis .*query\._weight_quantizer, which has two dimensions"):
        plan(models.build(), QDQConfig(overrides={"*.query._weight_quantizer": {"axis": axis}}))


@pytest.mark.parametrize("axis", [1, -1, -2, (0, 1)])
def test_axes_of_a_weight(axis: Any) -> None:
    QDQConfig(weight={"axis": axis})


def test_a_range_is_within_fp32() -> None:
    model = models.build()
    before = models.snapshot(model)
    for settings in ({"amax": 1e39}, {"amax": float("inf")}, {"scale_amax": 1e39}, {"amax": float("nan")}):
        with pytest.raises(ConfigError, match="finite number"):
            quantize(model, QDQConfig(activation=settings))
    models.assert_unchanged(model, before)
    QDQConfig(activation={"amax": 3e38})


def test_an_axis_that_an_activation_has_not_is_named() -> None:
    model = quantize(models.build(), QDQConfig(overrides={"*.query._input_quantizer": {"axis": 3}}))
    with pytest.raises(ConfigError, match="no axis 3 in a tensor of 3 dimensions"):
        models.outputs(model)


def test_what_contradicts_is_named_as_the_reader_typed_it() -> None:
    with on_command_line(), pytest.raises(ConfigError, match="FP8 lies around zero: --asymmetric is for int"):
        QuantizerConfig(num_bits=(4, 3), symmetric=False)
