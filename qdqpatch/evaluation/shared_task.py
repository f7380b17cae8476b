"""What all models share: the task, the config and the tokenizer; and whether they can."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from qdqpatch.checkpoint.companions import Companions, read_companions
from qdqpatch.checkpoint.files import find_file
from qdqpatch.checkpoint.processor import has_processor, load_processor
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.checkpoint.tokenizer import VOCABULARIES, load_tokenizer
from qdqpatch.data.lengths import config_limit
from qdqpatch.engines.homes import home_of
from qdqpatch.errors import ConfigError
from qdqpatch.spelling import counted
from qdqpatch.tasks import TASKS, default_length, make_task, task_of
from qdqpatch.tasks.base import Task
from qdqpatch.tasks.feature_extraction import FeatureExtraction
from qdqpatch.tasks.image_classification import ImageClassification

CLASSES = ("text-classification", "token-classification", "image-classification")
"""The tasks whose labels are those of the config."""

_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class Described:
    """What lies beside a model's weights; None for what does not.

    Attributes:
        name: The model, as the user named it.
        config: Its config.
        tokenizer: Its tokenizer.
        home: The folder that these are in, or the model's name on the hub.
        companions: What says how it is used, if it is in a folder of sentence-transformers.
    """

    name: str
    config: PreTrainedConfig | None
    tokenizer: PreTrainedTokenizerBase | None
    home: str
    companions: Companions | None


def settle(
    models: Sequence[str],
    task: str | None = None,
    max_length: int | None = None,
    options: Mapping[str, float] | None = None,
) -> Task[Any]:
    """Return the task that all models are for, with the first config and the first tokenizer among them.

    Args:
        models: Files, folders, and names of checkpoints on the hub.
        task: A key of `TASKS`; None for what the first config's head is for.
        max_length: Where sequences are cut; None for the task's default. At most what every model takes.
        options: What else is set, by the names in the task's `options`.

    Raises:
        CheckpointError: If a config or a tokenizer cannot be read.
        ConfigError: If there is none, the task is not clear, or the models differ in head, labels or words.
    """
    described = [_describe(name) for name in dict.fromkeys(models)]
    config = next((model.config for model in described if model.config is not None), None)
    of_images = config is not None and (
        task == ImageClassification.name or (task is None and _task_or_none(config) is ImageClassification)
    )
    tokenizer: Any = next((model.tokenizer for model in described if model.tokenizer is not None), None)
    needed = "tokenizer (tokenizer.json, vocab.txt)"
    if of_images:
        home = next((model.home for model in described if has_processor(model.home)), None)
        tokenizer = None if home is None else load_processor(home)
        needed = "image processor (preprocessor_config.json)"
    for found, file in ((config, "config.json"), (tokenizer, needed)):
        if found is None:
            raise ConfigError(
                f"There is no {file} beside {' or '.join(model.name for model in described)}. Name a model "
                "that has one as well, such as the checkpoint that the file was exported from."
            )
    assert config is not None
    assert tokenizer is not None
    kind = task_of(config) if task is None else TASKS[task]
    _check_heads(described, kind)
    if kind.name in CLASSES:
        _check_labels(described)
    _check_vocabularies(described)
    limits = (config_limit(model.config) for model in described if model.config is not None)
    companions = next((model.companions for model in described if model.companions is not None), None)
    length = min(max_length or default_length(kind, companions), *limits)
    return make_task(kind.name, tokenizer, config, length, options, companions)


def _describe(name: str) -> Described:
    path = Path(name)
    home = str(home_of(path)) if path.exists() else name
    has_config = not path.exists() or (Path(home) / "config.json").is_file()
    has_tokenizer = any(find_file(home, file) for file in VOCABULARIES)
    companions = read_companions(home)
    return Described(
        name,
        open_checkpoint(home).config if has_config else None,
        load_tokenizer(home) if has_tokenizer else None,
        home,
        companions if companions.modules else None,
    )


def _check_heads(described: Sequence[Described], kind: type[Task[Any]]) -> None:
    if kind is FeatureExtraction:  # what is below a head has embeddings too
        return
    for model in described:
        own = None if model.config is None else _task_or_none(model.config)
        if own is not None and own is not kind:
            raise ConfigError(f"{model.name} is a model for {own.name}, not for {kind.name}.")


def _task_or_none(config: PreTrainedConfig) -> type[Task[Any]] | None:
    try:
        return task_of(config)
    except ConfigError:
        return None


def _check_labels(described: Sequence[Described]) -> None:
    labelled = ((model.name, _labels(model.config)) for model in described if model.config is not None)
    for (first, labels), (name, others) in _with_first(labelled):
        if labels.keys() != others.keys():
            raise ConfigError(
                f"{first} has {counted(len(labels), 'label')} and {name} has {len(others)}: they cannot be "
                "compared."
            )
        for number, label in labels.items():
            if label and others[number] and label != others[number]:
                raise ConfigError(
                    f"Label {number} is {label!r} in {first} and {others[number]!r} in {name} (id2label in "
                    "config.json): they cannot be compared."
                )


def _labels(config: PreTrainedConfig) -> dict[int, str]:
    """Return the labels by number, in lower case; empty where the config has a placeholder."""
    return {
        int(number): "" if _UNNAMED.fullmatch(str(name)) else str(name).lower()
        for number, name in (config.id2label or {}).items()
    }


def _check_vocabularies(described: Sequence[Described]) -> None:
    known = ((model.name, model.tokenizer.get_vocab()) for model in described if model.tokenizer is not None)
    for (first, words), (name, others) in _with_first(known):
        if words != others:
            raise ConfigError(
                f"{name} has another vocabulary than {first}, and all models get the same tokens. Name "
                "models of one vocabulary."
            )


def _with_first(pairs: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Pair the first with each of the others."""
    first = list(itertools.islice(pairs, 1))
    return ((first[0], pair) for pair in pairs)
