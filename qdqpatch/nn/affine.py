"""Ranges that do not lie around zero, as a step and a zero point, which is how engines have them.

A value x has the level round(x / step) + zero point. What GELU returns reaches from -0.17 to 6, say: a range
around zero leaves nearly half of its levels to values that there are not, and this one doubles the
resolution. A quantizer keeps the step as the range that it would be around zero, `amax = levels * step`, so
that a scale is `amax / levels` whether there is a zero point or not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_affine(interval: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Return `amax` and zero point of a range, which is widened to hold 0: that must have a level of its own.

    Args:
        interval: The lowest and the highest value, shape `(2,)`; float64 is computed with as it is.
        levels: The highest level; the lowest is one further away from 0.

    Returns:
        Both fp32, 0-dim.
    """
    exact = interval if interval.dtype == torch.float64 else interval.float()
    low, high = exact[0].clamp(max=0), exact[1].clamp(min=0)
    step = (high - low) / (2 * levels + 1)
    zero_point = (-(levels + 1) - low / step).round().clamp(-(levels + 1), levels)
    zero_point = torch.where(step > 0, zero_point, torch.zeros_like(zero_point))
    return (step * levels).float(), zero_point.float()


def ends(amax: Tensor, zero_point: Tensor, levels: int) -> Tensor:
    """Return the lowest and the highest value of a range, shape `(2,)`, of which `as_affine` makes the same.

    They are float64: from fp32 the last bit of the range would not come back.
    """
    step = amax.double() / levels
    return torch.stack([(-(levels + 1) - zero_point) * step, (levels - zero_point) * step])
