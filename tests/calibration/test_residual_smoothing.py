"""Smoothed residual adds: the float model untouched, smaller errors, and a life on disk and in engines."""

import copy
from pathlib import Path

import models
import onnx
import pytest
import torch
from transformers import AutoModel, ConvNextConfig, ConvNextModel, PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig, calibrate, calibration, quantize
from qdqpatch.calibration.residual_smoothing import operands_to_smooth, smooth_residuals
from qdqpatch.calibration.shared_inputs import readers
from qdqpatch.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    NotQuantizedError,
    UnsupportedModelError,
)
from qdqpatch.exporter.export import prepare_exports
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.training import freeze_ranges, train_ranges

ADDS = QDQConfig(linears=False, matmuls=False)
LOCAL = "encoder.layer.0.output.add_local_input_quantizer"
RESIDUAL = "encoder.layer.0.output.add_residual_input_quantizer"
OUTLIER = 5


def with_outliers() -> PreTrainedModel:
    """A float model in which one channel of what every feed-forward block adds is far above the others."""
    model = models.build()
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.output.dense.bias[OUTLIER] = 60
    return model


def smoothed(config: QDQConfig = ADDS) -> PreTrainedModel:
    return calibrate(
        smooth_residuals(quantize(with_outliers(), config), models.batches()), models.batches(), "max"
    )


def factors_of(model: PreTrainedModel, path: str = LOCAL) -> torch.Tensor:
    quantizer = model.get_submodule(path)
    assert isinstance(quantizer, TensorQuantizer)
    assert quantizer.input_scale is not None
    return quantizer.input_scale


def scaled(model: PreTrainedModel) -> set[str]:
    return {path for path, quantizer in named_quantizers(model) if quantizer.input_scale is not None}


def error(model: PreTrainedModel) -> float:
    found, expected = models.outputs(model), models.outputs(with_outliers())
    return float((found["last_hidden_state"] - expected["last_hidden_state"]).square().mean())


def test_loud_channels_come_down_to_the_median_and_quiet_ones_stay() -> None:
    model, seen = with_outliers(), []
    dense = model.get_submodule("encoder.layer.0.output.dense")
    hook = dense.register_forward_hook(lambda _, given, output: seen.append(output.detach()))
    for batch in models.batches():
        model(**batch)
    hook.remove()
    masks = [batch["attention_mask"].bool() for batch in models.batches()]
    amax = torch.cat([values[mask] for values, mask in zip(seen, masks, strict=True)]).abs().amax(0)
    factors = factors_of(smooth_residuals(quantize(model, ADDS), models.batches()))
    assert torch.equal(factors, (amax.median() / amax).clamp(max=1))
    assert factors[OUTLIER] < 0.1
    assert (factors == 1).sum() >= len(factors) // 2


def test_a_quantizer_rounds_the_product_and_divides_again() -> None:
    model = smoothed()
    values = torch.randn(2, 3, len(factors_of(model)), generator=torch.Generator().manual_seed(1))
    quantizer = model.get_submodule(LOCAL)
    plain = copy.deepcopy(quantizer)
    plain.load_input_scale(None)
    factors = factors_of(model)
    assert torch.equal(quantizer(values), plain(values * factors) * factors.reciprocal())
    assert not torch.equal(quantizer(values), plain(values))


def test_the_float_model_does_not_change() -> None:
    model = smoothed()
    expected = dict(with_outliers().state_dict())
    models.assert_equal({name: model.state_dict()[name] for name in expected}, expected)
    models.assert_equal(dict(qdqpatch.dequantize(model).state_dict()), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_errors_become_smaller(symmetric: bool) -> None:
    config = QDQConfig(linears=False, matmuls=False, activation={"symmetric": symmetric})
    plain = calibrate(quantize(with_outliers(), config), models.batches(), "max")
    assert error(smoothed(config)) < error(plain) / 10


def test_only_ranges_that_no_longer_fit_are_dropped() -> None:
    model = smooth_residuals(calibrate(quantize(with_outliers()), models.batches(), "max"), models.batches())
    without = {path for path, quantizer in named_quantizers(model) if quantizer.amax is None}
    assert without == set(operands_to_smooth(model)) >= {LOCAL, RESIDUAL}


def test_padding_says_nothing() -> None:
    batch = models.inputs(seed=4)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][batch["attention_mask"] == 0] = 7
    found = [smooth_residuals(quantize(with_outliers(), ADDS), [one]) for one in (batch, other)]
    models.assert_equal(dict(found[0].state_dict()), dict(found[1].state_dict()))


def test_smoothing_again_is_the_same() -> None:
    once, twice = smoothed(), smoothed()
    calibrate(smooth_residuals(twice, models.batches()), models.batches(), "max")
    models.assert_equal(dict(twice.state_dict()), dict(once.state_dict()))


def test_a_checkpoint_keeps_the_factors(tmp_path: Path) -> None:
    model = smoothed()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert scaled(loaded) == scaled(model) >= {LOCAL}
    models.assert_equal(models.outputs(loaded), models.outputs(model))
    other = quantize(models.build(), ADDS)
    other.load_state_dict(model.state_dict())
    models.assert_equal(models.outputs(other), models.outputs(model))


