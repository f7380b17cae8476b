"""What the tests of evaluation share: classifiers whose answers are known, and data for them."""

from pathlib import Path
from typing import Any

import checkpoints
import models
import tiny_tasks
import torch
from transformers import PreTrainedModel

from qdqpatch.engines.models import find_contenders
from qdqpatch.evaluation.models import Model, load
from qdqpatch.tasks.base import Feature, Task

HEAD = "BertForSequenceClassification"
TEXTS = (
    "the cat",
    "a dog sat on the mat .",
    "cats and dogs",
    "the mat",
    "a cat sat",
    "dog , cat , mat and dog",
)


def always(label: int, **changes: Any) -> PreTrainedModel:
    """Return a classifier with one answer to everything."""
    model = models.build(HEAD, **changes)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.nn.functional.one_hot(torch.tensor(label), model.config.num_labels))
    return model


def varied() -> PreTrainedModel:
    """Return a classifier whose answers to `TEXTS` are not all the same: their mean logits are 0."""
    model = models.float_model(HEAD)
    with torch.no_grad():
        logits = [model(**tiny_tasks.tokenizer()(text, return_tensors="pt")).logits[0] for text in TEXTS]
        model.classifier.bias -= torch.stack(logits).mean(dim=0)
    return model


def write(folder: str, model: PreTrainedModel | None = None, tokenizer: bool = True) -> str:
    """Write a checkpoint, of a classifier with random weights unless told otherwise; return the folder."""
    (models.float_model(HEAD) if model is None else model).save_pretrained(folder)
    if tokenizer:
        Path(folder, "vocab.txt").write_text("\n".join(checkpoints.WORDS) + "\n", encoding="utf-8")
    return folder


def write_data(*labels: object, name: str = "dev.tsv") -> str:
    """Write texts with these labels, as often as there are labels; return the file."""
    rows = [f"{TEXTS[number % len(TEXTS)]}\t{label}" for number, label in enumerate(labels)]
    Path(name).write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return name


def loaded(name: object, task: Task[Any], engine: str = "torch") -> Model:
    """Load a file or a folder for a task."""
    (contender,) = find_contenders([str(name)], [engine])
    return load(contender, task, 1)


def features(task: Task[Any], *texts: str) -> list[Feature]:
    """Tokenize texts."""
    return [dict(task.tokenizer(text)) for text in texts]
