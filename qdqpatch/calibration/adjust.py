"""Adjust the ranges of a calibrated model: what `quant_trainer.py` of the QDQBERT example does to them.

The functions have the meaning of those of the same name there (NVIDIA; transformers 4.40,
`examples/research_projects/quantization-qdqbert/quant_trainer.py`). Quantizers that are off are left
alone, and everything is checked before the first range changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.calibration.methods import check_weight_method
from qdqpatch.calibration.weights import weight_ranges
from qdqpatch.choices import WeightMethod
from qdqpatch.config.config import QDQConfig
from qdqpatch.config.quantizer import Override
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError, no_range
from qdqpatch.nn.names import INPUT, MATMUL, WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer, absolute_max
from qdqpatch.patching.apply import is_quantized
from qdqpatch.patching.placement import first_like, placement, record
from qdqpatch.patching.quantize import float_twin
from qdqpatch.patching.switch import replace_quantizer

Model = TypeVar("Model", bound=PreTrainedModel)

PROJECTIONS = (
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)
"""What architectures call the three Linears of their attention modules."""

PER_CHANNEL: dict[str, Any] = {"axis": 0, "calib_method": "max"}
"""Settings of a weight with one range per output channel, which the toolkit has no histograms for."""


def fuse_qkv(model: Model) -> Model:
    """Give query, key and value one range, the largest of the three, in place.

    An engine that computes the three projections as one GEMM has one scale for its output, and with
    per-tensor weights one for its weight. So the quantizers `matmul_{q,k,v}_input_quantizer` of each
    self-attention take the largest of their ranges, and so do the three weights unless they have a range
    per output channel. Inputs of the Linears keep their ranges: the three read the same tensor.
    Cross-attention, whose key and value read another tensor, cannot be one GEMM and is left alone.

    Args:
        model: A quantized and calibrated model.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If one of the quantizers has no range.
        ConfigError: If there is nothing to fuse, or an operand of a matmul has a range per channel.
        Whatever is raised, the ranges are as they were.
    """
    fused = {}
    for group in groups_to_fuse(model):
        ranges = {path: _range(path, quantizer) for path, quantizer in group.items()}
        largest = _largest(ranges)
        fused.update({path: largest.to(amax.device).reshape(amax.shape) for path, amax in ranges.items()})
    return _load(model, fused)


def groups_to_fuse(model: nn.Module) -> list[dict[str, TensorQuantizer]]:
    """Return the quantizers, by path, that `fuse_qkv` gives one range, group by group.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If there is nothing to fuse.
    """
    _check_quantized(model)
    groups = [group for group in _qkv(model) if len(group) > 1]
    if not groups:
        raise ConfigError(
            "There is nothing to fuse: no self-attention has quantizers on query, key and value, nor "
            "per-tensor weights. QDQConfig(matmuls=True) quantizes the operands."
        )
    return groups


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
        ConfigError: If the maximum is not a positive finite number, or no such input is quantized.
        CalibrationError: If one of the quantizers has no range.
        Whatever is raised, the ranges are as they were.
    """
    check_maximum(maximum)
    ranges = {path: _range(path, quantizer) for path, quantizer in inputs_to_clip(model).items()}
    return _load(model, {path: amax.clamp(max=maximum) for path, amax in ranges.items()})


def check_maximum(maximum: float) -> None:
    """Raise a `ConfigError` if there is no such maximum for `clip_gelu`."""
    is_number = isinstance(maximum, (int, float)) and not isinstance(maximum, bool)
    if not is_number or not 0 < maximum < float("inf"):
        raise ConfigError(f"The maximum must be a positive finite number, not {maximum!r}.")


