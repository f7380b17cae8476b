"""Where calibration data comes from: files, hub data sets and lists of texts, as batches for a model."""

from qdqpatch.data.batches import text_batches

__all__ = ["text_batches"]
