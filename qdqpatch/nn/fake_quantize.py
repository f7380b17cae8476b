"""The arithmetic of fake quantization: what a quantizer does to a tensor, once its range is known.

Two arithmetics, the toolkit's own and PyTorch's native one (`TensorQuantizer.use_fb_fake_quant`), each
bit for bit as in pytorch-quantization 2.1.3 (`tensor_quant.py`, `tensor_quantizer.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from qdqpatch.errors import ConfigError
from qdqpatch.nn import float8
from qdqpatch.spelling import counted

Limits = tuple[int, int] | tuple[Tensor, Tensor]
"""The lowest and the highest multiple of a step; tensors where there is a zero point."""

SMALLEST_AMAX = 2.0**-24
"""A range up to this (fp16's smallest positive number) counts as zero: all values become 0."""


def absolute_max(inputs: Tensor, axis: int | tuple[int, ...] | None) -> Tensor:
    """Return the largest magnitude: at least fp32, 0-dim, or one per index of `axis`, other dimensions 1.

    Raises:
        ConfigError: If the tensor has no such axis.
    """
    magnitudes = at_least_fp32(inputs.detach()).abs()
    if axis is None:
        return magnitudes.amax()
    axes = (axis,) if isinstance(axis, int) else axis
    for dim in axes:
        if not -inputs.dim() <= dim < inputs.dim():
            raise ConfigError(f"There is no axis {dim} in a tensor of {counted(inputs.dim(), 'dimension')}.")
    kept = {dim % inputs.dim() for dim in axes}
    return magnitudes.amax([dim for dim in range(inputs.dim()) if dim not in kept], keepdim=True)


class FakeQuantize(torch.autograd.Function):
    """Fake quantization with the straight-through gradient: 1 inside the range, 0 outside."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        inputs: Tensor,
        amax: Tensor,
        high: int,
        limits: Limits,
        native: bool,
        is_float8: bool,
    ) -> Tensor:
        """Return the fake-quantized tensor; arguments are those of `fake_quantize`."""
        keep = native or isinstance(limits[0], Tensor)
        outputs, levels = fake_quantize(inputs, amax, high, limits, native, is_float8, keep)
        # The toolkit passes the gradient where |x| <= amax, PyTorch where the level needs no clipping.
        if levels is None:
            inside = at_least_fp32(inputs).abs() <= amax
        else:
            inside = (levels >= limits[0]) & (levels <= limits[1])
        ctx.save_for_backward(inside)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the inputs alone."""
        (inside,) = ctx.saved_tensors
        (gradient,) = gradients
        return torch.where(inside, gradient, gradient.new_zeros(())), None, None, None, None, None


def fake_quantize(
    inputs: Tensor,
    amax: Tensor,
    high: int,
    limits: Limits,
    native: bool,
    is_float8: bool = False,
    keep_levels: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the fake-quantized tensor and, if asked for, its levels before clipping.

    The toolkit multiplies by 1/scale and divides by it again; PyTorch's native kernel multiplies by
    1/scale and then by scale. The two differ in the last bit, so both are kept, each to the letter.

    Args:
        inputs: Floating-point values of any shape.
        amax: The range, at least fp32, such that it broadcasts over the inputs.
        high: The highest level, which the range is divided by.
        limits: Where the multiples of the step are clipped; of no account for FP8.
        native: Whether to compute as PyTorch's kernel does.
        is_float8: Whether the levels are FP8's.
        keep_levels: Whether to return the levels too.
    """
    to_levels, scale = scales_of(amax, high, native)
    # In place wherever nothing else needs the tensor: memory traffic is what this costs.
    levels = at_least_fp32(inputs) * to_levels
    if is_float8:
        outputs = float8.nearest(levels)
    else:
        levels = levels.round_()
        outputs = levels.clamp(*limits) if keep_levels else levels.clamp_(*limits)
    outputs = outputs.mul_(scale) if native else outputs.div_(scale)
    return outputs.to(inputs.dtype), levels if keep_levels else None


def scales_of(amax: Tensor, high: int, native: bool) -> tuple[Tensor, Tensor]:
    """Return the factor from values to levels, and what leads back: a factor if `native`, else a divisor."""
    if native:
        scale = amax / high
        return torch.where(scale > 0, torch.ones_like(scale) / scale, torch.zeros_like(scale)), scale
    # full_like, not `high / amax`: that multiplies by the reciprocal, which rounds twice.
    steps = torch.full_like(amax, high) / amax
    is_zero = amax <= SMALLEST_AMAX
    zero = torch.zeros_like(steps)
    return torch.where(is_zero, zero, steps), torch.where(is_zero, torch.ones_like(steps), steps)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return an fp16 or bf16 tensor in fp32, and any other as it is."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
