"""Two fine-tuned BERTs and their data: calibration batches, and the figures that quantization may cost.

    python benchmarks/tasks.py [FOLDER]

prints the float models' figures. FOLDER holds `models/minilm-{sst2,squad}` and `data/{sst2,squad}`; without
it, `shared` beside the repository's root is taken. The protocol is that of `models/README.md` there.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from qdqpatch.tasks.squad import scores

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Where the folder is looked for if none is named."""

LONGEST_ANSWER = 30
"""In tokens."""

Batch = dict[str, Tensor]
Rows = list[dict[str, list[int]]]


@dataclass(frozen=True)
class Question:
    """A SQuAD question with its paragraph and reference answers."""

    text: str
    context: str
    answers: list[str]


@dataclass
class Task(ABC):
    """A model, its tokenizer and its data.

    Attributes:
        name: The last part of the names of its model and data.
        logits: The names of the model's outputs.
        folder: Holds `models` and `data`.
        tokenizer: The model's.
    """

    name: ClassVar[str]
    logits: ClassVar[tuple[str, ...]]
    folder: Path
    tokenizer: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)

    @property
    def checkpoint(self) -> Path:
        """The float model's folder."""
        return self.folder / "models" / f"minilm-{self.name}"

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """Return the float model in eval mode."""

    @abstractmethod
    def evaluate(self, model: Any, limit: int | None = None) -> dict[str, float]:
        """Return the metrics, in percent, on the first `limit` examples of the dev set; None for all."""

    @abstractmethod
    def _training_rows(self, chosen: slice) -> Rows:
        """Return tokenized examples of the training set, whose order is shuffled and fixed."""

    def calibration_batches(self, count: int = 256, batch_size: int = 32) -> list[Batch]:
        """Return `count` training examples without labels, padded to the longest row of their batch."""
        return [batch for _, batch in self._batches(self._training_rows(slice(count)), batch_size)]

    def held_out_logits(self, model: PreTrainedModel, count: int = 64) -> list[Tensor]:
        """Return the logits of `count` training examples that come last in the order, without padding.

        A cheap stand-in for `evaluate`: compare with the float model's. Needs no labels.
        """
        rows = self._training_rows(slice(-count, None))
        outputs = self._outputs(model, rows, self.logits)
        lengths = [len(row["input_ids"]) for row in rows]
        return [
            torch.stack([logit[:length] for logit in logits])
            for length, logits in zip(lengths, outputs, strict=True)
        ]

    def _batches(self, rows: Rows, batch_size: int = 32) -> Iterator[tuple[list[int], Batch]]:
        """Yield the numbers of a batch's rows and the batch; rows of like length go together."""
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            padded = self.tokenizer.pad([rows[row] for row in chosen], return_tensors="pt")
            yield chosen, dict(padded)

    def _outputs(self, model: Any, rows: Rows, names: Sequence[str]) -> list[list[Tensor]]:
        """Return the named outputs of the model for each row, padding included."""
        outputs: list[list[Tensor]] = [[] for _ in rows]
        with torch.inference_mode():
            for chosen, batch in self._batches(rows):
                output = model(**{key: value.to(model.device) for key, value in batch.items()})
                for place, row in enumerate(chosen):
                    outputs[row] = [output[name][place].float().cpu() for name in names]
        return outputs


class Sst2(Task):
    """Sentiment of a sentence; the metric is accuracy."""

    name = "sst2"
    logits = ("logits",)

    def load(self) -> PreTrainedModel:
        """Return the float model in eval mode."""
        return AutoModelForSequenceClassification.from_pretrained(self.checkpoint).eval()

    def evaluate(self, model: Any, limit: int | None = None) -> dict[str, float]:
        """Return the accuracy, in percent, on the first `limit` sentences of the dev set; None for all."""
        sentences, labels = zip(*self._lines("dev")[:limit], strict=True)
        logits = self._outputs(model, self._rows(sentences), self.logits)
        right = sum(int(row.argmax()) == int(label) for (row,), label in zip(logits, labels, strict=True))
        return {"accuracy": 100 * right / len(labels)}

    def _training_rows(self, chosen: slice) -> Rows:
        lines = self._lines("train")
        random.Random(0).shuffle(lines)
        return self._rows([sentence for sentence, _ in lines[chosen]])

    def _lines(self, part: str) -> list[list[str]]:
        path = self.folder / "data" / "sst2" / f"{part}.tsv.gz"
        text = gzip.decompress(path.read_bytes()).decode()
        return [line.split("\t") for line in text.splitlines()[1:]]

    def _rows(self, sentences: Iterable[str]) -> Rows:
        encoded = self.tokenizer(list(sentences), truncation=True, max_length=128)
        return _transposed(encoded)


