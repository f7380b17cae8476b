"""Weights calibrated again, and ranges per tensor expanded to one for each channel."""

import copy
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from adjusted import PER_TENSOR, check_ranges, check_saving, enabled, model_of, settings, train
from torch import Tensor, nn

from qdqpatch import calibrate, load_qdqbert, save_qdqbert
from qdqpatch.calibration import expand_amax, recalibrate_weights
from qdqpatch.errors import CalibrationError, ConfigError
from qdqpatch.patching.apply import named_quantizers


@pytest.mark.parametrize("config", [{}, PER_TENSOR, models.PARTS_ON, {"weight": {"axis": 1}}], ids=str)
@pytest.mark.parametrize("method", ["max", "mse"])
def test_recalibrated_weights_have_the_ranges_that_calibration_gives(
    config: dict[str, Any], method: Any
) -> None:
    model = model_of("BertForMaskedLM", config)
    train(model)
    before = models.ranges(model)
    anew = models.ranges(calibrate(copy.deepcopy(model), [models.inputs()], "max", weight_method=method))
    assert recalibrate_weights(model, method) is model
    weights = {path: amax for path, amax in anew.items() if path.endswith("_weight_quantizer")}
    assert len(weights) >= 12
    check_ranges(model, before, weights)


def test_recalibrated_weights_have_their_largest_magnitude() -> None:
    model = model_of()
    train(model)
    recalibrate_weights(model)
    key = model.encoder.layer[1].attention.self.key
    assert torch.equal(key._weight_quantizer.amax, key.weight.detach().abs().amax(1, keepdim=True))


def test_recalibrating_weights_follows_the_axis_whatever_shape_the_range_had() -> None:
    """As in a checkpoint of ranges per tensor that a model of ranges per channel was given."""
    model = model_of()
    expected = models.ranges(recalibrate_weights(copy.deepcopy(model)))
    for path, quantizer in named_quantizers(model):
        if path.endswith("_weight_quantizer"):
            quantizer.load_range(torch.tensor(3.0))
    models.assert_equal(models.ranges(recalibrate_weights(model)), expected)


def test_weights_without_a_range_get_one(uncalibrated) -> None:
    model = recalibrate_weights(uncalibrated())
    for path, amax in models.ranges(model).items():
        assert (amax is not None) == path.endswith("_weight_quantizer")


def test_recalibrate_weights_refuses_nan(calibrated) -> None:
    model = calibrated()
    query = "encoder.layer.1.attention.self.query"
    with torch.no_grad():
        model.get_submodule(query).weight[0, 0] = float("nan")
    before = models.ranges(model)
    with pytest.raises(CalibrationError, match=rf"{query}\._weight_quantizer.* NaN"):
        recalibrate_weights(model)
    models.assert_equal(models.ranges(model), before)


def test_recalibrate_weights_refuses_an_unknown_method(calibrated) -> None:
    with pytest.raises(ConfigError, match=r"'entropy'.*max"):
        recalibrate_weights(calibrated(), method="entropy")  # type: ignore[arg-type]


def test_expand_amax_repeats_the_range_for_every_channel(any_head: str, arithmetic: str) -> None:
    model = model_of(any_head, {**PER_TENSOR, **models.PARTS_ON})
    before, outputs = models.ranges(model), models.outputs(model, any_head)
    assert expand_amax(model) is model
    expected = {}
    for path, amax in before.items():
        if path.endswith("._weight_quantizer"):
            weight = model.get_parameter(path.removesuffix("._weight_quantizer") + ".weight")
            expected[path] = torch.full((weight.shape[0], 1), amax.item())
    check_ranges(model, before, expected)
    models.assert_equal(models.outputs(model, any_head), outputs)


