"""Turn any Hugging Face BERT into a QDQBERT: int8 quantizers where an int8 engine needs them."""

from qdqpatch.calibration import calibrate, ptq
from qdqpatch.checkpoint import qdqbert
from qdqpatch.checkpoint.qdqbert import load_qdqbert, save_qdqbert
from qdqpatch.config.config import QDQConfig
from qdqpatch.config.quantizer import Override, QuantizerConfig
from qdqpatch.errors import QdqError
from qdqpatch.exporter.export import export
from qdqpatch.nn import attention
from qdqpatch.patching import hf_quantizer
from qdqpatch.patching.quantize import dequantize, plan, quantize

__version__ = "0.1.0"

__all__ = [
    "Override",
    "QDQConfig",
    "QdqError",
    "QuantizerConfig",
    "__version__",
    "calibrate",
    "dequantize",
    "export",
    "load_qdqbert",
    "plan",
    "ptq",
    "quantize",
    "save_qdqbert",
]

attention.register()
hf_quantizer.register()
qdqbert.register()
