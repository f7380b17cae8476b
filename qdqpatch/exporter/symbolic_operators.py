"""Quantized operations as single symbolic operators: a trace of the model is small and says what is meant.

While `symbolic(model)` lasts, running the model in `torch.export` records, instead of the arithmetic of
fake quantization, one operator of the domain `qdqpatch` for each quantized Linear, quantized embedding,
attention and other quantizer, with the path of its module. What they become is each target's own
(`exporter/rules`). A trace of BERT-base is 700 nodes and takes a third of the time of one with everything in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, eager_mask

from qdqpatch.errors import ExportError
from qdqpatch.nn.attention import for_all_heads
from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules.rewriting import unguarded

DOMAIN = "qdqpatch"
LINEAR = "QuantLinear"
EMBEDDING = "QuantEmbedding"
ATTENTION = "Attention"
FAKE_QUANTIZE = "FakeQuantize"
IMPLEMENTATION = "qdqpatch-export"
"""The attention implementation that records `ATTENTION`."""

_PATH = "_export_path"


class SymbolicLinear(QuantLinear):
    """Records `LINEAR`: x of shape `(..., in_features)` to `(..., out_features)`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Record the operator."""
        return _record(LINEAR, self, [inputs], [*inputs.shape[:-1], self.out_features], inputs.dtype)


class SymbolicEmbedding(QuantEmbedding):
    """Records `EMBEDDING`: indices of any shape to `(..., embedding_dim)`."""

    def forward(self, input: Tensor) -> Tensor:
        """Record the operator."""
        return _record(EMBEDDING, self, [input], [*input.shape, self.embedding_dim], self.weight.dtype)


class SymbolicQuantizer(TensorQuantizer):
    """Records `FAKE_QUANTIZE`, which keeps the shape."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Record the operator; nothing where the quantizer is off."""
        if not self.is_enabled:
            return inputs
        return _record(FAKE_QUANTIZE, self, [inputs], list(inputs.shape), inputs.dtype)


SYMBOLIC: dict[type[nn.Module], type[nn.Module]] = {
    QuantLinear: SymbolicLinear,
    QuantEmbedding: SymbolicEmbedding,
    TensorQuantizer: SymbolicQuantizer,
}


@contextmanager
def symbolic(model: PreTrainedModel) -> Iterator[None]:
    """Let the model record operators of the domain `qdqpatch`; afterwards it is as before."""
    modules = dict(model.named_modules())
    classes = {path: type(module) for path, module in modules.items()}
    with ExitStack() as stack:
        for part in modules.values():
            if isinstance(part, PreTrainedModel):
                stack.callback(part.set_attn_implementation, part.config._attn_implementation)
        for path, module in modules.items():
            stack.callback(_restore, module, classes[path])
            module.__dict__[_PATH] = path
            symbolic_class = next((to for of, to in SYMBOLIC.items() if isinstance(module, of)), None)
            if symbolic_class is not None:
                module.__class__ = symbolic_class
            else:
                # A guarded class would refuse another attention implementation than the one that quantizes.
                module.__class__ = unguarded(classes[path])
        for part in modules.values():
            if isinstance(part, PreTrainedModel):
                part.set_attn_implementation(IMPLEMENTATION)
        yield


def _restore(module: nn.Module, cls: type[nn.Module]) -> None:
    module.__class__ = cls
    module.__dict__.pop(_PATH, None)


def _record(
    operator: str,
    module: nn.Module,
    inputs: list[Tensor | None],
    shape: list[Any],
    dtype: torch.dtype,
    **attributes: Any,
) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{operator}",
        inputs,
        {"path": vars(module)[_PATH], **attributes},
        dtype=dtype,
        shape=shape,
        version=1,
    )


def symbolic_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Record `ATTENTION`; shapes as in `qdqpatch.nn.attention.qdq_attention`.

    Raises:
        ExportError: If the attention caps its scores or has sinks, which the operator does not say.
    """
    if softcap is not None:
        raise ExportError(f"{type(module).__name__} caps its attention scores, which cannot be exported yet.")
    if s_aux is not None:
        raise ExportError(f"{type(module).__name__} has sinks, which cannot be exported yet.")
    if position_bias is not None:
        attention_mask = position_bias if attention_mask is None else attention_mask + position_bias
    key, value = for_all_heads(key, query), for_all_heads(value, query)
    batch, heads, queries, size = query.shape
    context, probabilities = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{ATTENTION}",
        [query, key, value, attention_mask],
        {"path": vars(module)[_PATH], "scaling": float(size**-0.5 if scaling is None else scaling)},
        dtypes=[query.dtype, query.dtype],
        shapes=[[batch, queries, heads, value.shape[3]], [batch, heads, queries, key.shape[2]]],
        version=1,
    )
    return context, probabilities


def symbolic_mask(
    *,
    mask_function: Any,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **sizes: Any,  # their names are others in transformers 5.0
) -> Tensor | None:
    """Return the additive mask, shape `(batch, 1, 1, keys)` wherever it is the same for all queries.

    transformers' own has a row for each query, which the engine would compute, store and read for nothing.
    """
    if mask_function is not bidirectional_mask_function:
        return eager_mask(mask_function=mask_function, attention_mask=attention_mask, dtype=dtype, **sizes)
    if attention_mask is None:
        return None
    visible = attention_mask[:, None, None, :].to(torch.bool)
    return torch.where(visible, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)


def register() -> None:
    """Make the implementation known to transformers."""
    AttentionInterface.register(IMPLEMENTATION, symbolic_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, symbolic_mask)
