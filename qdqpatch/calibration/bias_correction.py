"""Correct biases for the mean error that quantization makes in each Linear.

Quantization errors do not average to zero: rounding and clipping shift the mean of a Linear's output. Nagel
et al. (arXiv 1906.04721, section 4.2) add the difference of the means to the bias, here taken from data. The
mean of a Linear's output being that of its input put through it, the correction is W E[x] - Q(W) E[Q(x)].

Tokens with a clipped input do not count. In BERT these are a few with outliers, such as [SEP], whose error is
far larger than the mean of all others: it would be moved into every token. Whether the correction helps
depends on the model and its ranges, so compare with the float model's outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.calibration.input_sums import InputSum, sum_inputs
from qdqpatch.errors import CalibrationError, NotQuantizedError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.patching.apply import check_have_ranges, enabled_quantizers

Model = TypeVar("Model", bound=PreTrainedModel)


def correct_biases(model: Model, batches: Iterable[Mapping[str, Any]], padding_aware: bool = True) -> Model:
    """Add to each quantized Linear's bias what quantization takes from its mean output, in place.

    The float model runs once on the batches, and each Linear is compared with its quantized form on the
    same inputs. The biases of the float model change with it: correct once, as a second time would add the
    same again, and after the ranges are final.

    Args:
        model: A quantized and calibrated model.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device.
        padding_aware: Whether positions that the attention mask hides are left out.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantized Linear with a bias.
        CalibrationError: If there is no batch, one of these Linears has a quantizer without a range or is
            not reached, or a mean is NaN or infinite.

    Whatever is raised, the model is as it was.
    """
    linears = linears_to_correct(model)
    paths = tuple(f"{path}." for path in linears)
    quantizers = enabled_quantizers(model)
    check_have_ranges({path: quantizers[path] for path in quantizers if path.startswith(paths)})
    observers = {
        path: _Means(linear, torch.zeros(3, linear.in_features, dtype=torch.float64, device=model.device))
        for path, linear in linears.items()
    }
    sums = sum_inputs(model, observers, batches, padding_aware)
    biases = {path: _corrected(path, linear, sums[path]) for path, linear in linears.items()}
    with torch.no_grad():
        for path, bias in biases.items():
            linears[path].bias.copy_(bias)
    return model


def linears_to_correct(model: nn.Module) -> dict[str, QuantLinear]:
    """Return the quantized Linears with a bias, by path.

    Raises:
        NotQuantizedError: If there is none.
    """
    linears = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, QuantLinear) and module.bias is not None
    }
    if not linears:
        raise NotQuantizedError(
            "The model has no quantized Linear with a bias: call qdqpatch.quantize(model) first."
        )
    return linears


class _Means(InputSum):
    """Adds up the inputs, the quantized inputs and the number of tokens that are not clipped.

    Its total is of float64, shape `(3, in_features)`.
    """

    def add(self, inputs: Tensor, counts: Tensor) -> None:
        """Add one batch."""
        quantized = inputs
        if self.quantizer.is_enabled:
            amax, (low, high) = self.quantizer.range_of(inputs), self.quantizer.limits
            quantized = self.quantizer.quantized(inputs, amax)
            if self.quantizer.is_symmetric:
                inside = inputs.abs() <= amax
            else:
                steps = inputs * (self.quantizer.levels / amax)
                inside = (steps >= low) & (steps <= high)
            counts = counts * inside.all(-1, keepdim=True)
        for total, values in zip(self.total, (inputs, quantized, torch.ones_like(inputs)), strict=True):
            total += torch.where(counts > 0, values, 0).flatten(0, -2).sum(0, dtype=torch.float64)


def _corrected(path: str, linear: QuantLinear, sums: Tensor) -> Tensor:
    """Return the Linear's new bias, computed in float64."""
    weight, quantizer = linear.weight.detach(), linear._weight_quantizer
    quantized = quantizer.quantized(weight, quantizer.range_of(weight)) if quantizer.is_enabled else weight
    inputs, quantized_inputs = sums[:2].to(weight.device) / sums[2, 0].clamp(min=1)
    correction = weight.double() @ inputs - quantized.double() @ quantized_inputs
    if not bool(correction.isfinite().all()):
        raise CalibrationError(f"{path} saw NaN or infinity. Check weights and inputs.")
    bias: Tensor = (linear.bias.detach().double() + correction).to(linear.bias.dtype)
    return bias