class Squad(Task):
    """Answers found in a paragraph; the metrics are exact match and F1 by SQuAD's official rules.

    A paragraph too long for one window of 320 tokens is cut into several, which overlap by 128 tokens.
    """

    name = "squad"
    logits = ("start_logits", "end_logits")

    def load(self) -> PreTrainedModel:
        """Return the float model in eval mode."""
        return AutoModelForQuestionAnswering.from_pretrained(self.checkpoint).eval()

    def evaluate(self, model: Any, limit: int | None = 1000) -> dict[str, float]:
        """Return EM and F1, in percent, on the first `limit` questions of the dev set; None for all."""
        questions = self._questions("dev")[:limit]
        encoded = self._windows(questions)
        logits = self._outputs(model, _transposed(encoded), self.logits)
        best = [(float("-inf"), "")] * len(questions)
        for window, question in enumerate(encoded["overflow_to_sample_mapping"]):
            offsets = encoded["offset_mapping"][window]
            inside = [token for token, part in enumerate(encoded.sequence_ids(window)) if part == 1]
            score, first, last = _best_span(*(logit[inside[0] : inside[-1] + 1] for logit in logits[window]))
            start, end = offsets[inside[0] + first][0], offsets[inside[0] + last][1]
            best[question] = max(best[question], (score, questions[question].context[start:end]))
        found = [scores(text, question.answers) for (_, text), question in zip(best, questions, strict=True)]
        exact, f1 = (100 * sum(column) / len(found) for column in zip(*found, strict=True))
        return {"exact match": exact, "F1": f1}

    def _training_rows(self, chosen: slice) -> Rows:
        questions = self._questions("train")
        random.Random(0).shuffle(questions)
        windows = _transposed(self._windows(questions[chosen]))
        return windows[: len(questions[chosen])]

    def _questions(self, part: str) -> list[Question]:
        path = self.folder / "data" / "squad" / f"{part}.json.gz"
        articles = json.loads(gzip.decompress(path.read_bytes()))
        return [
            Question(
                question["question"], paragraph["context"], [answer["text"] for answer in question["answers"]]
            )
            for article in articles["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]

    def _windows(self, questions: Sequence[Question]) -> Any:
        return self.tokenizer(
            [question.text for question in questions],
            [question.context for question in questions],
            truncation="only_second",
            max_length=320,
            stride=128,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )


TASKS: tuple[type[Task], ...] = (Sst2, Squad)


def _transposed(encoded: Any) -> Rows:
    """Return a row for each window, with what the model takes."""
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in encoded]
    columns = (encoded[name] for name in names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _best_span(start: Tensor, end: Tensor) -> tuple[float, int, int]:
    """Return score, first and last token of the best span."""
    scores = (start[:, None] + end[None, :]).triu()
    allowed = torch.ones_like(scores).triu().tril(LONGEST_ANSWER - 1).bool()
    scores = scores.masked_fill(~allowed, float("-inf"))
    best = int(scores.argmax())
    return float(scores.flatten()[best]), best // len(end), best % len(end)


def shared_folder(arguments: Sequence[str]) -> Path:
    """Return the folder that the first argument names, or the usual one; leave with a message if absent."""
    folder = Path(arguments[0]) if arguments else SHARED
    if not (folder / "models").is_dir() or not (folder / "data").is_dir():
        sys.exit(f"{folder} has no folders `models` and `data`: name the one that has as the first argument.")
    return folder


def main() -> None:
    """Print the float models' figures."""
    folder = shared_folder(sys.argv[1:])
    for task in (kind(folder) for kind in TASKS):
        metrics = task.evaluate(task.load())
        print(task.name, ", ".join(f"{name} {value:.1f}" for name, value in metrics.items()))


if __name__ == "__main__":
    main()
