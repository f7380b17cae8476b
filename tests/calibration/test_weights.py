"""The ranges of weights, against trying every one."""

from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration.weights import STEPS, recalibrate_weights, weight_ranges
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.linear import QuantEmbedding
from qdqpatch.nn.pairs import pairs_fit
from qdqpatch.patching.apply import named_quantizers

DENSE = "encoder.layer.0.intermediate.dense"


def with_weights(*overrides: str) -> PreTrainedModel:
    """A model whose weights are normal in one layer and have heavy tails in the other."""
    model = quantize(models.float_model(), QDQConfig(overrides=list(overrides)))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                weight = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(weight**3 if "layer.1" in path else weight)
    return model


def squared_errors(weight: Tensor, amax: Tensor, bits: int) -> Tensor:
    """From the definition, in float64; shape like the range."""
    high = 2 ** (bits - 1) - 1
    weight, scale = weight.double(), amax.double() / high
    quantized = torch.where(scale > 0, (weight / scale).round().clamp(-high - 1, high) * scale, 0.0)
    error = (quantized - weight).square()
    return error.sum(1, keepdim=True) if amax.dim() else error.sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", ["0", "none"])
def test_least_squares_are_found_among_all_fractions(bits: int, axis: str, arithmetic: str) -> None:
    model = with_weights(f"*_weight_quantizer=num_bits:{bits},axis:{axis}")
    maxima, found = weight_ranges(model), weight_ranges(model, "mse")
    optimal = []
    for path, amax in found.items():
        weight = model.get_submodule(path.rpartition(".")[0]).weight.detach()
        largest = weight.abs().amax(1, keepdim=True) if axis == "0" else weight.abs().amax()
        assert torch.equal(maxima[path], largest), path
        assert amax.shape == largest.shape, path
        fractions = torch.arange(1, STEPS + 1) / STEPS
        every = torch.stack([squared_errors(weight, largest * fraction, bits) for fraction in fractions])
        error = squared_errors(weight, amax, bits)
        # fp32 against float64: the sums differ by a few parts in 10^6, more than that decides.
        assert (error <= every[-1] * (1 + 1e-5)).all(), path
        optimal.append((error <= every.min(0).values * (1 + 1e-5)).flatten())
        assert torch.isin((amax / largest * STEPS).round(), torch.arange(1.0, STEPS + 1)).all(), path
    # Every eighth fraction is tried first, so of the valleys that 24 weights make one is missed at times.
    assert torch.cat(optimal).double().mean() > 0.95


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("power", [1, 3])
def test_channels_of_berts_width_get_the_best_of_all_fractions(bits: int, power: int) -> None:
    model = quantize(
        models.build(hidden_size=768, num_hidden_layers=1),
        QDQConfig(overrides=["*=off", "*.query._weight_quantizer=on", f"*_weight_quantizer=num_bits:{bits}"]),
    )
    query = model.encoder.layer[0].attention.self.query
    with torch.no_grad():
        query.weight.copy_(torch.randn(768, 768, generator=torch.Generator().manual_seed(6)) ** power)
    ((_, amax),) = weight_ranges(model, "mse").items()
    weight, largest = query.weight[:100].detach(), query.weight[:100].detach().abs().amax(1, keepdim=True)
    every = torch.stack([squared_errors(weight, largest * i / STEPS, bits) for i in range(1, STEPS + 1)])
    assert (squared_errors(weight, amax[:100], bits) <= every.min(0).values * (1 + 1e-5)).all()


def test_four_bits_gain_most() -> None:
    gains = []
    for bits in (4, 8):
        model = with_weights(f"*_weight_quantizer=num_bits:{bits}")
        totals = [
            sum(
                float(
                    squared_errors(
                        model.get_submodule(path.rpartition(".")[0]).weight.detach(), amax, bits
                    ).sum()
                )
                for path, amax in weight_ranges(model, method).items()  # type: ignore[arg-type]
            )
            for method in ("max", "mse")
        ]
        gains.append(totals[0] / totals[1])
    # Of the error of 4 bits a seventh goes; 8 bits need no clipping here.
    assert gains[0] > 1.1 > 1.01 > gains[1] >= 1


