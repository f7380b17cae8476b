"""The tasks that models are trained and evaluated on: data, features, metrics; one a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from qdqpatch.checkpoint.companions import Companions
from qdqpatch.checkpoint.processor import load_processor
from qdqpatch.checkpoint.tokenizer import load_tokenizer
from qdqpatch.choices import AUTO_CLASSES
from qdqpatch.data.lengths import config_limit
from qdqpatch.data.vocabulary import vocabulary_problem
from qdqpatch.errors import ConfigError
from qdqpatch.patching.own_code import named_code
from qdqpatch.spelling import spelled
from qdqpatch.tasks.base import Task
from qdqpatch.tasks.feature_extraction import FeatureExtraction
from qdqpatch.tasks.fill_mask import FillMask
from qdqpatch.tasks.image_classification import ImageClassification
from qdqpatch.tasks.multiple_choice import MultipleChoice
from qdqpatch.tasks.question_answering import QuestionAnswering
from qdqpatch.tasks.text_classification import TextClassification
from qdqpatch.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task[Any]]] = {
    task.name: task
    for task in (
        TextClassification,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        FillMask,
        FeatureExtraction,
        ImageClassification,
    )
}
"""Every task by its name, in the order of `qdqpatch.choices.MEASURED_TASKS`."""

_SUFFIXES = {
    name: auto_class.removeprefix("AutoModel") for name, auto_class in AUTO_CLASSES.items() if name in TASKS
}


def task_of(config: PreTrainedConfig) -> type[Task[Any]]:
    """Return the task of the head that a config names.

    Raises:
        ConfigError: If there is none for it.
    """
    architecture = named_code(config) or next(iter(config.architectures or []), "")
    for name, suffix in _SUFFIXES.items():
        if suffix and architecture.endswith(suffix):
            return TASKS[name]
    if architecture.endswith("Model") and not architecture.endswith("LMHeadModel"):
        return FeatureExtraction
    if not architecture:
        problem = "What task the model is for is not clear, because its config names no class"
    else:
        problem = f"No task here is that of {architecture}"
    raise ConfigError(
        f"{problem}; next-sentence prediction, text generation and pretraining are not covered. Name one "
        f"that is with {spelled('task')}: {', '.join(TASKS)}."
    )


def task_beside(
    ckpt: str,
    name: str | None,
    config: PreTrainedConfig,
    max_length: int | None = None,
    options: Mapping[str, float] | None = None,
    companions: Companions | None = None,
) -> Task[Any]:
    """Return the task of a checkpoint, with the tokenizer or image processor that lies beside it.

    Args:
        ckpt: A folder, or a model's name on the hub.
        name: As `make_task` takes it.
        config: The model's.
        max_length: As `make_task` takes it.
        options: As `make_task` takes them.
        companions: What lies beside the model.

    Raises:
        ConfigError: As `make_task` raises it.
        CheckpointError: If there is no tokenizer or image processor, or something beside the model cannot be
            read.
    """
    name = name or task_of(config).name
    reader = load_processor(ckpt) if name == ImageClassification.name else load_tokenizer(ckpt)
    return make_task(name, reader, config, max_length, options, companions)


def make_task(
    name: str | None,
    tokenizer: Any,
    config: PreTrainedConfig,
    max_length: int | None = None,
    options: Mapping[str, float] | None = None,
    companions: Companions | None = None,
) -> Task[Any]:
    """Return the task of a model.

    Args:
        name: A key of `TASKS`; None for what the head that the config names is for.
        tokenizer: The model's; of images its image processor.
        config: The model's.
        max_length: Where sequences are cut; None for the task's default. At most what the model takes.
        options: What else is set, by the names in the task's `options`.
        companions: What lies beside the model, for embeddings.

    Raises:
        ConfigError: If it is not clear which task it is, it has no such option, or the tokenizer has tokens
            that the model does not know.
        CheckpointError: If the modules beside the model cannot be read.
    """
    kind = task_of(config) if name is None else TASKS[name]
    for option in options or {}:
        if option not in kind.options:
            owners = " and ".join(task.name for task in TASKS.values() if option in task.options)
            raise ConfigError(f"{spelled(option)} is for {owners}, not for {kind.name}.")
    if issubclass(kind, ImageClassification):
        return kind(tokenizer, config)
    if problem := vocabulary_problem(tokenizer, config):
        raise ConfigError(problem)
    wanted = max_length or default_length(kind, companions)
    length = min(wanted, config_limit(config), tokenizer.model_max_length)
    if issubclass(kind, FeatureExtraction):
        return kind(tokenizer, config, length, companions)
    return kind(tokenizer, config, length, **(options or {}))


def default_length(kind: type[Task[Any]], companions: Companions | None) -> int:
    """Return where sequences are cut unless told otherwise: embeddings where their folder says."""
    if companions is not None and issubclass(kind, FeatureExtraction) and companions.max_length:
        return companions.max_length
    return kind.default_length
