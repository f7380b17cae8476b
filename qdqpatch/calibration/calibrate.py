"""Calibration: choose every quantizer's range from data, and set it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.collecting import collect
from qdqpatch.calibration.methods import check_method, check_weight_method, method_for
from qdqpatch.calibration.statistics import Statistics
from qdqpatch.calibration.texts import batches_of
from qdqpatch.calibration.weights import weight_ranges
from qdqpatch.choices import DEFAULT_PERCENTILE, Method, WeightMethod
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.patching.finite import check_finite
from qdqpatch.patching.wrapped import unwrapped

Model = TypeVar("Model", bound=nn.Module)


def calibrate(
    model: Model,
    batches: Iterable[Mapping[str, Any]] | Sequence[Any] | Statistics,
    method: Method = "auto",
    percentile: float = DEFAULT_PERCENTILE,
    padding_aware: bool = True,
    weight_method: WeightMethod = "max",
    tokenizer: Any = None,
) -> Model:
    """Set the range of every enabled quantizer.

    The float model runs once on the batches (`qdqpatch.calibration.collect`), and the ranges are searched
    in what its quantizers saw (`Statistics.ranges`). Weights need no data. Nothing is set until every
    range is known. Ranges that the configuration fixes stay, and learned ones stay the Parameters they are.

    Args:
        model: A quantized model; or a `SentenceTransformer` or `CrossEncoder` with one inside.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device. Or a list
            of texts, or of pairs of texts, all of which are used. Or the statistics that `collect` gathered
            from such batches.
        method: How the ranges of activations are chosen: `"max"`, `"percentile"`, `"mse"`, `"entropy"`,
            or `"auto"`, which holds one batch in eight back and chooses for each quantizer, among all of
            them, the range that best preserves its operation's result there. It takes about twice as long,
            and statistics that were collected with `compare=True`.
        percentile: The share of the magnitudes that are not clipped, in percent. Another one than the default
            means the method `"percentile"`, where no other is named.
        padding_aware: Whether positions that the attention mask hides are left out.
        weight_method: How the ranges of weights are chosen: `"max"`, `"mse"` or `"pairs"` (`weight_ranges`).
        tokenizer: The model's, for texts; that of a `SentenceTransformer` is known.

    Returns:
        The same model.

    Raises:
        ConfigError: If there is no such method or percentile.
        NotQuantizedError: If the model has no enabled quantizer.
        CalibrationError: If there is no batch, a quantizer saw no tensor, one saw NaN or infinity, a weight
            is such, or the statistics are another model's or lack what `"auto"` compares. The model then has
            the ranges it had.
    """
    method = method_for(method, percentile)
    check_method(method, percentile)
    check_weight_method(weight_method)
    inner = unwrapped(model)
    quantizers = enabled_quantizers(inner)
    ranges = distributed.together(lambda: weight_ranges(inner, weight_method), inner.device)
    if not isinstance(batches, Statistics):
        given = batches_of(batches, tokenizer, model, inner)
        batches = collect(inner, given, padding_aware, compare=method == "auto")
    _check_belong(batches, quantizers)
    ranges |= batches.ranges(method, percentile)
    check_finite(inner, f"This {type(inner).__name__}", "Ranges do not mend that.", CalibrationError)
    set_ranges(inner, ranges, complete=True)
    return model


def _check_belong(statistics: Statistics, quantizers: Mapping[str, TensorQuantizer]) -> None:
    for path, tensor in statistics.items():
        quantizer = quantizers.get(path)
        if quantizer is None:
            continue  # set_ranges says so
        per_channel = tensor.channel_amax is not None
        same_axis = per_channel == (quantizer.axis is not None)
        same_ends = (tensor.ends is None) == quantizer.is_symmetric
        if tensor.levels != quantizer.levels or not (same_axis and same_ends):
            raise CalibrationError(
                f"The statistics of {path} were collected for another number of bits, another axis or "
                "another symmetry than the quantizer has. Collect them again from this model."
            )


def set_ranges(model: PreTrainedModel, ranges: Mapping[str, Tensor], complete: bool = False) -> None:
    """Give quantizers their ranges, by path. Ranges that the configuration fixes stay.

    Args:
        model: A quantized model.
        ranges: fp32 ranges, 0-dim, one per channel, or two ends (`TensorQuantizer.load_range`).
        complete: Whether every enabled quantizer must be named.

    Raises:
        NotQuantizedError: If the model has no enabled quantizer.
        CalibrationError: If a path is no enabled quantizer's, or one is missing. Nothing is set then.
    """
    quantizers = enabled_quantizers(model)
    differing = sorted(set(ranges) - set(quantizers)) + sorted(set(quantizers) - set(ranges)) * complete
    if differing:
        raise CalibrationError(
            f"The ranges are not those of this model's enabled quantizers: {len(differing)} differ, the "
            f"first of them {differing[0]}. Collect statistics from this model."
        )
    for path, amax in ranges.items():
        if not quantizers[path].is_fixed:
            quantizers[path].load_range(amax.to(model.device))
