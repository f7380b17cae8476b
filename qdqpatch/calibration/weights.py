"""The ranges of weights, which need no data."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.calibration.methods import check_weight_method
from qdqpatch.calibration.selecting import Model, load_ranges, weights_of
from qdqpatch.choices import WeightMethod
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.fake_quantize import absolute_max
from qdqpatch.nn.learned import WeightTrackingQuantizer
from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.names import WEIGHT
from qdqpatch.nn.pairs import pair_sums
from qdqpatch.nn.quantizer import TensorQuantizer

STEPS = 64
"""The `"mse"` method tries these fractions of the largest magnitude: 1/64, 2/64, ..., 1."""

STRIDE = 8
"""It tries each 8th fraction first, then those between the best one's neighbours."""


def weight_ranges(model: PreTrainedModel, method: WeightMethod = "max") -> dict[str, Tensor]:
    """Return the range of every enabled weight quantizer, by its path.

    Args:
        model: A quantized model.
        method: `"max"`, the largest magnitude; `"mse"`, the range with the smallest mean squared error of the
            weights; or `"pairs"`, the smallest that clips nothing and keeps the sums of products of uint8 and
            int8 from saturating without VNNI (`qdqpatch/nn/pairs.py`). Each is per channel where the
            quantizer is. A range that follows its weight in training is the largest magnitude in any case.

    Raises:
        CalibrationError: If a weight is NaN or infinite.
    """
    ranges = {}
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)) and module._weight_quantizer.is_enabled:
            path = f"{name}.{WEIGHT}"
            weight, quantizer = module.weight.detach(), module._weight_quantizer
            amax = absolute_max(weight, quantizer.axis)
            if not bool(amax.isfinite().all()):
                raise CalibrationError(
                    f"{path} saw NaN or infinity, so it has no range. Check weights and inputs."
                )
            wanted = "max" if isinstance(quantizer, WeightTrackingQuantizer) else method
            if wanted == "mse":
                amax = _least_squares(weight, amax, quantizer)
            elif wanted == "pairs" and isinstance(module, QuantLinear) and quantizer.num_bits == 8:
                amax = _fitting_pairs(weight, amax)
            ranges[path] = amax
    return ranges


def _least_squares(weight: Tensor, largest: Tensor, quantizer: TensorQuantizer) -> Tensor:
    """Return the range of the smallest squared error, each channel's found by itself."""
    best_step, best_error = torch.full_like(largest, STEPS), torch.full_like(largest, torch.inf)
    weight = weight.to(largest.dtype)
    kept = [dim for dim in range(weight.dim()) if largest.dim() and largest.shape[dim] != 1]
    reduced = [dim for dim in range(weight.dim()) if dim not in kept]

    def attempt(step: Tensor) -> None:
        nonlocal best_step, best_error
        quantized = quantizer.quantized(weight, largest * step / STEPS)
        error = (quantized - weight).square_().sum(reduced, keepdim=bool(largest.dim()))
        better = error < best_error
        best_step, best_error = torch.where(better, step, best_step), torch.where(better, error, best_error)

    for coarse in range(STEPS, 0, -STRIDE):
        attempt(torch.full_like(largest, coarse))
    centre = best_step
    for offset in range(-STRIDE + 1, STRIDE):
        attempt((centre + offset).clamp(1, STEPS))
    return largest * best_step / STEPS


def _fitting_pairs(weight: Tensor, largest: Tensor) -> Tensor:
    """Return the range in which the levels of no pair add up to more than 127, before they are rounded."""
    if largest.dim() and largest.shape[1] != 1:  # one per column: no integer kernel takes that
        return largest
    sums = pair_sums(weight.to(largest.dtype))
    return torch.maximum(largest, sums.amax(1, keepdim=True) if largest.dim() else sums.amax())


def recalibrate_weights(model: Model, method: WeightMethod = "max") -> Model:
    """Set the range of every weight from the weight as it is now, in place; no data is needed.

    For weights that were trained or replaced after calibration. Each keeps its granularity: one range
    per tensor, or one for each index of its axis. Weights without a range get one; ranges that the
    configuration fixes stay.

    Args:
        model: A quantized model.
        method: `"max"`, the largest magnitude, as in `quant_trainer.py`, or another of
            `qdqpatch.calibrate`'s `weight_method`.

    Returns:
        The same model.

    Raises:
        ConfigError: If there is no such method, or no weight is quantized.
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If a weight holds NaN or infinity.

    Whatever is raised, the ranges are as they were.
    """
    check_weight_method(method)
    fixed = {path for path, (quantizer, _) in weights_of(model).items() if quantizer.is_fixed}
    ranges = weight_ranges(model, method)
    return load_ranges(model, {path: amax for path, amax in ranges.items() if path not in fixed})
