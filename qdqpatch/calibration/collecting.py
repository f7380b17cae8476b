"""The collection pass: feed batches through the float model and count what every quantizer sees."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.calibration import distributed
from qdqpatch.calibration.candidates import Comparison, candidates, stages
from qdqpatch.calibration.histogram import UNSEEN, Histogram
from qdqpatch.calibration.padding import POSITIONS, Padding
from qdqpatch.calibration.statistics import Statistics, TensorStatistics, least_error
from qdqpatch.errors import CalibrationError, NotQuantizedError
from qdqpatch.patch import named_quantizers
from qdqpatch.quantizer import TensorQuantizer, absolute_max

HELD_BACK = 8
"""Of so many batches one is held back, the second first, where ranges are to be compared on it."""

CHUNKED = "chunk_size_feed_forward"
"""The attribute of a transformers layer that says how many positions its feed forward takes at a time."""


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
    quantizers = {path: each for path, each in named_quantizers(model) if not each._disabled}
    if not quantizers:
        raise NotQuantizedError("The model has no enabled quantizer: call qdqpatch.quantize(model) first.")
    observers = {
        path: Observer(path.rpartition(".")[2], quantizer, model.device)
        for path, quantizer in quantizers.items()
        if not path.endswith("_weight_quantizer")
    }
    held_back: list[Mapping[str, Any]] = []

    def feed() -> int:
        return feed_batches(model, batches, observers, padding_aware, held_back if compare else None)

    with observing(model, observers), torch.no_grad():
        count = distributed.together(feed, model.device)
    statistics = _checked(observers, quantizers, count)
    if compare:
        statistics = statistics.with_errors(_compare(model, held_back, candidates(statistics), padding_aware))
    return statistics


class Observer:
    """Counts what one quantizer sees; a calibrator in the toolkit's sense.

    Args:
        name: The quantizer's name in its module.
        quantizer: The quantizer.
        device: Where to count.
    """

    def __init__(self, name: str, quantizer: TensorQuantizer, device: torch.device) -> None:
        self.name = name
        self.axis = quantizer._axis
        self.histogram = Histogram.empty(device)
        self.channel_amax: Tensor | None = None
        self.batch = BatchCounts(None)
        self.was_reached = False

    def collect(self, inputs: Tensor) -> None:
        """Take a tensor into account."""
        self.was_reached = True
        if self.axis is None:
            self.histogram.add(self.batch.of(inputs, self.name))
            return
        amax = absolute_max(self.batch.shown(inputs, self.name), self.axis)
        self.channel_amax = amax if self.channel_amax is None else torch.maximum(self.channel_amax, amax)


class BatchCounts:
    """The histograms of one batch's tensors, each tensor counted once, whoever reads it.

    Query, key, value and the residual add read the same tensor, as do the intermediate Linear and the
    second residual add.

    Args:
        padding: What of the batch is data; None if everything is.
    """

    def __init__(self, padding: Padding | None) -> None:
        self._padding = padding
        self._counted: dict[tuple[int, str], tuple[weakref.ref[Tensor], int, Histogram]] = {}

    def of(self, tensor: Tensor, name: str) -> Histogram:
        """Return the histogram of a tensor that the quantizer `name` sees."""
        if tensor.is_inference():  # it does not tell whether it was changed since
            return self._count(tensor, name)
        layout = name if name in POSITIONS else ""
        known = self._counted.get((id(tensor), layout))
        if known is not None and known[0]() is tensor and known[1] == tensor._version:
            return known[2]
        histogram = self._count(tensor, name)
        self._counted[id(tensor), layout] = weakref.ref(tensor), tensor._version, histogram
        return histogram

    def shown(self, tensor: Tensor, name: str) -> Tensor:
        """Return the tensor that the quantizer `name` sees with zeros for what is no data."""
        return tensor if self._padding is None else self._padding.zeroed(tensor, name)

    def _count(self, tensor: Tensor, name: str) -> Histogram:
        tensor = tensor.detach()
        return (
            Histogram.of(tensor) if self._padding is None else Histogram.of(*self._padding.data(tensor, name))
        )


def feed_batches(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    observers: Mapping[str, Observer],
    padding_aware: bool,
    held_back: list[Mapping[str, Any]] | None,
) -> int:
    """Run the batches, but for those to hold back, and return how many there were."""
    count = 0
    for count, batch in enumerate(batches, start=1):
        if not isinstance(batch, Mapping):
            raise CalibrationError(
                f"Batch {count} is a {type(batch).__name__}; each must be a mapping of the model's keyword "
                "arguments, as a tokenizer returns it."
            )
        if held_back is not None and count % HELD_BACK == 2:
            held_back.append(batch)
            continue
        counts = BatchCounts(Padding(batch) if padding_aware else None)
        for observer in observers.values():
            observer.batch = counts
        model(**on_device(batch, model.device))
    if held_back is not None and count == 1:
        held_back.append(batch)
    return count


def _compare(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    ranges: Mapping[str, list[float]],
    padding_aware: bool,
) -> dict[str, dict[float, float]]:
    """Return the errors of every quantizer's candidate ranges on the batches; zeros where none reached it."""
    # An operation that is repeated must not find its own keys and values in a cache.
    without_cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def run(comparison: Comparison) -> dict[str, Tensor]:
        with observing(model, {}), comparison.watching(model), torch.no_grad():
            for batch in batches:
                comparison.padding = Padding(batch) if padding_aware else None
                model(**on_device(batch, model.device) | without_cache)
        return comparison.errors

    errors: dict[str, dict[float, float]] = {}
    chosen: dict[str, float] = {}
    for paths in stages(ranges):
        comparison = Comparison({path: ranges[path] for path in paths}, chosen)
        measured = distributed.together(functools.partial(run, comparison), model.device)
        unmeasured = {path: torch.zeros(len(ranges[path]), dtype=torch.float64) for path in paths}
        for path, summed in distributed.sum_over_processes(unmeasured | measured, model.device).items():
            errors[path] = dict(zip(ranges[path], summed.tolist(), strict=True))
            if any(errors[path].values()):
                chosen[path] = least_error(errors[path])
    return errors


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on the device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _checked(
    observers: Mapping[str, Observer], quantizers: Mapping[str, TensorQuantizer], batches: int
) -> Statistics:
    """Return what was collected, if it is enough for every quantizer to get a range."""
    if distributed.is_distributed():
        distributed.merge([observer.histogram for observer in observers.values()])
        maxima = distributed.merge_maxima([observer.channel_amax for observer in observers.values()])
        for observer, merged in zip(observers.values(), maxima, strict=True):
            observer.channel_amax = merged
    collected = {}
    for path, observer in observers.items():
        statistics = TensorStatistics.of(observer.histogram, observer.channel_amax, quantizers[path])
        if statistics.amax == UNSEEN and not batches:
            raise CalibrationError("There was no calibration batch. An iterator can be used only once.")
        if statistics.amax == UNSEEN and observer.was_reached:
            raise CalibrationError(
                f"All that {path} saw is padding: the attention mask hides every position. Check the "
                "batches, or pass padding_aware=False."
            )
        if statistics.amax == UNSEEN:
            raise CalibrationError(
                f"{path} saw no tensor in {batches} batches: their inputs do not reach it. Add the inputs it "
                "needs (encoder_hidden_states for cross-attention), or turn it off with an override."
            )
        if statistics.amax == float("inf"):
            raise CalibrationError(
                f"{path} saw NaN or infinity, so it has no range. Check weights and inputs."
            )
        collected[path] = statistics
    return Statistics(collected)


@contextmanager
def observing(model: PreTrainedModel, observers: Mapping[str, Observer]) -> Iterator[None]:
    """Let quantizers collect instead of quantize, and put everything back however it ends."""
    modes = {module: module.training for module in model.modules()}
    # A block computed in chunks would show tensors that no longer have the batch's positions.
    chunks = {each: vars(each)[CHUNKED] for each in modes if isinstance(vars(each).get(CHUNKED), int)}
    everything = dict(named_quantizers(model))
    before = {path: (each._calibrator, each._if_calib, each._if_quant) for path, each in everything.items()}
    model.eval()
    for module in chunks:
        setattr(module, CHUNKED, 0)
    for path, quantizer in everything.items():
        quantizer._if_quant, quantizer._if_calib = False, path in observers
        if path in observers:
            quantizer._calibrator = observers[path]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, size in chunks.items():
            setattr(module, CHUNKED, size)
        for path, quantizer in everything.items():
            quantizer._calibrator, quantizer._if_calib, quantizer._if_quant = before[path]
