"""What a task is: how its data is read, what the model is given, and what its outputs are worth."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from qdqpatch.data.arrays import Arrays
from qdqpatch.data.cutting import beginnings
from qdqpatch.errors import ConfigError, NoLabelsError
from qdqpatch.nn.pooling import SentenceHead
from qdqpatch.tasks.agreement import agreement
from qdqpatch.tasks.head import Meaning, meaning_of
from qdqpatch.tasks.metrics import Metric

Example = TypeVar("Example")

Feature = dict[str, Any]
"""What the model is given for one sequence: lists of ints without padding, and labels for training."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Columns:
    """The columns to read; None chooses one by its usual names.

    Attributes:
        text: The texts.
        text_pair: The second texts, for models that read two together.
        label: The labels.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class DataSource:
    """Where data comes from.

    Attributes:
        name: A file, or the name of a data set on the Hugging Face hub.
        columns: What to read of it.
        split: The split of a hub data set.
        subset: The subset (config) of a hub data set.
    """

    name: str
    columns: Columns = Columns()
    split: str | None = None
    subset: str | None = None


class Task(ABC, Generic[Example]):
    """A task with its tokenizer and the model's config; the model may be in torch or in an engine.

    Args:
        tokenizer: The model's.
        config: The model's, for its labels.
        max_length: Where sequences are cut, in tokens.

    Attributes:
        name: A key of `qdqpatch.choices.AUTO_CLASSES`.
        logits: The names of the outputs that the metric needs.
        by_token: Those of them that have an entry for each token.
        formats: What `read` takes, for help texts.
        default_length: Where sequences are cut unless told otherwise.
        options: What else can be set, by the names of the constructor's arguments: numbers and flags.
        unit: What features are called in messages.
        needs_labels: Whether training and the metric need labels in the data.
        has_loss: Whether such a model has a loss of its own, so that it can be trained without a teacher.
        head: What makes a text's embedding of the last hidden states; None where an output is what it is.
    """

    name: ClassVar[str]
    logits: ClassVar[tuple[str, ...]]
    by_token: ClassVar[tuple[str, ...]] = ()
    formats: ClassVar[str]
    default_length: ClassVar[int] = 128
    options: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "sequences"
    needs_labels: ClassVar[bool] = True
    has_loss: ClassVar[bool] = True
    head: SentenceHead | None = None

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, max_length: int | None = None
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.config = config
        self.max_length = max_length or self.default_length

    @abstractmethod
    def read(self, source: DataSource, labelled: bool = True) -> list[Example]:
        """Read all examples of a source.

        Args:
            source: The data.
            labelled: Whether each example must have a label; if not, labels are ignored.

        Raises:
            DataError: If anything in it is wrong; it names the file and the line.
            ConfigError: If the source's columns do not suit the task.
        """

    @abstractmethod
    def features(self, examples: Sequence[Example], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize examples; one example can give several features, which follow one another.

        Args:
            examples: What `read` gave.
            training: Whether to add labels, under the names by which the model takes them.
            seed: What random choices depend on, where a task makes any (`fill-mask`); another one for each
                epoch of training, the same one for all models that are compared.
        """

    @abstractmethod
    def score(
        self,
        examples: Sequence[Example],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return the task's metrics; the last one is the main one.

        Args:
            examples: The examples.
            features: Their features without labels.
            outputs: What `reduce` left of the model's outputs for each feature, as `predict` gives it.
            reference: The same of the model to compare with. Only tasks whose metric is a comparison
                (`feature-extraction`) use it.

        Raises:
            ConfigError: If the metric is a comparison and there is no reference.
        """

    def check_labels(self, examples: Sequence[Example]) -> None:
        """Find out before the work whether the labels of examples can tell models apart.

        Raises:
            DataError: If not.
        """

    def meaning(self, output: str, outcomes: int) -> Meaning:
        """Return what an output means, by its name and the size of its last dimension."""
        return meaning_of(output, outcomes)

    def read_any(self, source: DataSource) -> tuple[list[Example], NoLabelsError | None]:
        """Read all examples, with their labels if there are any, and what says that there are none.

        Raises:
            DataError: If anything in it is wrong, labels that are there too.
            ConfigError: If the source's columns do not suit the task.
        """
        try:
            return self.read(source), None
        except NoLabelsError as error:
            return self.read(source, labelled=False), error

    def compare(self, outputs: Sequence[Arrays], reference: Sequence[Arrays] | None) -> list[Metric]:
        """Return metrics that need no labels; the last one is the main one.

        Args:
            outputs: What `reduce` left of the model's outputs for each feature.
            reference: The same of the model to compare with.

        Raises:
            ConfigError: If there is no reference, or one that everything agrees with.
        """
        if reference is None:
            raise ConfigError(
                "The data has no labels, so models can only be compared: name another model beside this one, "
                "such as the one before quantization, or give data with labels."
            )
        return agreement(outputs, reference, self.logits, self.meaning)

    def closeness(
        self, examples: Sequence[Example], outputs: Sequence[Arrays], reference: Sequence[Arrays]
    ) -> list[Metric]:
        """Return how close a model's outputs are to another's, in every way that the head has; last the main.

        Args:
            examples: The examples.
            outputs: What `reduce` left of the model's outputs for each of their features.
            reference: The same of the model to compare with.
        """
        return self.compare(outputs, reference)

    def beginnings(self, texts: Iterable[str]) -> list[str]:
        """Return texts without what is certain to be cut off, so that it is not tokenized."""
        return beginnings(texts, self.tokenizer, self.max_length)

    def length(self, feature: Feature) -> int:
        """Return how long a feature is, in tokens: what batches of like length go by."""
        return len(feature["input_ids"])

    def reduce(self, feature: Feature, output: Arrays) -> Arrays:
        """Return what the score needs of the model's outputs for one feature.

        Outputs with an entry for each token can be too large to be kept for a whole data set, so what is
        returned should not be a view of them. Here all of it is kept.

        Args:
            feature: The feature, with everything that `features` put into it.
            output: The outputs named in `logits`, in fp32, without padding.
        """
        return output

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Pad features to the longest one and stack them; labels are padded with -100."""
        names = [name for name in MODEL_INPUTS if name in features[0]]
        batch: Batch = dict(
            self.tokenizer.pad(
                [{name: feature[name] for name in names} for feature in features],
                padding_side="right",  # positions are counted from the left
                return_tensors="pt",
            )
        )
        kinds = getattr(self.config, "type_vocab_size", None)
        if isinstance(kinds, int) and "token_type_ids" in batch:  # a model may know one kind of text alone
            batch["token_type_ids"] = batch["token_type_ids"].clamp(max=max(kinds - 1, 0))
        length = batch["input_ids"].shape[-1]
        for name in LABELS:
            if name in features[0]:
                batch[name] = torch.tensor([_padded(feature[name], length) for feature in features])
        return batch


MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask", "pixel_values")
LABELS = ("labels", "start_positions", "end_positions")
IGNORED = -100
"""The label of positions that count for nothing (`torch.nn.functional.cross_entropy`)."""


def _padded(label: Any, length: int) -> Any:
    return [*label, *[IGNORED] * (length - len(label))] if isinstance(label, list) else label


def rows(encoded: Any) -> list[Feature]:
    """Return what a tokenizer gave for several texts as one feature for each."""
    names = [name for name in MODEL_INPUTS if name in encoded]
    return [
        dict(zip(names, row, strict=True)) for row in zip(*(encoded[name] for name in names), strict=True)
    ]


def draw(examples: Sequence[Example], count: int | None, seed: int = 0) -> list[Example]:
    """Return `count` of the examples, drawn at random, in their order; None for all."""
    if count is None or count >= len(examples):
        return list(examples)
    chosen = random.Random(seed).sample(range(len(examples)), count)
    return [examples[place] for place in sorted(chosen)]
