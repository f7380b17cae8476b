"""A checkpoint's image processor, which makes pixels of images as the model was trained on them."""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor

from qdqpatch.checkpoint.files import find_file
from qdqpatch.errors import CheckpointError, ConfigError, one_line
from qdqpatch.packages import require
from qdqpatch.patching.own_code import is_code_trusted
from qdqpatch.patching.quiet import quiet_export

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files of which a processor needs one."""


def has_processor(source: str) -> bool:
    """Whether a checkpoint has an image processor."""
    return any(find_file(source, name) for name in PROCESSOR_FILES)


def load_processor(source: str) -> Any:
    """Load the image processor.

    Args:
        source: A folder, or a model's name on the hub.

    Raises:
        ConfigError: If Pillow is not installed, which reads images.
        CheckpointError: If there is none, or it cannot be read.
    """
    require("Reading images", "PIL", error=ConfigError)
    if not has_processor(source):
        raise CheckpointError(
            f"{source} has no image processor, which says how images become pixels: none of "
            f"{', '.join(PROCESSOR_FILES)} is there. Copy it from the model that this one was made of."
        )
    try:
        with quiet_export():
            return AutoImageProcessor.from_pretrained(source, trust_remote_code=is_code_trusted())
    except Exception as error:  # a damaged file raises whatever its reader does
        raise CheckpointError(f"Cannot load the image processor of {source}: {one_line(error)}") from error
