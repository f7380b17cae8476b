"""Bias correction: the mean error goes, from the tokens that count."""

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration.bias_correction import correct_biases
from qdqpatch.calibration.calibrate import set_ranges
from qdqpatch.errors import CalibrationError, NotQuantizedError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.patching.apply import named_quantizers

DENSE = "encoder.layer.0.intermediate.dense"
DATA = [models.inputs(seed=seed, length=length) for seed, length in ((2, 8), (3, 6))]


def coarse(name: str = "BertModel", percentile: float = 100.0) -> PreTrainedModel:
    """A calibrated model of 4 bits, whose errors are large."""
    config = QDQConfig(overrides=["*=num_bits:4"])
    data = DATA if name == "BertModel" else [models.inputs(name, 2)]
    return calibrate(quantize(models.float_model(name), config), data, percentile=percentile)


def linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantLinear)}


def biases(model: PreTrainedModel) -> dict[str, Tensor]:
    return {path: linear.bias.detach().clone() for path, linear in linears(model).items()}


def float_inputs(model: PreTrainedModel, data: list[models.Tensors]) -> dict[str, list[Tensor]]:
    """What every Linear reads in the float model, shape `(positions of data, features)`."""
    seen: dict[str, list[Tensor]] = {path: [] for path in linears(model)}
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, to=seen[path]: to.append(args[0].detach()))
        for path, linear in linears(model).items()
    ]
    for _, quantizer in named_quantizers(model):
        quantizer._if_quant = False
    for batch in data:
        with torch.no_grad():
            model(**batch)
    for _, quantizer in named_quantizers(model):
        quantizer._if_quant = True
    for hook in hooks:
        hook.remove()
    masks = [batch["attention_mask"].bool() for batch in data]
    return {path: [x[m] for x, m in zip(values, masks, strict=True)] for path, values in seen.items()}


def mean_errors(
    model: PreTrainedModel, before: dict[str, Tensor], inputs: dict[str, list[Tensor]]
) -> dict[str, Tensor]:
    """Mean over tokens of what the quantized Linear gives and the float one gave."""
    errors = {}
    for path, linear in linears(model).items():
        x = torch.cat(inputs[path])
        x = x[(x.abs() <= linear._input_quantizer.amax).all(-1)]
        exact = nn.functional.linear(x.double(), linear.weight.double(), before[path].double())
        errors[path] = (linear(x).double() - exact).mean(0)
    return errors


@pytest.mark.parametrize("percentile", [100.0, 99.0])
def test_the_mean_error_goes_from_the_data_it_saw(percentile: float, arithmetic: str) -> None:
    model = coarse(percentile=percentile)
    before, inputs = biases(model), float_inputs(model, DATA)
    errors = mean_errors(model, before, inputs)
    assert correct_biases(model, DATA) is model
    left = mean_errors(model, before, inputs)
    for path, error in left.items():
        # What is left is fp32 rounding: of sums of at most 40 terms up to about 10, once a token.
        assert error.abs().max() < 2e-5, path
        assert errors[path].abs().max() > 1e-2, path


def test_nothing_but_these_biases_changes(any_head: str) -> None:
    model = coarse(any_head)
    before = models.snapshot(model)
    correct_biases(model, [models.inputs(any_head, 2)])
    after = models.snapshot(model)
    expected = {f"{path}.bias" for path in linears(model)}
    tensors = before.pop("tensors"), after.pop("tensors")
    assert list(tensors[0]) == list(tensors[1])
    assert {name for name in tensors[0] if not torch.equal(tensors[0][name], tensors[1][name])} == expected
    assert after == before
    assert not any(module._forward_pre_hooks for module in linears(model).values())
    assert all(quantizer._if_quant for _, quantizer in named_quantizers(model))


