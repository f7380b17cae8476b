"""Add up something of what Linears read, over the tokens of all batches and processes that are data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.observing import Observer, feed_watched, nothing_seen
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer


class InputSum(Observer):
    """Adds up something of what one Linear reads.

    Args:
        linear: The Linear.
        total: Zeros, of the shape and dtype of the sum, on the device where to add.

    Attributes:
        total: The sum.
        quantizer: The input's.
    """

    def __init__(self, linear: QuantLinear, total: Tensor) -> None:
        self.linear, self.total = linear, total
        self.quantizer: TensorQuantizer = linear._input_quantizer
        super().__init__("", self.quantizer, total.device)

    def collect(self, inputs: Tensor) -> None:
        """Take an input of shape `(..., in_features)` into account."""
        self.was_reached = True
        inputs = self.linear.scaled(inputs)
        self.add(inputs, self.batch.shown(torch.ones_like(inputs[..., :1]), ""))

    @abstractmethod
    def add(self, inputs: Tensor, counts: Tensor) -> None:
        """Add what there is to add of one batch.

        Args:
            inputs: What the Linear quantizes, shape `(..., in_features)`.
            counts: 0 where a token is padding, shape `(..., 1)`.
        """


def sum_inputs(
    model: PreTrainedModel,
    observers: Mapping[str, InputSum],
    batches: Iterable[Mapping[str, Any]],
    padding_aware: bool,
) -> dict[str, Tensor]:
    """Run the float model on the batches, and return the sums of all processes, by path.

    Raises:
        CalibrationError: If there is no batch, or a Linear saw no data.
    """
    linears = {path: observer.linear for path, observer in observers.items()}
    count = feed_watched(model, linears, observers, batches, padding_aware, inputs=True)
    sums = distributed.sum_over_processes(
        {path: observer.total for path, observer in observers.items()}, model.device
    )
    for path, observer in observers.items():
        if not observer.was_reached and not sums[path].any():
            raise nothing_seen(path, observer.was_reached, count)
    return sums
