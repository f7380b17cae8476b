"""Smoothing: the float function to the last bit, and what it is for."""

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration.smoothing import PROJECTIONS, find_attentions, smooth
from qdqpatch.errors import (
    CalibrationError,
    CalibrationWarning,
    ConfigError,
    NotQuantizedError,
    UnsupportedModelError,
)
from qdqpatch.patching.apply import named_quantizers

SELF = "encoder.layer.0.attention.self"
DENSE = "encoder.layer.0.attention.output.dense"
OUTLIER = 5


def float_outputs(model: PreTrainedModel, name: str = "BertModel") -> models.Tensors:
    """With every quantizer off."""
    for _, quantizer in named_quantizers(model):
        quantizer._if_quant = False
    try:
        return models.outputs(model, name)
    finally:
        for _, quantizer in named_quantizers(model):
            quantizer._if_quant = True


def with_outliers(**changes: Any) -> PreTrainedModel:
    """A float model with one channel of values and one of keys far above the others, in every layer."""
    model = models.build(**changes)
    with torch.no_grad():
        for layer in model.encoder.layer:
            attention, dense = layer.attention.self, layer.attention.output.dense
            for linear in (attention.value, attention.key):
                linear.weight[OUTLIER] *= 50
                linear.bias[OUTLIER] *= 50
            dense.weight[:, OUTLIER] /= 50
            attention.query.weight[OUTLIER] /= 50
            attention.query.bias[OUTLIER] /= 50
    return model


def test_the_float_function_stays_bit_for_bit(any_head: str) -> None:
    model = models.uncalibrated(any_head)
    with torch.no_grad():
        for attention in find_attentions(model)[0]:
            for linear, factor in ((attention.query, 3), (attention.key, 20), (attention.value, 30)):
                linear.weight[OUTLIER] *= factor
                linear.bias[OUTLIER] *= factor
    before, weights = float_outputs(model, any_head), {k: v.clone() for k, v in model.state_dict().items()}
    assert smooth(model, [models.inputs(any_head, 2)]) is model
    models.assert_equal(float_outputs(model, any_head), before)
    after = model.state_dict()
    assert list(after) == list(weights)
    attentions, misses = find_attentions(model)
    assert not misses
    assert len(attentions) == (4 if any_head == models.CROSS else 2)
    changed = {name for name in after if not torch.equal(after[name], weights[name])}
    for attention in attentions:  # with channels that are not all alike, not for nothing
        output = f"{attention.path.rpartition('.')[0]}.output.dense.weight"
        projections = {
            f"{attention.path}.{name}.{part}" for name in PROJECTIONS for part in ("weight", "bias")
        }
        assert projections | {output} <= changed, attention.path
    assert all("attention" in name for name in changed)
    assert not any("output.dense.bias" in name for name in changed)


def test_every_factor_is_a_power_of_two() -> None:
    model = quantize(with_outliers())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    smooth(model, [models.inputs()])
    for name, parameter in model.named_parameters():
        factors = (parameter / before[name]).log2()
        assert torch.equal(factors, factors.round()), name


def test_no_factor_is_above_256() -> None:
    """A key channel 2**30 times as large as the query's would have its weights come near fp16's limits."""
    model = quantize(models.build())
    attention = model.get_submodule(SELF)
    with torch.no_grad():
        for linear, factor in ((attention.key, 2.0**15), (attention.query, 2.0**-15)):
            linear.weight[OUTLIER] *= factor
            linear.bias[OUTLIER] *= factor
    before = attention.key.weight.clone(), attention.query.weight.clone()
    smooth(model, [models.inputs()])
    for weight, old, factor in zip(
        (attention.key.weight, attention.query.weight), before, (2.0**-8, 2.0**8), strict=True
    ):
        assert torch.equal(weight[OUTLIER], old[OUTLIER] * factor)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_outliers_leave_the_activations_and_the_output_gets_closer(strength: float) -> None:
    data = [models.inputs(seed=seed) for seed in (2, 3, 4)]
    expected = models.outputs(with_outliers())["last_hidden_state"]
    plain = calibrate(quantize(with_outliers()), data, method="max")
    smoothed = calibrate(smooth(quantize(with_outliers()), data, strength), data, method="max")
    before, after = models.ranges(plain), models.ranges(smoothed)
    for operand in "vk":  # the outlier's 50 goes, all but what rounding to powers of two leaves
        path = f"{SELF}.matmul_{operand}_input_quantizer"
        # At strength 0 it is the weight's columns that are made equal, and the outlier's was a 50th.
        assert after[path] * 10 < before[path], path
    assert after[f"{DENSE}._input_quantizer"] * 10 < before[f"{DENSE}._input_quantizer"]
    unaffected = f"{SELF}.query._input_quantizer"
    assert torch.equal(after[unaffected], before[unaffected])
    errors = [
        float((models.outputs(model)["last_hidden_state"] - expected).square().mean())
        for model in (plain, smoothed)
    ]
    assert errors[1] * 2 < errors[0]