def test_the_output_of_a_model_with_a_systematic_error_gets_closer() -> None:
    # Weights that all lie a third of a step above a level are all rounded the same way.
    model = models.uncalibrated()
    with torch.no_grad():
        for layer in model.encoder.layer:
            weight = layer.output.dense.weight
            weight.copy_(torch.where(weight.abs() > 0.2, weight, weight.sign().abs() * 0.0042))
    data = [models.inputs(seed=seed) for seed in (2, 3, 4)]
    calibrate(model, data, method="max")
    for _, quantizer in named_quantizers(model):
        quantizer._if_quant = False
    expected = models.outputs(model)["last_hidden_state"]
    for _, quantizer in named_quantizers(model):
        quantizer._if_quant = True
    errors = []
    for _ in range(2):
        difference = models.outputs(model)["last_hidden_state"] - expected
        errors.append(float(difference.square().mean()))
        correct_biases(model, data)
    assert errors[1] < errors[0]


def test_tokens_that_are_clipped_do_not_count() -> None:
    model, other = coarse(), coarse()
    path = f"{DENSE}._input_quantizer"
    outlier = float_inputs(model, DATA)[DENSE]
    largest = max(float(values.abs().max()) for values in outlier)
    for changed in (model, other):
        set_ranges(changed, {path: torch.tensor(largest * 0.999)})
    correct_biases(model, DATA)
    x = torch.cat(outlier)
    kept = x[(x.abs() <= largest * 0.999).all(-1)]
    assert 0 < len(x) - len(kept) < 4
    linear = other.get_submodule(DENSE)
    quantized = nn.functional.linear(linear._input_quantizer(kept), linear._weight_quantizer(linear.weight))
    expected = linear.bias + (nn.functional.linear(kept, linear.weight) - quantized).mean(0)
    assert torch.allclose(model.get_submodule(DENSE).bias, expected, atol=2e-5, rtol=0)


def test_padding_counts_only_if_asked_for() -> None:
    batch = models.inputs()
    hidden = batch | {"input_ids": batch["input_ids"] + 9 * (1 - batch["attention_mask"])}
    found = [
        biases(correct_biases(coarse(), [data], padding_aware=aware))
        for aware in (True, False)
        for data in (batch, hidden)
    ]
    same = [all(torch.equal(found[i][path], found[i + 1][path]) for path in found[0]) for i in (0, 2)]
    assert same == [True, False]


def test_quantizers_that_are_off_take_nothing() -> None:
    config = QDQConfig(overrides=["*.layer.0.*._input_quantizer=off", "*.layer.0.*._weight_quantizer=off"])
    model = calibrate(quantize(models.float_model(), config), DATA)
    before = biases(model)
    after = biases(correct_biases(model, DATA))
    changed = {path for path in after if not torch.equal(after[path], before[path])}
    assert changed
    assert all(".layer.1." in path for path in changed)


def without_range() -> PreTrainedModel:
    model = models.calibrated()
    del model.get_submodule(f"{DENSE}._input_quantizer")._amax
    return model


def broken() -> PreTrainedModel:
    model = models.calibrated()
    with torch.no_grad():
        model.get_submodule(DENSE).weight[0, 0] = torch.inf
    return model


@pytest.mark.parametrize(
    ("model", "batches", "error", "message"),
    [
        (models.float_model, DATA, NotQuantizedError, r"qdqpatch\.quantize"),
        (models.uncalibrated, DATA, CalibrationError, r"have no range yet, .* qdqpatch\.calibrate"),
        (without_range, DATA, CalibrationError, f"{DENSE}._input_quantizer has no range"),
        (models.calibrated, [], CalibrationError, "no calibration batch"),
        (models.calibrated, [DATA[0], 3], CalibrationError, "Batch 2 is a int"),
        (broken, DATA, CalibrationError, "saw NaN or infinity"),
        (lambda: models.calibrated(models.CROSS), DATA, CalibrationError, "crossattention.*encoder_hidden"),
    ],
)
def test_errors_leave_the_model_as_it_was(
    model: Callable[[], PreTrainedModel], batches: list[Any], error: type[Exception], message: str
) -> None:
    refused = model()
    models.assert_refused(lambda model: correct_biases(model, batches), refused, error, message)
    assert all(quantizer._if_quant for _, quantizer in named_quantizers(refused))
    assert not any(module._forward_pre_hooks for module in linears(refused).values())
