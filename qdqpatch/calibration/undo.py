"""Take back what was done to a model's parameters and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qdqpatch.nn.input_scale import ScalesInput
from qdqpatch.patching.apply import named_quantizers


@contextmanager
def restored_if_raised(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Put parameters, every range and the factors of inputs back if the block raises, whatever it raises.

    Args:
        model: The model, quantized or not; its quantizers must stay the same objects.
        parameters: Those that the block may change in place. A copy of them is kept meanwhile.
    """
    values = {parameter: parameter.detach().clone() for parameter in parameters}
    quantizers = [quantizer for _, quantizer in named_quantizers(model)]
    ranges = [None if quantizer.interval is None else quantizer.interval.clone() for quantizer in quantizers]
    scales = {module: module.input_scale for module in model.modules() if isinstance(module, ScalesInput)}
    learned = [quantizer.is_learned for quantizer in quantizers]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in values.items():
                parameter.copy_(value)
        for module, scale in scales.items():
            module.load_input_scale(scale)
        for quantizer, interval, was_learned in zip(quantizers, ranges, learned, strict=True):
            if interval is not None:
                quantizer.load_range(interval)
                quantizer.learn_range(was_learned)
            elif quantizer.amax is not None:
                quantizer.drop_range()
        raise
