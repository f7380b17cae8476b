"""Clip what the feed-forward's activation returns.

`clip_gelu` has the meaning of the function of that name in `quant_trainer.py` (NVIDIA; transformers 4.40,
`examples/research_projects/quantization-qdqbert/quant_trainer.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from qdqpatch.calibration.selecting import Model, check_quantized, enabled_of, load_ranges, range_of
from qdqpatch.config.quantizer import LARGEST
from qdqpatch.errors import ConfigError
from qdqpatch.nn.names import INPUT
from qdqpatch.nn.quantizer import TensorQuantizer


def clip_gelu(model: Model, maximum: float) -> Model:
    """Let the quantized output of the feed-forward's activation reach `maximum` at most, in place.

    GELU has no upper bound, and a few large outputs spoil the resolution of the others. What is clipped
    is the range of the Linear that reads the activation. It is found by structure, not by name: of each
    layer, which is a member of an `nn.ModuleList`, the last two Linears are the feed-forward's if one
    leads to the other's width and back, and the second reads the activation. Poolers and heads stand
    outside the layers and are left alone, as in `quant_trainer.py`.

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
    ranges = {path: range_of(path, quantizer) for path, quantizer in inputs_to_clip(model).items()}
    return load_ranges(model, {path: amax.clamp(max=maximum) for path, amax in ranges.items()})


def check_maximum(maximum: float) -> None:
    """Raise a `ConfigError` if there is no such maximum for `clip_gelu`."""
    is_number = isinstance(maximum, (int, float)) and not isinstance(maximum, bool)
    if not is_number or not 0 < maximum <= LARGEST:
        raise ConfigError(f"The maximum must be a positive number up to {LARGEST:.1e}, not {maximum!r}.")


def inputs_to_clip(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the quantizers, by path, whose ranges `clip_gelu` clips.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If there is nothing to clip.
    """
    check_quantized(model)
    found = enabled_of(
        (f"{path}.{INPUT}", module._modules.get(INPUT)) for path, module in _feed_forward_outputs(model)
    )
    if not found:
        raise ConfigError("There is nothing to clip: no layer has a feed-forward with a quantized output.")
    return found


def _feed_forward_outputs(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of each layer's last Linear, if it and the one before are a feed-forward."""
    for path, layers in model.named_modules():
        if isinstance(layers, nn.ModuleList):
            for index, layer in layers.named_children():
                named = layer.named_modules(prefix=f"{path}.{index}")
                linears = [(name, module) for name, module in named if isinstance(module, nn.Linear)][-2:]
                sizes = {(linear.in_features, linear.out_features) for _, linear in linears}
                # There and back: the second's sizes are the first's the other way round.
                if len(linears) == 2 and sizes == {size[::-1] for size in sizes}:
                    yield linears[1]
