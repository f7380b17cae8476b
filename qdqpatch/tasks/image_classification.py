"""Classification of images, in folders that are called after the classes or named by a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdqpatch.data.arrays import Arrays
from qdqpatch.data.images import PIXELS, find_images, pixels
from qdqpatch.errors import DataError, NoLabelsError
from qdqpatch.spelling import spelled
from qdqpatch.tasks.base import Batch, DataSource, Feature, Task
from qdqpatch.tasks.head import Meaning, meaning_of
from qdqpatch.tasks.labels import Found, Label, label_of, read_labels
from qdqpatch.tasks.metrics import Metric, accuracy
from qdqpatch.tasks.reading import column_name, label_name, read_rows

IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename", "file_path")
"""The usual names of a column of images, most usual first."""


@dataclass(frozen=True)
class LabelledImage:
    """Where an image is, and its label; None if it was not read."""

    path: Path
    label: Label | None


class ImageClassification(Task[LabelledImage]):
    """What an image shows: `...ForImageClassification`; the metric is accuracy.

    The tokenizer of other tasks is the model's image processor here.
    """

    name = "image-classification"
    logits = ("logits",)
    unit = "images"
    formats = (
        "a folder of images in subfolders that are called after the classes; or CSV, TSV or JSONL with a "
        "column of the images' paths, beside the file, and one of labels"
    )

    def meaning(self, output: str, outcomes: int) -> Meaning:
        """Return what the logits mean, by the config."""
        return meaning_of(output, outcomes, self.config)

    def read(self, source: DataSource, labelled: bool = True) -> list[LabelledImage]:
        """Find the images; labels are names in the model's `label2id`, or numbers."""
        paths, found = self._in_folder(source) if Path(source.name).is_dir() else _in_table(source, labelled)
        labels = read_labels(found, self.config) if labelled else [None] * len(paths)
        return [LabelledImage(path, label) for path, label in zip(paths, labels, strict=True)]

    def _in_folder(self, source: DataSource) -> tuple[list[Path], list[Found]]:
        images = find_images(source.name)
        found: list[Found] = [(str(image.path), image.label) for image in images if image.label is not None]
        if 0 < len(found) < len(images):
            stray = next(image.path for image in images if image.label is None)
            raise DataError(f"{stray} is in no folder that is called after a class, as others are.")
        return [image.path for image in images], found

    def read_any(self, source: DataSource) -> tuple[list[LabelledImage], NoLabelsError | None]:
        """Find the images, with their labels if there are any, and what says that there are none."""
        if Path(source.name).is_dir() and not self._in_folder(source)[1]:
            reason = NoLabelsError(f"The images of {source.name} are in no folders called after classes.")
            return self.read(source, labelled=False), reason
        return super().read_any(source)

    def features(
        self, examples: Sequence[LabelledImage], training: bool = False, seed: int = 0
    ) -> list[Feature]:
        """Return where each image is, from where `collate` reads it."""
        features: list[Feature] = [{PIXELS: example.path} for example in examples]
        if training:
            for feature, example in zip(features, examples, strict=True):
                feature["labels"] = example.label
        return features

    def length(self, feature: Feature) -> int:
        """Return 1: all images are of one size."""
        return 1

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Read images and stack them."""
        batch: Batch = {PIXELS: pixels([feature[PIXELS] for feature in features], self.tokenizer)}
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([feature["labels"] for feature in features])
        return batch

    def score(
        self,
        examples: Sequence[LabelledImage],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return the accuracy."""
        labels: list[Any] = [example.label for example in examples]
        return [accuracy(outputs, labels)]


def _in_table(source: DataSource, labelled: bool) -> tuple[list[Path], list[Found]]:
    """Return the images that a table names, and their labels."""
    paths: list[Path] = []
    found: list[Found] = []
    image, label = "", ""
    for row in read_rows(source):
        if not paths:
            label = label_name(row, source.columns, source) if labelled else ""
            named = source.columns.text
            image = column_name(row, source, named, IMAGE_COLUMNS, "images", spelled("text"))
        path = Path(source.name).parent / row.text(image)
        if not path.is_file():
            raise DataError(f"{row.where} names {path}, which is not there.")
        paths.append(path)
        if labelled:
            found.append(label_of(row, [label]))
    return paths, found
