"""Smoothed inputs of Linears: the float function to the last bit, smaller errors, and a life on disk."""

import copy
from pathlib import Path

import models
import pytest
import torch
from transformers import AutoModel, DistilBertConfig, DistilBertModel, PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig, calibrate, calibration, quantize
from qdqpatch.calibration import input_smoothing
from qdqpatch.calibration.input_smoothing import linears_to_smooth, smooth_inputs
from qdqpatch.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    NotQuantizedError,
    UnsupportedModelError,
)
from qdqpatch.exporter.export import prepare_exports
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.patching.quantize import float_twin

LINEARS = QDQConfig.preset("linear-only")
ATTENTION = "encoder.layer.0.attention.self"
DENSE = "encoder.layer.0.intermediate.dense"
OUTLIER = 5


def with_outliers() -> PreTrainedModel:
    """A float model in which one channel of every LayerNorm's output is far above the others."""
    model = models.build()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight[OUTLIER] *= 40
    return model


def smoothed(config: QDQConfig = LINEARS, exact: bool = True) -> PreTrainedModel:
    return smooth_inputs(quantize(with_outliers(), config), models.batches(), exact=exact)


def linears(model: PreTrainedModel) -> dict[str, QuantLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantLinear)}


def scaled(model: PreTrainedModel) -> list[str]:
    return [path for path, linear in linears(model).items() if linear.input_scale is not None]


def float_outputs(model: PreTrainedModel) -> models.Tensors:
    for _, quantizer in named_quantizers(model):
        quantizer._if_quant = False
    try:
        return models.outputs(model)
    finally:
        for _, quantizer in named_quantizers(model):
            quantizer._if_quant = True


def error(model: PreTrainedModel) -> float:
    found, expected = models.outputs(model), float_outputs(model)
    difference = found["last_hidden_state"] - expected["last_hidden_state"]
    return float(difference.square().mean())


@pytest.mark.parametrize("exact", [True, False])
def test_a_channel_that_is_quiet_here_is_not_magnified(exact: bool) -> None:
    """On other texts it may be loud, and would be clipped by the range that others have."""
    model = with_outliers()
    with torch.no_grad():
        model.encoder.layer[0].attention.output.LayerNorm.weight[3] = 1e-3
    smooth_inputs(quantize(model, LINEARS), models.batches(), exact=exact)
    factors = linears(model)[DENSE].input_scale
    assert factors is not None
    assert factors[OUTLIER] < 0.5
    assert factors[3] == factors.max() == 1


def test_the_float_function_stays_bit_for_bit() -> None:
    model = smoothed()
    assert DENSE in scaled(model)
    factors = linears(model)[DENSE].input_scale
    assert factors is not None
    assert torch.equal(factors.log2(), factors.log2().round())
    assert factors[OUTLIER] == factors.min()
    expected = models.outputs(with_outliers())
    models.assert_equal(float_outputs(model), expected)
    models.assert_equal(models.outputs(qdqpatch.dequantize(model)), expected)
    models.assert_equal(dict(model.state_dict()), dict(with_outliers().state_dict()))


def test_errors_become_smaller() -> None:
    plain = calibrate(quantize(with_outliers(), LINEARS), models.batches(), "max")
    assert error(calibrate(smoothed(), models.batches(), "max")) < error(plain) / 2


def test_free_factors_keep_the_float_function_but_for_rounding() -> None:
    model = smoothed(exact=False)
    expected = models.outputs(with_outliers())["last_hidden_state"]
    # Values reach 100, and fp32 rounds each product and weight by 6e-8 of itself.
    torch.testing.assert_close(float_outputs(model)["last_hidden_state"], expected, rtol=0, atol=1e-4)
    plain = calibrate(quantize(with_outliers(), LINEARS), models.batches(), "max")
    assert error(calibrate(model, models.batches(), "max")) < error(plain) / 2
    weights = dict(with_outliers().named_parameters())
    for name, weight in qdqpatch.dequantize(model).named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=3e-7, atol=0)


def test_who_reads_one_tensor_multiplies_it_by_one() -> None:
    found = [linears(smoothed())[f"{ATTENTION}.{name}"].input_scale for name in ("query", "key", "value")]
    assert found[0] is not None
    assert all(factors is not None and torch.equal(factors, found[0]) for factors in found)


def test_nothing_is_multiplied_where_it_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_smoothing, "WORTH", 0.0)
    assert scaled(smoothed()) == []


@pytest.mark.parametrize("preset", ["linear-only", "no-residual"])
def test_what_reads_the_context_of_a_quantized_attention_is_left(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_smoothing, "WORTH", float("inf"))
    config = DistilBertConfig(dim=24, hidden_dim=32, n_heads=2, n_layers=2, vocab_size=48)
    for model, context in (
        (models.build(), "attention.output.dense"),
        (DistilBertModel(config).eval(), "attention.out_lin"),
    ):
        batches = [{name: one[name] for name in ("input_ids", "attention_mask")} for one in models.batches()]
        smooth_inputs(quantize(model, QDQConfig.preset(preset)), batches)
        left = {path for path, linear in linears(model).items() if linear.input_scale is None}
        assert left == {path for path in linears(model) if path.endswith(context) and preset != "linear-only"}
        assert len(left) in (0, 2)


