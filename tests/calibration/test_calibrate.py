"""Ranges from data: the toolkit's own flow and ours give the same, and an error changes nothing."""

import copy
from typing import Any

import models
import nvidia
import pytest
import reference_cases as reference
import torch
from absl import logging as absl_logging
from pytorch_quantization import calib
from pytorch_quantization import nn as quant_nn
from pytorch_quantization.tensor_quant import QuantDescriptor
from torch import nn
from transformers import BatchEncoding, PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError
from qdqpatch.patching.apply import named_quantizers


@pytest.fixture(autouse=True)
def quiet_toolkit() -> None:
    absl_logging.set_verbosity(absl_logging.FATAL)


def state_of_quantizers(model: PreTrainedModel) -> dict[str, Any]:
    return {
        path: (id(quantizer._calibrator), quantizer._if_calib, quantizer._if_quant, not quantizer.is_enabled)
        for path, quantizer in named_quantizers(model)
    }


def test_ranges_are_those_of_the_toolkits_own_flow(any_head: str, uncalibrated) -> None:
    theirs = uncalibrated(any_head)
    nvidia.collect_as_nvidia_does(theirs, nvidia.batches(any_head))
    nvidia.compute_as_nvidia_does(theirs)
    ours = calibrate(uncalibrated(any_head), nvidia.batches(any_head), method="max", padding_aware=False)
    models.assert_equal(models.outputs(ours, any_head), models.outputs(theirs, any_head))
    expected = models.ranges(theirs)
    for path, amax in models.ranges(ours).items():
        assert torch.equal(amax.flatten(), expected[path].flatten()), path
        assert amax.dim() == (2 if path.endswith("_weight_quantizer") else 0), path


def test_nvidias_histogram_flow_works(float_model) -> None:
    quant_nn.QuantLinear.set_default_quant_desc_input(QuantDescriptor(calib_method="histogram"))
    model = quantize(float_model())
    quantizer = model.encoder.layer[0].attention.self.query._input_quantizer
    assert isinstance(quantizer._calibrator, calib.HistogramCalibrator)
    nvidia.collect_as_nvidia_does(model, nvidia.batches())
    nvidia.compute_as_nvidia_does(model, method="percentile", percentile=99.9)
    maximum = models.ranges(
        calibrate(copy.deepcopy(model), nvidia.batches(), method="max", padding_aware=False)
    )
    for path, amax in models.ranges(model).items():
        assert amax.dtype == torch.float32
        assert (amax > 0).all(), path
        assert (amax <= maximum[path] * 1.01).all(), path
    models.outputs(model)


def test_weights_ranges_are_those_the_original_was_calibrated_to(head: str) -> None:
    case = reference.load(f"{head}-calibrated")
    model = case.model()
    for _, quantizer in named_quantizers(model):
        del quantizer._amax
    calibrate(model, [models.inputs(head)])
    for name, amax in case.group("state").items():
        if name.endswith("_weight_quantizer._amax"):
            assert torch.equal(model.get_buffer(name), amax), name


def test_the_range_is_the_largest_magnitude_of_all_batches(uncalibrated) -> None:
    together = models.ranges(calibrate(uncalibrated(), nvidia.batches(), method="max"))
    alone = [models.ranges(calibrate(uncalibrated(), [batch], method="max")) for batch in nvidia.batches()]
    for path, amax in together.items():
        assert torch.equal(amax, torch.stack([one[path] for one in alone]).amax(0)), path
    assert any(not torch.equal(alone[0][path], amax) for path, amax in together.items())


def test_calibration_sees_the_float_model(float_model, uncalibrated) -> None:
    """The range of the last add is what the float model computes there, not what a quantized one does."""
    floating, seen = float_model(), []
    last = floating.encoder.layer[-1].output
    last.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output.abs().amax()))
    for batch in nvidia.batches():
        models.outputs(floating, **batch)
    model = calibrate(uncalibrated(), nvidia.batches(), method="max", padding_aware=False)
    assert torch.equal(
        model.encoder.layer[-1].output.add_local_input_quantizer.amax, torch.stack(seen).amax()
    )