def test_a_channel_of_zeros_and_one_value_keep_their_maxima() -> None:
    model = models.uncalibrated()
    with torch.no_grad():
        weight = model.get_submodule(DENSE).weight
        weight[0], weight[1] = 0.0, 0.0
        weight[1, 2] = -0.3
    amax = weight_ranges(model, "mse")[f"{DENSE}._weight_quantizer"]
    assert float(amax[0]) == 0.0
    assert torch.equal(amax[1], weight[1].abs().amax()[None])


def test_channels_do_not_depend_on_each_other() -> None:
    model, path = with_weights(), f"{DENSE}._weight_quantizer"
    before = weight_ranges(model, "mse")[path]
    with torch.no_grad():
        model.get_submodule(DENSE).weight[3] *= 100
    after = weight_ranges(model, "mse")[path]
    assert torch.equal(after[torch.arange(40) != 3], before[torch.arange(40) != 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_dtypes_have_fp32_ranges(dtype: torch.dtype) -> None:
    model = calibrate(with_weights().to(dtype), [models.inputs()], weight_method="mse")
    for path, amax in models.ranges(model).items():
        assert amax.dtype == torch.float32, path
        assert amax.isfinite().all(), path


def test_calibrate_sets_them_and_leaves_the_weights_alone() -> None:
    model = with_weights()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    expected = weight_ranges(model, "mse")
    calibrate(model, [models.inputs()], method="max", weight_method="mse")
    models.assert_equal({path: models.ranges(model)[path] for path in expected}, expected)
    models.assert_equal(dict(model.named_parameters()), weights)
    by_maximum = models.ranges(calibrate(with_weights(), [models.inputs()], method="max"))
    assert all(
        torch.equal(by_maximum[path], amax)
        for path, amax in models.ranges(model).items()
        if path not in expected
    )
    assert any(not torch.equal(by_maximum[path], amax) for path, amax in expected.items())


@pytest.mark.parametrize("axis", ["0", "none"])
def test_pairs_get_the_smallest_range_that_fits_them(axis: str) -> None:
    model = with_weights(f"*_weight_quantizer=axis:{axis}")
    maxima, found = weight_ranges(model), weight_ranges(model, "pairs")
    recalibrate_weights(model, "pairs")
    wider = 0
    for path, amax in found.items():
        module = model.get_submodule(path.rpartition(".")[0])
        if isinstance(module, QuantEmbedding):
            assert torch.equal(amax, maxima[path]), path
            continue
        weight, quantizer = module.weight.detach(), module._weight_quantizer
        assert torch.equal(quantizer.amax, amax), path
        assert pairs_fit(quantizer.integers(weight).numpy()), path
        sums = (weight[:, 0::2] + weight[:, 1::2]).abs()  # no Linear here has an odd number of inputs
        largest = sums.amax(1, keepdim=True) if axis == "0" else sums.amax()
        assert torch.equal(amax, torch.maximum(maxima[path], largest)), path
        wider += int((amax > maxima[path]).sum())
        if (amax > 1.02 * maxima[path]).any():  # 128 levels would do where 127 are asked for
            quantizer.load_range(maxima[path])
            assert not pairs_fit(quantizer.integers(weight).numpy()), path
    assert wider


def test_pairs_of_few_bits_always_fit() -> None:
    model = with_weights("*_weight_quantizer=num_bits:7")
    models.assert_equal(weight_ranges(model, "pairs"), weight_ranges(model))


def test_weight_quantizers_that_are_off_have_no_range() -> None:
    model = with_weights("*_weight_quantizer=off", "*.query._weight_quantizer=on")
    assert list(weight_ranges(model, "mse")) == [
        path
        for path, quantizer in named_quantizers(model)
        if path.endswith("_weight_quantizer") and quantizer.is_enabled
    ]


@pytest.mark.parametrize("method", ["max", "mse"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -np.inf])
def test_nan_and_infinity_are_named(method: Any, bad: float) -> None:
    model = models.calibrated()
    with torch.no_grad():
        model.get_submodule(DENSE).weight[5, 6] = bad
    before = models.snapshot(model)
    with pytest.raises(CalibrationError, match=rf"{DENSE}\._weight_quantizer saw NaN or infinity"):
        calibrate(model, [models.inputs()], weight_method=method)
    after = models.ranges(model)
    models.assert_equal(after, {path: before["tensors"][f"{path}._amax"] for path in after})
