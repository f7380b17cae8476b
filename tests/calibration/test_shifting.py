"""Shifting channels: the float function but for rounding, and what it is for."""

import copy
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration.observing import observing
from qdqpatch.calibration.shifting import find_shifts, shift
from qdqpatch.calibration.smoothing import smooth
from qdqpatch.errors import CalibrationError, CalibrationWarning, NotQuantizedError, UnsupportedModelError

LAYER = "encoder.layer.0"
NORM = f"{LAYER}.attention.output.LayerNorm"
VALUE = f"{LAYER}.attention.self.value"
ROUNDING = 16 * 2.0**-24
"""Of the largest magnitude: biases are rounded once, and sums of a few dozen terms add up differently."""


def uncalibrated(name: str = "BertModel", preset: str = "no-residual") -> PreTrainedModel:
    return quantize(models.float_model(name), QDQConfig.preset(preset))


def float_outputs(model: PreTrainedModel, name: str = "BertModel", **changes: Any) -> models.Tensors:
    with observing(model, {}):
        return models.outputs(model, name, output_hidden_states=True, **changes)


def seen(model: PreTrainedModel, path: str, batches: list[models.Tensors]) -> Tensor:
    """What a module of the float model computes where there is data, shape `(tokens, channels)`."""
    found: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(lambda _, __, output: found.append(output))
    with observing(model, {}), torch.no_grad():
        for batch in batches:
            model(**batch)
    hook.remove()
    return torch.cat(
        [states[batch["attention_mask"].bool()] for states, batch in zip(found, batches, strict=True)]
    )


@pytest.mark.parametrize("preset", ["qdqbert", "no-residual"])
def test_the_float_function_stays(any_head: str, preset: str) -> None:
    model = uncalibrated(any_head, preset)
    before, tensors = float_outputs(model, any_head), {k: v.clone() for k, v in model.state_dict().items()}
    assert shift(model, [models.inputs(any_head, 2)]) is model
    after = float_outputs(model, any_head)
    assert after.keys() == before.keys()
    for name, expected in before.items():
        limit = ROUNDING * float(expected.abs().max())
        assert float((after[name] - expected).abs().max()) <= limit, name
    assert list(model.state_dict()) == list(tensors)
    changed = {name for name, tensor in model.state_dict().items() if (tensor != tensors[name]).any()}
    shifts = find_shifts(model)
    assert len(shifts) >= 2
    touched = {id(module.bias) for place in shifts for module in (place.source, *place.readers, *place.added)}
    assert changed == {name for name, parameter in model.named_parameters() if id(parameter) in touched}


def test_channels_lie_around_zero_afterwards() -> None:
    data = [models.inputs(seed=seed) for seed in (2, 3, 4)]
    model = uncalibrated()
    with torch.no_grad():
        model.get_submodule(NORM).bias[5] += 20  # one channel far to one side
    norm = seen(model, NORM, data)
    half = float(((norm.amax(0) - norm.amin(0)) / 2).max())
    assert float(norm.abs().max()) > 2 * half
    shift(model, data)
    assert float(seen(model, NORM, data).abs().max()) == pytest.approx(half, rel=1e-5)
    moved = (seen(model, NORM, data) - norm).abs().amax(0)
    assert moved[5] > 10
    assert (moved < 1e-5).any(), "a channel that is not beyond the widest one's half stays where it is"
    # The mean of a few tokens, to fp32's rounding of values up to 2.
    assert float(seen(model, VALUE, data).mean(0).abs().max()) < 1e-6


def test_a_range_shrinks_and_the_output_gets_closer() -> None:
    data = [models.inputs(seed=seed) for seed in (2, 3, 4)]

    def skewed() -> PreTrainedModel:
        model = models.build()
        with torch.no_grad():
            for layer in model.encoder.layer:
                layer.attention.output.LayerNorm.bias[5] += 20
        return model

    expected = models.outputs(skewed())["last_hidden_state"]
    config = QDQConfig.preset("no-residual")
    plain = calibrate(quantize(skewed(), config), data, method="max")
    shifted = calibrate(shift(quantize(skewed(), config), data), data, method="max")
    path = f"{LAYER}.intermediate.dense._input_quantizer"
    assert models.ranges(shifted)[path] * 3 < models.ranges(plain)[path]
    errors = [
        float((models.outputs(model)["last_hidden_state"] - expected).square().mean())
        for model in (plain, shifted)
    ]
    assert errors[1] * 2 < errors[0]


@pytest.mark.parametrize(
    ("name", "preset", "norms"),
    [
        ("BertModel", "no-residual", 2),
        ("BertModel", "linear-only", 2),
        ("BertModel", "qdqbert", 0),  # the other operand of the add would need a larger range
        (models.CROSS, "no-residual", 0),  # cross-attention may read it, or not
    ],
)
def test_what_is_shifted(name: str, preset: str, norms: int) -> None:
    shifts = find_shifts(uncalibrated(name, preset))
    assert sum(bool(place.added) for place in shifts) == norms
    assert all(isinstance(place.source, nn.LayerNorm) == bool(place.added) for place in shifts)
    values = {"linear-only": 0, "qdqbert": 2, "no-residual": 4 if name == models.CROSS else 2}[preset]
    assert len(shifts) - norms == values


