"""What a quantizer does, as the numbers of QuantizeLinear: scale, axis, integers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qdqpatch.errors import ExportError, no_range
from qdqpatch.nn.fake_quantize import SMALLEST_AMAX
from qdqpatch.nn.linear import QuantEmbedding
from qdqpatch.nn.names import OUTPUT, WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import enabled_quantizers, named_quantizers
from qdqpatch.spelling import spelled

Float = npt.NDArray[np.float32]

LARGEST_SCALE = 2.0**20
"""Of a range that counts as zero: values up to half of it become the level 0. OpenVINO fails with 2**60."""


@dataclass(frozen=True)
class Grid:
    """The levels of a tensor: whole numbers, or those of FP8, times a scale.

    Attributes:
        scale: Of one step, fp32; 0-dim, or one per index of `axis`.
        axis: The dimension of the tensor that has a scale for each index; None for a single one.
        unsigned: Whether the levels are 0 to 255 instead of -128 to 127.
        is_float8: Whether they are those of FP8 (E4M3).
        zero_point: The level of 0; None for 0, where the tensor's range lies around zero.
    """

    scale: Float
    axis: int | None = None
    unsigned: bool = False
    is_float8: bool = False
    zero_point: int | None = None

    def times(self, factor: float) -> Grid:
        """Return the grid of a tensor that is multiplied by a factor."""
        return replace(self, scale=(self.scale * np.float32(factor)).astype(np.float32))

    def stored(self, offset: bool = False) -> np.dtype[Any]:
        """Return the type of the levels; `offset` for signed ones that are stored as uint8, 128 higher."""
        stored: np.dtype[Any] = np.dtype(np.uint8 if self.unsigned or offset else np.int8)
        return np.dtype(ml_dtypes.float8_e4m3fn) if self.is_float8 else stored


def activation_grid(quantizer: TensorQuantizer, path: str) -> Grid:
    """Return the grid of an activation.

    Raises:
        ExportError: If it has no range, or its levels are none that QuantizeLinear has.
    """
    _check_activation(quantizer, path)
    if quantizer.amax is None:
        raise ExportError(no_range([path]))
    scale = _scale(quantizer, quantizer.range_of(quantizer.amax), path)
    zero_point = None if quantizer.zero_point is None else int(quantizer.zero_point)
    return Grid(scale, None, quantizer.unsigned, quantizer.is_float8, zero_point)


def weight_grid(quantizer: TensorQuantizer, weight: Tensor, path: str) -> tuple[Grid, npt.NDArray[Any]]:
    """Return the grid of a weight and its levels, in the weight's shape.

    Raises:
        ExportError: If the levels are none that QuantizeLinear has, or its ranges are not per row.
    """
    weight = weight.detach()
    amax = quantizer.range_of(weight).detach()
    if amax.dim() and not amax.numel() == amax.shape[0] == weight.shape[0]:
        raise ExportError(
            f"{path} has a range per column; integer matmuls take one per row. {_change(path, axis=0)}"
        )
    scale = _scale(quantizer, amax.flatten() if amax.dim() else amax, path)
    grid = Grid(scale, 0 if amax.dim() else None, quantizer.unsigned, quantizer.is_float8)
    return grid, quantizer.integers(weight).numpy().astype(grid.stored())


def check_grids(
    model: nn.Module,
    signed: bool,
    float8: bool = False,
    name: str = "this engine",
    calibrated: bool = True,
) -> None:
    """Find out before the work whether every enabled quantizer has levels that an engine has.

    Args:
        model: A quantized model.
        signed: Whether the target has signed levels alone.
        float8: Whether it has FP8.
        name: The target's.
        calibrated: Whether activations must have their ranges already.

    Raises:
        ExportError: If one has not.
    """
    for path, quantizer in enabled_quantizers(model).items():
        owner, _, role = path.rpartition(".")
        if quantizer.is_float8 and not float8:
            raise ExportError(
                f"{path} is FP8, which {name} does not multiply: its kernels take integers. Export it for "
                "tensorrt, or quantize to int8, which is the default."
            )
        if quantizer.is_float8 and isinstance(model.get_submodule(owner), QuantEmbedding):
            raise ExportError(
                f"{path} is FP8, and ONNX looks nothing up in a table of that. {_change(path, num_bits=8)}"
            )
        if role == OUTPUT and not signed:
            raise ExportError(
                f"{path} rounds what a Linear computes, which slows {name} down. Export it for tensorrt, or "
                "quantize with outputs=False, which is the default."
            )
        if signed and quantizer.unsigned:
            raise ExportError(
                f"{path} is unsigned; TensorRT quantizes symmetrically, to signed int8 alone. "
                f"{_change(path, unsigned=False)}"
            )
        if signed and not quantizer.is_symmetric:
            raise ExportError(
                f"{path} has a zero point; TensorRT quantizes symmetrically. Quantize "
                + spelled('with activation={"symmetric": True}, the default,', "without --asymmetric")
                + " and calibrate again."
            )
        if role == WEIGHT:
            weight_grid(quantizer, model.get_parameter(f"{owner}.weight"), path)
        elif calibrated:
            activation_grid(quantizer, path)
        else:
            _check_activation(quantizer, path)


def has_float8(model: nn.Module) -> bool:
    """Return whether an enabled quantizer rounds to FP8."""
    return any(quantizer.is_float8 for _, quantizer in named_quantizers(model) if quantizer.is_enabled)


def _check_activation(quantizer: TensorQuantizer, path: str) -> None:
    """Refuse levels of an activation that QuantizeLinear does not have, whatever its range."""
    if quantizer.axis is not None if quantizer.amax is None else quantizer.amax.dim():
        raise ExportError(
            f"{path} has a range per channel, which no engine's integer matmul takes. "
            f"{_change(path, axis=None)}"
        )
    if quantizer.bounds[0] == -127:
        raise ExportError(
            f"{path} has a narrow range, -127 to 127, which QuantizeLinear does not clip to. "
            f"{_change(path, narrow_range=False)}"
        )
    _check_bits(quantizer, path)


def _check_bits(quantizer: TensorQuantizer, path: str) -> None:
    if quantizer.num_bits != 8 and not quantizer.is_float8:
        raise ExportError(
            f"{path} has {quantizer.num_bits} bits, and the engines' integer kernels have 8. "
            f"{_change(path, num_bits=8)}"
        )


def _change(path: str, **setting: Any) -> str:
    """Return what to do about a quantizer whose setting has to be another one."""
    ((name, value),) = setting.items()
    how = spelled(f"{name}={value}", f"--override '{path}={name}:{str(value).lower()}'")
    return f"Quantize it with {how}, or leave it float."


def _scale(quantizer: TensorQuantizer, amax: Tensor, path: str) -> Float:
    _check_bits(quantizer, path)
    scale = (amax / quantizer.levels).float()
    return torch.where(amax <= SMALLEST_AMAX, LARGEST_SCALE, scale).numpy()
