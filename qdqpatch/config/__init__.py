"""What is quantized and how, as frozen data."""

from qdqpatch.config.config import QDQConfig
from qdqpatch.config.quantizer import Override, QuantizerConfig

__all__ = ["Override", "QDQConfig", "QuantizerConfig"]