def test_smoothing_again_starts_from_the_float_weights() -> None:
    once = smoothed()
    twice = smooth_inputs(smoothed(), models.batches(), exact=True)
    models.assert_equal(dict(twice.state_dict()), dict(once.state_dict()))


def test_ranges_that_no_longer_fit_are_dropped() -> None:
    model = smooth_inputs(calibrate(quantize(with_outliers()), models.batches(), "max"), models.batches())
    without = {path for path, quantizer in named_quantizers(model) if quantizer.amax is None}
    assert without == {
        f"{path}.{name}"
        for path in linears(model)
        for name in ("_input_quantizer", "_weight_quantizer")
        if not path.endswith("attention.output.dense")
    }


def test_padding_says_nothing() -> None:
    batch = models.inputs(seed=4)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][batch["attention_mask"] == 0] = 7
    found = [smooth_inputs(quantize(with_outliers(), LINEARS), [one]) for one in (batch, other)]
    models.assert_equal(dict(found[0].state_dict()), dict(found[1].state_dict()))


def test_a_checkpoint_keeps_the_factors(tmp_path: Path) -> None:
    model = calibrate(smoothed(), models.batches(), "max")
    expected = models.outputs(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    models.assert_equal(models.outputs(loaded), expected)
    assert scaled(loaded) == scaled(model)
    models.assert_equal(models.outputs(qdqpatch.dequantize(loaded)), models.outputs(with_outliers()))
    other = quantize(models.build(), LINEARS)
    other.load_state_dict(calibrate(smoothed(), models.batches(), "max").state_dict())
    models.assert_equal(models.outputs(other), expected)


def test_engines_compute_the_same(tmp_path: Path) -> None:
    model = calibrate(smoothed(), models.batches(), "max")
    for write in prepare_exports(model, ["onnxruntime", "openvino"]):
        result = write(tmp_path, tmp_path)
        assert result.comparisons is not None  # it raises where an output is off
        assert sum(operation.integer for operation in result.operations or ()) == len(linears(model))


def test_a_checkpoint_with_another_placement_is_refused(tmp_path: Path) -> None:
    calibrate(smoothed(QDQConfig()), models.batches(), "max").save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"linears": true', '"linears": false'))
    with pytest.raises(CheckpointError, match="saved for a smoothed input"):
        AutoModel.from_pretrained(tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    for factors, reason in ((torch.full((24,), -1.0), "not a positive"), (torch.ones(3), r"shape \(3,\)")):
        model = calibrate(smoothed(), models.batches(), "max")
        linears(model)[DENSE].load_input_scale(factors)
        model.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=reason):
            AutoModel.from_pretrained(tmp_path)


def test_a_linear_that_is_turned_off_is_as_before(tmp_path: Path) -> None:
    model = calibrate(smoothed(), models.batches(), "max")
    calibration.switch_quantizers(model, {f"{DENSE}.*": False})
    assert DENSE not in scaled(model)
    assert torch.equal(linears(model)[DENSE].weight, with_outliers().get_parameter(f"{DENSE}.weight"))
    model.save_pretrained(tmp_path)
    models.assert_equal(models.outputs(AutoModel.from_pretrained(tmp_path).eval()), models.outputs(model))


def test_looking_at_a_float_twin_changes_nothing() -> None:
    model = smoothed()
    before = copy.deepcopy(dict(model.state_dict()))
    float_twin(model)
    models.assert_equal(dict(model.state_dict()), before)


def test_later_steps_know_the_factors() -> None:
    expected = models.outputs(with_outliers())["last_hidden_state"]
    model = calibration.shift(smoothed(QDQConfig.preset("no-residual")), models.batches())
    found = float_outputs(model)["last_hidden_state"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # fp32's rounding of values up to 100
    corrected = calibrate(smoothed(), models.batches(), "max")
    before = error(corrected)
    assert error(calibration.correct_biases(corrected, models.batches())) < 1.2 * before


def test_what_cannot_be_smoothed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotQuantizedError, match="is a float model"):
        smooth_inputs(models.build(), models.batches())
    only_adds = QDQConfig(linears=False, matmuls=False)
    with pytest.raises(UnsupportedModelError, match="no input to smooth"):
        smooth_inputs(quantize(models.build(), only_adds), models.batches())
    model = quantize(models.build())
    before = models.snapshot(model)
    with pytest.raises(CalibrationError, match="no calibration batch"):
        smooth_inputs(model, [])
    models.assert_unchanged(model, before)
    with pytest.raises(ConfigError, match="multiplies the channels of its input"):
        qdqpatch.save_qdqbert(calibrate(smoothed(QDQConfig()), models.batches(), "max"), tmp_path)


def test_fixed_ranges_are_left_alone() -> None:
    config = QDQConfig(overrides={f"{DENSE}._input_quantizer": {"amax": 3.0}})
    assert DENSE not in linears_to_smooth(quantize(models.build(), config))


def test_an_error_leaves_a_float_model() -> None:
    model = with_outliers()
    bad = [
        *models.batches(2),
        {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[0, 0]])},
    ]

    class Stop(qdqpatch.listening.CalibrationListener):
        def say(self, text: str) -> None:
            if text == "Calibrating":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qdqpatch.ptq(model, bad, LINEARS, smooth_inputs=True, listener=Stop())
    models.assert_equal(dict(model.state_dict()), dict(with_outliers().state_dict()))
