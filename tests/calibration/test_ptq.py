"""The whole sequence in one call: that of its steps in their order, and all or nothing."""

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig, calibration, ptq, quantize
from qdqpatch.calibration import bias_correction, input_smoothing, refining, shifting, weight_rounding
from qdqpatch.errors import (
    CalibrationError,
    ConfigError,
    NotQuantizedError,
    QuantizedError,
    UnsupportedModelError,
)
from qdqpatch.listening import CalibrationListener

FLOAT_ADDS = QDQConfig.preset("no-residual")
EVERYTHING: dict[str, Any] = {
    "smooth": True,
    "shift": True,
    "smooth_inputs": True,
    "refine": 2,
    "fuse_inputs": True,
    "fuse_qkv": True,
    "clip_gelu": 0.25,
    "round_weights": True,
    "correct_biases": True,
}


class Recording(CalibrationListener):
    """Remembers what it is told; raises once a step has been said."""

    def __init__(self, stop_at: str = "") -> None:
        self.said: list[tuple[str, list[tuple[int, int]]]] = []
        self.statistics: Any = None
        self._stop_at = stop_at

    def say(self, text: str) -> None:
        self.said.append((text, []))

    def step(self, done: int, total: int) -> None:
        self.said[-1][1].append((done, total))
        if self.said[-1][0] == self._stop_at and done == total:
            raise KeyboardInterrupt

    def collected(self, statistics: calibration.Statistics) -> None:
        self.statistics = statistics


def by_hand(data: list[models.Tensors]) -> PreTrainedModel:
    """Every step, in the order that the documentation gives."""
    model = quantize(models.float_model(), FLOAT_ADDS)
    calibration.smooth(model, data)
    calibration.shift(model, data)
    calibration.smooth_inputs(model, data)
    qdqpatch.calibrate(model, data, "auto")
    calibration.refine_ranges(model, data, 2)
    calibration.fuse_inputs(model, data)
    calibration.fuse_qkv(model)
    calibration.clip_gelu(model, 0.25)
    calibration.round_weights(model, data)
    return calibration.correct_biases(model, data)


@pytest.mark.parametrize("given", [models.batches, lambda: iter(models.batches())], ids=["list", "iterator"])
def test_all_steps_at_once_are_the_steps_one_by_one(given: Callable[[], Any]) -> None:
    model = models.float_model()
    assert ptq(model, given(), FLOAT_ADDS, **EVERYTHING) is model
    models.assert_equal(dict(model.state_dict()), dict(by_hand(models.batches()).state_dict()))


def test_without_switches_it_quantizes_and_calibrates() -> None:
    expected = qdqpatch.calibrate(models.uncalibrated(), models.batches(), "auto")
    for model in (models.float_model(), models.uncalibrated(), models.calibrated()):
        models.assert_equal(dict(ptq(model, models.batches()).state_dict()), dict(expected.state_dict()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "percentile", "percentile": 99.0}, {"method": "percentile", "percentile": 99.0}),
        ({"percentile": 99.0}, {"method": "percentile", "percentile": 99.0}),
        ({"method": "max", "padding_aware": False}, {"method": "max", "padding_aware": False}),
        ({"method": "max", "weight_method": "mse"}, {"method": "max", "weight_method": "mse"}),
    ],
)
def test_how_ranges_are_chosen(options: dict[str, Any], expected: dict[str, Any]) -> None:
    found = models.ranges(ptq(models.float_model(), models.batches(), **options))
    models.assert_equal(
        found, models.ranges(qdqpatch.calibrate(models.uncalibrated(), models.batches(), **expected))
    )


