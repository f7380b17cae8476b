"""Factors that a quantized Linear, or a quantizer by itself, multiplies the channels of its input by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qdqpatch.nn.names import INPUT_SCALE


class ScalesInput:
    """A module that may have a factor for each channel of its input: a buffer `_input_scale`."""

    _buffers: dict[str, Tensor | None]
    parameters: Any
    register_buffer: Any

    @property
    def input_scale(self) -> Tensor | None:
        """The factors of the input's channels, `(channels,)`; None if it is taken as it comes."""
        return self._buffers.get(INPUT_SCALE)

    def load_input_scale(self, factors: Tensor | None) -> None:
        """Take factors over, as they are; None for no factors."""
        self._buffers.pop(INPUT_SCALE, None)
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
