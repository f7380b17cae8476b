"""Where calibration data comes from: files, hub data sets, texts and images, as batches for a model."""

from typing import TYPE_CHECKING

from qdqpatch import lazy

if TYPE_CHECKING:
    from qdqpatch.data.batches import text_batches
    from qdqpatch.data.images import image_batches
else:
    __getattr__ = lazy.attributes(__name__, {"image_batches": "images", "text_batches": "batches"})

__all__ = ["image_batches", "text_batches"]
