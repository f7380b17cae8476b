"""What computes. Whatever is imported of it, transformers knows our attention, which models name."""

from qdqpatch.nn import attention

attention.register()