def test_what_would_change_the_float_function_is_taken_back() -> None:
    """The LayerNorm's output is bent before it is read, so a constant cannot be put back behind it."""
    model = calibrate(uncalibrated(), [models.inputs()])
    with torch.no_grad():
        model.get_submodule(NORM).bias[5] += 20
    dense = model.get_submodule(f"{LAYER}.intermediate.dense")
    hook = dense.register_forward_pre_hook(lambda _, given: (given[0].relu(),))
    before, expected = models.snapshot(model), models.outputs(model)
    with pytest.warns(CalibrationWarning, match="Shifting was taken back.* float BertModel computes"):
        assert shift(model, [models.inputs()]) is model
    models.assert_unchanged(model, before)
    models.assert_equal(models.outputs(model), expected)
    hook.remove()


def test_a_shared_bias_stays() -> None:
    model = uncalibrated()
    first, second = (layer.intermediate.dense for layer in model.encoder.layer)
    second.bias = first.bias
    assert [bool(place.added) for place in find_shifts(model)] == [False, False]


def test_padding_counts_only_if_asked_for() -> None:
    batch = models.inputs()
    hidden = batch | {"input_ids": batch["input_ids"] + 9 * (1 - batch["attention_mask"])}
    biases = [
        shift(uncalibrated(), [data], padding_aware=aware).get_submodule(VALUE).bias.clone()
        for aware in (True, False)
        for data in (batch, hidden)
    ]
    assert [torch.equal(biases[i], biases[i + 1]) for i in (0, 2)] == [True, False]


@pytest.mark.parametrize(
    ("config", "of_the_add"),
    [
        (QDQConfig.preset("no-residual"), ()),
        (QDQConfig(overrides=["*.add_local_input_quantizer=off"]), ("output.add_residual_input_quantizer",)),
    ],
    ids=["residual adds float", "one operand float"],
)
def test_ranges_that_no_longer_fit_are_dropped(config: QDQConfig, of_the_add: tuple[str, ...]) -> None:
    model = calibrate(quantize(models.float_model(), config), [models.inputs()])
    without = {path for path, amax in models.ranges(model).items() if amax is None}
    shift(model, [models.inputs()])
    dropped = {path for path, amax in models.ranges(model).items() if amax is None} - without
    names = ("attention.self.matmul_v_input_quantizer", "attention.output.dense._input_quantizer")
    names += ("intermediate.dense._input_quantizer", *of_the_add)
    assert dropped == {f"encoder.layer.{i}.{name}" for i in (0, 1) for name in names}


def test_batches_of_several_lengths_count_by_their_tokens() -> None:
    data = [models.inputs(seed=seed, length=length) for seed, length in ((2, 5), (3, 12))]
    model = uncalibrated()
    expected = model.get_submodule(VALUE).bias.detach() - seen(model, VALUE, data).double().mean(0)
    found = shift(model, data).get_submodule(VALUE).bias.detach()
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)


def broken() -> PreTrainedModel:
    model = calibrate(uncalibrated(), [models.inputs()])
    with torch.no_grad():
        model.get_submodule(VALUE).bias[0] = torch.inf
    return model


@pytest.mark.parametrize(
    ("model", "batches", "error", "message"),
    [
        (models.float_model, [models.inputs()], NotQuantizedError, r"qdqpatch\.quantize"),
        (models.calibrated, [], CalibrationError, "no calibration batch"),
        (models.calibrated, [models.inputs(), 3], CalibrationError, "Batch 2 is a int"),
        (broken, [models.inputs()], CalibrationError, "value computed NaN"),
        (
            lambda: quantize(models.float_model(), QDQConfig(matmuls=False)),
            [models.inputs()],
            UnsupportedModelError,
            "nothing to shift in BertModel",
        ),
        (
            lambda: models.calibrated(models.CROSS),
            [models.inputs()],
            CalibrationError,
            "encoder_hidden_states",
        ),
    ],
)
def test_errors_leave_the_model_as_it_was(
    model: Callable[[], PreTrainedModel], batches: list[Any], error: type[Exception], message: str
) -> None:
    models.assert_refused(lambda changed: shift(changed, batches), model(), error, message)


def test_ranges_of_products_that_change_are_dropped() -> None:
    config = QDQConfig(outputs=True, residual_adds=False)
    batches = [models.inputs(seed=seed) for seed in (2, 3)]
    model = calibrate(quantize(models.float_model(), config), batches, method="max")
    for step, linears in (
        (shift, ("attention.output.dense", "intermediate.dense")),
        (smooth, ("attention.self.query", "attention.self.key", "attention.self.value")),
    ):
        changed = step(copy.deepcopy(model), batches)
        without = {
            path
            for path, amax in models.ranges(changed).items()
            if amax is None and path.startswith(LAYER) and path.endswith("_output_quantizer")
        }
        assert without == {f"{LAYER}.{linear}._output_quantizer" for linear in linears}
