"""Read the zero points of a checkpoint's ranges, and make room for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qdqpatch.errors import CheckpointError
from qdqpatch.nn.names import ZERO_POINT
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.patching.stored_ranges import AGAIN, stored_name
from qdqpatch.patching.tensor_files import open_tensors

SUFFIX = f".{ZERO_POINT}"


def read_zero_points(files: Iterable[str | Path]) -> dict[str, Tensor]:
    """Return the zero points stored in checkpoint files, by the name of their quantizer.

    Args:
        files: The `.safetensors` or `.bin` files of one checkpoint, all shards of it.

    Raises:
        CheckpointError: If a file cannot be read, or one is no whole number.
    """
    zero_points: dict[str, Tensor] = {}
    for file in files:
        with open_tensors(file) as tensors:
            names = [name for name in tensors.names if name.endswith(SUFFIX)]
            zero_points.update((name.removesuffix(SUFFIX), tensors[name].float()) for name in names)
    for path, zero_point in zero_points.items():
        if zero_point.numel() != 1 or not bool((zero_point == zero_point.round()).all()):
            raise CheckpointError(f"The stored zero point of {path} is not a whole number. {AGAIN}")
    return zero_points


def make_room_for_zero_points(
    model: nn.Module, zero_points: Mapping[str, Tensor], base_model_prefix: str
) -> None:
    """Register a buffer on every quantizer that has a zero point in the checkpoint.

    Args:
        model: The patched model, usually on the meta device.
        zero_points: What `read_zero_points` returned.
        base_model_prefix: As for `stored_name`.

    Raises:
        CheckpointError: If a quantizer that is symmetric by the configuration has a zero point, or one that
            is not has a range without one, or one beyond its levels.
    """
    for path, quantizer in named_quantizers(model):
        if not quantizer.is_enabled:
            continue
        name = stored_name(path, zero_points, base_model_prefix)
        if name is None and not quantizer.is_symmetric and quantizer.amax is not None:
            raise CheckpointError(f"The stored range of {path} lacks its zero point. {AGAIN}")
        if name is None:
            continue
        if quantizer.is_symmetric:
            raise CheckpointError(
                f"The stored range of {path} has a zero point, and its config.json says that it is "
                "symmetric. Load the checkpoint as it was saved."
            )
        value = float(zero_points[name])
        if not quantizer.bounds[0] <= value <= quantizer.bounds[1]:
            raise CheckpointError(f"The stored zero point of {path} is {value:g}, which is no level. {AGAIN}")
        quantizer.register_buffer(ZERO_POINT, torch.empty((), device=next(model.parameters()).device))
