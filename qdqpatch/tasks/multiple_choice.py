"""The best of several endings of a text; the metric is accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qdqpatch.data.arrays import Arrays
from qdqpatch.errors import DataError
from qdqpatch.spelling import spelled
from qdqpatch.tasks.base import MODEL_INPUTS, Batch, DataSource, Feature, Task, rows
from qdqpatch.tasks.choices import Endings, ending_names, endings_of
from qdqpatch.tasks.metrics import Metric, accuracy
from qdqpatch.tasks.reading import LabelledRow, column_name, label_name, read_rows, refuse_pair

PROMPTS = ("prompt", "question", "startphrase", "ctx", "context")
"""The usual names of the column of prompts, most usual first."""


@dataclass(frozen=True)
class Choice:
    """A prompt, its endings, and the number of the right one, from 0; None if it was not read."""

    prompt: str
    endings: tuple[str, ...]
    label: int | None


class MultipleChoice(Task[Choice]):
    """Which ending belongs to a prompt: `...ForMultipleChoice`.

    Features hold a list for each ending, and batches have the shape `(batch, endings, tokens)`, so all rows
    have the same number of endings.
    """

    name = "multiple-choice"
    logits = ("logits",)
    formats = (
        "CSV, TSV or JSONL with columns for the prompt, the label from 0 on, and the endings: ending0, "
        "ending1, ... or, in JSONL, one list"
    )

    def read(self, source: DataSource, labelled: bool = True) -> list[Choice]:
        """Read rows."""
        refuse_pair(source.columns, "Multiple choice")
        examples: list[Choice] = []
        prompt, label, names = "", "", Endings()
        for row in read_rows(source):
            if not examples:
                named = source.columns
                prompt = column_name(row, source, named.text, PROMPTS, "prompts", spelled("text"))
                label = label_name(row, named, source) if labelled else ""
                used = (prompt, label, named.label)
                others = {name: value for name, value in row.fields.items() if name not in used}
                names = ending_names(LabelledRow(row.where, others), source.name)
            endings = endings_of(row, names)
            wanted = len(examples[0].endings) if examples else max(2, len(endings))
            if len(endings) != wanted:
                raise DataError(f"{row.where} has {len(endings)} endings, where {wanted} are needed.")
            number = _number(row, label, len(endings)) if labelled else None
            examples.append(Choice(row.text(prompt), tuple(endings), number))
        return examples

    def features(self, examples: Sequence[Choice], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize each prompt with each of its endings; `labels` is the number of the right one."""
        encoded = self.tokenizer(
            self.beginnings(example.prompt for example in examples for _ in example.endings),
            self.beginnings(ending for example in examples for ending in example.endings),
            truncation=True,
            max_length=self.max_length,
        )
        sequences = iter(rows(encoded))
        features: list[Feature] = []
        for example in examples:
            own = [next(sequences) for _ in example.endings]
            features.append({name: [sequence[name] for sequence in own] for name in own[0]})
            if training:
                features[-1]["labels"] = example.label
        return features

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Pad all endings of all features to the longest one and stack them."""
        names = [name for name in MODEL_INPUTS if name in features[0]]
        endings = len(features[0]["input_ids"])
        sequences = [
            {name: feature[name][ending] for name in names}
            for feature in features
            for ending in range(endings)
        ]
        batch = {
            name: tensor.unflatten(0, (len(features), endings))
            for name, tensor in super().collate(sequences).items()
        }
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([feature["labels"] for feature in features])
        return batch

    def length(self, feature: Feature) -> int:
        """Return the length of the longest ending with its prompt."""
        return max(map(len, feature["input_ids"]))

    def score(
        self,
        examples: Sequence[Choice],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return the accuracy."""
        return [accuracy(outputs, [example.label for example in examples])]


def _number(row: LabelledRow, column: str, endings: int) -> int:
    text = str(row.value(column)).strip()
    if not text.isdecimal() or int(text) >= endings:
        raise DataError(
            f"{row.where} has the label {text!r}; of {endings} endings, it is a number from 0 to "
            f"{endings - 1}."
        )
    return int(text)
