"""One range for all quantizers that read one tensor.

What a LayerNorm writes is read by several quantizers: in front of query, key and value, and in front of the
residual add. With one range they are one QuantizeLinear in an exported graph, and an engine's kernel writes
the integers once, where it would write the tensor in float, or several tensors of integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.observing import no_batch, on_device
from qdqpatch.calibration.selecting import Model, check_can_share, check_quantized, load_ranges, range_of
from qdqpatch.calibration.statistics import Statistics
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT, is_weight
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.patching.arguments import run

SMALLEST_ERROR = 1e-30
"""What an error of 0 counts as, whose logarithm is to be taken."""


def fuse_inputs(
    model: Model, batches: Iterable[Mapping[str, Any]], statistics: Statistics | None = None
) -> Model:
    """Give the quantizers that read the same tensor one range, in place.

    Which ones those are is seen by running the model on the first batch. Those that differ in more than
    their ranges, such as in their number of bits, and those with ranges per channel are left alone.

    Args:
        model: A quantized and calibrated model.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device. The first
            one is used.
        statistics: What `collect` found with `compare=True` on this model. The range is then the one with
            the smallest product of all their errors; without, or where they were not compared, the largest.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If there is no batch, or one of the quantizers has no range.
        ConfigError: If the configuration fixes another range of one.

    Whatever is raised, the ranges are as they were.
    """
    quantizers = enabled_quantizers(model)
    fused: dict[str, Tensor] = {}
    for paths in groups_to_fuse(model, batches):
        ranges = {path: range_of(path, quantizers[path]) for path in paths}
        first = next(iter(ranges.values()))
        common = _least_errors(paths, statistics)
        largest = torch.stack([amax.to(first.device) for amax in ranges.values()]).amax()
        shared = largest if common is None else torch.full_like(first, common)
        fused |= {path: shared.to(amax.device).clone() for path, amax in ranges.items()}
    return load_ranges(model, fused)


def check_can_fuse(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
    """Find out before the work whether `fuse_inputs` can do it; without a fixed range nothing is in its way.

    Raises:
        CalibrationError: If there is no batch.
        ConfigError: If the configuration fixes another range of a quantizer.
    """
    if any(quantizer.is_fixed for quantizer in enabled_quantizers(model).values()):
        groups_to_fuse(model, batches)


def groups_to_fuse(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the paths of the quantizers that `fuse_inputs` gives one range, group by group.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If there is no batch.
        ConfigError: If the configuration fixes another range of one.
    """
    check_quantized(model)
    batch = next(iter(as_tensors(batches, model)), None)
    if batch is None:
        raise no_batch()
    quantizers, groups = enabled_quantizers(model), readers(model, batch)
    for paths in groups:
        check_can_share({path: quantizers[path] for path in paths})
    return groups


def readers(model: nn.Module, batch: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the paths of the quantizers that read one tensor, for each tensor with several.

    Only quantizers of activations with one symmetric range for the whole tensor count, and only such of the
    same settings, and with the same factors for its channels, go together.

    Args:
        model: A quantized model; it is run once.
        batch: Keyword arguments for it.
    """
    seen: dict[tuple[Any, ...], list[str]] = {}
    kept: list[Tensor] = []  # so that no tensor gets the memory of another

    def look(path: str, settings: tuple[Any, ...], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tensor = inputs[0]
        kept.append(tensor)
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor._version)
        seen.setdefault((place, settings), []).append(path)

    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack, torch.inference_mode(False), torch.no_grad():
        for module, mode in modes.items():
            stack.callback(setattr, module, "training", mode)
        model.eval()
        for path, quantizer in enabled_quantizers(model).items():
            amax = quantizer.amax
            one_range = quantizer.axis is None if amax is None else amax.dim() == 0
            if is_weight(path) or not quantizer.is_symmetric or not one_range:
                continue
            reader = _what_multiplies(model, path, quantizer)
            settings = (quantizer.num_bits, quantizer.unsigned, quantizer.narrow_range, quantizer.scale_amax)
            hook = partial(look, path, (*settings, _bytes(reader.input_scale)))
            stack.callback(reader.register_forward_pre_hook(hook).remove)
        device = next(model.parameters()).device
        run(model, {name: _own(value) for name, value in on_device(batch, device).items()})
    return [tuple(dict.fromkeys(paths)) for paths in seen.values() if len(set(paths)) > 1]


def _what_multiplies(
    model: nn.Module, path: str, quantizer: TensorQuantizer
) -> QuantLinear | TensorQuantizer:
    """Return what has the factors of what a quantizer rounds: its Linear, or the quantizer itself."""
    owner, _, name = path.rpartition(".")
    linear = model.get_submodule(owner)
    return linear if name == INPUT and isinstance(linear, QuantLinear) else quantizer


def _bytes(factors: Tensor | None) -> bytes | None:
    return None if factors is None else factors.float().cpu().numpy().tobytes()


def _own(value: Any) -> Any:
    """Return a copy of a tensor of inference mode, which does not tell whether it was changed."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _least_errors(paths: Sequence[str], statistics: Statistics | None) -> float | None:
    """Return the range whose errors have the smallest product; None if nothing was compared for all."""
    if statistics is None or not all(path in statistics for path in paths):
        return None
    errors = [statistics[path].errors for path in paths]
    candidates = set.intersection(*(set(found) for found in errors))
    if not candidates:
        return None

    def cost(amax: float) -> float:
        return sum(math.log(max(found[amax], SMALLEST_ERROR)) for found in errors)

    return min(candidates, key=lambda amax: (cost(amax), amax))
