"""Where calibration data comes from: files, hub data sets, texts and images, as batches for a model."""

from qdqpatch.data.batches import text_batches
from qdqpatch.data.images import image_batches

__all__ = ["image_batches", "text_batches"]
