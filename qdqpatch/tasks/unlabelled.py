"""Tasks whose examples are texts, or two read together, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdqpatch.tasks.base import DataSource, Task
from qdqpatch.tasks.reading import read_rows, text_names


@dataclass(frozen=True)
class Text:
    """A text and its pair or None."""

    text: str
    pair: str | None = None


class TextTask(Task[Text]):
    """A task that needs texts only, so that the lines of any file will do."""

    formats = "TXT with a text on each line; CSV, TSV or JSONL with a column of texts, or two"

    def read(self, source: DataSource, labelled: bool = True) -> list[Text]:
        """Read rows or lines; there are no labels to read."""
        examples: list[Text] = []
        text, pair = "", None
        for row in read_rows(source):
            if not examples:
                text, pair = text_names(row, source.columns, source)
            examples.append(Text(row.text(text), None if pair is None else row.text(pair)))
        return examples

    def encode(self, examples: Sequence[Text], **options: Any) -> Any:
        """Return what the tokenizer gives for texts cut at `max_length`."""
        return encoded(self, examples, **options)


def encoded(task: Task[Any], examples: Sequence[Text], **options: Any) -> Any:
    """Return what a task's tokenizer gives for texts cut at its `max_length`."""
    return task.tokenizer(
        task.beginnings(example.text for example in examples),
        None if examples[0].pair is None else task.beginnings(example.pair or "" for example in examples),
        truncation=True,
        max_length=task.max_length,
        **options,
    )
