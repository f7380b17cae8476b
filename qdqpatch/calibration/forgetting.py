"""Drop ranges that no longer fit what their quantizers see."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from qdqpatch.nn.learned import WeightTrackingQuantizer, refuse_learned, update_ranges
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers


def check_forgettable(model: nn.Module, quantizers: Iterable[TensorQuantizer], verb: str) -> None:
    """Find out whether the ranges can be dropped.

    Args:
        model: A quantized model.
        quantizers: Those of its quantizers whose ranges would be dropped.
        verb: What would be done, for the message.

    Raises:
        ConfigError: If the range of one is learned, and so may be in an optimizer.
    """
    stale = {id(quantizer) for quantizer in quantizers}
    refuse_learned(((path, found) for path, found in named_quantizers(model) if id(found) in stale), verb)


def forget_ranges(model: nn.Module, quantizers: Iterable[TensorQuantizer]) -> None:
    """Drop the ranges, but for those that the configuration fixes and those that follow their weights."""
    for quantizer in quantizers:
        if not quantizer.is_fixed and not isinstance(quantizer, WeightTrackingQuantizer):
            quantizer.drop_range()
    update_ranges(model)
