"""Classification of a text, or of two read together; the metric is accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdqpatch.data.arrays import Arrays
from qdqpatch.tasks.base import DataSource, Feature, Task, rows
from qdqpatch.tasks.metrics import Metric, accuracy
from qdqpatch.tasks.reading import label_id, label_name, read_rows, text_names


@dataclass(frozen=True)
class LabelledText:
    """A text, its pair or None, and the number of its label; None if it was not read."""

    text: str
    pair: str | None
    label: int | None


class TextClassification(Task[LabelledText]):
    """Which class a text belongs to: `...ForSequenceClassification`."""

    name = "text-classification"
    logits = ("logits",)
    formats = "CSV, TSV or JSONL with a column of texts, or two, and one of labels"

    def read(self, source: DataSource, labelled: bool = True) -> list[LabelledText]:
        """Read rows; labels are numbers, or names in the model's `label2id`."""
        examples: list[LabelledText] = []
        text, pair, label = "", None, ""
        for row in read_rows(source):
            if not examples:
                label = label_name(row, source.columns, source) if labelled else ""
                text, pair = text_names(row, source.columns, source)
            examples.append(
                LabelledText(
                    row.text(text),
                    None if pair is None else row.text(pair),
                    label_id(row.value(label), self.config, row.where) if labelled else None,
                )
            )
        return examples

    def features(
        self, examples: Sequence[LabelledText], training: bool = False, seed: int = 0
    ) -> list[Feature]:
        """Tokenize each text; `labels` is its number."""
        encoded = self.tokenizer(
            [each.text for each in examples],
            None if examples[0].pair is None else [each.pair for each in examples],
            truncation=True,
            max_length=self.max_length,
        )
        features = rows(encoded)
        if training:
            for feature, example in zip(features, examples, strict=True):
                feature["labels"] = example.label
        return features

    def score(
        self,
        examples: Sequence[LabelledText],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return the accuracy."""
        return [accuracy(outputs, [example.label for example in examples])]
