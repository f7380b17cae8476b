"""Read which quantizers of a checkpoint have ranges, and the ranges, without loading its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import is_weight
from qdqpatch.patching.apply import named_quantizers

SUFFIX = "._amax"


def read_ranges(files: Iterable[str | Path]) -> dict[str, Tensor]:
    """Return the ranges stored in checkpoint files, by the name of their quantizer.

    Args:
        files: The `.safetensors` or `.bin` files of one checkpoint, all shards of it.
    """
    ranges: dict[str, Tensor] = {}
    for file in files:
        if str(file).endswith(".safetensors"):
            with safe_open(str(file), framework="pt") as tensors:
                names = [name for name in tensors.keys() if name.endswith(SUFFIX)]  # noqa: SIM118  # no dict
                ranges.update((name, tensors.get_tensor(name)) for name in names)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
            ranges.update((name, tensor) for name, tensor in state.items() if name.endswith(SUFFIX))
    return {name.removesuffix(SUFFIX): tensor.float() for name, tensor in ranges.items()}


def make_room(model: nn.Module, ranges: dict[str, Tensor], base_model_prefix: str) -> None:
    """Register an `_amax` of the stored shape on every quantizer that has one in the checkpoint.

    transformers loads into buffers that are there, and reports what is missing; a quantizer without a
    stored range stays without.

    Args:
        model: The patched model, usually on the meta device.
        ranges: What `read_ranges` returned.
        base_model_prefix: What a task head puts before the base model's names, such as `bert`: a
            checkpoint with the prefix loads into a model without, and the other way round.
    """
    prefix = f"{base_model_prefix}."
    for path, quantizer in named_quantizers(model):
        for name in (path, prefix + path, path.removeprefix(prefix)):
            if name in ranges and quantizer.amax is None:
                quantizer.register_buffer("_amax", torch.empty_like(ranges[name], device=_device(model)))


def weight_settings(ranges: dict[str, Tensor]) -> QuantizerConfig | None:
    """Tell from the ranges how weights were quantized, where the checkpoint does not say.

    Old QDQBERT checkpoints hold ranges but no settings. Per channel or per tensor shows in the shapes;
    the rest is what the default descriptors say, as it was for the original classes.

    Returns:
        Settings for weights, or None where the defaults agree with the ranges.
    """
    default = QuantizerConfig.from_descriptor(QuantLinear.default_quant_desc_weight)
    per_tensor = any(is_weight(path) and not amax.dim() for path, amax in ranges.items())
    return dataclasses.replace(default, axis=None) if per_tensor else None


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _is_zip(file: str | Path) -> bool:
    """Whether torch can map the file into memory: the format before torch 1.6 is not a zip."""
    with open(file, "rb") as stream:
        return stream.read(2) == b"PK"
