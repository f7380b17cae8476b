"""Tasks of tiny models, and what their errors say."""

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import checkpoints
import models
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from qdqpatch.errors import DataError
from qdqpatch.tasks.base import Columns, DataSource, Task

CLS, SEP, MASK = 2, 3, 4
"""Numbers of tokens in the vocabulary of `checkpoints.WORDS`."""


def distinct_texts(count: int) -> list[str]:
    """Return texts of the tiny vocabulary, no two alike."""
    generator = random.Random(0)
    words = [word for word in checkpoints.WORDS if word.isalpha()]
    return [" ".join(generator.choices(words, k=generator.randint(3, 28))) for _ in range(count)]


@functools.cache
def tokenizer() -> Any:
    """Return a tokenizer of a few words; a word that it does not know is one token."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("\n".join(checkpoints.WORDS) + "\n", encoding="utf-8")
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)


def make(
    kind: type[Task[Any]], head: str, max_length: int | None = None, **changes: Any
) -> tuple[Any, PreTrainedModel]:
    """Return a task and its model, whose config has the changes."""
    model = models.build(head, **changes)
    return kind(tokenizer(), model.config, max_length), model


def alone(model: PreTrainedModel, *texts: str, **options: Any) -> dict[str, Tensor]:
    """Return a model's outputs for one text or pair, which is in no batch and has no padding."""
    with torch.no_grad():
        return dict(model(**tokenizer()(*texts, return_tensors="pt", **options)))


def error_of(task: Task[Any], name: object, *columns: str | None) -> str:
    """Return what the `DataError` says that reading raises."""
    with pytest.raises(DataError) as caught:
        task.read(DataSource(str(name), Columns(*columns)))
    return str(caught.value)
