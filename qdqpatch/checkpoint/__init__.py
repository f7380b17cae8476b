"""Quantized models on disk: transformers' own checkpoints, and those of the old QDQBERT classes."""
