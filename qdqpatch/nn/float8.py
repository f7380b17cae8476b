"""FP8 of the kind E4M3: four bits of exponent, three of mantissa, no infinity (arXiv 2209.05433).

Its levels are not evenly spaced: a fixed number of them lies between any two powers of two.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3 = (4, 3)
"""What `num_bits` is for it, as NVIDIA's ModelOpt spells it."""

LARGEST = 448
"""Its largest number. No integer type ends there: that is always one less than a power of two."""


def nearest(values: Tensor) -> Tensor:
    """Return the FP8 numbers nearest to fp32 values, in fp32; what lies beyond the largest becomes that."""
    # The cast alone would make NaN of larger values.
    return values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).to(values.dtype)


def magnitudes() -> Tensor:
    """Return all of its numbers that are not negative, fp32, in rising order: shape `(127,)`."""
    return torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
