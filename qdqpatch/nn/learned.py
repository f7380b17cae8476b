"""Quantizers whose ranges change in training.

A range that is learned stays where a frozen one is, in `_amax`, so that a checkpoint of either loads as the
other; it is a Parameter then, and the quantizer's class says how its gradient is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.quantizer import SMALLEST_AMAX, TensorQuantizer, absolute_max, at_least_fp32


class WeightTrackingQuantizer(TensorQuantizer):
    """Takes the range of each tensor that it sees as its own: for weights, which move."""

    def range_of(self, inputs: Tensor) -> Tensor:
        """Return the tensor's own range, and keep it."""
        amax = absolute_max(inputs, self.axis)
        self._amax.copy_(amax)
        return amax if self.scale_amax is None else amax * self.scale_amax


class LearnedQuantizer(TensorQuantizer):
    """A quantizer whose `_amax`, 0-dim, is a Parameter."""

    function: Any

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs` rounded to the quantizer's levels; shape and dtype stay."""
        amax = self._parameters["_amax"]
        learning = torch.is_grad_enabled() and amax is not None and amax.requires_grad
        if not self.is_enabled or self._if_calib or not self._if_quant or not learning:
            return super().forward(inputs)
        # A range is never negative; the gradient goes past the bound, so that one that fell to it can grow.
        amax = amax + (amax.clamp_min(SMALLEST_AMAX) - amax).detach()
        amax = amax if self.scale_amax is None else amax * self.scale_amax
        outputs: Tensor = self.function.apply(inputs, amax, self)
        return outputs


class _LSQ(torch.autograd.Function):
    """Fake quantization with LSQ's gradient of the step size s = amax / Q, equations 3 and 5 of the paper."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, amax: Tensor, quantizer: TensorQuantizer) -> Tensor:
        ctx.save_for_backward(inputs, amax)
        ctx.quantizer = quantizer  # type: ignore[attr-defined]
        return quantizer.quantized(inputs, amax.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,), (inputs, amax) = gradients, ctx.saved_tensors
        low, high = ctx.quantizer.bounds
        steps = at_least_fp32(inputs) * (high / amax)
        inside = (steps > low) & (steps < high)
        slope = torch.where(inside, steps.round() - steps, steps.clamp(low, high))
        elements = inputs.numel() / inputs.shape[0] if inputs.dim() else 1
        to_step = (at_least_fp32(gradient) * slope).sum() / (elements * high) ** 0.5
        return torch.where(inside, gradient, gradient.new_zeros(())), to_step / high, None


class _Clip(torch.autograd.Function):
    """Fake quantization with PACT's gradient of the range: that of all that is clipped."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, amax: Tensor, quantizer: TensorQuantizer) -> Tensor:
        ctx.save_for_backward(inputs, amax)
        return quantizer.quantized(inputs, amax.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,), (inputs, amax) = gradients, ctx.saved_tensors
        values = at_least_fp32(inputs)
        inside = (values > -amax) & (values < amax)
        sides = torch.where(inside, torch.zeros_like(values), values.sign())
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


def update_tracked_ranges(model: nn.Module) -> None:
    """Give quantizers that follow their weights the ranges that these have now.

    They take them in each forward pass; an optimizer's step after that moves the weights once more.
    """
    for module in weighted(model):
        quantizer = module._weight_quantizer
        if isinstance(quantizer, WeightTrackingQuantizer) and quantizer.is_enabled:
            quantizer.range_of(module.weight)


def bound_learned_ranges(model: nn.Module) -> None:
    """Set learned ranges that an optimizer took below the smallest one to it, as each forward pass does."""
    for module in model.modules():
        if isinstance(module, LearnedQuantizer) and module.amax is not None:
            module.amax.clamp_min_(SMALLEST_AMAX)