def test_strength_is_smoothquants() -> None:
    scaled = {}
    for strength in (0.0, 1.0):
        model = smooth(quantize(with_outliers()), [models.inputs()], strength)
        scaled[strength] = model.get_submodule(DENSE).weight.abs().amax(0), values_of(model)
    for maxima in (scaled[0.0][0], scaled[1.0][1]):
        # One side is levelled: what is left is the rounding of the factors, half a power of two each way.
        assert maxima.amax() / maxima.amin() <= 2 * 1.0001


def values_of(model: PreTrainedModel) -> torch.Tensor:
    """The largest magnitude of each channel of the values that are not padding."""
    seen: list[torch.Tensor] = []
    linear = model.get_submodule(f"{SELF}.value")
    hook = linear.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    batch = models.inputs()
    float_outputs(model)
    hook.remove()
    return seen[0][batch["attention_mask"].bool()].abs().amax(0)


def test_padding_counts_only_if_asked_for() -> None:
    batch = models.inputs()
    hidden = batch | {"input_ids": batch["input_ids"] + 9 * (1 - batch["attention_mask"])}
    weights = [
        [
            parameter.clone()
            for parameter in smooth(models.uncalibrated(), [data], padding_aware=aware).parameters()
        ]
        for aware in (True, False)
        for data in (batch, hidden)
    ]
    same = [all(map(torch.equal, weights[i], weights[i + 1])) for i in (0, 2)]
    assert same == [True, False]


def test_ranges_that_no_longer_fit_are_dropped_and_calibration_brings_them_back() -> None:
    model = models.calibrated()
    names, before = list(model.state_dict()), models.ranges(model)
    smooth(model, [models.inputs()])
    dropped = {path for path, amax in models.ranges(model).items() if amax is None}
    expected = {
        f"encoder.layer.{layer}.attention.{end}"
        for layer in (0, 1)
        for end in (
            *(f"self.matmul_{operand}_input_quantizer" for operand in "qkv"),
            *(f"self.{name}._weight_quantizer" for name in ("query", "key", "value")),
            "output.dense._weight_quantizer",
            "output.dense._input_quantizer",
        )
    }
    assert dropped == expected
    kept = {path: amax for path, amax in models.ranges(model).items() if path not in dropped}
    models.assert_equal(kept, {path: before[path] for path in kept})
    calibrate(model, [models.inputs()])
    assert sorted(model.state_dict()) == sorted(names)


def test_a_second_time_changes_nothing() -> None:
    model = smooth(quantize(with_outliers()), [models.inputs()])
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for name, parameter in smooth(model, [models.inputs()]).named_parameters():
        # A factor that was rounded by half an exponent may be rounded once more.
        assert (parameter / weights[name]).log2().abs().max() <= 1, name


def test_a_channel_of_zeros_is_left_alone() -> None:
    model = models.uncalibrated()
    attention = model.get_submodule(SELF)
    with torch.no_grad():
        for linear in (attention.query, attention.value):
            linear.weight[3], linear.bias[3] = 0.0, 0.0
        model.get_submodule(DENSE).weight[:, 4] = 0.0
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    smooth(model, [models.inputs()])
    assert torch.equal(attention.key.weight[3], before[f"{SELF}.key.weight"][3])
    assert torch.equal(attention.value.weight[4], before[f"{SELF}.value.weight"][4])
    assert torch.equal(model.get_submodule(DENSE).weight[:, 3], before[f"{DENSE}.weight"][:, 3])
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = models.uncalibrated().to(dtype)
    before = float_outputs(model)
    smooth(model, [models.inputs()])
    models.assert_equal(float_outputs(model), before)


