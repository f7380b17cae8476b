"""Attention with quantized operands, registered with transformers under a name of its own.

transformers computes attention in a function that the config names and that gets the attention module
as its first argument, so the quantizers hang on the module and no model code is copied. The arithmetic
is that of `QDQBertSelfAttention.forward` (transformers 4.40.2), operation for operation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from qdqpatch.nn.names import MATMUL

IMPLEMENTATION = "qdqpatch"
"""The name for `config._attn_implementation` and `model.set_attn_implementation`."""


def qdq_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute softmax(Q(q) Q(k)^T / sqrt(d) + mask), then Q(probabilities) Q(v).

    A module without one of the quantizers `matmul_{q,k,v,a}_input_quantizer` keeps that operand float.

    Args:
        module: The attention module that may carry the quantizers.
        query: Shape `(batch, heads, queries, head_dim)`.
        key: Shape `(batch, heads, keys, head_dim)`.
        value: Shape `(batch, heads, keys, head_dim)`.
        attention_mask: Added to the scores, broadcast to `(batch, heads, queries, keys)`; None for
            nothing hidden.
        scaling: Factor on the scores; None means 1/sqrt(head_dim).
        dropout: Probability of dropping a probability, before its quantizer as in QDQBERT.
        **kwargs: What other implementations need; unused.

    Returns:
        The context, shape `(batch, queries, heads, head_dim)`, and the probabilities after dropout and
        before quantization, shape `(batch, heads, queries, keys)`.
    """
    # Quantized after the transpose, as in QDQBERT: the strides decide which GEMM kernel runs.
    scores = torch.matmul(_quantized(module, "q", query), _quantized(module, "k", key.transpose(2, 3)))
    # Division by the root and multiplication by its inverse differ in the last bit; QDQBERT divides.
    if scaling is None or scaling == query.size(-1) ** -0.5:
        scores = scores / math.sqrt(query.size(-1))
    else:
        scores = scores * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    context = torch.matmul(_quantized(module, "a", probabilities), _quantized(module, "v", value))
    return context.transpose(1, 2).contiguous(), probabilities


def _quantized(module: nn.Module, operand: str, tensor: Tensor) -> Tensor:
    quantizer = module._modules.get(MATMUL[operand])
    return tensor if quantizer is None else quantizer(tensor)


def register() -> None:
    """Make the implementation known to transformers; its mask too, or padding would be ignored."""
    AttentionInterface.register(IMPLEMENTATION, qdq_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