def test_factors_stay_fp32_in_a_model_of_half_precision(tmp_path: Path) -> None:
    model = smoothed().half()
    assert factors_of(model).dtype == torch.float32
    model.save_pretrained(tmp_path)
    assert torch.equal(factors_of(AutoModel.from_pretrained(tmp_path)), factors_of(model))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    for factors, reason in ((torch.full((24,), -1.0), "not a positive"), (torch.ones(2, 3), "shape")):
        model = smoothed()
        model.get_submodule(LOCAL).load_input_scale(factors)
        model.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=reason):
            AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("symmetric", [True, False])
def test_engines_compute_the_same(tmp_path: Path, symmetric: bool) -> None:
    model = smoothed(QDQConfig(activation={"symmetric": symmetric}))
    targets = ["onnxruntime", "openvino", *(["tensorrt"] if symmetric else [])]
    for target, write in zip(targets, prepare_exports(model, targets), strict=True):
        folder = tmp_path / target
        folder.mkdir()
        assert write(folder, folder).comparisons is not None  # it raises where an output is off


def test_ranges_are_learned_behind_the_factors() -> None:
    model = train_ranges(smoothed())
    batch = models.inputs(seed=2)
    model(**batch).last_hidden_state.square().sum().backward()
    gradient = model.get_submodule(LOCAL)._amax.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient != 0
    models.assert_equal(models.outputs(freeze_ranges(model)), models.outputs(smoothed()))


def test_a_quantizer_that_is_turned_off_takes_its_factors_along(tmp_path: Path) -> None:
    model = smoothed()
    expected = models.outputs(model)
    calibration.switch_quantizers(model, {LOCAL: False})
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert scaled(loaded) == scaled(model) - {LOCAL}
    models.assert_equal(models.outputs(loaded), models.outputs(model))
    calibration.switch_quantizers(model, {LOCAL: True})
    models.assert_equal(models.outputs(model), expected)
    model.save_pretrained(tmp_path)
    models.assert_equal(models.outputs(AutoModel.from_pretrained(tmp_path).eval()), expected)


def test_readers_of_one_tensor_are_not_fused_with_what_is_multiplied() -> None:
    model = calibrate(smooth_residuals(quantize(with_outliers()), models.batches()), models.batches(), "max")
    before = {path: quantizer.amax for path, quantizer in named_quantizers(model) if path in scaled(model)}
    calibration.fuse_inputs(model, models.batches())
    for path, amax in before.items():
        assert torch.equal(model.get_submodule(path).amax, amax)


def test_the_residual_takes_the_factors_of_the_linears_that_read_it_too(tmp_path: Path) -> None:
    model = with_outliers()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight[OUTLIER] *= 40
    quantize(model)
    calibration.smooth_inputs(model, models.batches())
    smooth_residuals(model, models.batches())
    dense = model.get_submodule("encoder.layer.0.intermediate.dense")
    assert torch.equal(factors_of(model, RESIDUAL), dense.input_scale)
    assert not torch.equal(factors_of(model, LOCAL), dense.input_scale)
    calibrate(model, models.batches(), "max")
    group = ("encoder.layer.0.intermediate.dense._input_quantizer", RESIDUAL)
    assert group in readers(model, models.batches()[0])
    graph = onnx.load(
        qdqpatch.export(calibration.fuse_inputs(model, models.batches()), tmp_path, "tensorrt").file
    ).graph
    quantize_nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantize_nodes) == 2 * 10  # two of a tensor that several read, eight others


def test_the_switch_of_ptq_is_the_step() -> None:
    model = qdqpatch.ptq(with_outliers(), models.batches(), ADDS, method="max", smooth_residuals=True)
    models.assert_equal(dict(model.state_dict()), dict(smoothed().state_dict()))


def test_an_error_takes_the_factors_back() -> None:
    class Stop(qdqpatch.listening.CalibrationListener):
        def say(self, text: str) -> None:
            if text == "Calibrating":
                raise KeyboardInterrupt

    model = quantize(with_outliers())
    before = models.snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        qdqpatch.ptq(model, models.batches(), smooth_residuals=True, listener=Stop())
    models.assert_unchanged(model, before)
    assert not scaled(model)


def test_what_cannot_be_smoothed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotQuantizedError, match="is a float model"):
        smooth_residuals(models.build(), models.batches())
    with pytest.raises(UnsupportedModelError, match="no residual add to smooth in BertModel"):
        smooth_residuals(quantize(models.build(), QDQConfig.preset("no-residual")), models.batches())
    model = quantize(models.build())
    before = models.snapshot(model)
    with pytest.raises(CalibrationError, match="no calibration batch"):
        smooth_residuals(model, [])
    models.assert_unchanged(model, before)
    with pytest.raises(ConfigError, match="smooth_residuals"):
        qdqpatch.save_qdqbert(smoothed(), tmp_path)


@pytest.mark.filterwarnings("ignore:There are no rules:qdqpatch.errors.QuantizationWarning")
def test_adds_of_images_are_left_alone() -> None:
    config = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    images = [{"pixel_values": torch.randn(1, 3, 32, 32)}]
    model = quantize(ConvNextModel(config).eval())
    assert operands_to_smooth(model)
    assert not scaled(smooth_residuals(model, images))


def test_fixed_ranges_are_left_alone() -> None:
    config = QDQConfig(overrides={LOCAL: {"amax": 3.0}})
    assert LOCAL not in operands_to_smooth(quantize(models.build(), config))
