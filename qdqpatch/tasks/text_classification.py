"""Classification of a text, or of two read together; or a score of them, or several labels at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qdqpatch.data.arrays import Arrays
from qdqpatch.tasks.base import Batch, DataSource, Feature, Task, rows
from qdqpatch.tasks.head import Meaning, meaning_of, problem_of
from qdqpatch.tasks.labels import Found, Label, label_columns, label_of, read_labels
from qdqpatch.tasks.metrics import Metric, accuracy, check_scores, label_metrics, score_metrics
from qdqpatch.tasks.ranking import order_metrics
from qdqpatch.tasks.reading import read_rows, text_names


@dataclass(frozen=True)
class LabelledText:
    """A text, its pair or None, and its label; None if it was not read."""

    text: str
    pair: str | None
    label: Label | None


class TextClassification(Task[LabelledText]):
    """What a text is: `...ForSequenceClassification`.

    `problem_type` and `num_labels` of the config say whether that is one of several classes (the metric is
    accuracy), any number of labels (micro F1), or a score, such as a reranker's single logit (mean squared
    error, Pearson's and Spearman's correlation).
    """

    name = "text-classification"
    logits = ("logits",)
    formats = (
        "CSV, TSV or JSONL with a column of texts, or two, and one of labels; of models that predict several "
        "labels at once a list, a text with separators, or a column for each"
    )

    def meaning(self, output: str, outcomes: int) -> Meaning:
        """Return what the logits mean, by the config."""
        return meaning_of(output, outcomes, self.config)

    def read(self, source: DataSource, labelled: bool = True) -> list[LabelledText]:
        """Read rows; labels are numbers, or names in the model's `label2id`."""
        texts: list[tuple[str, str | None]] = []
        found: list[Found] = []
        text, pair, columns = "", None, list[str]()
        for row in read_rows(source):
            if not texts:
                columns = label_columns(row, source.columns, source, self.config) if labelled else []
                text, pair = text_names(row, source.columns, source)
            texts.append((row.text(text), None if pair is None else row.text(pair)))
            if labelled:
                found.append(label_of(row, columns))
        labels = read_labels(found, self.config) if labelled else [None] * len(texts)
        return [LabelledText(*both, label) for both, label in zip(texts, labels, strict=True)]

    def check_labels(self, examples: Sequence[LabelledText]) -> None:
        """Find out whether scores differ."""
        if problem_of(self.config) == "regression":
            labels: list[Any] = [example.label for example in examples]
            check_scores(labels)

    def features(
        self, examples: Sequence[LabelledText], training: bool = False, seed: int = 0
    ) -> list[Feature]:
        """Tokenize each text; `labels` is its number, or a list of numbers."""
        encoded = self.tokenizer(
            self.beginnings(example.text for example in examples),
            None if examples[0].pair is None else self.beginnings(example.pair or "" for example in examples),
            truncation=True,
            max_length=self.max_length,
        )
        features = rows(encoded)
        if training:
            for feature, example in zip(features, examples, strict=True):
                feature["labels"] = example.label
        return features

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Pad features to the longest one and stack them; scores and several labels are floats."""
        bare = [{name: value for name, value in feature.items() if name != "labels"} for feature in features]
        batch = super().collate(bare)
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([feature["labels"] for feature in features])
        return batch

    def score(
        self,
        examples: Sequence[LabelledText],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return the metrics of what the model predicts."""
        labels: list[Any] = [example.label for example in examples]
        problem = problem_of(self.config)
        if problem == "regression":
            return score_metrics(outputs, labels)
        if problem == "multi_label_classification":
            return label_metrics(outputs, labels)
        return [accuracy(outputs, labels)]

    def closeness(
        self, examples: Sequence[LabelledText], outputs: Sequence[Arrays], reference: Sequence[Arrays]
    ) -> list[Metric]:
        """Return divergence and agreement; of a score also drift, and what becomes of the order of texts."""
        if problem_of(self.config) != "regression" or self.config.num_labels != 1:
            return self.compare(outputs, reference)
        own, other = (np.array([one["logits"].item() for one in some]) for some in (outputs, reference))
        if not np.ptp(other):  # of which nothing can be told
            return []
        # Pairs are a query and a text; of single texts each is one of many.
        groups = [number if example.pair is None else example.text for number, example in enumerate(examples)]
        labels = [example.label for example in examples]
        known = all(isinstance(label, list | tuple) for label in labels)
        gains = np.array(labels, dtype=np.float64)[:, 0] if known else None
        if gains is not None:
            gains -= min(gains.min(), 0.0)
        return [*order_metrics(own, other, groups, gains), *self.compare(outputs, reference)]
