"""The collection pass: feed batches through the float model and count what every quantizer sees."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.candidates import candidates, stages
from qdqpatch.calibration.comparing import OperationComparison
from qdqpatch.calibration.histogram import UNSEEN, Histogram
from qdqpatch.calibration.observing import (
    Observer,
    feed_batches,
    nothing_seen,
    observing,
    on_device,
)
from qdqpatch.calibration.padding import Padding
from qdqpatch.calibration.statistics import Statistics, TensorStatistics, least_error
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.names import is_weight
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.patching.arguments import run as run_model


def collect(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    padding_aware: bool = True,
    compare: bool = False,
) -> Statistics:
    """Count what every enabled activation quantizer sees while the float model runs on the batches.

    One pass gives the statistics that every method of `Statistics.ranges` searches. The model runs in eval
    mode with quantization switched off, as in pytorch-quantization's own calibration, and is left as it was.
    Tensors of half precision are counted in fp32. Where `torch.distributed` is initialized, each process
    feeds its own batches and all get the statistics of all.

    Args:
        model: A quantized model.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device.
        padding_aware: Whether positions that the attention mask hides are left out.
        compare: Whether to hold back one batch in eight and measure on it how well each method's range
            preserves the result of each operation, which the method `"auto"` needs. Of a single batch,
            that batch serves for both.

    Returns:
        The statistics, by quantizer path; they can be saved and searched again.

    Raises:
        NotQuantizedError: If the model has no enabled quantizer.
        CalibrationError: If there is no batch, a quantizer saw no tensor, or one saw NaN or infinity.
    """
    quantizers = enabled_quantizers(model)
    observers = {
        path: Observer(path.rpartition(".")[2], quantizer, model.device)
        for path, quantizer in quantizers.items()
        if not is_weight(path)
    }
    held_back: list[Mapping[str, Any]] = []

    def feed() -> int:
        return feed_batches(model, batches, observers, padding_aware, held_back if compare else None)

    with observing(model, observers), torch.no_grad():
        count = distributed.together(feed, model.device)
    statistics = _checked(observers, quantizers, count)
    if compare:
        statistics = statistics.with_errors(_compare(model, held_back, statistics, padding_aware))
    return statistics


def _compare(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    statistics: Statistics,
    padding_aware: bool,
) -> dict[str, dict[float, float]]:
    """Return the errors of every quantizer's candidate ranges on the batches; zeros where none reached it."""
    # An operation that is repeated must not find its own keys and values in a cache.
    without_cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def run(comparison: OperationComparison) -> dict[str, Tensor]:
        with observing(model, {}), comparison.watching(model), torch.no_grad():
            for batch in batches:
                comparison.padding = Padding(batch) if padding_aware else None
                run_model(model, on_device(batch, model.device) | without_cache)
        return comparison.errors

    ranges = candidates(statistics)
    errors: dict[str, dict[float, float]] = {}
    chosen: dict[str, float] = {}
    for paths in stages(ranges):
        comparison = OperationComparison({path: ranges[path] for path in paths}, chosen, statistics)
        measured = distributed.together(functools.partial(run, comparison), model.device)
        unmeasured = {path: torch.zeros(len(ranges[path]), dtype=torch.float64) for path in paths}
        for path, summed in distributed.sum_over_processes(unmeasured | measured, model.device).items():
            errors[path] = dict(zip(ranges[path], summed.tolist(), strict=True))
            if any(errors[path].values()):
                chosen[path] = least_error(errors[path])
    return errors


def _checked(
    observers: Mapping[str, Observer], quantizers: Mapping[str, TensorQuantizer], batches: int
) -> Statistics:
    """Return what was collected, if it is enough for every quantizer to get a range."""
    if distributed.is_distributed():
        _merge([observer.histogram for observer in observers.values()])
        maxima = distributed.merge_maxima([observer.channel_amax for observer in observers.values()])
        for observer, merged in zip(observers.values(), maxima, strict=True):
            observer.channel_amax = merged
        reached = distributed.merge_maxima([observer.ends for observer in observers.values()])
        for observer, far in zip(observers.values(), reached, strict=True):
            observer.ends = far
    collected = {}
    for path, observer in observers.items():
        ends = None
        if observer.ends is not None:
            below, above = observer.ends.tolist()
            ends = (-below, above)
        statistics = TensorStatistics.of(observer.histogram, observer.channel_amax, quantizers[path], ends)
        if statistics.amax == UNSEEN:
            raise nothing_seen(path, observer.was_reached, batches)
        if statistics.amax == float("inf"):
            raise CalibrationError(
                f"{path} saw NaN or infinity, so it has no range. Check weights and inputs."
            )
        collected[path] = statistics
    return Statistics(collected)


def _merge(histograms: Sequence[Histogram]) -> None:
    """Give every process the histograms of all, in place.

    Args:
        histograms: Of the same quantizers in the same order in every process.
    """
    if not histograms:
        return
    exponents = torch.stack([histogram.exponent for histogram in histograms])
    amax = torch.stack([histogram.amax for histogram in histograms])
    dist.all_reduce(exponents, dist.ReduceOp.MAX)
    dist.all_reduce(amax, dist.ReduceOp.MAX)
    counts = torch.stack(
        [histogram.coarsened(exponent) for histogram, exponent in zip(histograms, exponents, strict=True)]
    )
    dist.all_reduce(counts, dist.ReduceOp.SUM)
    for histogram, *merged in zip(histograms, counts, exponents, amax, strict=True):
        histogram.counts, histogram.exponent, histogram.amax = merged
