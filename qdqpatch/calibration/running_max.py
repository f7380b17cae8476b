"""The `max` method: the largest magnitude seen, gathered without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from qdqpatch.quantizer import absolute_max


class RunningMax:
    """Keeps the largest magnitude of all tensors it is shown; a calibrator in the toolkit's sense.

    Args:
        axis: Dimensions that each keep a maximum of their own; None for one per tensor.
    """

    def __init__(self, axis: int | tuple[int, ...] | None) -> None:
        self.axis = axis
        self.amax: Tensor | None = None

    def collect(self, inputs: Tensor) -> None:
        """Take a tensor into account."""
        amax = absolute_max(inputs, self.axis)
        self.amax = amax if self.amax is None else torch.maximum(self.amax, amax)

    def compute_amax(self) -> Tensor | None:
        """Return the maximum, fp32 and shaped like a quantizer's `_amax`; None if nothing was seen."""
        return self.amax
