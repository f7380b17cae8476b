"""The one door to pytorch-quantization, which on import takes over logging and uses what torch deprecates."""

import logging
import warnings

_handlers = logging.root.handlers[:]
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization.tensor_quant import QuantDescriptor

# The absl handler that the import adds would print every library's log lines a second time.
logging.root.handlers[:] = _handlers

__all__ = ["QuantDescriptor", "quant_nn"]
