"""QuantLinear and QuantEmbedding: the float layers with quantizers, sharing their Parameters.

A float layer becomes one of these by a change of its class (`patching/apply.py`), so nothing is copied and a
reference to the layer stays good. `float_class` says what it turns back into.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qdqpatch.nn.fake_quantize import absolute_max
from qdqpatch.nn.input_scale import ScalesInput
from qdqpatch.nn.names import OUTPUT, WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer
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


class QuantLinear(ScalesInput, quant_nn.QuantLinear):  # type: ignore[misc]  # the toolkit has no types
    """A Linear whose input and weight are quantized: y = Q(x) Q(W)^T + b, or Q(x s) Q(W)^T + b.

    With an output quantizer, `_output_quantizer`, its product is rounded before the bias is added.

    The factors s of the input's channels, if `scale_input` gave it any, are a buffer `_input_scale` of shape
    `(in_features,)`; its weight is W / s then, and the float function that of W.

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

    @property
    def output_quantizer(self) -> TensorQuantizer | None:
        """The quantizer of the product, if there is one that is on."""
        quantizer = self._modules.get(OUTPUT)
        return quantizer if isinstance(quantizer, TensorQuantizer) and quantizer.is_enabled else None

    @property
    def float_weight(self) -> Tensor:
        """The weight for an input without factors, detached, shape `(out_features, in_features)`."""
        weight: Tensor = self.weight.detach()
        scale = self.input_scale
        return weight if scale is None else weight * scale.to(weight.dtype)

    def scale_input(self, factors: Tensor | None) -> None:
        """Multiply the input's channels by factors from now on, and divide the weight by them, in place.

        The float function stays: to the last bit if the factors are powers of two, which round nothing.

        Args:
            factors: Positive numbers, shape `(in_features,)`; None for no factors.
        """
        with torch.inference_mode(False), torch.no_grad():
            weight = self.float_weight
            if factors is not None:
                factors = factors.detach().to(weight, copy=True)
                weight = weight / factors
            self.weight.copy_(weight)
            self.load_input_scale(factors)

    def forward(self, input: Tensor) -> Tensor:
        """Return the Linear's output, shape `(..., out_features)`."""
        output_quantizer = self.output_quantizer
        if output_quantizer is None:
            outputs: Tensor = super().forward(self.scaled(input))
            return outputs
        inputs, weight = self._input_quantizer(self.scaled(input)), self._weight_quantizer(self.weight)
        product: Tensor = output_quantizer(nn.functional.linear(inputs, weight))
        return product if self.bias is None else product + self.bias

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Make room for factors that the state dict has and this Linear has not."""
        self.make_room(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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
