"""The one door to pytorch-quantization, which on import takes over logging and uses what torch deprecates."""

import logging
import warnings
from typing import Any

from qdqpatch.nn.float8 import E4M3

_handlers = logging.root.handlers[:]
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization.tensor_quant import QuantDescriptor

# The absl handler that the import adds would print every library's log lines a second time.
logging.root.handlers[:] = _handlers

__all__ = ["Float8Descriptor", "QuantDescriptor", "quant_nn"]


class Float8Descriptor(QuantDescriptor):  # type: ignore[misc]  # the toolkit has no types
    """A `QuantDescriptor` with `num_bits=(4, 3)`, for which the toolkit takes integers alone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._num_bits = E4M3
