"""Images: found in a folder or named by a table, and read as they are needed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qdqpatch.data.sampling import reservoir
from qdqpatch.errors import ConfigError, DataError, one_line

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What the names of images end in; other files of a folder are left alone."""

PIXELS = "pixel_values"


@dataclass(frozen=True)
class ImageFile:
    """An image.

    Attributes:
        path: Where it is.
        label: The folder that it is in, below the one that was named; None for that one itself.
    """

    path: Path
    label: str | None = None


def find_images(folder: str | Path) -> list[ImageFile]:
    """Return the images in a folder and in those below it, in the order of their names.

    Raises:
        DataError: If there is none.
    """
    root = Path(folder)
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in SUFFIXES and path.is_file() and not any(part[0] == "." for part in parts):
            found.append(ImageFile(path, parts[0] if len(parts) > 1 else None))
    if not found:
        raise DataError(f"There is no image in {folder}: no file ends in {', '.join(SUFFIXES)}.")
    return found


def pixels(paths: Sequence[Path], processor: Any) -> Tensor:
    """Read images, shape `(images, channels, height, width)`.

    Args:
        paths: Where they are.
        processor: The model's, which gives them their size.

    Raises:
        DataError: If one cannot be read.
    """
    images = importlib.import_module("PIL.Image")
    read = []
    for path in paths:
        try:
            with images.open(path) as image:
                read.append(image.convert("RGB"))
        except Exception as error:  # a damaged file raises whatever its format's reader does
            raise DataError(f"Cannot read the image {path}: {one_line(error)}") from error
    made: Tensor = processor(read, return_tensors="pt")[PIXELS]
    return made


class ImageBatches:
    """Images as batches of pixels, in their order; can be iterated over again and again.

    Args:
        paths: Where they are.
        processor: The model's, as `AutoImageProcessor` loads it.
        batch_size: How many make a batch; the last one may have fewer.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(self, paths: Sequence[Path], processor: Any, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        self._parts = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        self._processor = processor

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for part in self._parts:
            yield {PIXELS: pixels(part, self._processor)}


def image_batches(
    folder: str | Path, processor: Any, samples: int | None = 256, batch_size: int = 16, seed: int = 0
) -> ImageBatches:
    """Return batches for `calibrate`, of images of a folder that are drawn at random.

    Args:
        folder: The folder; images in those below it count too.
        processor: The model's, as `transformers.AutoImageProcessor` loads it.
        samples: How many to draw; None, or more than there are, for all.
        batch_size: How many make a batch.
        seed: What the draw depends on.

    Raises:
        ConfigError: If an argument is out of range.
        DataError: If there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise DataError(f"There is no folder {folder}.")
    if samples is not None and samples < 1:
        raise ConfigError(f"samples must be at least 1, not {samples}.")
    drawn, _ = reservoir([image.path for image in find_images(folder)], samples, seed)
    return ImageBatches(drawn, processor, batch_size)
