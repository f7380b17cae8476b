"""Answers found in a paragraph, as in SQuAD; the metrics are exact match and F1 by its official rules.

A paragraph too long for one sequence is cut into windows that overlap, as in the QDQBERT example of
transformers 4.40 (`examples/research_projects/quantization-qdqbert`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from qdqpatch.data.arrays import Arrays
from qdqpatch.errors import ConfigError
from qdqpatch.spelling import counted
from qdqpatch.tasks.base import DataSource, Feature, Task, rows
from qdqpatch.tasks.libraries import require_metric
from qdqpatch.tasks.metrics import Metric, mean
from qdqpatch.tasks.questions import Question, read_questions
from qdqpatch.tasks.spans import best_span
from qdqpatch.tasks.squad import scores

EXAMPLE = "example"
"""Key of a feature: the number of the question that a window belongs to."""
OFFSETS = "offsets"
"""Key of a feature: where each token of the paragraph begins and ends in it; None for other tokens."""


class QuestionAnswering(Task[Question]):
    """Where in a paragraph the answer to a question is: `...ForQuestionAnswering`.

    Args:
        tokenizer: The model's, a fast one: windows need the places of tokens in the text.
        config: The model's.
        max_length: Length of a window, in tokens. Questions are cut at half of what it leaves beside the
            special tokens.
        stride: By how many tokens windows overlap, at most: the overlap is no more than a third of
            `max_length`, nor than half of what the longest question leaves for the paragraph.
        longest_answer: In tokens.
        no_answer: Whether a question may have no answer in its paragraph (SQuAD v2). Its label is the first
            token, [CLS], and no answer is given where the logits of that, in the window where they are
            lowest, are higher than those of the best span by more than `null_threshold`.
        null_threshold: A difference of sums of two logits.

    Raises:
        ConfigError: If the tokenizer is not a fast one, or no window would hold anything.
    """

    name = "question-answering"
    logits = by_token = ("start_logits", "end_logits")
    formats = (
        "JSON in SQuAD's layout, or JSONL with the fields question, context and answers (text, answer_start)"
    )
    default_length = 384
    options = ("stride", "longest_answer", "no_answer", "null_threshold")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        max_length: int | None = None,
        stride: int = 128,
        longest_answer: int = 30,
        no_answer: bool = False,
        null_threshold: float = 0.0,
    ) -> None:
        super().__init__(tokenizer, config, max_length)
        self.stride = stride
        self.longest_answer = longest_answer
        self.no_answer = no_answer
        self.null_threshold = null_threshold
        if not tokenizer.is_fast:
            raise ConfigError("Question answering needs a fast tokenizer (tokenizer.json).")
        special = tokenizer.num_special_tokens_to_add(pair=True)
        self._room = self.max_length - special
        if self._room < 4:
            raise ConfigError(
                f"Windows of {counted(self.max_length, 'token')}, {special} of them special ones, are too "
                "short for a question and its paragraph."
            )

    def read(self, source: DataSource, labelled: bool = True) -> list[Question]:
        """Read the questions of a file in SQuAD's layout, of a .jsonl file, or of a hub data set.

        Their columns are question, context and answers, unless `source.columns` names others as its text,
        text_pair and label.
        """
        questions = read_questions(source, labelled, self.no_answer)
        if labelled:
            require_metric("torchmetrics")
        return questions

    def features(self, examples: Sequence[Question], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize each question with its paragraph's windows.

        `start_positions` and `end_positions` are the answer's first and last token; both are 0 where a
        window does not hold all of it.
        """
        questions, longest = self._cut([example.text for example in examples])
        encoded = self.tokenizer(
            questions,
            [example.context for example in examples],
            truncation="only_second",
            max_length=self.max_length,
            # The tokenizer panics if a window would not get on.
            stride=min(self.stride, self.max_length // 3, (self._room - longest) // 2),
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

    def _cut(self, questions: Sequence[str]) -> tuple[list[str], int]:
        """Cut questions; return them and the number of tokens of the longest one."""
        encoded = self.tokenizer(
            list(questions),
            add_special_tokens=False,
            truncation=True,
            max_length=self._room // 2,
            return_offsets_mapping=True,
        )
        ends = [places[-1][1] if places else 0 for places in encoded["offset_mapping"]]
        cut = [question[:end] for question, end in zip(questions, ends, strict=True)]
        return cut, max(len(tokens) for tokens in encoded["input_ids"])

    def answers(
        self, examples: Sequence[Question], features: Sequence[Feature], outputs: Sequence[Arrays]
    ) -> list[str]:
        """Return the answer to each question; an empty one where there is none in the paragraph."""
        best = [(-np.inf, "")] * len(examples)
        null = [np.inf] * len(examples)
        for feature, output in zip(features, outputs, strict=True):
            offsets, example = feature[OFFSETS], feature[EXAMPLE]
            null[example] = min(null[example], float(output["start_logits"][0] + output["end_logits"][0]))
            inside = [token for token, place in enumerate(offsets) if place is not None]
            if not inside:
                continue
            part = slice(inside[0], inside[-1] + 1)
            score, first, last = best_span(
                output["start_logits"][part], output["end_logits"][part], self.longest_answer
            )
            text = examples[example].context[offsets[inside[first]][0] : offsets[inside[last]][1]]
            best[example] = max(best[example], (score, text))
        return [
            "" if self.no_answer and none - score > self.null_threshold else text
            for none, (score, text) in zip(null, best, strict=True)
        ]


def _answer_tokens(question: Question, offsets: Sequence[tuple[int, int] | None]) -> tuple[int, int]:
    """Return the first and last token of the first answer; zeros if the window lacks a part or all of it."""
    if not question.answers:
        return 0, 0
    start = question.starts[0]
    end = start + len(question.answers[0])
    inside = [(token, place) for token, place in enumerate(offsets) if place is not None]
    if not inside or inside[0][1][0] > start or inside[-1][1][1] < end:
        return 0, 0
    first = max(token for token, place in inside if place[0] <= start)
    last = min(token for token, place in inside if place[1] >= end)
    return first, last
