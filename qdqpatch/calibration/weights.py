"""The ranges of weights, which need no data."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.choices import WeightMethod
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.names import WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer, absolute_max

STEPS = 64
"""The `"mse"` method tries these fractions of the largest magnitude: 1/64, 2/64, ..., 1."""

STRIDE = 8
"""It tries each 8th fraction first, then those between the best one's neighbours."""


def weight_ranges(model: PreTrainedModel, method: WeightMethod = "max") -> dict[str, Tensor]:
    """Return the range of every enabled weight quantizer, by its path.

    Args:
        model: A quantized model.
        method: `"max"`, the largest magnitude, or `"mse"`, the range with the smallest mean squared error
            of the weights; each per channel where the quantizer is.

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
            ranges[path] = amax if method == "max" else _least_squares(weight, amax, quantizer)
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
