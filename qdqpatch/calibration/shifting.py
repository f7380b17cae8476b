"""Shift the channels of activations before they are quantized; the float function stays.

As in Outlier Suppression+ (Wei et al., arXiv 2304.09145): a tensor whose channels do not lie around zero
wastes a part of its symmetric range. Where all that reads it is known, a constant can be taken from each
channel and put back into the biases behind. A post-LN encoder such as BERT has two such places in every
layer:

- LayerNorm -> Linear and residual add, inside a layer. Outliers of BERTs are one-sided: a channel that
  reaches from -2 to 28 needs half the range once it reaches from -15 to 15. What is taken from the
  LayerNorm's bias goes through the weight into the bias of the Linear that reads it, and into that of the
  Linear whose output is added to it, so that the sum is what it was. The range of that output grows, which
  costs what the shift gains, so it is done only where that operand of the add is left float.
- value -> output Linear. Many probabilities are so small that quantizing makes them 0, and what is left
  does not add up to 1. That takes a share of the mean value from every context; where it is 0 there is
  nothing to take.

The LayerNorm at a layer's end is left alone: its output is one of the model's hidden states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.channels import Channels, collect_channels
from qdqpatch.calibration.forgetting import check_forgettable, forget_ranges
from qdqpatch.calibration.same_function import FirstKept, change_keeping_function
from qdqpatch.calibration.selecting import check_quantized
from qdqpatch.calibration.smoothing import find_attentions
from qdqpatch.errors import UnsupportedModelError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT, LOCAL, MATMUL, OUTPUT, RESIDUAL
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules import rules_of
from qdqpatch.rules.adds import ResidualAdds

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Shift:
    """A tensor whose channels can be shifted.

    Attributes:
        path: The name of the module that computes it.
        source: That module, a LayerNorm or a Linear; its bias loses what is shifted.
        readers: The Linears that read it, or a mean of it; their biases get that through their weights.
        added: The Linears whose output is added to it; their biases get it as it is.
        quantizers: Those whose ranges depend on it.
    """

    path: str
    source: nn.LayerNorm | nn.Linear
    readers: tuple[nn.Linear, ...]
    added: tuple[nn.Linear, ...]
    quantizers: tuple[TensorQuantizer, ...]


def shift(model: Model, batches: Iterable[Mapping[str, Any]], padding_aware: bool = True) -> Model:
    """Move the channels of each layer's values and inner LayerNorms around zero, in place.

    The float model runs once on the batches and computes the same afterwards, but for rounding in the last
    bits of fp32. Calibration must follow: ranges that no longer fit are dropped, and a quantizer without one
    computes it from each tensor. If the float outputs on the first batch differ by more than that, all is
    taken back with a `CalibrationWarning`.

    Args:
        model: A quantized model, calibrated or not.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device.
        padding_aware: Whether positions that the attention mask hides are left out.

    Returns:
        The same model. `find_shifts` lists what is shifted.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        UnsupportedModelError: If there is nothing to shift.
        ConfigError: If a range to drop is learned.
        CalibrationError: If there is no batch, or a tensor saw no data, NaN or infinity.

    Whatever is raised, the model is as it was.
    """
    shifts = shifts_to_make(model)
    sources = {place.path: place.source for place in shifts}
    batches = FirstKept(as_tensors(batches))
    channels = collect_channels(model, sources, batches, padding_aware)
    changes: dict[nn.Parameter, Tensor] = {}
    for place in shifts:
        for bias, change in _changes(place, channels[place.path]):
            before = changes.get(bias)
            changes[bias] = change if before is None else before + change

    def move() -> None:
        with torch.no_grad():
            for bias, change in changes.items():
                bias.copy_(bias.double() + change)
        forget_ranges(model, _stale(shifts))

    change_keeping_function(model, changed_parameters(shifts), move, batches.first, "Shifting")
    return model


def shifts_to_make(model: nn.Module) -> tuple[Shift, ...]:
    """Return what `shift` moves.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        UnsupportedModelError: If there is nothing.
        ConfigError: If a range that must be dropped is learned.
    """
    check_quantized(model)
    shifts = find_shifts(model)
    if not shifts:
        raise UnsupportedModelError(f"There is nothing to shift in {type(model).__name__}.")
    check_forgettable(model, _stale(shifts), "shift")
    return shifts


def _stale(shifts: Iterable[Shift]) -> list[TensorQuantizer]:
    """Return the quantizers whose ranges no longer fit afterwards."""
    return [quantizer for place in shifts for quantizer in place.quantizers]


def changed_parameters(shifts: Iterable[Shift]) -> list[nn.Parameter]:
    """Return every bias that making these shifts changes."""
    modules = (module for place in shifts for module in (place.source, *place.readers, *place.added))
    return list(dict.fromkeys(module.bias for module in modules))


def find_shifts(model: nn.Module) -> tuple[Shift, ...]:
    """Return what `shift` moves in a quantized model."""
    users = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())

    def usable(module: nn.Module) -> bool:
        # A subclass, as of an adapter or with a parametrization, may compute something else from its bias.
        is_plain = type(module) in (nn.LayerNorm, nn.Linear, QuantLinear)
        parameters = list(module._parameters.values())
        return (
            is_plain and None not in parameters and all(users[id(parameter)] == 1 for parameter in parameters)
        )

    return tuple(
        place
        for place in (*_values(model), *_inside_layers(model))
        if all(usable(module) for module in (place.source, *place.readers, *place.added))
    )


def _values(model: nn.Module) -> Iterator[Shift]:
    """Yield the values of every attention that `smooth` knows."""
    for attention in find_attentions(model)[0]:
        quantizers = _quantizers(
            (model.get_submodule(attention.path), MATMUL["v"]),
            (attention.output, INPUT),
            (attention.output, OUTPUT),
        )
        yield Shift(f"{attention.path}.value", attention.value, (attention.output,), (), quantizers)


def _inside_layers(model: nn.Module) -> Iterator[Shift]:
    """Yield the LayerNorm in the middle of each layer, where nothing else can read it and it pays.

    A layer has two blocks with a residual add, the attention's and the feed-forward's, and one Linear between
    them; with cross-attention, which may be there or not from call to call, it has more.
    """
    models = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    rules = {rule for part in models for rule in rules_of(part)}
    blocks = tuple(block for rule in rules if isinstance(rule, ResidualAdds) for block in rule.inside)
    for path, layers in model.named_modules():
        for index, layer in layers.named_children() if isinstance(layers, nn.ModuleList) else ():
            adds = {name: module for name, module in layer.named_modules() if isinstance(module, blocks)}
            if len(adds) != 2:
                continue
            (first_name, first), (last_name, last) = adds.items()
            attention = first_name.rpartition(".")[0]
            between = [
                module
                for name, module in layer.named_modules()
                if isinstance(module, nn.Linear) and not name.startswith((f"{attention}.", f"{last_name}."))
            ]
            norms = {name: child for name, child in first.named_children() if isinstance(child, nn.LayerNorm)}
            added = [child for child in last.children() if isinstance(child, nn.Linear)]
            is_float = not any(quantizer.is_enabled for quantizer in _quantizers((last, LOCAL)))
            if len(norms) == len(between) == len(added) == 1 and is_float:
                ((name, norm),) = norms.items()
                quantizers = _quantizers((between[0], INPUT), (between[0], OUTPUT), (last, RESIDUAL))
                where = f"{path}.{index}.{first_name}.{name}"
                yield Shift(where, norm, tuple(between), tuple(added), quantizers)


def _quantizers(*places: tuple[nn.Module, str]) -> tuple[TensorQuantizer, ...]:
    """Return those of the quantizers that are there, each named by its module and its name in it."""
    found = (module._modules.get(name) for module, name in places)
    return tuple(quantizer for quantizer in found if isinstance(quantizer, TensorQuantizer))


def _changes(place: Shift, channels: Channels) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield the biases that change, with what is added to each, in float64."""
    if place.added:
        # As far as it takes for no channel to reach beyond the widest one's half.
        half = ((channels.high - channels.low) / 2).max()
        constant = (channels.high - half).clamp(min=0) - (-channels.low - half).clamp(min=0)
    else:
        constant = channels.mean
    constant = constant.to(place.source.bias.device)
    yield place.source.bias, -constant
    for reader in place.readers:
        weight = reader.float_weight if isinstance(reader, QuantLinear) else reader.weight.detach()
        yield reader.bias, weight.double() @ constant
    for linear in place.added:
        yield linear.bias, constant
