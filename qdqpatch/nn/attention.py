"""Attention with quantized operands, registered with transformers under a name of its own.

transformers computes attention in a function that the config names and that gets the attention module
as its first argument, so the quantizers hang on the module and no model code is copied. The arithmetic
is that of `QDQBertSelfAttention.forward` (transformers 4.40.2), operation for operation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from qdqpatch.errors import UnsupportedModelError
from qdqpatch.nn.names import MATMUL
from qdqpatch.spelling import spelled

IMPLEMENTATION = "qdqpatch"
"""The name for `config._attn_implementation` and `model.set_attn_implementation`."""

HARMLESS = ("position_ids", "cache_position", "num_items_in_batch")
"""Tensors that models hand on to all modules: their effect is in query and key already, or in the loss."""

WINDOW = "sliding_window"
BY_MASK = ("is_causal", WINDOW)
"""What transformers' masks for this implementation express, and other implementations do without a mask."""


def qdq_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute softmax(Q(q) Q(k)^T / sqrt(d) + bias + mask), then Q(probabilities) Q(v).

    A module without one of the quantizers `matmul_{q,k,v,a}_input_quantizer` keeps that operand float. What
    is added to the scores is added after them, so that no quantizer ever sees a masked score.

    Args:
        module: The attention module that may carry the quantizers.
        query: Shape `(batch, heads, queries, head_dim)`.
        key: Shape `(batch, heads, keys, head_dim)`, or with fewer heads, of which several queries share one.
        value: Shape like `key`.
        attention_mask: Added to the scores, broadcast to `(batch, heads, queries, keys)`; or of bool, true
            where a query sees a key, as SDPA takes it; None for nothing hidden.
        scaling: Factor on the scores; None means 1/sqrt(head_dim).
        dropout: Probability of dropping a probability, before its quantizer as in QDQBERT.
        position_bias: Added to the scores too, broadcast like the mask; T5's relative positions.
        softcap: Scores are bounded smoothly by this, Gemma's `tanh(scores / softcap) * softcap`.
        s_aux: A further score for every head, of shape `(heads,)`, that takes its share of the probabilities
            and has no value; gpt-oss's sinks.
        **kwargs: What other implementations need.

    Returns:
        The context, shape `(batch, queries, heads, head_dim)`, and the probabilities after dropout and
        before quantization, shape `(batch, heads, queries, keys)`.

    Raises:
        UnsupportedModelError: If the model passes something that would change the result and is not
            known here.
    """
    require_known(module, attention_mask, kwargs, key.shape[2])
    # Quantized after the transpose, as in QDQBERT: the strides decide which GEMM kernel runs.
    quantized_key = for_all_heads(_quantized(module, "k", key.transpose(2, 3)), query)
    scores = torch.matmul(_quantized(module, "q", query), quantized_key)
    # Division by the root and multiplication by its inverse differ in the last bit; QDQBERT divides.
    if scaling is None or scaling == query.size(-1) ** -0.5:
        scores = scores / math.sqrt(query.size(-1))
    else:
        scores = scores * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + additive(attention_mask, scores.dtype)
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    probabilities = nn.functional.softmax(scores, dim=-1)
    if s_aux is not None:
        probabilities = probabilities[..., :-1]
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    quantized_value = for_all_heads(_quantized(module, "v", value), query)
    context = torch.matmul(_quantized(module, "a", probabilities), quantized_value)
    return context.transpose(1, 2).contiguous(), probabilities


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a mask adds to the scores: transformers hands a mask of four dimensions on as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, torch.zeros((), device=mask.device, dtype=dtype), torch.finfo(dtype).min)


def require_known(
    module: nn.Module, attention_mask: Tensor | None, arguments: Mapping[str, Any], keys: int
) -> None:
    """Refuse arguments that another implementation would heed.

    Without a mask a window counts where there are more keys than it has; transformers leaves out masks that
    hide nothing.

    Raises:
        UnsupportedModelError: If there is a tensor of another name than `HARMLESS`, or what only the mask
            could do here is asked for without a mask.
    """
    unknown = [
        name for name, value in arguments.items() if isinstance(value, Tensor) and name not in HARMLESS
    ]
    if attention_mask is None:
        window = arguments.get(WINDOW)
        unknown += [
            name
            for name in BY_MASK
            if arguments.get(name) and not (name == WINDOW and isinstance(window, int) and keys <= window)
        ]
    if unknown:
        raise UnsupportedModelError(
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention, which the quantized one "
            "does not know. If it is from your batch, leave it out there; if it is the model's own, leave "
            f"the matmuls float: {float_matmuls()}."
        )


def float_matmuls() -> str:
    """Return how a model is quantized whose matmuls stay float."""
    way = spelled("QDQConfig(matmuls=False)", "--override '*matmul_*=off'")
    return f"quantize with {way}"


def for_all_heads(operand: Tensor, query: Tensor) -> Tensor:
    """Repeat the heads of keys or values, dimension 1, of which several queries share one."""
    times = query.shape[1] // operand.shape[1]
    return operand if times == 1 else operand.repeat_interleave(times, dim=1)


def _quantized(module: nn.Module, operand: str, tensor: Tensor) -> Tensor:
    quantizer = module._modules.get(MATMUL[operand])
    return tensor if quantizer is None else quantizer(tensor)


def register() -> None:
    """Make the implementation known to transformers; its mask too, or padding would be ignored."""
    AttentionInterface.register(IMPLEMENTATION, qdq_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
