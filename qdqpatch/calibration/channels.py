"""What each channel of what a module returns or reads reaches from and to, and its mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.observing import Observer, feed_watched, nothing_seen
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.fake_quantize import at_least_fp32
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.nn.toolkit import QuantDescriptor


@dataclass(frozen=True, eq=False)
class Channels:
    """What was seen of a tensor, each float64, shape `(channels,)`, on the host.

    Attributes:
        low: The smallest value of each channel.
        high: The largest.
        mean: The mean.
    """

    low: Tensor
    high: Tensor
    mean: Tensor

    @property
    def key(self) -> tuple[bytes, ...]:
        """What is equal for two readers of one tensor: each to the last bit."""
        return tuple(values.numpy().tobytes() for values in (self.low, self.high, self.mean))

    @property
    def amax(self) -> Tensor:
        """The largest magnitude of each channel."""
        return torch.maximum(-self.low, self.high)


def collect_channels(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    padding_aware: bool,
    inputs: bool = False,
    held_back: list[Mapping[str, Any]] | None = None,
) -> dict[str, Channels]:
    """Run the float model on the batches of all processes, and look at the channels of modules' tensors.

    Args:
        model: A quantized model.
        modules: By path; what is looked at is of shape `(batch, positions, channels)`.
        batches: Keyword arguments for the model.
        padding_aware: Whether positions that the attention mask hides are left out.
        inputs: Whether to look at what the modules read, not at what they return.
        held_back: Gets some batches, cut, that are left out (`feed_batches`); None to leave out none.

    Raises:
        CalibrationError: If there is no batch, or a tensor saw no data, NaN or infinity.
    """
    observers = {path: _ChannelObserver(model.device) for path in modules}
    count = feed_watched(model, modules, observers, batches, padding_aware, inputs, held_back)
    bounds = [observer.bounds for observer in observers.values()]
    sums = [observer.sums for observer in observers.values()]
    if distributed.is_distributed():
        bounds = distributed.merge_maxima(bounds)
        # A process that saw none of a tensor adds zeros, in the shape that another one knows.
        filled = {
            path: limits.new_zeros(limits.shape[1] + 1, dtype=torch.float64) if total is None else total
            for path, total, limits in zip(modules, sums, bounds, strict=True)
            if limits is not None
        }
        merged = distributed.sum_over_processes(filled, model.device)
        sums = [merged.get(path) for path in modules]
    found = {}
    for (path, observer), limits, total in zip(observers.items(), bounds, sums, strict=True):
        if limits is None or total is None:
            raise nothing_seen(path, observer.was_reached, count)
        if not bool(limits.isfinite().all()):
            raise CalibrationError(f"{path} computed NaN or infinity. Check weights and inputs.")
        negated_low, high = limits.double().cpu()
        found[path] = Channels(-negated_low, high, (total[:-1] / total[-1]).cpu())
    return found


class _ChannelObserver(Observer):
    """Takes in the smallest, the largest and the mean value of each channel.

    Attributes:
        bounds: The negated smallest values and the largest, so that both grow: at least fp32, shape
            `(2, channels)`; None before data.
        sums: The sums of the values, then their number, float64, shape `(channels + 1,)`; None likewise.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__("", TensorQuantizer(QuantDescriptor(axis=-1)), device)
        self.bounds: Tensor | None = None
        self.sums: Tensor | None = None

    def collect(self, inputs: Tensor) -> None:
        """Take a tensor of shape `(batch, positions, channels)` into account."""
        self.was_reached = True
        values = at_least_fp32(self.batch.data(inputs)).flatten(0, -2)
        if not len(values):
            return
        low, high = torch.aminmax(values, dim=0)
        bounds = torch.stack([-low, high])
        sums = values.sum(0, dtype=torch.float64)
        sums = torch.cat([sums, sums.new_full((1,), len(values))])
        if self.bounds is None or self.sums is None:
            self.bounds, self.sums = bounds, sums
        else:
            self.bounds, self.sums = torch.maximum(self.bounds, bounds), self.sums + sums
