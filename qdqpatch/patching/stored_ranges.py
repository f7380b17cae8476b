"""Read which quantizers of a checkpoint have ranges, and the ranges, without loading its weights."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.errors import CalibrationWarning, CheckpointError, QuantizationWarning, no_range
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import is_weight
from qdqpatch.patching.apply import named_quantizers, without_range
from qdqpatch.patching.plan import Plan
from qdqpatch.patching.tensor_files import open_tensors
from qdqpatch.spelling import counted

SUFFIX = "._amax"

WEIGHT = "._weight_quantizer"

AGAIN = "Calibrate again from the float checkpoint: qdqpatch convert FLOAT_CKPT OUT --calib FILE."


def read_ranges(files: Iterable[str | Path]) -> dict[str, Tensor]:
    """Return the ranges stored in checkpoint files, by the name of their quantizer.

    Args:
        files: The `.safetensors` or `.bin` files of one checkpoint, all shards of it.

    Raises:
        CheckpointError: If a file cannot be read, or a range in it is negative or not finite.
    """
    ranges: dict[str, Tensor] = {}
    for file in files:
        with open_tensors(file) as tensors:
            names = [name for name in tensors.names if name.endswith(SUFFIX)]
            ranges.update((name.removesuffix(SUFFIX), tensors[name].float()) for name in names)
    _check_values(ranges)
    return ranges


def _check_values(ranges: Mapping[str, Tensor]) -> None:
    """Raise an error that names the ranges no quantizer can have; warn of those that make all values 0."""
    bad = [path for path, amax in ranges.items() if not bool(((amax >= 0) & amax.isfinite()).all())]
    if bad:
        worst = ranges[bad[0]].flatten()
        value = worst[~((worst >= 0) & worst.isfinite())][0].item()
        more = f", and {_more(len(bad) - 1)}" if len(bad) > 1 else ""
        raise CheckpointError(
            f"The stored range of {bad[0]} is {value:g}, where it must be finite and not negative{more}. "
            + AGAIN
        )
    zero = [
        path for path, amax in ranges.items() if not path.endswith(WEIGHT) and amax.numel() and not amax.any()
    ]
    if zero:
        warnings.warn(
            f"The stored range of {zero[0]} is 0, so that all values become 0 there"
            + (f"; {_more(len(zero) - 1)}." if len(zero) > 1 else "."),
            CalibrationWarning,
            stacklevel=3,
        )


def _more(count: int) -> str:
    return f"{counted(count, 'more quantizer has', 'more quantizers have')} such a range"


def check_shape(
    path: str, amax: Tensor, axis: int | tuple[int, ...] | None, weight: Sequence[int] | None
) -> None:
    """Find out whether a stored range has a shape that its quantizer can use.

    Args:
        path: The quantizer's.
        amax: Its range.
        axis: What the quantizer keeps apart; None for one range for all.
        weight: The shape of the weight that it quantizes; None for an activation.

    Raises:
        CheckpointError: If not.
    """
    wanted: tuple[int, ...] | None = None
    if axis is not None and weight is not None:
        dims = {dim % len(weight) for dim in ((axis,) if isinstance(axis, int) else axis)}
        wanted = tuple(size if dim in dims else 1 for dim, size in enumerate(weight))
    fits = amax.numel() == 1 or tuple(amax.shape) == wanted
    if axis is not None and weight is None:
        fits = amax.numel() > 0  # how many channels an activation has shows only when it is seen
    if not fits:
        raise CheckpointError(
            f"The stored range of {path} has shape {tuple(amax.shape)}, where it must be () "
            + (f"or {wanted}. {AGAIN}" if wanted else f"for one range. {AGAIN}")
        )


def weight_shape(model: nn.Module, path: str) -> Sequence[int] | None:
    """Return the shape of the weight that the quantizer at a path quantizes; None for an activation."""
    if not path.endswith(WEIGHT):
        return None
    return tuple(model.get_parameter(f"{path.removesuffix(WEIGHT)}.weight").shape)


def stored_name(path: str, names: Mapping[str, Tensor], base_model_prefix: str) -> str | None:
    """Return what a checkpoint calls a quantizer; None if it has no range for it.

    Args:
        path: The quantizer's path in the model.
        names: The ranges, by what the checkpoint calls their quantizers.
        base_model_prefix: What a task head puts before the base model's names, such as `bert`: a
            checkpoint with the prefix loads into a model without, and the other way round.
    """
    prefix = f"{base_model_prefix}."
    return next((name for name in (path, prefix + path, path.removeprefix(prefix)) if name in names), None)


def make_room(model: nn.Module, ranges: dict[str, Tensor], base_model_prefix: str) -> None:
    """Register an `_amax` of the stored shape on every quantizer that has one in the checkpoint.

    transformers loads into buffers that are there, and reports what is missing; a quantizer without a
    stored range stays without.

    Args:
        model: The patched model, usually on the meta device.
        ranges: What `read_ranges` returned.
        base_model_prefix: As for `stored_name`.

    Raises:
        CheckpointError: If a range has a shape that its quantizer cannot use, or none is one of this model's.
    """
    quantizers = dict(named_quantizers(model))
    names = {path: stored_name(path, ranges, base_model_prefix) for path in quantizers}
    if ranges and names and not any(names.values()):
        raise CheckpointError(
            f"The checkpoint holds ranges of another model than this {type(model).__name__}: the first is "
            f"of {next(iter(ranges))}, where {next(iter(names))} was looked for. If its names begin with "
            "something that does not belong there, such as 'module.', take it off."
        )
    for path, quantizer in quantizers.items():
        name = names[path]
        if name is None or quantizer.amax is not None:
            continue
        if quantizer.is_enabled:
            check_shape(path, ranges[name], quantizer.axis, weight_shape(model, path))
        quantizer.register_buffer("_amax", torch.empty_like(ranges[name], device=_device(model)))


def warn_of_missing(model: nn.Module, plan: Plan) -> None:
    """Warn if the checkpoint has ranges for only some of the quantizers whose range is not fixed.

    Args:
        model: The patched model, after `make_room`.
        plan: What it was patched by.
    """
    fixed = {
        f"{site.path}.{name}"
        for site in plan.sites
        for name, config in site.quantizers.items()
        if config is not None and config.amax is not None
    }
    quantizers = {
        path: quantizer
        for path, quantizer in named_quantizers(model)
        if quantizer.is_enabled and path not in fixed
    }
    missing = without_range(quantizers)
    if 0 < len(missing) < len(quantizers):
        warnings.warn(
            f"The checkpoint has ranges for only some of the {len(quantizers)} quantizers of this "
            f"{type(model).__name__}, and the others take each tensor's own: {no_range(missing)}",
            QuantizationWarning,
            stacklevel=3,
        )


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