def test_the_model_is_left_in_its_mode_and_without_hooks() -> None:
    model = models.uncalibrated().train()
    before = models.snapshot(model)
    smooth(model, [models.inputs()])
    after = models.snapshot(model)
    for snapshot in (before, after):
        del snapshot["tensors"]
    assert after == before
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Linear))
    assert all(quantizer._if_quant for _, quantizer in named_quantizers(model))


def test_what_would_change_the_float_function_is_taken_back() -> None:
    """A rotary embedding, say, which mixes the channels of the keys: here their order is another one."""
    model = models.calibrated()
    with torch.no_grad():
        for linear in (model.get_submodule(f"{SELF}.{name}") for name in ("query", "key", "value")):
            linear.weight[OUTLIER] *= 20
    linear = model.get_submodule(f"{SELF}.key")
    hook = linear.register_forward_hook(lambda _, __, output: output.flip(-1))
    before, expected = models.snapshot(model), models.outputs(model)
    with pytest.warns(CalibrationWarning, match="Smoothing was taken back.* float BertModel computes"):
        assert smooth(model, [models.inputs()]) is model
    models.assert_unchanged(model, before)
    models.assert_equal(models.outputs(model), expected)
    hook.remove()


def share(model: PreTrainedModel) -> None:
    model.encoder.layer[1].attention.self.value.weight = model.encoder.layer[0].attention.self.value.weight


def subclassed(model: PreTrainedModel) -> None:
    model.get_submodule(SELF).key.__class__ = type("Adapter", (type(model.get_submodule(SELF).key),), {})


def with_distances(model: PreTrainedModel) -> None:
    model.get_submodule(SELF).distance_embedding = nn.Embedding(4, 12)


def wider(model: PreTrainedModel) -> None:
    model.get_submodule(SELF).value = nn.Linear(24, 48)


@pytest.mark.parametrize(
    ("change", "skipped", "reason"),
    [
        (share, 2, "shares a parameter"),
        (subclassed, 1, "plain Linears"),
        (with_distances, 1, "distance_embedding may read"),
        (wider, 1, "one to one"),
    ],
)
def test_what_is_left_alone_has_a_reason(
    change: Callable[[PreTrainedModel], None], skipped: int, reason: str
) -> None:
    model = models.uncalibrated()
    change(model)
    attentions, misses = find_attentions(model)
    assert (len(attentions), len(misses)) == (2 - skipped, skipped)
    assert misses[0].path == SELF
    assert reason in misses[0].reason
    if not attentions:
        with pytest.raises(UnsupportedModelError, match=f"{SELF}: .*{reason}"):
            smooth(model, [models.inputs()])


def broken(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        model.get_submodule(SELF).key.bias[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("model", "batches", "options", "error", "message"),
    [
        (models.float_model, [models.inputs()], {}, NotQuantizedError, r"qdqpatch\.quantize"),
        (models.uncalibrated, [models.inputs()], {"strength": 1.5}, ConfigError, "strength.* not 1.5"),
        (models.calibrated, [], {}, CalibrationError, "no calibration batch"),
        (models.calibrated, [models.inputs(), 3], {}, CalibrationError, "Batch 2 is a int"),
        (lambda: broken(models.calibrated()), [models.inputs()], {}, CalibrationError, "key computed NaN"),
        (
            lambda: quantize(models.float_model(), QDQConfig(matmuls=False)),
            [models.inputs()],
            {},
            UnsupportedModelError,
            "no quantized attention matmul",
        ),
        (
            lambda: models.calibrated(models.CROSS),
            [models.inputs()],
            {},
            CalibrationError,
            "crossattention.*encoder_hidden_states",
        ),
    ],
)
def test_errors_leave_the_model_as_it_was(
    model: Callable[[], PreTrainedModel],
    batches: list[Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    models.assert_refused(lambda changed: smooth(changed, batches, **options), model(), error, message)
