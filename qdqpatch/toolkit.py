"""The one door to pytorch-quantization, which on import takes over the program's root logger."""

import logging

_handlers = logging.root.handlers[:]

from pytorch_quantization import nn as quant_nn  # noqa: E402  # the handlers must be noted before
from pytorch_quantization.tensor_quant import QuantDescriptor  # noqa: E402

# Its absl handler would print every library's log lines a second time.
logging.root.handlers[:] = _handlers

__all__ = ["QuantDescriptor", "quant_nn"]
