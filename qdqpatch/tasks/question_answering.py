"""Answers found in a paragraph, as in SQuAD v1.1; the metrics are exact match and F1 by its official rules.

A paragraph too long for one sequence is cut into windows that overlap, as in the QDQBERT example of
transformers 4.40 (`examples/research_projects/quantization-qdqbert`).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from qdqpatch.engines import Arrays
from qdqpatch.errors import ConfigError, DataError
from qdqpatch.tasks.base import Feature, Source, Task, rows
from qdqpatch.tasks.metrics import Metric, mean
from qdqpatch.tasks.reading import Row, checked_file, is_format, read_rows
from qdqpatch.tasks.spans import best_span
from qdqpatch.tasks.squad import scores

EXAMPLE = "example"
"""Key of a feature: the number of the question that a window belongs to."""
OFFSETS = "offsets"
"""Key of a feature: where each token of the paragraph begins and ends in it; None for other tokens."""


@dataclass(frozen=True)
class Question:
    """A question, its paragraph, and the reference answers with the places where they begin."""

    text: str
    context: str
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


class QuestionAnswering(Task[Question]):
    """Where in a paragraph the answer to a question is: `...ForQuestionAnswering`.

    Args:
        tokenizer: The model's, a fast one: windows need the places of tokens in the text.
        config: The model's.
        max_length: Length of a window, in tokens.
        stride: By how many tokens windows overlap.
        longest_answer: In tokens.

    Raises:
        ConfigError: If the tokenizer is not a fast one, or windows would not get on.
    """

    name = "question-answering"
    logits = by_token = ("start_logits", "end_logits")
    formats = (
        "JSON in SQuAD's layout, or JSONL with the fields question, context and answers (text, answer_start)"
    )
    default_length = 384

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        max_length: int | None = None,
        stride: int = 128,
        longest_answer: int = 30,
    ) -> None:
        super().__init__(tokenizer, config, max_length)
        self.stride = stride
        self.longest_answer = longest_answer
        if not tokenizer.is_fast:
            raise ConfigError("Question answering needs a fast tokenizer (tokenizer.json).")

    def read(self, source: Source, labelled: bool = True) -> list[Question]:
        """Read the questions of a file in SQuAD's layout, of a .jsonl file, or of a hub data set."""
        raw = _squad_rows(source) if is_format(source, ".json") else read_rows(source)
        return [_question(row, labelled) for row in raw]

    def features(self, examples: Sequence[Question], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize each question with its paragraph's windows.

        `start_positions` and `end_positions` are the answer's first and last token; both are 0 where a
        window does not hold all of it.
        """
        encoded = self.tokenizer(
            [each.text for each in examples],
            [each.context for each in examples],
            truncation="only_second",
            max_length=self.max_length,
            stride=min(self.stride, self.max_length // 3),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        features = rows(encoded)
        for window, feature in enumerate(features):
            feature[EXAMPLE] = encoded["overflow_to_sample_mapping"][window]
            feature[OFFSETS] = [
                place if part == 1 else None
                for place, part in zip(
                    encoded["offset_mapping"][window], encoded.sequence_ids(window), strict=True
                )
            ]
            if training:
                first, last = _answer_tokens(examples[feature[EXAMPLE]], feature[OFFSETS])
                feature |= {"start_positions": first, "end_positions": last}
        return features

    def score(
        self,
        examples: Sequence[Question],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return exact match and F1 of the best span over all windows of each question."""
        answers = self.answers(examples, features, outputs)
        pairs = [scores(answer, example.answers) for answer, example in zip(answers, examples, strict=True)]
        return [mean("exact match", [exact for exact, _ in pairs]), mean("F1", [f1 for _, f1 in pairs])]

    def answers(
        self, examples: Sequence[Question], features: Sequence[Feature], outputs: Sequence[Arrays]
    ) -> list[str]:
        """Return the answer to each question."""
        best = [(-np.inf, "")] * len(examples)
        for feature, output in zip(features, outputs, strict=True):
            offsets, example = feature[OFFSETS], feature[EXAMPLE]
            inside = [token for token, place in enumerate(offsets) if place is not None]
            if not inside:
                continue
            part = slice(inside[0], inside[-1] + 1)
            score, first, last = best_span(
                output["start_logits"][part], output["end_logits"][part], self.longest_answer
            )
            text = examples[example].context[offsets[inside[first]][0] : offsets[inside[last]][1]]
            best[example] = max(best[example], (score, text))
        return [text for _, text in best]


def _answer_tokens(question: Question, offsets: Sequence[tuple[int, int] | None]) -> tuple[int, int]:
    """Return the first and last token of the first answer; zeros if the window lacks a part of it."""
    start = question.starts[0]
    end = start + len(question.answers[0])
    inside = [(token, place) for token, place in enumerate(offsets) if place is not None]
    if not inside or inside[0][1][0] > start or inside[-1][1][1] < end:
        return 0, 0
    first = max(token for token, place in inside if place[0] <= start)
    last = min(token for token, place in inside if place[1] >= end)
    return first, last


def _squad_rows(source: Source) -> Iterator[Row]:
    """Yield the questions of a file in SQuAD's layout.

    Raises:
        DataError: If the file is damaged or has another layout.
    """
    path = checked_file(source)
    text = _text(path)
    try:
        articles = json.loads(text)["data"]
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not in SQuAD's layout: it has no list 'data'.") from error
    found, place, line = 0, 0, 1
    for number, article in enumerate(articles):
        try:
            questions = [
                {"context": part["context"], **each} for part in article["paragraphs"] for each in part["qas"]
            ]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not in SQuAD's layout: article {number} lacks {error} somewhere."
            ) from error
        for fields in questions:
            found += 1
            # JSON has lines too, and an error is found faster by its line than by the id of its question.
            before, place = place, max(place, text.find(json.dumps(fields.get("id")), place))
            line += text.count("\n", before, place)
            yield Row(f"{path}, line {line}, question {fields.get('id')!r},", fields)
    if not found:
        raise DataError(f"{path} is empty: it has no question.")


def _text(path: Path) -> str:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            return str(file.read())
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}). Copy or download it again.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def _question(row: Row, labelled: bool) -> Question:
    question, context = row.text("question"), str(row.value("context"))
    if not context.strip():
        raise DataError(f"{row.where} has nothing in 'context'.")
    if not labelled:
        return Question(question, context)
    pairs = list(_answers(row.value("answers"), row.where))
    if not pairs:
        raise DataError(f"{row.where} has no answer; questions without one (SQuAD v2) are not supported.")
    for answer, start in pairs:
        if context[start : start + len(answer)] != answer or start < 0:
            raise DataError(
                f"{row.where} has the answer {answer!r}, which its context does not have at {start}."
            )
    return Question(question, context, tuple(text for text, _ in pairs), tuple(start for _, start in pairs))


def _answers(answers: Any, where: str) -> Iterator[tuple[str, int]]:
    """Yield text and start of each answer: SQuAD has a list of objects, the hub an object of lists."""
    try:
        if isinstance(answers, Mapping):
            found = zip(answers["text"], answers["answer_start"], strict=True)
        else:
            found = ((each["text"], each["answer_start"]) for each in answers)  # type: ignore[assignment]
        for text, start in found:
            yield str(text), int(start)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} has answers in another form than SQuAD's: texts and answer_start are needed ({error})."
        ) from error
