"""Move outlier channels out of activations before they are quantized; the float function stays.

As in SmoothQuant (Xiao et al., arXiv 2211.10438): where a Linear's output reaches another product and nothing
between mixes or bends channels, a channel can be divided by s on one side and multiplied by s on the other.
All factors are powers of two, so not a bit of the float model's outputs changes, unless a number leaves the
range of its dtype. An attention of a post-LN encoder such as BERT has two such pairs:

- value -> output Linear. The context is linear in every channel of the values, so with
  s = amax(v)^strength / amax(w)^(1 - strength), w being the output Linear's column, values and context lose
  outliers that the columns take up.
- query x key. The scores are sums over channels of products, so with s = sqrt(amax(k) / amax(q)) each channel
  becomes equally large in both operands.

SmoothQuant's own place, between a LayerNorm and the Linears that read it, does not exist in post-LN: the
residual add reads the LayerNorm's output too, and the LayerNorm after it takes mean and variance over the
channels of the sum, so a factor on one channel of the residual stream cannot be taken back anywhere. Nor can
a factor pass GELU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.channels import collect_channels
from qdqpatch.calibration.forgetting import check_forgettable, forget_ranges
from qdqpatch.calibration.same_function import FirstKept, change_keeping_function
from qdqpatch.calibration.selecting import check_quantized
from qdqpatch.errors import ConfigError, UnsupportedModelError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT, MATMUL, OUTPUT, WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules.base import Miss

Model = TypeVar("Model", bound=PreTrainedModel)

PROJECTIONS = ("query", "key", "value")
OPERANDS = tuple(MATMUL[operand] for operand in "qkv")

LARGEST_EXPONENT = 8
"""No factor is above 2^8 or below 2^-8: more would only bring weights near the limits of fp16."""


@dataclass(frozen=True)
class Attention:
    """The four Linears of an attention that can be rescaled against each other.

    Attributes:
        path: The attention module's name in the model.
        query: Its output channels are matched with those of `key`.
        key: See `query`.
        value: Its output channels are matched with the input channels of `output`.
        output: Reads the context, and nothing else does.
        quantizers: Those whose ranges depend on the factors.
    """

    path: str
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    quantizers: tuple[TensorQuantizer, ...]


def smooth(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    strength: float = 0.5,
    padding_aware: bool = True,
) -> Model:
    """Rescale the Linears of every attention so that no channel of an activation is an outlier, in place.

    The float model runs once on the batches and is left as it was but for these weights and biases; what it
    computes stays the same bit for bit. Calibration must follow: ranges that no longer fit are dropped, and
    a quantizer without one computes it from each tensor. If the float outputs on the first batch differ
    nevertheless, as where a rotary embedding mixes the channels of query and key, all is taken back with a
    `CalibrationWarning`.

    Args:
        model: A quantized model, calibrated or not.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device.
        strength: How much of the difficulty moves from values and context to the output Linear's weight,
            from 0 to 1: SmoothQuant's alpha.
        padding_aware: Whether positions that the attention mask hides are left out.

    Returns:
        The same model. `find_attentions` says what was left alone, and why.

    Raises:
        ConfigError: If the strength is not between 0 and 1, or a range to drop is learned.
        NotQuantizedError: If the model has no quantizer.
        UnsupportedModelError: If there is no attention to rescale.
        CalibrationError: If there is no batch, or a projection saw no data, NaN or infinity.

    Whatever is raised, the model is as it was.
    """
    if not 0 <= strength <= 1:
        raise ConfigError(f"strength must be between 0 and 1, not {strength!r}.")
    attentions = attentions_to_smooth(model)
    projections = {
        f"{attention.path}.{name}": getattr(attention, name)
        for attention in attentions
        for name in PROJECTIONS
    }
    batches = FirstKept(as_tensors(batches))
    channels = collect_channels(model, projections, batches, padding_aware)
    maxima = {
        linear: channels[path].amax.float().to(linear.weight.device) for path, linear in projections.items()
    }
    changes = [change for attention in attentions for change in _changes(attention, maxima, strength)]

    def rescale() -> None:
        with torch.no_grad():
            for parameter, changed in changes:
                parameter.copy_(changed)
        forget_ranges(model, _stale(attentions))

    change_keeping_function(model, changed_parameters(attentions), rescale, batches.first, "Smoothing")
    return model


def attentions_to_smooth(model: nn.Module) -> list[Attention]:
    """Return the attentions that `smooth` rescales.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        UnsupportedModelError: If there is none.
        ConfigError: If a range that must be dropped is learned.
    """
    check_quantized(model)
    attentions, misses = find_attentions(model)
    if not attentions:
        reason = f"{misses[0].path}: {misses[0].reason}" if misses else "it has no quantized attention matmul"
        raise UnsupportedModelError(f"There is nothing to smooth in {type(model).__name__}: {reason}.")
    check_forgettable(model, _stale(attentions), "smooth")
    return attentions


def _stale(attentions: Iterable[Attention]) -> list[TensorQuantizer]:
    """Return the quantizers whose ranges no longer fit afterwards."""
    return [quantizer for attention in attentions for quantizer in attention.quantizers]


def changed_parameters(attentions: Iterable[Attention]) -> list[nn.Parameter]:
    """Return the parameters of what rescaling these attentions changes."""
    return [
        parameter
        for attention in attentions
        for linear in (attention.query, attention.key, attention.value, attention.output)
        for parameter in linear.parameters()
    ]


def find_attentions(model: nn.Module) -> tuple[list[Attention], list[Miss]]:
    """Return the attentions of a quantized model that `smooth` rescales, and those it leaves alone."""
    users = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    found: list[Attention] = []
    misses = []
    for path, module in model.named_modules():
        if any(name in module._modules for name in OPERANDS):
            siblings = model.get_submodule(path.rpartition(".")[0]).children()
            outputs = [sibling._modules["dense"] for sibling in siblings if "dense" in sibling._modules]
            linears = [module._modules.get(name) for name in PROJECTIONS] + outputs
            reason = _reason(module, linears, users)
            if reason:
                misses.append(Miss(path, "attention", reason))
            else:
                query, key, value, output = cast("list[nn.Linear]", linears)
                found.append(Attention(path, query, key, value, output, _affected(module, linears)))
    return found, misses


def _reason(attention: nn.Module, linears: list[nn.Module | None], users: Counter[int]) -> str:
    """Return why an attention cannot be rescaled; empty if it can."""
    # A subclass, as of an adapter or with a parametrization, may compute something else from its weight.
    if len(linears) != 4 or any(type(linear) not in (nn.Linear, QuantLinear) for linear in linears):
        return "it has not three plain Linears query, key and value and beside it one plain `dense`"
    query, key, value, output = (linear.weight.shape for linear in linears)  # type: ignore[union-attr]
    if query[0] != key[0] or value[0] != output[1]:  # type: ignore[index]
        return "its heads of query and key, or of value and output, are not one to one"
    for name, child in attention.named_children():
        if name not in PROJECTIONS and not isinstance(child, (nn.Dropout, TensorQuantizer)):
            return f"its part {name} may read query, key or value as well"
    if any(users[id(parameter)] > 1 for linear in linears if linear for parameter in linear.parameters()):
        return "one of its Linears shares a parameter with another module"
    return ""


def _affected(attention: nn.Module, linears: list[nn.Module | None]) -> tuple[TensorQuantizer, ...]:
    """Return the quantizers of the operands, the weights and the products that change."""
    children = [attention._modules.get(name) for name in OPERANDS]
    children += [linear._modules.get(WEIGHT) for linear in linears if linear]
    children += [linear._modules.get(INPUT) for linear in linears[3:] if linear]
    children += [linear._modules.get(OUTPUT) for linear in linears[:3] if linear]
    return tuple(child for child in children if isinstance(child, TensorQuantizer))


def _changes(
    attention: Attention, maxima: Mapping[nn.Module, Tensor], strength: float
) -> list[tuple[Tensor, Tensor]]:
    """Return every parameter that changes, with its new values."""
    query, key, value, output = attention.query, attention.key, attention.value, attention.output
    weights = output.weight.detach().abs().amax(0)
    to_key = powers_of_two((maxima[key] / maxima[query]).sqrt())
    to_output = powers_of_two(maxima[value] ** strength / weights.float() ** (1 - strength))
    rows = [(query, to_key), (key, 1 / to_key), (value, 1 / to_output)]
    changes = [
        (linear.weight, linear.weight * factor[:, None].to(linear.weight.dtype)) for linear, factor in rows
    ]
    changes += [
        (row.bias, row.bias * factor.to(row.bias.dtype)) for row, factor in rows if row.bias is not None
    ]
    return [*changes, (output.weight, output.weight * to_output.to(output.weight.dtype))]


def powers_of_two(factors: Tensor) -> Tensor:
    """Return the nearest powers of two, around 1; 1 for a channel that is 0 on one side."""
    return around_one(factors).log2().round().exp2()


def around_one(factors: Tensor) -> Tensor:
    """Return factors relative to their median, none extreme; 1 for a channel that is 0 on one side."""
    exponents = factors.log2()
    is_there = exponents.isfinite()
    if not bool(is_there.any()):
        return torch.ones_like(factors)
    middle = exponents[is_there].median()
    exponents = (exponents - middle).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    return torch.exp2(torch.where(is_there, exponents, 0))
