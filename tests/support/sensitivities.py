"""A small classifier, texts with its own clear predictions as labels, and units that are made bad."""

import copy
import functools
import random
from collections.abc import Sequence
from pathlib import Path

import models
import numpy as np
import torch
from checkpoints import WORDS
from tiny_tasks import tokenizer
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch.evaluation.predicting import batches, predict, torch_run
from qdqpatch.sensitivity import Unit, find_units
from qdqpatch.tasks.text_classification import LabelledText, TextClassification

HEAD = "BertForSequenceClassification"

MARGIN = 0.1
"""By how much the logit of the label is the largest: int8 changes none of these predictions."""


def classifier() -> PreTrainedModel:
    """Return a fresh float classifier of 3 classes, each of which it gives to some texts."""
    return copy.deepcopy(_classifier())


def labelled() -> list[LabelledText]:
    """Return 32 texts, with what the float classifier says of them as labels."""
    logits = _logits(_classifier(), texts(200))
    ranked = np.sort(logits, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > MARGIN
    found = [
        LabelledText(text, None, int(label))
        for text, label, is_clear in zip(texts(200), logits.argmax(1), clear, strict=True)
        if is_clear
    ]
    return found[:32]


def task() -> TextClassification:
    return TextClassification(tokenizer(), _classifier().config, 32)


def calibrated(config: qdqpatch.QDQConfig | None = None) -> PreTrainedModel:
    """Return the classifier, quantized as the configuration says and calibrated on the texts."""
    model = qdqpatch.quantize(classifier(), config)
    return qdqpatch.calibrate(model, batches(task(), task().features(labelled()), 16), method="max")


def unit(model: PreTrainedModel, name: str) -> Unit:
    return next(unit for unit in find_units(model) if unit.name == name)


def ruin(*names: str) -> qdqpatch.QDQConfig:
    """Return a configuration that has 2 bits for these units, which no calibration makes up for."""
    paths = [path for name in names for path in unit(_quantized(), name).quantizers]
    return qdqpatch.QDQConfig(overrides={path: {"num_bits": 2} for path in paths})


def write_classifier(folder: Path) -> Path:
    """Write the float classifier and its tokenizer; return the folder."""
    classifier().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_data(file: Path, examples: Sequence[LabelledText], with_labels: bool = True) -> Path:
    """Write texts, and their labels in a second column, as .tsv; return the file."""
    header = ["text\tlabel"] if with_labels else ["text\tnumber"]
    rows = [f"{example.text}\t{example.label}" for example in examples]
    file.write_text("\n".join([*header, *rows]) + "\n", encoding="utf-8")
    return file


def texts(count: int, seed: int = 3) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS[5:], k=chosen.randint(2, 9))) for _ in range(count)]


@functools.cache
def _classifier() -> PreTrainedModel:
    model = models.build(HEAD)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight *= 5
        model.classifier.weight *= 10
        model.classifier.bias -= torch.from_numpy(_logits(model, texts(200)).mean(0))
    return model


@functools.cache
def _quantized() -> PreTrainedModel:
    return qdqpatch.quantize(classifier())


def _logits(model: PreTrainedModel, lines: Sequence[str]) -> np.ndarray:
    judge = TextClassification(tokenizer(), model.config, 32)
    features = judge.features([LabelledText(line, None, None) for line in lines])
    return np.stack([outputs["logits"] for outputs in predict(torch_run(model), judge, features)])
