"""Ranges with a zero point: chosen from both ends, kept by what changes ranges, and a life on disk."""

from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig, calibration
from qdqpatch.calibration import Statistics, collect, fuse_qkv
from qdqpatch.errors import CalibrationError, CheckpointError, ConfigError
from qdqpatch.nn import affine
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.switch import switch_quantizers
from qdqpatch.training import train_ranges

ASYMMETRIC = QDQConfig(activation={"symmetric": False})
GELU = "encoder.layer.0.output.dense._input_quantizer"
PROBABILITIES = "encoder.layer.0.attention.self.matmul_a_input_quantizer"


def data(count: int = 3) -> list[models.Tensors]:
    return [models.inputs(seed=seed) for seed in range(21, 21 + count)]


def calibrated(config: QDQConfig = ASYMMETRIC, method: str = "max") -> PreTrainedModel:
    return qdqpatch.calibrate(qdqpatch.quantize(models.float_model(), config), data(), method=method)  # type: ignore[arg-type]


def quantizer(model: PreTrainedModel, path: str = GELU) -> TensorQuantizer:
    found = model.get_submodule(path)
    assert isinstance(found, TensorQuantizer)
    return found


def seen(path: str) -> list[torch.Tensor]:
    """What a quantizer sees of the data that is no padding."""
    model, values = qdqpatch.quantize(models.float_model()), []
    for _, each in models.named_quantizers(model):
        each._if_quant = False
    quantizer(model, path).register_forward_pre_hook(lambda _, given: values.append(given[0]))
    for batch in data():
        models.outputs(model, **batch)
    masks = [batch["attention_mask"].bool() for batch in data()]
    return [value[mask] for value, mask in zip(values, masks, strict=True)]


def test_a_range_reaches_from_the_lowest_value_to_the_highest_with_all_levels() -> None:
    of_gelu = quantizer(calibrated())
    values = torch.cat(seen(GELU))
    step, zero_point = of_gelu.amax / 127, of_gelu.zero_point
    low, high = of_gelu.interval
    assert (high - low) / 255 == pytest.approx(float(step), rel=1e-6)
    # The zero point is a whole number, so the ends are those of the data but for half a step.
    assert (low - values.min()).abs() <= 0.501 * step
    assert (high - values.max()).abs() <= 0.501 * step
    levels = (values / step).round() + zero_point
    expected = (levels.clamp(-128, 127) - zero_point) * step
    torch.testing.assert_close(of_gelu(values), expected, rtol=0, atol=1e-6)
    symmetric = quantizer(calibrated(QDQConfig()))
    errors = [(one(values) - values).square().mean() for one in (of_gelu, symmetric)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy", "auto"])
def test_methods_clip_the_longer_end(method: str) -> None:
    low, high = quantizer(calibrated(method=method)).interval
    everything = quantizer(calibrated()).interval
    assert low == pytest.approx(float(everything[0]), abs=0.02)
    assert 0 < high <= everything[1] + 0.02


def test_a_quantizer_without_a_range_takes_each_tensors_own() -> None:
    one = quantizer(qdqpatch.quantize(models.float_model(), ASYMMETRIC))
    values = torch.tensor([-0.1, 0.0, 3.0, 5.0])
    step = 5.1 / 255
    torch.testing.assert_close(one(values), values, rtol=0, atol=step / 2 * 1.001)
    assert one(values)[1] == 0


def test_the_gradient_stops_where_a_value_is_clipped() -> None:
    one = quantizer(calibrated())
    one.load_range(torch.tensor([-0.2, 3.0]))
    values = torch.tensor([-0.3, -0.1, 0.0, 2.9, 3.1], requires_grad=True)
    one(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = calibrated()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    models.assert_equal(models.outputs(loaded), models.outputs(model))
    assert loaded.config.quantization_config == model.config.quantization_config
    assert quantizer(loaded).zero_point == quantizer(model).zero_point != 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensors: tensors.pop(f"{GELU}._zero_point"), "lacks its zero point"),
        (lambda tensors: tensors.update({f"{GELU}._zero_point": torch.tensor(0.5)}), "not a whole number"),
        (lambda tensors: tensors.update({f"{GELU}._zero_point": torch.tensor(200.0)}), "is 200, which is no"),
    ],
)
def test_a_damaged_zero_point_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    calibrated().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    spoil(tensors)  # type: ignore[operator]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{GELU}.*{message}|{message}"):
        AutoModel.from_pretrained(tmp_path)


def test_statistics_keep_both_ends(tmp_path: Path) -> None:
    model = qdqpatch.quantize(models.float_model(), ASYMMETRIC)
    statistics = collect(model, data())
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(tmp_path / "statistics.safetensors")
    assert loaded[GELU].ends == statistics[GELU].ends
    low, high = loaded.ranges("max")[GELU]
    assert -0.2 < low < 0 < high
    with pytest.raises(CalibrationError, match="symmetry"):
        qdqpatch.calibrate(models.uncalibrated(), loaded, method="max")


