"""QuantLinear and QuantEmbedding: the float layers with quantizers, sharing their Parameters.

A float layer becomes one of these by a change of its class (`patch.py`), so nothing is copied and a
reference to the layer stays good. `float_class` says what it turns back into.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.nn.toolkit import quant_nn


class QuantLinear(quant_nn.QuantLinear):  # type: ignore[misc]  # the toolkit has no types
    """A Linear whose input and weight are quantized: y = Q(x) Q(W)^T + b.

    A subclass of pytorch-quantization's `QuantLinear`, whose default descriptors it inherits.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        bias: Whether to add a bias.
        device: Where the parameters are made.
        dtype: Their dtype.
    """

    float_class: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._input_quantizer = TensorQuantizer(self.default_quant_desc_input)
        self._weight_quantizer = TensorQuantizer(self.default_quant_desc_weight)


class QuantEmbedding(nn.Embedding):
    """An Embedding whose weight is quantized, with one range per row or per table."""

    float_class: ClassVar[type[nn.Module]] = nn.Embedding

    _weight_quantizer: TensorQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """Return the quantized rows of the indices in `input`, shape `(*input.shape, embedding_dim)`."""
        return nn.functional.embedding(
            input,
            self._weight_quantizer(self.weight),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
