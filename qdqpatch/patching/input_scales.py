"""Read which Linears and quantizers of a checkpoint multiply their inputs, and make room for the factors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qdqpatch.errors import CheckpointError
from qdqpatch.nn.input_scale import ScalesInput
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT_SCALE
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.stored_ranges import AGAIN, stored_name
from qdqpatch.patching.tensor_files import open_tensors

SUFFIX = f".{INPUT_SCALE}"


def scaled_modules(model: nn.Module) -> Iterator[tuple[str, ScalesInput]]:
    """Yield path and module of every Linear, and of every quantizer, whose input is multiplied."""
    for path, module in model.named_modules():
        if isinstance(module, ScalesInput) and module.input_scale is not None:
            yield path, module


def read_input_scales(files: Iterable[str | Path]) -> dict[str, Tensor]:
    """Return the factors stored in checkpoint files, by the name of their Linear or quantizer.

    Args:
        files: The `.safetensors` or `.bin` files of one checkpoint, all shards of it.

    Raises:
        CheckpointError: If a file cannot be read, or a factor in it is not a positive finite number.
    """
    scales: dict[str, Tensor] = {}
    for file in files:
        with open_tensors(file) as tensors:
            names = [name for name in tensors.names if name.endswith(SUFFIX)]
            scales.update((name.removesuffix(SUFFIX), tensors[name]) for name in names)
    for path, scale in scales.items():
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise CheckpointError(f"A stored input factor of {path} is not a positive finite number. {AGAIN}")
    return scales


def make_room_for_scales(model: nn.Module, scales: Mapping[str, Tensor], base_model_prefix: str) -> None:
    """Register the factors' buffer on every Linear and quantizer that has them in the checkpoint.

    Args:
        model: The patched model, usually on the meta device.
        scales: What `read_input_scales` returned.
        base_model_prefix: As for `stored_name`.

    Raises:
        CheckpointError: If factors have another shape than the input, or belong to a Linear that the
            configuration leaves float, whose weight without them means something else.
    """
    device = next(model.parameters()).device
    for path, module in model.named_modules():
        takes = isinstance(module, (nn.Linear, TensorQuantizer))
        name = stored_name(path, scales, base_model_prefix) if takes else None
        if name is None:
            continue
        if not isinstance(module, ScalesInput):
            raise CheckpointError(
                f"The weight of {path} was saved for a smoothed input, and the configuration leaves the "
                "Linear float. Load the checkpoint as it was saved, and call qdqpatch.dequantize(model)."
            )
        shape = (module.in_features,) if isinstance(module, QuantLinear) else (scales[name].numel(),)
        if scales[name].shape != shape:
            raise CheckpointError(
                f"The stored input factors of {path} have shape {tuple(scales[name].shape)}, where it must "
                f"be {shape}. {AGAIN}"
            )
        module.load_input_scale(torch.empty_like(scales[name], device=device))
