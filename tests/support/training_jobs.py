"""A small training job, and a listener that can interrupt it."""

import dataclasses
from pathlib import Path
from typing import Any

import models
from checkpoints import write_tokenizer

from qdqpatch.listening import TrainingListener
from qdqpatch.tasks.base import DataSource
from qdqpatch.training.job import Job
from qdqpatch.training.schedule import Schedule

NAME = "BertForSequenceClassification"
TEXTS = [
    "the cat sat",
    "a dog",
    "the dog and the cat",
    "a mat",
    "cats",
    "the mat .",
    "dogs , cats",
    "a cat sat on",
]
SCHEDULE = Schedule(epochs=3, lr=1e-3, batch_size=4, dropout=True)


def write_float(folder: Path) -> str:
    """Write a float checkpoint with dropout and its tokenizer; return the folder."""
    models.build(NAME, hidden_dropout_prob=0.1).save_pretrained(folder)
    return str(write_tokenizer(folder))


def write_data(folder: Path) -> DataSource:
    """Write labelled texts, each four times, with labels that they do not determine."""
    lines = ["sentence\tlabel", *(f"{text}\t{place % 3}" for place, text in enumerate(TEXTS * 4))]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    return DataSource(str(folder / "train.tsv"))


def job(ckpt: str, data: DataSource, **changes: Any) -> Job:
    """Return a short job on these, whose ranges are quickly found."""
    quick = Job(ckpt, data, eval_data=data, schedule=SCHEDULE, method="max", refine=1)
    return dataclasses.replace(quick, **changes)


class Recording(TrainingListener):
    """Remembers what it is told, and can interrupt."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self._stop_at = stop_at

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, done: int, total: int, loss: float | None = None) -> None:
        if self.said[-1].startswith("Training"):
            self.steps.append((done, total))
            if done == self._stop_at:
                raise KeyboardInterrupt