@pytest.mark.parametrize("aware", [True, False])
def test_padding_is_left_out_in_every_step(aware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    for module, name, place in (
        (shifting, "collect_channels", 3),
        (calibration.smoothing, "collect_channels", 3),
        (input_smoothing, "collect_channels", 3),
        (input_smoothing, "feed_watched", 4),
        (weight_rounding, "sum_inputs", 3),
        (bias_correction, "sum_inputs", 3),
        (refining, "Reconstruction", 2),
    ):
        original = getattr(module, name)

        def spy(*given: Any, original: Any = original, place: int = place, **named: Any) -> Any:
            told.append(given[place])
            return original(*given, **named)

        monkeypatch.setattr(module, name, spy)
    ptq(models.float_model(), models.batches(2), FLOAT_ADDS, **EVERYTHING, padding_aware=aware)
    assert told == [aware] * 7


def test_a_listener_is_told_of_every_step() -> None:
    listener = Recording()
    model = ptq(models.float_model(), models.batches(3), FLOAT_ADDS, **EVERYTHING, listener=listener)
    each_batch = [(1, 3), (2, 3), (3, 3)]
    assert listener.said == [
        ("Smoothing", each_batch),
        ("Shifting", each_batch),
        ("Smoothing inputs", each_batch),
        ("Calibrating", each_batch),
        ("Refining the ranges", [(done, 4) for done in (1, 2, 3, 4)]),
        ("Rounding weights", each_batch),
        ("Correcting biases", each_batch),
    ]
    seen = {path for path in models.ranges(model) if not path.endswith("_weight_quantizer")}
    assert {path for path in seen if model.get_submodule(path).amax is not None} == set(listener.statistics)


def test_batches_of_unknown_number_are_told_of_too() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(models.batches(2))

    listener = Recording()
    ptq(models.float_model(), Endless(), listener=listener)
    assert listener.said == [("Calibrating", [(1, 0), (2, 0)])]


@pytest.mark.parametrize("stop_at", ["Smoothing", "Shifting", "Calibrating", "Correcting biases"])
@pytest.mark.parametrize("state", ["float", "calibrated"])
def test_an_interruption_leaves_the_model_as_it_was(state: str, stop_at: str) -> None:
    model, config = models.float_model(), FLOAT_ADDS
    if state == "calibrated":
        model, config = qdqpatch.calibrate(quantize(model, config), models.batches(1), "max"), None
    before, expected = models.snapshot(model), models.outputs(model)
    with pytest.raises(KeyboardInterrupt):
        ptq(model, models.batches(), config, **EVERYTHING, listener=Recording(stop_at))
    models.assert_unchanged(model, before)
    models.assert_equal(models.outputs(model), expected)


class Unread:
    """Batches that must not be read: what is wrong is known before."""

    def __iter__(self) -> Any:
        raise AssertionError("a batch was read")


def without_biases() -> PreTrainedModel:
    model = models.float_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.bias = None
    return model


LINEAR_ONLY = {"config": QDQConfig.preset("linear-only")}
FIXED = {"config": QDQConfig(overrides=("*matmul_k*=amax:2.0", "*.output.dense._input*=amax:3.0"))}
SHIFTED = {"config": QDQConfig(overrides=("*matmul_v*=symmetric:false",))}
CHANNELS = {"config": QDQConfig(overrides=("*matmul_v*=axis:1",))}
ADDS_ONLY = {"config": QDQConfig(linears=False, matmuls=False)}


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (models.float_model, {"method": "best"}, ConfigError, "no calibration method 'best'"),
        (models.float_model, {"percentile": 0.0}, ConfigError, "percentile must be above 1"),
        (
            models.float_model,
            {"percentile": 0.9999},
            ConfigError,
            r"must be above 1 and at most 100, not 0\.9999: in percent that is 99\.99\.$",
        ),
        (models.float_model, {"weight_method": "auto"}, ConfigError, "no method 'auto' for weights"),
        (models.float_model, {"refine": -1}, ConfigError, "refine must be a positive integer, not -1"),
        (models.float_model, {"refine": True}, ConfigError, "refine must be a positive integer, not True"),
        (models.float_model, {"clip_gelu": 0.0}, ConfigError, "maximum must be a positive number"),
        (models.calibrated, {"config": FLOAT_ADDS}, QuantizedError, "quantized already"),
        (torch.nn.Identity, {}, UnsupportedModelError, "Identity"),
        (models.float_model, LINEAR_ONLY | {"smooth": True}, UnsupportedModelError, "nothing to smooth"),
        (models.float_model, ADDS_ONLY | {"shift": True}, UnsupportedModelError, "nothing to shift"),
        (models.float_model, LINEAR_ONLY | {"fuse_qkv": True}, ConfigError, "nothing to fuse"),
        (models.float_model, ADDS_ONLY | {"clip_gelu": 1.0}, ConfigError, "nothing to clip"),
        (
            models.float_model,
            FIXED | {"fuse_qkv": True},
            ConfigError,
            "matmul_k_input_quantizer at 2, and .*q_",
        ),
        (models.float_model, SHIFTED | {"fuse_qkv": True}, ConfigError, "has a zero point and .* has none"),
        (models.float_model, CHANNELS | {"fuse_qkv": True}, ConfigError, "has a range per channel"),
        (
            models.float_model,
            FIXED | {"clip_gelu": 2.5},
            ConfigError,
            "dense._input_quantizer at 3, above 2.5",
        ),
        (without_biases, {"correct_biases": True}, NotQuantizedError, "no quantized Linear with a bias"),
    ],
)
def test_all_checks_come_before_the_first_batch(
    model: Callable[[], Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = model()
    before = models.snapshot(given) if isinstance(given, PreTrainedModel) else None
    with pytest.raises(error, match=message):
        ptq(given, Unread(), **options)
    if before is not None:
        models.assert_unchanged(given, before)


def test_a_fixed_range_that_others_are_to_have_is_found_before_the_first_step() -> None:
    config, listener = QDQConfig(overrides=("*.query._input_quantizer=amax:0.5",)), Recording()
    models.assert_refused(
        lambda model: ptq(model, models.batches(), config, fuse_inputs=True, listener=listener),
        models.float_model(),
        ConfigError,
        r"fixes the range of .*query\._input_quantizer at 0\.5, and .*key\._input_quantizer",
    )
    assert listener.said == []


def test_no_batch_is_an_error_that_leaves_a_float_model_float() -> None:
    for given in ([], iter(())):
        models.assert_refused(
            lambda model, given=given: ptq(model, given), models.float_model(), CalibrationError, "no calibr"
        )