def inputs_to_clip(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the quantizers, by path, whose ranges `clip_gelu` clips.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If there is nothing to clip.
    """
    _check_quantized(model)
    found = _enabled(
        (f"{path}.{INPUT}", module._modules.get(INPUT)) for path, module in _feed_forward_outputs(model)
    )
    if not found:
        raise ConfigError("There is nothing to clip: no layer has a feed-forward with a quantized output.")
    return found


def recalibrate_weights(model: Model, method: WeightMethod = "max") -> Model:
    """Set the range of every weight from the weight as it is now, in place; no data is needed.

    For weights that were trained or replaced after calibration. Each keeps its granularity: one range
    per tensor, or one for each index of its axis. Weights without a range get one.

    Args:
        model: A quantized model.
        method: `"max"`, the largest magnitude, as in `quant_trainer.py`, or another of
            `qdqpatch.calibrate`'s `weight_method`.

    Returns:
        The same model.

    Raises:
        ConfigError: If there is no such method, or no weight is quantized.
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If a weight holds NaN or infinity.
        Whatever is raised, the ranges are as they were.
    """
    check_weight_method(method)
    _weights(model)  # there must be some
    return _load(model, weight_ranges(model, method))


def expand_amax(model: Model) -> Model:
    """Repeat each weight's range per tensor for every output channel, in place.

    The outputs stay what they are, and from there each channel's range can go its own way. Weights that
    have ranges per channel stay. A quantizer that was made for one range per tensor becomes one for one
    per output channel (axis 0), and the model's `QDQConfig` follows.

    `quant_trainer.py` skips such quantizers, and gives the others a range of shape `(out,)`, which
    does not broadcast over a weight of shape `(out, in)`; here it is `(out, 1)`.

    Args:
        model: A quantized and calibrated model.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If one of the weights has no range.
        ConfigError: If no weight is quantized, or the model was changed such that no configuration
            describes it.
        Whatever is raised, the model is as it was.
    """
    ranges, per_tensor = {}, []
    for path, (quantizer, weight) in _weights(model).items():
        amax = _range(path, quantizer)
        if amax.numel() == 1:
            axis = 0 if quantizer.axis is None else quantizer.axis
            per_channel = absolute_max(torch.empty_like(weight, device="meta"), axis)
            ranges[path] = amax.reshape(()).expand(per_channel.shape)
            if quantizer.axis is None:
                per_tensor.append(path)
    if per_tensor:
        _make_per_channel(model, per_tensor)
    return _load(model, ranges)


def _check_quantized(model: nn.Module) -> None:
    if not is_quantized(model):
        raise NotQuantizedError(
            f"This {type(model).__name__} is a float model: call qdqpatch.quantize(model) first."
        )


def _enabled(named: Iterable[tuple[str, nn.Module | None]]) -> dict[str, TensorQuantizer]:
    return {
        path: module for path, module in named if isinstance(module, TensorQuantizer) and module.is_enabled
    }


def _range(path: str, quantizer: TensorQuantizer) -> Tensor:
    if quantizer.amax is None:
        raise CalibrationError(no_range([path]))
    return quantizer.amax


def _largest(ranges: Mapping[str, Tensor]) -> Tensor:
    for path, amax in ranges.items():
        if amax.numel() != 1:
            raise ConfigError(f"{path} has a range per channel, and only ranges per tensor can be fused.")
    first = next(iter(ranges.values()))
    return torch.stack([amax.reshape(()).to(first.device) for amax in ranges.values()]).amax()


def _load(model: Model, ranges: Mapping[str, Tensor]) -> Model:
    for path, amax in ranges.items():
        quantizer = model.get_submodule(path)
        assert isinstance(quantizer, TensorQuantizer), "the paths are those of quantizers"
        quantizer.load_range(amax.clone())  # each its own, or saving would find shared tensors
    return model


def _weights(model: nn.Module) -> dict[str, tuple[TensorQuantizer, Tensor]]:
    """Return every weight quantizer that is on, with its weight."""
    _check_quantized(model)
    owners = {f"{path}.{WEIGHT}": module for path, module in model.named_modules()}
    found = _enabled((path, owner._modules.get(WEIGHT)) for path, owner in owners.items())
    if not found:
        raise ConfigError("The model has no quantized weight: its configuration leaves all of them float.")
    return {path: (quantizer, owners[path].get_parameter("weight")) for path, quantizer in found.items()}


def _qkv(model: nn.Module) -> Iterator[dict[str, TensorQuantizer]]:
    """Yield the quantizers that must agree: of each self-attention the operands, then the weights."""
    for path, module in model.named_modules():
        if _is_cross_attention(path, module):
            continue
        operands = [MATMUL[operand] for operand in "qkv"]
        yield _enabled((f"{path}.{name}", module._modules.get(name)) for name in operands)
        for names in PROJECTIONS:
            linears = {name: module._modules.get(name) for name in names}
            if all(isinstance(linear, nn.Linear) for linear in linears.values()):
                weights = _enabled(
                    (f"{path}.{name}.{WEIGHT}", linear._modules.get(WEIGHT))
                    for name, linear in linears.items()
                    if linear is not None
                )
                yield {name: weight for name, weight in weights.items() if _is_per_tensor(weight)}


def _is_cross_attention(path: str, module: nn.Module) -> bool:
    """Whether key and value read another tensor than query, which only names tell."""
    names = [*path.split(".")[-2:], type(module).__name__.lower()]  # crossattention.self, BertCrossAttention
    return any(word in name for name in names for word in ("crossatt", "cross_att", "encoder_attn"))


def _is_per_tensor(quantizer: TensorQuantizer) -> bool:
    return quantizer.axis is None if quantizer.amax is None else quantizer.amax.numel() == 1


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


def _make_per_channel(model: PreTrainedModel, paths: list[str]) -> None:
    """Exchange quantizers for ones of axis 0, and make the configuration say so."""
    twin = float_twin(model)
    config: QDQConfig = model.config.quantization_config
    named = tuple(Override(path, settings=PER_CHANNEL) for path in paths)
    exact = dataclasses.replace(config, overrides=(*config.overrides, *named))
    wanted = placement(twin, exact)
    missing = [path for path in paths if path not in wanted]
    if missing:
        raise ConfigError(
            f"The model's configuration does not know {missing[0]}: it was added or turned on, or its module "
            "hooked, after the model was quantized."
        )
    assert config.weight is not None, "quantizing fills what a configuration leaves open"
    everywhere = dataclasses.replace(config.weight, **PER_CHANNEL)
    shorter = dataclasses.replace(config, weight=everywhere)
    record(model, first_like(twin, wanted, [shorter, exact]))
    for path in paths:
        replace_quantizer(model, path, wanted[path])