def test_expanded_quantizers_are_those_of_a_model_made_per_channel() -> None:
    """So recalibrating gives a range of its own to each channel."""
    ours = expand_amax(model_of("BertForMaskedLM", PER_TENSOR)).train()
    made = model_of("BertForMaskedLM").train()
    assert str(ours.config.quantization_config) == str(made.config.quantization_config)
    assert ours.config.quantization_config == ours.hf_quantizer.quantization_config
    assert [str(row) for row in settings(ours)] == [str(row) for row in settings(made)]
    models.assert_equal(
        models.ranges(recalibrate_weights(ours)),
        models.ranges(ours) | weight_ranges(recalibrate_weights(made)),
    )


def weight_ranges(model: nn.Module) -> dict[str, Tensor | None]:
    return {path: amax for path, amax in models.ranges(model).items() if path.endswith("_weight_quantizer")}


def test_expand_amax_leaves_ranges_per_channel(calibrated) -> None:
    model = calibrated()
    before = models.snapshot(model)
    models.assert_unchanged(expand_amax(model), before)


@pytest.mark.parametrize(("axis", "shape"), [(0, (24, 1)), (1, (1, 24))])
def test_expand_amax_keeps_an_axis_that_there_is(axis: int, shape: tuple[int, int]) -> None:
    """The case of `quant_trainer.py`: ranges per tensor in a model that was made for ranges per channel."""
    model = model_of(config={"weight": {"axis": axis}})
    config = model.config.quantization_config
    query = model.encoder.layer[0].attention.self.query._weight_quantizer
    query.load_range(torch.tensor(0.75))
    expand_amax(model)
    assert torch.equal(query.amax, torch.full(shape, 0.75))
    assert model.config.quantization_config is config


CONFIGS: dict[str, dict[str, Any]] = {
    "per tensor": PER_TENSOR,
    "bits": {"weight": {"num_bits": 4, "narrow_range": True}},
    "parts": {**PER_TENSOR, **models.PARTS_ON},
    "some": {"overrides": {"*.layer.0.*_weight_quantizer": {"axis": None}}},
    "some otherwise": {**PER_TENSOR, "overrides": {"*.layer.0.*_weight_quantizer": {"axis": 1}}},
    "off": {**PER_TENSOR, "overrides": {"*.query._weight_quantizer": False, "*.key.*": False}},
    "histogram": {"weight": {"calib_method": "histogram"}},
    "fixed": {"weight": {"amax": 0.5}},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_expanded_models_save_and_load(config: dict[str, Any], tmp_path: Path) -> None:
    model = expand_amax(model_of(config=config))
    assert all(
        quantizer.amax.dim() == 2 for path, quantizer in enabled(model) if path.endswith("_weight_quantizer")
    )
    check_saving(model, tmp_path)


def test_an_expanded_recipe_is_as_short_as_it_can_be() -> None:
    assert expand_amax(model_of(config=PER_TENSOR)).config.quantization_config.overrides == ()
    some = expand_amax(model_of(config=CONFIGS["some"])).config.quantization_config
    assert len(some.overrides) == 1 + 6


def test_an_expanded_qdqbert_saves_and_loads(tmp_path: Path) -> None:
    """A checkpoint of the old classes with ranges per tensor becomes one with ranges per channel."""
    with pytest.warns(UserWarning, match="default descriptors"):
        save_qdqbert(model_of(config=PER_TENSOR), tmp_path / "old")
    model = load_qdqbert(tmp_path / "old")
    save_qdqbert(expand_amax(model), tmp_path / "new")
    loaded = load_qdqbert(tmp_path / "new")
    models.assert_equal(models.ranges(loaded), models.ranges(model))
    assert str(settings(loaded)) == str(settings(model))


def test_expand_amax_needs_a_configuration_that_knows_the_weights() -> None:
    model = model_of(config={**PER_TENSOR, "overrides": {"*.query._weight_quantizer": False}})
    query = model.encoder.layer[0].attention.self.query._weight_quantizer
    query.enable()  # behind the configuration's back
    query.load_range(torch.tensor(0.5))
    before = models.snapshot(model)
    with pytest.raises(ConfigError, match=r"does not know encoder\.layer\.0\.attention\.self\.query\."):
        expand_amax(model)
    models.assert_unchanged(model, before)
