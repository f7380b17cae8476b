"""Turn any Hugging Face BERT into a QDQBERT: int8 quantizers where an int8 engine needs them."""

from qdqpatch import attention
from qdqpatch.checkpoint import hf_quantizer
from qdqpatch.config import QDQConfig
from qdqpatch.conversion import dequantize, plan, quantize
from qdqpatch.errors import QdqError

__version__ = "0.1.0"

__all__ = ["QDQConfig", "QdqError", "__version__", "dequantize", "plan", "quantize"]

attention.register()
hf_quantizer.register()