def test_steps_that_change_ranges_keep_the_zero_point() -> None:
    model = calibrated()
    before = quantizer(model).interval
    switch_quantizers(model, {GELU: False})
    switch_quantizers(model, {GELU: True})
    torch.testing.assert_close(quantizer(model).interval, before)
    fuse_qkv(model)
    operands = [
        quantizer(model, PROBABILITIES.replace("matmul_a", f"matmul_{name}")).interval for name in "qkv"
    ]
    assert torch.equal(operands[0], operands[1])
    assert torch.equal(operands[0], operands[2])
    calibration.clip_gelu(model, 0.5)
    low, high = quantizer(model).interval
    assert low == pytest.approx(float(before[0]), abs=0.01)
    assert high == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "settings",
    [
        {"axis": -1},
        {"axis": 0},
        {"amax": 0.0},
        {"unsigned": True},
        {"narrow_range": True},
        {"amax": 2.0},
        {"symmetric": "no"},
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        QDQConfig(activation={"symmetric": False} | settings)


def test_weights_are_symmetric_and_the_configuration_survives_json() -> None:
    with pytest.raises(ConfigError, match="Weights"):
        QDQConfig(weight={"symmetric": False})
    again = QDQConfig.from_dict(ASYMMETRIC.to_dict())
    assert again == ASYMMETRIC
    assert not again.activation.symmetric
    assert "symmetric" not in str(QDQConfig(activation={"num_bits": 8}).to_dict())


def test_a_quantizer_that_was_off_has_the_same_range_again_to_the_bit() -> None:
    model = calibrated()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    switch_quantizers(model, {"*.layer.*": False, GELU: True})
    switch_quantizers(model, {"*.layer.*": True})
    models.assert_equal(model.state_dict(), before)


@pytest.mark.parametrize(
    "ends", [(-0.17, 1.3), (-3.0, 0.7), (-1e-3, 40.0), (0.0, 1.0), (-2.0, 0.0), (0.0, 0.0)]
)
@pytest.mark.parametrize("levels", [7, 127, 32767])
def test_ends_make_the_range_that_they_are_of_to_the_bit(ends: tuple[float, float], levels: int) -> None:
    amax, zero_point = affine.as_affine(torch.tensor(ends), levels)
    again = affine.as_affine(affine.ends(amax, zero_point, levels), levels)
    assert [tensor.dtype for tensor in again] == [torch.float32] * 2
    assert torch.equal(again[0], amax)
    assert torch.equal(again[1], zero_point)


def test_a_range_that_is_learned_by_what_it_clips_ends_where_values_are_clipped() -> None:
    model = train_ranges(calibrated(), "clip", "frozen")
    one = quantizer(model)
    one.load_range(torch.tensor([-0.2, 3.0]))
    low, high = (float(end) for end in one.interval)
    values = torch.tensor([low - 1, 0.9 * low, 0.0, 0.5 * high, 0.99 * high, high + 1], requires_grad=True)
    one(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0]
    # What is clipped becomes an end, and both are multiples of the range.
    assert float(one._amax.grad) == pytest.approx((low + high) / float(one.amax), rel=1e-6)


def test_a_state_dict_in_half_precision_leaves_zero_points_in_fp32() -> None:
    model, loaded = calibrated(), qdqpatch.quantize(models.float_model(), ASYMMETRIC)
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    loaded.load_state_dict(half, assign=True)
    one = quantizer(loaded)
    assert one.zero_point.dtype == one.amax.dtype == torch.float32
    assert one.zero_point == quantizer(model).zero_point


def test_the_toolkits_calibrators_set_a_range_around_zero() -> None:
    one = quantizer(calibrated())
    assert one.zero_point != 0
    one._calibrator.collect(torch.tensor([-1.0, 2.0]))
    one.load_calib_amax()
    assert (float(one.amax), float(one.zero_point)) == (2, 0)


def test_operands_with_and_without_a_zero_point_are_not_fused() -> None:
    model = calibrated(QDQConfig(overrides={"*matmul_q_*": {"symmetric": False}}))
    with pytest.raises(
        ConfigError, match=r"matmul_q_input_quantizer has a zero point and .*matmul_k_.* none"
    ):
        fuse_qkv(model)


@pytest.mark.parametrize("weight", [{}, {"axis": None}])
def test_an_override_cannot_make_a_weight_asymmetric(weight: dict[str, object]) -> None:
    models.assert_refused(
        lambda model: qdqpatch.quantize(
            model, QDQConfig(weight={"axis": 0} | weight, overrides={"*": {"symmetric": False}})
        ),
        models.float_model(),
        ConfigError,
        r"'\*' with symmetric=False matches .*_weight_quantizer",
    )


def test_a_factor_on_the_range_counts_with_and_without_a_range() -> None:
    config = QDQConfig(activation={"symmetric": False, "scale_amax": 0.5})
    one, values = quantizer(qdqpatch.quantize(models.float_model(), config)), torch.linspace(-0.2, 3.0, 65)
    dynamic = one(values)
    one.load_range(torch.stack(torch.aminmax(values)))
    assert torch.equal(dynamic, one(values))
    assert dynamic.max() < 1.6
