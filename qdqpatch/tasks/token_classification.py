"""Tags of words, such as named entities; the metrics are accuracy over words and F1 over entities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from qdqpatch.data.arrays import Arrays
from qdqpatch.errors import ConfigError, DataError, NoLabelsError
from qdqpatch.spelling import counted, spelled
from qdqpatch.tasks.base import IGNORED, DataSource, Feature, Task, rows
from qdqpatch.tasks.conll import Word, read_conll
from qdqpatch.tasks.entities import OUTSIDE, are_entity_tags, entity_f1
from qdqpatch.tasks.labels import class_numbers, first_places, label_names
from qdqpatch.tasks.libraries import require_metric
from qdqpatch.tasks.metrics import Metric, Ratio
from qdqpatch.tasks.reading import (
    LabelledRow,
    column_name,
    is_format,
    read_rows,
    refuse_pair,
    text_names,
)

WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels")
"""The usual names of the columns, most usual first."""

FIRST_PIECES = "first_pieces"
"""Key of a feature: for each word its first token; None for a word that was cut off or has no token."""


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence and the numbers of their tags, or `IGNORED`; no tags if they were not read."""

    words: tuple[str, ...]
    tags: tuple[int, ...] = ()


class TokenClassification(Task[Sentence]):
    """What each word is: `...ForTokenClassification`.

    A word's tag is what the model says of its first token. Words beyond `max_length` count as predicted to
    be outside of every entity ("O"), so cutting costs recall instead of making the data easier.

    Raises:
        ConfigError: If the tokenizer is not a fast one, which tells what tokens belong to a word, or there is
            one tag alone, so that every prediction is right.
    """

    name = "token-classification"
    logits = by_token = ("logits",)
    formats = (
        "CoNLL (.conll) with a word and its tag on each line, or JSONL with a list of words and one of tags"
    )

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, max_length: int | None = None
    ) -> None:
        super().__init__(tokenizer, config, max_length)
        if not tokenizer.is_fast:
            raise ConfigError("Token classification needs a fast tokenizer (tokenizer.json).")
        if len(label_names(config)) < 2:
            raise ConfigError("The model has one tag alone, so that there is nothing to tell apart.")

    def read(self, source: DataSource, labelled: bool = True) -> list[Sentence]:
        """Read sentences; tags are numbers, or names in the model's `label2id`; what has -100 never counts.

        Raises:
            DataError: If the data cannot be read, or no word counts.
        """
        refuse_pair(source.columns, "Token classification")
        conll = is_format(source, ".conll")
        sentences = list(read_conll(source, labelled) if conll else _rows(source, labelled))
        if not labelled:
            return [Sentence(tuple(word.text for word in sentence)) for sentence in sentences]
        tags = first_places([(word.where, str(word.tag)) for sentence in sentences for word in sentence])
        tags.pop(str(IGNORED), None)
        if not tags:
            raise DataError(f"{source.name} has the tag {IGNORED} at every word, so that nothing counts.")
        names = label_names(self.config)
        if are_entity_tags(names.values()):
            require_metric("seqeval")
        numbers = class_numbers(tags, names) | {str(IGNORED): IGNORED}
        return [
            Sentence(
                tuple(word.text for word in sentence),
                tuple(numbers[str(word.tag)] for word in sentence),
            )
            for sentence in sentences
        ]

    def features(self, examples: Sequence[Sentence], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize each sentence; `labels` has a word's tag at its first token and `IGNORED` elsewhere."""
        encoded = self.tokenizer(
            [list(example.words) for example in examples],
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_length,
        )
        features = rows(encoded)
        for number, (feature, example) in enumerate(zip(features, examples, strict=True)):
            firsts: list[int | None] = [None] * len(example.words)
            for token, word in reversed(list(enumerate(encoded.word_ids(number)))):
                if word is not None:
                    firsts[word] = token
            feature[FIRST_PIECES] = firsts
            if training:
                feature["labels"] = [IGNORED] * len(feature["input_ids"])
                for first, tag in zip(firsts, example.tags, strict=True):
                    if first is not None:
                        feature["labels"][first] = tag
        return features

    def score(
        self,
        examples: Sequence[Sentence],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return accuracy over words and, if the model's labels mark entities, their F1."""
        names = label_names(self.config)
        predicted = [
            [OUTSIDE if first is None else names[best[first]] for first in feature[FIRST_PIECES]]
            for feature, best in zip(
                features, (np.argmax(output["logits"], axis=-1).tolist() for output in outputs), strict=True
            )
        ]
        counted = [[tag != IGNORED for tag in example.tags] for example in examples]
        predicted = [list(compress(tags, some)) for tags, some in zip(predicted, counted, strict=True)]
        true = [[names[tag] for tag in example.tags if tag != IGNORED] for example in examples]
        right = [
            float(sum(a == b for a, b in zip(own, other, strict=True)))
            for own, other in zip(predicted, true, strict=True)
        ]
        accuracy = Ratio("accuracy", np.array(right), np.array([float(len(tags)) for tags in true]))
        return [accuracy, entity_f1(predicted, true)] if are_entity_tags(names.values()) else [accuracy]


def _rows(source: DataSource, labelled: bool) -> Iterator[list[Word]]:
    """Yield the sentences of rows that have a list of words and one of tags; or, without tags, a text."""
    words = tags = ""
    for row in read_rows(source):
        if not words:
            named = source.columns
            if is_format(source, ".txt") and labelled:
                raise NoLabelsError(
                    f"{source.name} has lines of text, which have no tags. A file with a word and its tag on "
                    "each line, as CoNLL has them, must be named .conll."
                )
            words = _words_name(row, source, labelled)
            if labelled:
                tags = column_name(row, source, named.label, TAGS, "tags", spelled("label"), NoLabelsError)
        if not labelled and isinstance(row.value(words), str):
            yield [Word(word, None, row.where) for word in row.text(words).split()]
            continue
        texts = _list(row, words)
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{row.where} has something in {words!r} that is no word.")
        LabelledRow(row.where, {words: " ".join(texts)}).text(words)
        found = [str(tag) for tag in _list(row, tags)] if labelled else [None] * len(texts)
        if len(found) != len(texts):
            raise DataError(
                f"{row.where} has {counted(len(texts), 'word')} and {counted(len(found), 'tag')}."
            )
        yield [
            Word(text, tag, f"{row.where} word {number},")
            for number, (text, tag) in enumerate(zip(texts, found, strict=True), start=1)
        ]


def _words_name(row: LabelledRow, source: DataSource, labelled: bool) -> str:
    """Return the column of words; of data without tags, that of texts will do."""
    named = source.columns.text
    if named is None and not labelled and not {name.lower() for name in row.fields} & set(WORDS):
        return text_names(row, source.columns, source)[0]
    return column_name(row, source, named, WORDS, "words", spelled("text"))


def _list(row: LabelledRow, column: str) -> list[Any]:
    value = row.value(column)
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{row.where} has {type(value).__name__} in {column!r}, where a list is needed.")
    return list(value)
