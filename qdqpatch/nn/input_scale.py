"""Factors that a quantized Linear, or a quantizer by itself, multiplies the channels of its input by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qdqpatch.nn.names import INPUT_SCALE


class ScalesInput(nn.Module):
    """A module that may have a factor for each channel of its input: a buffer `_input_scale`, `(channels,)`."""

    @property
    def input_scale(self) -> Tensor | None:
        """The factors of the input's channels; None if it is taken as it comes."""
        scale: Tensor | None = self._buffers.get(INPUT_SCALE)
        return scale

    def load_input_scale(self, factors: Tensor | None) -> None:
        """Take factors over, as they are; None for no factors."""
        self._buffers.pop(INPUT_SCALE, None)
        self._non_persistent_buffers_set.discard(INPUT_SCALE)
        if factors is not None:
            self.register_buffer(INPUT_SCALE, factors)

    def scaled(self, inputs: Tensor) -> Tensor:
        """Return the input, shape `(..., channels)`, times the factors; the same tensor if there are none."""
        scale = self.input_scale
        return inputs if scale is None else inputs * scale.to(inputs.dtype)

    def make_room(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Register factors that a state dict has and this module has not, so that they are loaded."""
        stored = state_dict.get(prefix + INPUT_SCALE)
        if stored is not None and self.input_scale is None:
            own = next(self.parameters(recurse=False), stored)
            self.load_input_scale(torch.empty_like(stored, dtype=own.dtype, device=own.device))
