"""Quantizers whose ranges change in training.

A range that is learned stays where a frozen one is, in `_amax`, so that a checkpoint of either loads as the
other; it is a Parameter then, and the quantizer's class says how its gradient is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from qdqpatch.errors import ConfigError
from qdqpatch.nn.fake_quantize import SMALLEST_AMAX, absolute_max, at_least_fp32
from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer


class WeightTrackingQuantizer(TensorQuantizer):
    """Takes the range of each tensor that it sees as its own: for weights, which move.

    It is stored in training; a model in eval mode is only read.
    """

    def range_of(self, inputs: Tensor) -> Tensor:
        """Return the tensor's own range; keep it in training."""
        amax = absolute_max(inputs, self.axis)
        if self.training and self.amax is not None:
            if self._amax.shape == amax.shape:
                self._amax.copy_(amax)
            else:  # one range for all channels, as it was stored
                self._amax = amax.detach().clone()
        return amax if self.scale_amax is None else amax * self.scale_amax


class LearnedQuantizer(TensorQuantizer):
    """A quantizer whose `_amax`, 0-dim, is a Parameter."""

    function: Any

    def range_of(self, inputs: Tensor) -> Tensor:
        """Return the range, which is never negative."""
        amax = super().range_of(inputs)
        return amax.clamp_min(SMALLEST_AMAX) if self.is_learned else amax

    def _rounded(self, inputs: Tensor) -> Tensor:
        """Return an input rounded to levels, by the function with the gradient of the range."""
        amax = self._parameters.get("_amax")
        learning = torch.is_grad_enabled() and amax is not None and amax.requires_grad
        if not learning or self._if_calib:
            return super()._rounded(inputs)
        # A range is never negative; the gradient goes past the bound, so that one that fell to it can grow.
        amax = amax + (amax.clamp_min(SMALLEST_AMAX) - amax).detach()
        amax = amax if self.scale_amax is None else amax * self.scale_amax
        outputs: Tensor = self.function.apply(inputs, amax, self)
        return outputs


class _FakeQuantization(torch.autograd.Function):
    """Fake quantization; each way to learn a range has its own gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, amax: Tensor, quantizer: TensorQuantizer) -> Tensor:
        ctx.save_for_backward(inputs, amax)
        ctx.quantizer = quantizer  # type: ignore[attr-defined]
        return quantizer.quantized(inputs, amax.detach())


class _LSQ(_FakeQuantization):
    """Fake quantization with LSQ's gradient of the step size s = amax / Q, equations 3 and 5 of the paper."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,), (inputs, amax) = gradients, ctx.saved_tensors
        high = ctx.quantizer.levels
        limits = ctx.quantizer.limits
        steps = at_least_fp32(inputs) * (high / amax)
        inside = (steps > limits[0]) & (steps < limits[1])
        slope = torch.where(inside, ctx.quantizer.nearest_levels(steps) - steps, steps.clamp(*limits))
        elements = inputs.numel() / inputs.shape[0] if inputs.dim() else 1
        to_step = (at_least_fp32(gradient) * slope).sum() / (elements * high) ** 0.5
        return torch.where(inside, gradient, gradient.new_zeros(())), to_step / high, None


class _Clip(_FakeQuantization):
    """Fake quantization with PACT's gradient of the range: that of all that is clipped."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,), (inputs, amax) = gradients, ctx.saved_tensors
        values, (low, high) = at_least_fp32(inputs), (-amax, amax)
        sides = values.sign()
        if not ctx.quantizer.is_symmetric:
            below, above = (limit / ctx.quantizer.levels for limit in ctx.quantizer.limits)
            low, high = below * amax, above * amax
            sides = torch.where(values > 0, above, below)
        inside = (values > low) & (values < high)
        sides = torch.where(inside, torch.zeros_like(values), sides)
        to_range = (at_least_fp32(gradient) * sides).sum()
        return torch.where(inside, gradient, gradient.new_zeros(())), to_range, None


class LSQQuantizer(LearnedQuantizer):
    """Learns its range as LSQ does (arXiv 1902.08153)."""

    function = _LSQ


class PACTQuantizer(LearnedQuantizer):
    """Learns its range as PACT does (arXiv 1805.06085), and `learn_amax` of pytorch-quantization."""

    function = _Clip


def weighted(model: nn.Module) -> list[QuantLinear | QuantEmbedding]:
    """Return the modules whose weights have quantizers."""
    return [module for module in model.modules() if isinstance(module, (QuantLinear, QuantEmbedding))]


def update_ranges(model: nn.Module) -> None:
    """Store the ranges that are computed with: of weights that are tracked, and of learned ones below 0.

    A tracked range is stored in each forward pass of training; an optimizer's step after that moves the
    weight once more. A learned one can step below 0, where the quantizer computes with the smallest.
    """
    for module in weighted(model):
        quantizer = module._weight_quantizer
        if isinstance(quantizer, WeightTrackingQuantizer) and quantizer.is_enabled:
            quantizer.load_range(absolute_max(module.weight, quantizer.axis))
    for learned in learned_quantizers(model).values():
        with torch.no_grad():
            learned._amax.clamp_(min=SMALLEST_AMAX)


def learned_quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the quantizers whose ranges are Parameters, by their paths."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, TensorQuantizer) and module.is_learned
    }


def refuse_learned(quantizers: Iterable[tuple[str, TensorQuantizer]], change: str) -> None:
    """Raise where a range that is learned would be taken away.

    Args:
        quantizers: Those that lose their ranges, with their paths.
        change: What is asked for, such as "smooth".

    Raises:
        ConfigError: If the range of one is a Parameter, which an optimizer may hold.
    """
    for path, quantizer in quantizers:
        if quantizer.is_learned:
            raise ConfigError(
                f"{path} learns its range, which an optimizer may hold, and to {change} would take it away. "
                "Call qdqpatch.training.freeze_ranges(model) first, and train_ranges afterwards."
            )