def test_calibrating_again_replaces_the_ranges(calibrated, uncalibrated) -> None:
    model = calibrated()
    for _, quantizer in named_quantizers(model):
        quantizer.load_range(torch.full((), 99.0))
    calibrate(model, nvidia.batches())
    models.assert_equal(models.ranges(model), models.ranges(calibrate(uncalibrated(), nvidia.batches())))


def test_calibration_returns_the_model_and_leaves_no_gradient(uncalibrated) -> None:
    model = uncalibrated()
    assert calibrate(model, nvidia.batches()) is model
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(amax.requires_grad for amax in models.ranges(model).values())


@pytest.mark.parametrize(
    "data",
    [
        iter(nvidia.batches()),
        tuple(nvidia.batches()),
        (batch for batch in nvidia.batches()),
        [BatchEncoding(batch) for batch in nvidia.batches()],
    ],
    ids=["iterator", "tuple", "generator", "BatchEncoding"],
)
def test_batches_are_any_iterable_of_mappings(data: Any, uncalibrated) -> None:
    expected = models.ranges(calibrate(uncalibrated(), nvidia.batches()))
    models.assert_equal(models.ranges(calibrate(uncalibrated(), data)), expected)


def test_arguments_that_are_no_tensors_are_passed_on(uncalibrated) -> None:
    calibrate(uncalibrated(), [{**models.inputs(), "output_attentions": True, "position_ids": None}])


def test_a_quantizer_that_is_off_gets_no_range(float_model) -> None:
    model = quantize(float_model(), QDQConfig(overrides=["*.query._input_quantizer=off"]))
    calibrate(model, nvidia.batches())
    without = {path for path, amax in models.ranges(model).items() if amax is None}
    assert without == {path for path, quantizer in named_quantizers(model) if not quantizer.is_enabled}
    assert len(without) == 2


def test_dropout_is_off_while_calibrating() -> None:
    dropping = quantize(models.build(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)).train()
    expected = models.ranges(calibrate(quantize(models.build()), nvidia.batches()))
    models.assert_equal(models.ranges(calibrate(dropping, nvidia.batches())), expected)
    assert all(module.training for module in dropping.modules())


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
def test_every_method_gives_every_quantizer_a_range(method: Any) -> None:
    model = calibrate(models.uncalibrated(models.CROSS), nvidia.batches(models.CROSS), method=method)
    for path, amax in models.ranges(model).items():
        assert amax.dtype == torch.float32, path
        assert (amax.isfinite() & (amax > 0)).all(), path


@pytest.mark.parametrize("training", [False, True])
def test_mode_and_calibrators_are_as_before(training: bool, any_head: str, uncalibrated) -> None:
    model = uncalibrated(any_head).train(training)
    before = state_of_quantizers(model)
    calibrate(model, nvidia.batches(any_head))
    assert state_of_quantizers(model) == before
    assert {module.training for module in model.modules()} == {training}


def test_parts_in_another_mode_are_as_before(uncalibrated) -> None:
    """Frozen parts are often kept in eval mode while the rest is trained."""
    model = uncalibrated().train()
    model.embeddings.eval()
    before = {path: module.training for path, module in model.named_modules()}
    calibrate(model, nvidia.batches())
    assert {path: module.training for path, module in model.named_modules()} == before


# Errors.


QUERY = "encoder.layer.0.attention.self.query"


def nan_in_weight(model: nn.Module) -> list[Any]:
    with torch.no_grad():
        model.get_submodule(QUERY).weight[3, 4] = float("nan")
    return nvidia.batches()


def infinity_in_a_bias(model: nn.Module) -> list[Any]:
    """Infinity without NaN: the second add of the first layer is the first to see it."""
    with torch.no_grad():
        model.get_submodule("encoder.layer.0.output.dense").bias[0] = float("inf")
    return nvidia.batches()


def infinity_in_embeddings(model: nn.Module) -> list[Any]:
    with torch.no_grad():
        model.embeddings.LayerNorm.bias[0] = float("inf")
    return nvidia.batches()


