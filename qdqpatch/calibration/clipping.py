"""Clip what the feed-forward's activation returns.

`clip_gelu` has the meaning of the function of that name in `quant_trainer.py` (NVIDIA; transformers 4.40,
`examples/research_projects/quantization-qdqbert/quant_trainer.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.calibration.selecting import Model, check_quantized, enabled_of, load_ranges, range_of
from qdqpatch.config.quantizer import LARGEST
from qdqpatch.errors import ConfigError
from qdqpatch.nn.names import INPUT
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules import rules_of
from qdqpatch.rules.matmuls import AttentionMatmuls


def clip_gelu(model: Model, maximum: float) -> Model:
    """Let the quantized output of the feed-forward's activation reach `maximum` at most, in place.

    GELU has no upper bound, and a few large outputs spoil the resolution of the others. What is clipped
    is the range of the Linear that reads the activation, or its product with a gate. It is found by
    structure, not by name: of each layer, which is a member of an `nn.ModuleList`, the last two Linears
    outside of attentions are the feed-forward's if one leads to the other's width, or to twice that where it
    computes the gates too, and back. Poolers and heads stand outside the layers and are left alone, as in
    `quant_trainer.py`.

    Args:
        model: A quantized and calibrated model.
        maximum: The largest range; those that are smaller stay.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If the maximum is not a positive number within fp32, no such input is quantized, or the
            configuration fixes a larger range of one.
        CalibrationError: If one of the quantizers has no range.

    Whatever is raised, the ranges are as they were.
    """
    check_maximum(maximum)
    ranges = {path: range_of(path, quantizer) for path, quantizer in inputs_to_clip(model, maximum).items()}
    return load_ranges(model, {path: amax.clamp(max=maximum) for path, amax in ranges.items()})


def check_maximum(maximum: float) -> None:
    """Raise a `ConfigError` if there is no such maximum for `clip_gelu`."""
    is_number = isinstance(maximum, (int, float)) and not isinstance(maximum, bool)
    if not is_number or not 0 < maximum <= LARGEST:
        raise ConfigError(f"The maximum must be a positive number up to {LARGEST:.1e}, not {maximum!r}.")


def inputs_to_clip(model: nn.Module, maximum: float) -> dict[str, TensorQuantizer]:
    """Return the quantizers, by path, whose ranges `clip_gelu` clips.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If there is nothing to clip, or the configuration fixes a larger range of one.
    """
    check_quantized(model)
    found = enabled_of(
        (f"{path}.{INPUT}", module._modules.get(INPUT)) for path, module in _feed_forward_outputs(model)
    )
    if not found:
        raise ConfigError("There is nothing to clip: no layer has a feed-forward with a quantized output.")
    for path, quantizer in found.items():
        if quantizer.is_fixed and quantizer.amax is not None and bool((quantizer.amax > maximum).any()):
            raise ConfigError(
                f"The configuration fixes the range of {path} at {quantizer.amax.max().item():g}, above "
                f"{maximum:g}. Quantize anew without that amax, or clip no lower."
            )
    return found


def _feed_forward_outputs(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of each layer's last Linear, if it and the one before are a feed-forward."""
    models = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    rules = {rule for part in models for rule in rules_of(part)}
    attentions = tuple(kind for rule in rules if isinstance(rule, AttentionMatmuls) for kind in rule.inside)
    for path, layers in model.named_modules():
        if isinstance(layers, nn.ModuleList):
            for index, layer in layers.named_children():
                linears = list(_linears(layer, f"{path}.{index}", attentions))[-2:]
                if len(linears) == 2 and _there_and_back(linears[0][1], linears[1][1]):
                    yield linears[1]


def _linears(
    module: nn.Module, path: str, attentions: tuple[type[nn.Module], ...]
) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the Linears of a layer by name, but for those of attentions."""
    if isinstance(module, nn.Linear):
        yield path, module
    if not isinstance(module, attentions):
        for name, child in module.named_children():
            yield from _linears(child, f"{path}.{name}", attentions)


def _there_and_back(first: nn.Linear, second: nn.Linear) -> bool:
    """Whether the second has the first's sizes the other way round; with gates the first is twice as wide."""
    widths = second.in_features, 2 * second.in_features
    return first.in_features == second.out_features and first.out_features in widths
