"""QuantLinear and QuantEmbedding: the float layers with quantizers, sharing their Parameters.

A float layer becomes one of these by a change of its class (`patch.py`), so nothing is copied and a
reference to the layer stays good. `float_class` says what it turns back into.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qdqpatch.nn.names import WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer, absolute_max
from qdqpatch.nn.toolkit import quant_nn


def _rows(name: str) -> Any:
    """Return the attribute for the number of a weight's rows; ranges per row follow when it is set.

    `resize_token_embeddings` of transformers gives a layer the new weight and then sets this number.
    """

    def get(module: nn.Module) -> int:
        rows: int = vars(module)[name]
        return rows

    def put(module: nn.Module, rows: int) -> None:
        vars(module)[name] = rows
        quantizer = vars(module).get("_modules", {}).get(WEIGHT)
        amax = None if quantizer is None else quantizer.amax
        if amax is None or not amax.dim() or amax.shape[0] in (1, rows):
            return
        resized = absolute_max(module.get_parameter("weight"), quantizer.axis)
        kept = min(rows, len(amax))
        resized[:kept] = amax[:kept]
        quantizer.load_range(resized)

    return property(get, put)


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
    out_features = _rows("out_features")

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
    num_embeddings = _rows("num_embeddings")

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