FAILURES: dict[str, Any] = {
    "weight": (nan_in_weight, CalibrationError, rf"{QUERY}\._weight_quantizer saw NaN"),
    "activation": (
        infinity_in_embeddings,
        CalibrationError,
        rf"{QUERY}\._input_quantizer saw NaN or infinity",
    ),
    "infinity": (
        infinity_in_a_bias,
        CalibrationError,
        r"layer\.0\.output\.add_local_input_quantizer saw NaN or infinity",
    ),
    "no batch": (lambda model: [], CalibrationError, "no calibration batch.*only once"),
    "used up": (lambda model: exhausted(), CalibrationError, "no calibration batch"),
    "no mapping": (lambda model: [nvidia.batches()[0]["input_ids"]], CalibrationError, "Batch 1 is a Tensor"),
    "late": (lambda model: [*nvidia.batches(), "text"], CalibrationError, "Batch 4 is a str"),
    "model": (lambda model: [nvidia.batches()[0], {"input_idz": 1}], ValueError, "input_ids"),
    "loader": (lambda model: breaking(), ZeroDivisionError, ""),
}


def exhausted() -> Any:
    used = iter(nvidia.batches())
    list(used)
    return used


def breaking() -> Any:
    yield nvidia.batches()[0]
    yield 1 / 0


@pytest.mark.parametrize(("data", "error", "said"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("state", ["uncalibrated", "calibrated"])
@pytest.mark.parametrize("training", [False, True])
def test_an_error_leaves_ranges_and_states_as_they_were(
    data: Any, error: type[Exception], said: str, state: str, training: bool
) -> None:
    model = getattr(models, state)().train(training)
    given = data(model)
    before, quantizers = models.ranges(model), state_of_quantizers(model)
    with pytest.raises(error) as caught:
        calibrate(model, given)
    assert caught.match(said or ".")
    models.assert_equal(models.ranges(model), before)
    assert state_of_quantizers(model) == quantizers
    assert {module.training for module in model.modules()} == {training}


def test_a_quantizer_that_no_batch_reaches_is_named(uncalibrated) -> None:
    model = uncalibrated(models.CROSS)
    data = [
        {name: tensor for name, tensor in batch.items() if "encoder" not in name}
        for batch in nvidia.batches(models.CROSS)
    ]
    before = models.ranges(model)
    message = r"layer\.0\.crossattention\..* saw no tensor in 3 batches.*encoder_hidden_states"
    with pytest.raises(CalibrationError, match=message):
        calibrate(model, data)
    models.assert_equal(models.ranges(model), before)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "maximum"}, r"'maximum'.*\"max\", \"percentile\", \"mse\", \"entropy\", \"auto\""),
        ({"weight_method": "entropy"}, r"'entropy' for weights.*\"max\", \"mse\""),
        ({"percentile": 0}, "percentile"),
        ({"percentile": 100.1}, "percentile"),
        ({"percentile": float("nan")}, "percentile"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_model_runs(
    wrong: dict[str, Any], said: str, uncalibrated
) -> None:
    model, unread = uncalibrated(), iter(nvidia.batches())
    with pytest.raises(ConfigError, match=said):
        calibrate(model, unread, **wrong)
    assert len(list(unread)) == 3


def test_a_float_model_is_refused(float_model) -> None:
    with pytest.raises(NotQuantizedError, match=r"qdqpatch\.quantize"):
        calibrate(float_model(), nvidia.batches())


def test_a_model_with_every_quantizer_disabled_is_refused(uncalibrated) -> None:
    model = uncalibrated()
    for _, quantizer in named_quantizers(model):
        quantizer.disable()
    with pytest.raises(NotQuantizedError):
        calibrate(model, nvidia.batches())


def test_nan_that_no_quantizer_sees_is_told(uncalibrated) -> None:
    model = uncalibrated("BertForSequenceClassification")
    torch.nn.init.constant_(model.classifier.weight, float("nan"))
    with pytest.raises(
        CalibrationError, match=r"holds NaN or infinity in 1 of \d+ tensors: classifier\.weight"
    ):
        calibrate(model, [models.inputs("BertForSequenceClassification")])
    assert all(quantizer.amax is None for _, quantizer in named_quantizers(model))
